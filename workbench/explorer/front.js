// Keys pressed in a widget belong to it: JupyterLab and VS Code would move to another cell.
function keepKeys(root) {
  const keep = ({ target }) => target.setAttribute("data-lm-suppress-shortcuts", "true");
  root.addEventListener("focusin", keep);
  // VS Code listens at the window of its outputs. Escape and keys with Ctrl still reach it.
  const plain = /^(.|Enter|Arrow.*|Home|End|Page.*|Backspace|Delete)$/;
  root.addEventListener("keydown", (event) => {
    const { key, ctrlKey, altKey, metaKey } = event;
    if (plain.test(key) && !(ctrlKey || altKey || metaKey)) event.stopPropagation();
  });
}

function prepare(el) {
  const root = el.closest(".workbench");
  if (root) {
    keepKeys(root);
    keepFocus(root);
    // Plotly fits a figure to its place when the window changes, but not when it first appears.
    new ResizeObserver(() => window.dispatchEvent(new Event("resize"))).observe(root);
  }
  else if (el.isConnected !== true) requestAnimationFrame(() => prepare(el));
}

// A button that is disabled by its own click loses the focus to the page: move it (Run to Cancel).
function keepFocus(root) {
  let last;
  root.addEventListener("focusin", ({ target }) => { last = target; });
  const move = () => {
    // Chromium leaves it on the disabled button for a while, where keys do nothing.
    if (!last?.disabled || ![last, document.body].includes(document.activeElement)) return;
    last.parentElement.querySelector("button:enabled")?.focus({ preventScroll: true });
  };
  new MutationObserver(move).observe(root, { attributeFilter: ["disabled"], subtree: true });
}

// Saves a Plotly figure in either format: its own toolbar button knows one format at a time.
function save(target, format, filename) {
  const figure = document.querySelector(`.${target} .js-plotly-plot, .${target}.js-plotly-plot`);
  const button = figure?.querySelector('.modebar-btn[data-title^="Download plot"]');
  if (!button) return;
  figure._context.toImageButtonOptions = { format, filename, scale: format === "png" ? 2 : 1 };
  button.click();
}

function render({ model, el }) {
  prepare(el);
  if (!model.get("target")) return;
  for (const format of ["svg", "png"]) {
    const button = document.createElement("button");
    button.className = "jupyter-widgets jupyter-button widget-button";
    button.textContent = `Save as ${format.toUpperCase()}`;
    button.onclick = () => save(model.get("target"), format, model.get("filename"));
    el.append(button);
  }
}

export default { render };
