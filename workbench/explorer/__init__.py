"""Widgets for JupyterLab and VS Code: a form that runs a notebook, and an explorer of its requests.

`opening` has what notebooks call, and decides whether widgets are shown; `form` and `explorer` are
the widgets. What they show is computed without widgets: `fields`, `running`, `sources`, `sampling`,
`one_request`.
"""
