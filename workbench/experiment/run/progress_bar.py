"""A progress bar below the lines of a run: in a terminal, or as a widget in JupyterLab.

Both are drawn from the lines themselves (see `progress`). Without a terminal or JupyterLab, as in a
log or under papermill, only the lines are printed.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from math import isnan, nan
from typing import Any, TextIO

from workbench.experiment.run.progress import Standing, read_standing, spell_s
from workbench.experiment.run.run_log import Echo, echo_line

_FORMAT = "{percentage:3.0f} %|{bar}| {n_fmt} of {total_fmt} {unit}, {elapsed} elapsed{postfix}"
_TICK_S = 1.0


class _Bar:
    """A tqdm bar that shows our own estimate of the time left, and ticks between passes."""

    def __init__(self, make: Callable[..., Any], **options: Any) -> None:
        self._make = partial(make, bar_format=_FORMAT, **options)
        self.drawn: Any = None
        """The tqdm bar; None before the first standing."""
        self._ends_s = nan
        self._stop = threading.Event()
        self._ticking = threading.Thread(target=self._tick, daemon=True)

    def move(self, standing: Standing) -> None:
        """Show this standing from now on."""
        new = self.drawn is None
        if new:
            self.drawn = self._make(total=standing.total, unit=standing.unit)
        bar = self.drawn
        bar.total, bar.n, bar.unit = standing.total, standing.done, standing.unit
        bar.start_t = time.time() - standing.elapsed_s
        self._ends_s = time.monotonic() + standing.left_s
        self._show()
        if new:
            self._ticking.start()

    def _show(self) -> None:
        left_s = max(0.0, self._ends_s - time.monotonic())
        left = "" if isnan(self._ends_s) else f"about {spell_s(left_s)} left"
        if self.drawn.n == self.drawn.total:
            left = "drawing figures"  # up to half a minute on a busy machine
        self.drawn.set_postfix_str(left)

    def _tick(self) -> None:
        while not self._stop.wait(_TICK_S):
            self._show()

    def close(self) -> None:
        self._stop.set()
        if self.drawn is not None:
            self._ticking.join()  # a tick behind the end would draw the bar once more
            self.drawn.close()


_COMMAND_LINE = re.compile(r"  (?:store|proxy|(?:prefill|decode|aggregated)-\d+) +\S")
"""What a plan prints of each process: hundreds of lines, which are also on the page."""


def without_commands(text: str) -> str:
    """The lines of a plan without the command lines of its processes."""
    return "\n".join(line for line in text.split("\n") if not _COMMAND_LINE.match(line))


class LineWriter:
    """A text stream for what a notebook prints: shows each whole line at once, and the bar below.

    In a terminal the bar shows the progress; elsewhere each line keeps its own. The command lines
    of the processes are only on the page.
    """

    def __init__(self, out: TextIO | None = None, err: TextIO | None = None) -> None:
        self._out, self._err = out or sys.stdout, err or sys.stderr
        self._part = ""
        self._bar: _Bar | None = None
        if self._err.isatty():
            from tqdm import tqdm

            self._bar = _Bar(tqdm, file=self._err, leave=False, dynamic_ncols=True)

    def write(self, text: str) -> int:
        """Take a piece of text, which may end within a line."""
        *lines, self._part = (self._part + text).split("\n")
        for line in lines:
            self._line(line)
        return len(text)

    def flush(self) -> None:
        self._out.flush()

    def _line(self, line: str) -> None:
        if _COMMAND_LINE.match(line):
            return
        shown, standing = read_standing(line)
        if self._bar is None:
            print(line, file=self._out, flush=True)
            return
        if self._bar.drawn is None:
            print(shown, file=self._out, flush=True)
        else:
            self._bar.drawn.write(shown, file=self._out)
        if standing is not None:
            self._bar.move(standing)

    def close(self) -> None:
        """End the bar, and show what came without a line break."""
        if self._bar is not None:
            self._bar.close()
        if self._part:
            print(self._part, file=self._out, flush=True)
            self._part = ""


def has_front_end() -> bool:
    """Whether this kernel's widgets are shown: in JupyterLab or VS Code, not under papermill."""
    if "JPY_SESSION_NAME" not in os.environ:  # Jupyter's server says so to the kernels it starts
        return _in_vs_code()
    import psutil

    with suppress(psutil.Error):
        # `!papermill ...` in a cell of JupyterLab hands the name on.
        words = psutil.Process(os.getppid()).cmdline()
        return not any(os.path.basename(word) in ("papermill", "workbench") for word in words[:3])
    return True


def _in_vs_code() -> bool:
    """Whether a notebook of VS Code runs here; it sets a variable, but not in the environment."""
    shell: Any = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None and "__vsc_ipynb_file__" in shell.user_ns


@contextmanager
def bar_in_lab(echo: Echo) -> Iterator[Echo]:
    """The same echo, with a bar above its lines if JupyterLab shows this kernel's output.

    After the run a line of text replaces the bar, since a widget needs a running kernel.
    """
    if echo is not echo_line or not has_front_end() or find_spec("ipywidgets") is None:
        yield echo
        return
    from tqdm.notebook import tqdm

    bar = _Bar(tqdm, display=False)
    display: Any = import_module("IPython.display").display
    handle: Any = None
    last: Standing | None = None

    def shown(line: str) -> None:
        nonlocal handle, last
        text, standing = read_standing(line)
        echo(text)
        if standing is not None:
            last = standing
            bar.move(standing)
            if handle is None:
                handle = display(bar.drawn.container, display_id=True)

    try:
        yield shown
    finally:
        bar.close()
        if handle is not None and last is not None:
            text = f"{last.done} of {last.total} {last.unit} in {spell_s(last.elapsed_s)}"
            handle.update({"text/plain": text}, raw=True)
