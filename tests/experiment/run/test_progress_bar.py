"""The bar is drawn in a terminal or in JupyterLab, and nowhere else."""

import io
import re
import sys
from types import SimpleNamespace

import nbformat
import pytest
from nbclient import NotebookClient

from workbench.experiment.run.progress_bar import LineWriter, has_front_end

LINES = (
    "pd_sweep 1p1d-abc  [0/4 passes, 0:00 elapsed, about 0:20 left]\n"
    "round 1/1  1p1d  cold  TTFT 40 ms  [1/4 passes, 0:05 elapsed, about 0:15 left]\n"
    "success after 5 s\n"
)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_without_a_terminal_each_line_stays_as_it_is_and_shows_at_once():
    out, err = io.StringIO(), io.StringIO()
    writer = LineWriter(out, err)
    writer.write(LINES[:20])
    assert out.getvalue() == ""  # half a line
    writer.write(LINES[20:])
    assert out.getvalue() == LINES
    writer.write("no end of line")
    writer.close()
    assert out.getvalue() == f"{LINES}no end of line\n"
    assert err.getvalue() == ""


def test_the_command_lines_of_a_plan_are_left_to_the_page():
    out = io.StringIO()
    writer = LineWriter(out, io.StringIO())
    writer.write(
        "arm 1p1d lmcache (subject): cold\n"
        "  store        python3 -m lmcache.cli.main server --port 20000\n"
        "  prefill-0    vllm serve --port 20002\n"
        "  failed: store-warm was store-warm\n"
    )
    writer.close()
    assert out.getvalue().splitlines() == [
        "arm 1p1d lmcache (subject): cold", "  failed: store-warm was store-warm",
    ]  # fmt: skip


def test_in_a_terminal_the_bar_says_how_far_and_the_lines_stay_short():
    out, err = io.StringIO(), Terminal()
    writer = LineWriter(out, err)
    writer.write(LINES)
    writer.write("last  [4/4 passes, 0:20 elapsed, about 0:00 left]\n")
    writer.close()
    assert out.getvalue().splitlines() == [
        "pd_sweep 1p1d-abc", "round 1/1  1p1d  cold  TTFT 40 ms", "success after 5 s",
        "last",
    ]  # fmt: skip
    bars = [text.strip() for text in re.split(r"[\r\n]", err.getvalue()) if text.strip()]
    assert any("1 of 4 passes, 00:05 elapsed, about 0:15 left" in bar for bar in bars)
    assert bars[-1].endswith("4 of 4 passes, 00:20 elapsed, drawing figures")


@pytest.mark.parametrize("name", ["papermill", "workbench"])
def test_a_kernel_that_papermill_started_has_no_front_end(name, monkeypatch):
    words = ["/usr/bin/python3", f"/somewhere/bin/{name}", "notebook.ipynb"]
    monkeypatch.setattr("psutil.Process.cmdline", lambda _: words)
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    assert not has_front_end()
    monkeypatch.setenv("JPY_SESSION_NAME", "notebooks/pd_sweep.ipynb")  # `!papermill` in a cell
    assert not has_front_end()


def test_a_notebook_of_vs_code_has_a_front_end(monkeypatch):
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    shell = SimpleNamespace(user_ns={})
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)
    assert not has_front_end()
    shell.user_ns["__vsc_ipynb_file__"] = "notebooks/pd_sweep.ipynb"
    assert has_front_end()


CELL = f"""
import asyncio
from workbench.experiment.run.progress_bar import bar_in_lab
from workbench.experiment.run.run_log import echo_line
with bar_in_lab(echo_line) as echo:
    for line in {LINES.splitlines()!r}:
        echo(line)
"""


@pytest.mark.parametrize("lab", [False, True])
def test_a_notebook_keeps_text_and_no_widget_that_needs_its_kernel(lab, monkeypatch):
    if lab:
        monkeypatch.setenv("JPY_SESSION_NAME", "notebooks/pd_sweep.ipynb")
    else:
        monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    monkeypatch.setattr(sys, "argv", ["pytest"])
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)])
    NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
    outputs = notebook.cells[0].outputs
    printed = "".join(o.text for o in outputs if o.output_type == "stream" and o.name == "stdout")
    shown = [o.data for o in outputs if o.output_type == "display_data"]
    if lab:
        assert printed.splitlines()[1] == "round 1/1  1p1d  cold  TTFT 40 ms"
        assert shown == [{"text/plain": "1 of 4 passes in 0:05"}]
    else:
        assert printed == LINES
        assert shown == []
