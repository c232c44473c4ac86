"""What the widgets have in common."""

from __future__ import annotations

import ipywidgets as widgets


class Widget(widgets.VBox):  # type: ignore[misc]
    """A column of parts that the style sheet of `style` reaches."""

    def __init__(self, parts: list[widgets.Widget]) -> None:
        super().__init__(parts)
        self.add_class("workbench")

    def __repr__(self) -> str:
        """A front end that no longer has the widget shows this, as VS Code after a restart."""
        return "Run this cell again to show its widget."
