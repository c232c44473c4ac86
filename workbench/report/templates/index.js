// The filters of the list of runs. Without this script the filters are hidden and every row is shown.
(() => {
  const bar = document.querySelector(".filters");
  const picks = [...bar.querySelectorAll("select")];
  const rows = [...document.querySelectorAll("tr[data-outcome]")];
  const charts = [...document.querySelectorAll(".over-time")];
  const sections = [...document.querySelectorAll("section[data-notebook]")];
  const fits = (part, wanted) => wanted.every(([name, value]) =>
    name === "notebook" ? part.closest("section").dataset.notebook === value
      : !(name in part.dataset) || part.dataset[name].split("|").includes(value));
  const show = () => {
    const wanted = picks.filter((pick) => pick.value).map((pick) => [pick.dataset.name, pick.value]);
    for (const part of [...rows, ...charts]) part.hidden = !fits(part, wanted);
    for (const part of document.querySelectorAll(".series"))
      part.hidden = !part.querySelector(".over-time:not([hidden])");
    for (const section of sections) section.hidden = !section.querySelector("tr[data-outcome]:not([hidden])");
    const shown = rows.filter((row) => !row.hidden).length;
    bar.querySelector("output").textContent =
      shown === rows.length ? `${rows.length} runs` : `${shown} of ${rows.length} runs`;
  };
  bar.addEventListener("change", show);
  bar.hidden = false;
  show();
})();
