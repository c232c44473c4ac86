document.querySelectorAll("table.claims").forEach((table) => {
  const body = table.tBodies[0];
  const sortBy = (column, down) => {
    const key = (row) => column < 0 ? row.dataset.place.padStart(6, "0") : row.cells[column].dataset.key;
    const rows = [...body.rows].sort((a, b) => key(a).localeCompare(key(b), "en", { numeric: true }) * (down ? -1 : 1));
    rows.forEach((row) => body.append(row));
  };
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.onclick = () => {
      const was = head.getAttribute("aria-sort");
      [...table.tHead.rows[0].cells].forEach((cell) => cell.removeAttribute("aria-sort"));
      if (was === "descending") { sortBy(-1, false); return; }
      head.setAttribute("aria-sort", was === "ascending" ? "descending" : "ascending");
      sortBy(column, was === "ascending");
    };
  });
});
const openClaim = () => {
  const claim = location.hash.startsWith("#claim-") && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (claim) { claim.open = true; claim.scrollIntoView(); }
};
addEventListener("hashchange", openClaim);
openClaim();
