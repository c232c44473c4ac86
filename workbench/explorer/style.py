"""The style sheet of the widgets, in the colours of the front end."""

from __future__ import annotations

_TEXT = "var(--jp-ui-font-color1, var(--vscode-editor-foreground, #1b2430))"
_RULE = "var(--jp-border-color2, var(--vscode-panel-border, #cfd6dd))"
_WRONG = "var(--jp-error-color1, var(--vscode-errorForeground, #b3261e))"
_VSCODE_DARK = ":is(.vscode-dark, [data-vscode-theme-kind=vscode-high-contrast])"
_DARK = f":is([data-jp-theme-light=false], {_VSCODE_DARK})"


def style() -> str:
    """A `style` element; it applies only within the class `workbench`."""
    return f"""<style>
.workbench, .workbench .widget-html-content {{ color: {_TEXT}; line-height: 1.45; }}
.workbench .widget-html-content {{ min-width: 0; }}
.workbench h3 {{ margin: 8px 0 4px; font-size: 1.15em; overflow-wrap: anywhere; }}
.workbench h4 {{ margin: 10px 0 4px; }}
.workbench p {{ margin: 2px 0; }}
.workbench table {{ border-collapse: collapse; }}
.workbench td, .workbench th {{ padding: 1px 14px 1px 0; text-align: left; }}
.workbench td i {{ display: inline-block; width: 11px; height: 11px; margin-right: 6px; }}
.workbench caption {{ text-align: left; font-weight: 600; padding-top: 8px; }}
.workbench pre {{ max-height: 260px; overflow: auto; padding: 6px 8px; margin: 2px 0;
  border: 1px solid {_RULE}; color: {_TEXT}; background: transparent; font-size: 12px;
  white-space: pre-wrap; word-break: normal; overflow-wrap: anywhere; }}
.wb-bar {{ display: flex; height: 22px; max-width: 900px; margin: 2px 0 4px; }}
.wb-bar span {{ min-width: 1px; }}
.workbench .wb-number {{ text-align: right; font-variant-numeric: tabular-nums; }}
.wb-bar span, .workbench td i {{ box-shadow: inset 0 0 0 1px #7f8c99; }}
.wb-drawing {{ overflow-x: auto; background: #fff; padding: 6px; max-width: 800px; }}
.wb-drawing svg {{ width: 100%; min-width: 560px; height: auto; }}
/* VS Code lays widgets on white, in the colours of a light JupyterLab, under every theme. */
{_VSCODE_DARK} :is(.workbench, .cell-output-ipywidget-background:has(.workbench)) {{
  background: var(--vscode-notebook-editorBackground, var(--vscode-editor-background))
  !important; }}
{_VSCODE_DARK} .workbench {{ color-scheme: dark;
  --jp-ui-font-color1: var(--vscode-editor-foreground);
  --jp-content-font-color1: var(--jp-ui-font-color1); --jp-widgets-color: var(--jp-ui-font-color1);
  --jp-widgets-label-color: var(--jp-ui-font-color1);
  --jp-widgets-readout-color: var(--jp-ui-font-color1);
  --jp-widgets-input-color: var(--vscode-input-foreground);
  --jp-widgets-input-background-color: var(--vscode-input-background);
  --jp-widgets-input-border-color: #7f8c99; --jp-widgets-slider-handle-border-color: #7f8c99;
  --jp-widgets-slider-handle-background-color: var(--vscode-editor-background);
  --jp-layout-color1: var(--vscode-editor-background); --jp-layout-color2: #7f8c9933;
  --jp-layout-color3: #7f8c9966; --jp-border-color1: #7f8c99;
  --jp-border-color2: var(--vscode-panel-border);
  --jp-error-color1: var(--vscode-errorForeground); }}
{_VSCODE_DARK} .workbench .widget-dropdown > select {{ appearance: auto; background-image: none; }}
/* As on a dark report page: the lightness of a drawing made for white is turned round, its hues
   stay. What is saved keeps the colours for white. */
{_DARK} .workbench :is(.js-plotly-plot, .our-chart) {{ filter: invert(1) hue-rotate(180deg);
  mix-blend-mode: screen; }}
{_DARK} .workbench .wb-drawing {{ background: transparent; }}
.workbench .modebar-btn[data-title^="Download plot"] {{ display: none; }}
.wb-help {{ opacity: .85; }}
.wb-field {{ flex-flow: row wrap; align-items: center; }}
.wb-field > .widget-html {{ flex: 1 1 240px; }}
.workbench .wb-group {{ text-align: left; }}
.workbench .wb-wrong :is(input, select) {{ box-shadow: 0 0 0 2px {_WRONG} !important; }}
.workbench .wb-error {{ color: {_WRONG}; font-weight: 600; }}
.workbench .wb-problem .widget-html-content {{ color: {_WRONG}; font-weight: 600; }}
.workbench :focus-visible {{ outline: 2px solid #0072B2; outline-offset: 1px; }}
</style>"""
