// Saves a Plotly figure in either format: its own toolbar button knows one format at a time.
function save(target, format, filename) {
  const figure = document.querySelector(`.${target} .js-plotly-plot, .${target}.js-plotly-plot`);
  const button = figure?.querySelector('.modebar-btn[data-title^="Download plot"]');
  if (!button) return;
  figure._context.toImageButtonOptions = { format, filename, scale: format === "png" ? 2 : 1 };
  button.click();
}

function render({ model, el }) {
  for (const format of ["svg", "png"]) {
    const button = document.createElement("button");
    button.className = "jupyter-button widget-button";
    button.textContent = `Save as ${format.toUpperCase()}`;
    button.onclick = () => save(model.get("target"), format, model.get("filename"));
    el.append(button);
  }
}

export default { render };
