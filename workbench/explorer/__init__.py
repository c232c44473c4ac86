"""Widgets for JupyterLab and VS Code: a form that runs a notebook, an explorer, and sliders.

`opening` has what notebooks call, and decides whether widgets are shown; `form`, `explorer` and
`sliders` are the widgets. What they show is computed without widgets: `fields`, `running`,
`sources`, `sampling`, `one_request`.
"""
