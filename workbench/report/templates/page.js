(() => {
  const main = document.querySelector("main");
  const make = (tag, properties) => Object.assign(document.createElement(tag), properties);

  const copy = async (text) => {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      // a page that came over plain HTTP has no clipboard of its own
      const box = make("textarea", { value: text, className: "copying" });
      document.body.append(box);
      box.select();
      const done = document.execCommand("copy");
      box.remove();
      return done;
    }
  };

  const save = (name, blob) => {
    const link = make("a", { download: name, href: URL.createObjectURL(blob) });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  };

  const button = (label, name, act) => {
    const made = make("button", { type: "button", textContent: label, ariaLabel: name });
    made.onclick = async () => {
      const done = (await act()) === false ? "Not possible here" : act.done;
      Object.assign(made, { textContent: done, ariaLabel: done });
      setTimeout(() => Object.assign(made, { textContent: label, ariaLabel: name }), 1500);
    };
    return made;
  };
  const saving = (act) => Object.assign(act, { done: "Saved" });
  const copying = (act) => Object.assign(act, { done: "Copied" });
  const tools = (...buttons) => {
    const bar = make("div", { className: "tools" });
    bar.append(...buttons);
    return bar;
  };

  // figures: saved as they were drawn, also from a dark page
  const asPng = (source, width, height) => new Promise((resolve) => {
    const picture = new Image();
    picture.onerror = () => resolve(null);
    picture.onload = () => {
      const canvas = make("canvas", { width: 2 * width, height: 2 * height });
      const pen = canvas.getContext("2d");
      pen.fillStyle = "#fff";
      pen.fillRect(0, 0, canvas.width, canvas.height);
      pen.drawImage(picture, 0, 0, canvas.width, canvas.height);
      canvas.toBlob(resolve, "image/png");
    };
    picture.src = source;
  });
  document.querySelectorAll("figure").forEach((figure, place) => {
    const drawing = figure.querySelector(".drawing > svg, .drawing > img");
    if (!drawing) return;
    const name = `${main.dataset.name}-figure-${place + 1}`;
    const png = (source, width, height) => saving(async () => {
      const blob = await asPng(source(), width, height);
      return blob ? save(`${name}.png`, blob) : false;
    });
    if (drawing.tagName === "IMG") {
      const act = png(() => drawing.src, drawing.naturalWidth / 2, drawing.naturalHeight / 2);
      figure.append(tools(button("PNG", `Save figure ${place + 1} as PNG`, act)));
      return;
    }
    const text = () => new XMLSerializer().serializeToString(drawing);
    const source = () => `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text())}`;
    const { width, height } = drawing.viewBox.baseVal;
    figure.append(tools(
      button("SVG", `Save figure ${place + 1} as SVG`,
        saving(() => save(`${name}.svg`, new Blob([text()], { type: "image/svg+xml" })))),
      button("PNG", `Save figure ${place + 1} as PNG`, png(source, width, height)),
    ));
  });

  // tables: a cell that spans several is repeated, a number that must not be used says so
  const words = (cell) => {
    const twin = cell.cloneNode(true);
    twin.querySelectorAll("br").forEach((line) => line.replaceWith(" "));
    return twin.textContent.replace(/\s+/g, " ").trim();
  };
  const cells = (table, struck) => {
    const rows = [...table.rows].map(() => []);
    [...table.rows].forEach((row, y) => [...row.cells].forEach((cell) => {
      const line = getComputedStyle(cell).textDecorationLine.includes("line-through");
      const text = line && words(cell) ? struck(words(cell)) : words(cell);
      const x = [...rows[y], undefined].findIndex((known) => known === undefined);
      for (let down = 0; down < cell.rowSpan && y + down < rows.length; down += 1)
        for (let right = 0; right < cell.colSpan; right += 1) rows[y + down][x + right] = text;
    }));
    return rows;
  };
  const markdown = (table) => {
    const rows = cells(table, (text) => `~~${text}~~`);
    const line = (row) => `| ${row.map((text) => text.replaceAll("|", "\\|")).join(" | ")} |`;
    const head = table.tHead ? rows.shift() : rows[0].map(() => "");
    const said = [table.caption && words(table.caption), document.querySelector(".band")?.textContent.trim()];
    return [...said.filter(Boolean).map((text) => `${text}\n`),
      line(head), line(head.map(() => "---")), ...rows.map(line), ""].join("\n");
  };
  const csv = (table) => cells(table, (text) => `not valid: ${text}`)
    .map((row) => row.map((text) => /[",]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text).join(","))
    .join("\r\n") + "\r\n";
  document.querySelectorAll(".table, .claims-wide").forEach((frame) => {
    const table = frame.querySelector("table");
    const rows = table.tBodies[0]?.rows.length ?? 0;
    const all = make("button", { type: "button", textContent: `Show all ${rows} rows` });
    all.onclick = () => { table.classList.remove("short"); all.remove(); };
    table.classList.toggle("short", rows > 16);
    frame.after(tools(
      ...(rows > 16 ? [all] : []),
      button("Copy as Markdown", "Copy this table as Markdown", copying(() => copy(markdown(table)))),
      button("Copy as CSV", "Copy this table as CSV", copying(() => copy(csv(table)))),
    ));
  });
  const command = document.getElementById("command");
  command?.after(button("Copy", "Copy the command", copying(() => copy(command.textContent))));

  // what scrolls sideways can be reached by keyboard
  document.querySelectorAll(".drawing").forEach((box) => {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
  });

  // the section that is read, in the list of sections
  const links = [...document.querySelectorAll("nav a")];
  const heads = links.map((link) => document.getElementById(decodeURIComponent(link.hash.slice(1))));
  const mark = () => {
    const atEnd = innerHeight + scrollY >= document.documentElement.scrollHeight - 4;
    const now = atEnd ? heads.length - 1
      : heads.findLastIndex((head) => head.getBoundingClientRect().top < innerHeight * 0.3);
    links.forEach((link, place) => {
      if (place === now) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    });
  };
  addEventListener("scroll", mark, { passive: true });
  mark();

  // glossary words: shown by mouse, keyboard and touch, within the window
  const tip = make("div", { className: "tip", hidden: true });
  document.body.append(tip);
  let term = null;
  const place = () => {
    if (!term) return;
    const at = term.getBoundingClientRect();
    const room = document.documentElement.clientWidth - tip.offsetWidth - 8;
    const below = at.bottom + 6 + tip.offsetHeight < innerHeight;
    tip.style.left = `${Math.max(8, Math.min(at.left, room))}px`;
    tip.style.top = `${below ? at.bottom + 6 : at.top - tip.offsetHeight - 6}px`;
  };
  const explain = (node) => {
    term = node;
    tip.hidden = !term;
    if (!term) return;
    tip.textContent = document.getElementById(term.getAttribute("aria-describedby")).textContent;
    place();
  };
  const from = (event) => explain(event.target.closest("dfn"));
  for (const kind of ["mouseover", "focusin", "click"]) document.addEventListener(kind, from);
  document.addEventListener("focusout", () => explain(null));
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") explain(null); });
  addEventListener("scroll", place, { passive: true });

  // on paper nothing can be unfolded
  const folded = () => document.querySelectorAll("details[data-print]");
  addEventListener("beforeprint", () => folded().forEach((part) => {
    part.dataset.print = part.open ? "open" : "";
    part.open = true;
  }));
  addEventListener("afterprint", () => folded().forEach((part) => {
    part.open = part.dataset.print === "open";
  }));
})();
