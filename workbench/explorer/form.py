"""The form of a notebook's parameters: checked as you type, with plan, Run and Cancel."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Mapping
from html import escape
from typing import Any

import ipywidgets as widgets
import numpy as np

from workbench.errors import WorkbenchError
from workbench.experiment.findings.findings import repeat_command
from workbench.experiment.result.result import Result
from workbench.experiment.run.progress import spell_s
from workbench.experiment.run.progress_bar import without_commands
from workbench.explorer import pictures
from workbench.explorer.explorer import Explorer
from workbench.explorer.fields import Field, as_text, checked, fields_of, named_in, problems
from workbench.explorer.running import Planned, Seen, last_log_lines, logs_folder, planned
from workbench.explorer.sources import source_of
from workbench.explorer.style import style
from workbench.explorer.widget import Widget

PLAN_AFTER_S = 0.5
"""The plan is updated when nothing was typed for so long."""
TICK_S = 1.0
"""How often the display of a run is updated."""
_LIVE_POINTS = 5_000
_LAST_LINES = 12


class Form(Widget):
    """A form for one notebook. `result` is that of the last run, None before one succeeds.

    The run is a task of the notebook's event loop, as `await wb.run(plan)` in a cell would be.
    """

    def __init__(self, notebook: str, values: Mapping[str, Any]) -> None:
        self.notebook = notebook
        self.result: Result | None = None
        self.task: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._fields = fields_of(notebook)
        self._planning: asyncio.Task[None] | None = None
        self._plan: Planned | None = None
        self._params: Any = None
        self.inputs = {field.name: _input(field, values) for field in self._fields}
        self._said = {field.name: widgets.HTML() for field in self._fields}
        self._buttons: dict[str, Any] = {}
        self.problem = widgets.HTML()
        self.problem.add_class("wb-problem")
        self.command = widgets.Text(
            description="Command", disabled=False, layout=widgets.Layout(width="auto")
        )
        self.plan_text = widgets.HTML()
        self.run_button = widgets.Button(description="Run", button_style="primary")
        self.cancel_button = widgets.Button(description="Cancel", disabled=True)
        self.bar = widgets.IntProgress(min=0, max=1, layout=widgets.Layout(width="300px"))
        self.state, self.lines, self.logs = widgets.HTML(), widgets.HTML(), widgets.HTML()
        self.chart = widgets.VBox()
        self.below = widgets.VBox()
        self._shown = [self.bar, self.chart, self.logs]
        self._visible(False)
        for one in self.inputs.values():
            one.observe(lambda _: self.check(), "value")
        self.run_button.on_click(lambda _: self._loop.call_soon_threadsafe(self.run))
        self.cancel_button.on_click(lambda _: self._loop.call_soon_threadsafe(self.cancel))
        super().__init__(
            [
                widgets.HTML(f"{style()}<h3>{escape(notebook)}</h3>"),
                pictures.Front(),
                *self._groups(),
                self.problem,
                self.plan_text,
                self.command,
                widgets.HBox([self.run_button, self.cancel_button, self.bar, self.state]),
                self.lines,
                self.chart,
                self.logs,
                self.below,
            ]
        )
        self.check()

    def _groups(self) -> list[Any]:
        """A button per group that shows its fields; the first group is open."""
        groups: dict[str, list[Any]] = {}
        for field in self._fields:
            row = widgets.HBox([self.inputs[field.name], self._said[field.name]])
            row.add_class("wb-field")
            groups.setdefault(field.group, []).append(row)
        shown: list[Any] = []
        for number, (name, rows) in enumerate(groups.items()):
            box = widgets.VBox(rows)
            button = widgets.ToggleButton(
                value=not number, description=f"{name} ({len(rows)})",
                layout=widgets.Layout(width="auto"),
            )  # fmt: skip

            def show(_: Any = None, button: Any = button, box: Any = box) -> None:
                box.layout.display = "" if button.value else "none"
                button.icon = "chevron-down" if button.value else "chevron-right"

            self._buttons[name] = button
            button.add_class("wb-group")
            button.observe(show, "value")
            show()
            shown += [button, box]
        return shown

    # ---- before a run

    def check(self) -> None:
        """Say at once what is wrong with the values; if nothing is, plan soon."""
        texts = {name: one.value for name, one in self.inputs.items()}
        self._params = self._plan = None
        wrong = problems(self.notebook, self._fields, texts)
        self._refuse(wrong)
        if wrong:
            return
        self._params = checked(self.notebook, self._fields, texts)
        self.command.value = repeat_command(self.notebook, self._params)
        self._loop.call_soon_threadsafe(self._plan_soon)

    def _refuse(self, wrong: Mapping[str, str]) -> None:
        """Show what is wrong: at its field, at the button of its group, and above Run."""
        for field in self._fields:
            one, sentence = self.inputs[field.name], wrong.get(field.name, "")
            (one.add_class if sentence else one.remove_class)("wb-wrong")
            kind = "wb-error" if sentence else "wb-help"
            self._said[
                field.name
            ].value = f"<span class='{kind}'>{escape(sentence or field.help)}</span>"
        for name, button in self._buttons.items():
            of_group = [field.name for field in self._fields if field.group == name]
            count = len(wrong.keys() & set(of_group))
            said = f", {count} wrong" * bool(count)
            button.description = f"{name} ({len(of_group)}{said})"
            (button.add_class if count else button.remove_class)("wb-error")
        lines = "".join(f"<p>{escape(sentence)}</p>" for sentence in wrong.values())
        self.problem.value = f"<div role='alert'>{lines}</div>" if lines else ""
        self.run_button.disabled = bool(wrong) or self._plan is None or self.running
        if wrong:
            self.plan_text.value = self.command.value = ""

    def _plan_soon(self) -> None:
        if self._planning is not None:
            self._planning.cancel()
        self._planning = self._loop.create_task(self._make_plan(self._params))

    async def _make_plan(self, params: Any) -> None:
        await asyncio.sleep(PLAN_AFTER_S)
        if params is None or params is not self._params:
            return
        try:
            made = await asyncio.to_thread(planned, params)
        except WorkbenchError as error:
            if params is self._params:
                sentence = str(error)
                self._refuse({named_in(sentence, self._fields): sentence})
            return
        if params is self._params:
            self._plan = made
            text, durations = _short(made.text)
            self.plan_text.value = f"<pre tabindex='0'>{escape(text)}</pre>" + "".join(
                f"<p>{escape(line[:1].upper() + line[1:])}</p>" for line in durations
            )
            self.run_button.disabled = self.running

    # ---- a run

    @property
    def running(self) -> bool:
        """Whether a run is under way."""
        return self.task is not None and not self.task.done()

    def run(self) -> None:
        """Start the planned run."""
        if self._plan is not None and not self.running:
            self.task = self._loop.create_task(self._run(self._plan, self._params))

    def cancel(self) -> None:
        """Stop the run; it ends its servers and keeps the launches that ended."""
        if self.running and self.task is not None:
            self.cancel_button.disabled = True
            self.state.value = "cancelling: servers are being stopped"
            self.task.cancel()

    async def _run(self, plan: Planned, params: Any) -> None:
        seen, live = Seen(), _Live()
        began_s, folder = time.time(), logs_folder(self.notebook, params)
        self.run_button.disabled, self.cancel_button.disabled = True, False
        self.below.children, self.chart.children = (), ()
        self.problem.value, self.bar.value, self.state.value = "", 0, "starting"
        self._visible(True)

        def show() -> None:
            self._show(seen, live, last_log_lines(folder, since_s=began_s))

        ticking = self._loop.create_task(_every(TICK_S, show))
        ended = "failed"
        try:
            self.result = await plan.start(seen.echo, seen.record)
            ended = "finished"
        except asyncio.CancelledError:
            ended = "cancelled"
        except Exception as error:  # of whatever kind: a task has nobody who reads its exception
            said = str(error) if isinstance(error, WorkbenchError) else repr(error)
            self.problem.value = f"<span role='alert'>{escape(said)}</span>"
        finally:
            ticking.cancel()
            show()
            kept = "; finished launches are kept, and Run continues" * (ended == "cancelled")
            self.state.value = f"{ended} after {spell_s(time.time() - began_s)}{kept}"
            self.cancel_button.disabled, self.run_button.disabled = True, self._plan is None
            self.logs.value = ""
        if ended == "finished" and self.result is not None:
            self._explore(self.result)

    def _show(self, seen: Seen, live: _Live, logs: list[tuple[str, str]]) -> None:
        lines = "\n".join(seen.lines[-_LAST_LINES:])
        self.lines.value = f"<pre tabindex='0'>{escape(lines)}</pre>"
        if seen.standing is not None:
            now = seen.standing
            self.bar.max, self.bar.value = max(1, now.total), now.done
            if not self.cancel_button.disabled:
                left = spell_s(now.left_s)
                self.state.value = f"{now.done} of {now.total} {now.unit}" + (
                    f", about {left} left" if left else ""
                )
        if live.add(seen.taken()) and not self.chart.children:
            self.chart.children = (live.figure,)
        last = "\n".join(f"{name:12} {line}" for name, line in logs)
        self.logs.value = (
            f"<p>Last log lines</p><pre tabindex='0'>{escape(last)}</pre>" if last else ""
        )

    def _explore(self, result: Result) -> None:
        found = widgets.HTML(f"<p><b>{escape(result.run.finding)}</b><br>{result.folder}</p>")
        try:
            self.below.children = (found, Explorer([source_of(result)]))
        except WorkbenchError as error:  # a result without requests
            self.below.children = (found, widgets.HTML(f"<p>{escape(str(error))}</p>"))

    def _visible(self, visible: bool) -> None:
        for one in self._shown:
            one.layout.display = "" if visible else "none"


class _Live:
    """A chart of TTFT by request that grows while a run is under way."""

    def __init__(self) -> None:
        self.figure = pictures.board(pictures.panels(1, 1, [[{}]]))
        self.figure.layout.dragmode = "zoom"
        self.figure.update_xaxes(title_text="requests in order of completion")
        self._count = 0
        self._points: dict[str, list[tuple[int, float]]] = {}

    def add(self, rows: Any) -> bool:
        """Draw these requests too; whether there is anything to show."""
        if rows.empty:
            return bool(self._points)
        for arm, state, ttft_s in zip(rows["arm"], rows["pass"], rows["ttft_s"], strict=True):
            self._count += 1
            self._points.setdefault(f"{arm}, {state}", []).append((self._count, 1000 * ttft_s))
        looks = pictures.markers(list(self._points))
        share = max(10, _LIVE_POINTS // len(self._points))
        drawn = 0
        with self.figure.batch_update():
            for number, (name, points) in enumerate(self._points.items()):
                if number >= len(self.figure.data):
                    kind = pictures.scatter(0)
                    self.figure.add_trace(kind(mode="markers", name=name))
                x, y = np.array(points[-share:]).T
                drawn += len(x)
                self.figure.data[number].update(x=x, y=y, marker=pictures.MARKER | looks[name])
            pictures.place_legend(self.figure, list(self._points), panels_px=300)
            every = np.array([point[1] for points in self._points.values() for point in points])
            pictures.set_axis(self.figure.layout.yaxis, "TTFT, ms", every)
            if drawn < self._count:
                self.figure.layout.xaxis.title.text = (
                    f"requests in order of completion (the last {drawn:,} of {self._count:,})"
                )
        return True


def _short(plan: str) -> tuple[str, list[str]]:
    """A plan without command lines, gaps and durations; and its durations, a line each.

    They are shown below the plan, which scrolls.
    """
    found = re.findall(r"(?m)^duration: .*$", plan)
    rest = re.sub(r"(?m)^duration: .*$", "", without_commands(plan))
    return re.sub(r"\n{3,}", "\n\n", rest).strip("\n"), found


async def _every(period_s: float, do: Callable[[], None]) -> None:
    while True:
        await asyncio.sleep(period_s)
        do()


def _input(field: Field, values: Mapping[str, Any]) -> Any:
    """The widget of a parameter. Numbers are typed as text, so that a wrong one gets an error."""
    value = values.get(field.name, field.default)
    style_of, layout = {"description_width": "140px"}, widgets.Layout(width="330px")
    if isinstance(field.default, bool):
        return widgets.Checkbox(
            value=str(value).lower() == "true",
            description=field.name,
            style=style_of,
            layout=layout,
        )
    if field.choices:
        options = list(dict.fromkeys([*field.choices, as_text(value)]))
        return widgets.Dropdown(
            options=options,
            value=as_text(value),
            description=field.name,
            style=style_of,
            layout=layout,
        )
    return widgets.Text(value=as_text(value), description=field.name, style=style_of, layout=layout)
