"""The widgets as a user meets them: real JupyterLab, real Chromium, mouse and keyboard.

One session for all, since it takes most of the time to start.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from matplotlib.image import imread

from tests.conftest import left_running, marked_processes
from tests.whatif.known import known_profile
from workbench.experiment.result.result import Result

CHROMIUM = shutil.which("chromium")
NOTEBOOK = "explore.ipynb"

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium"),
    pytest.mark.alone,
]


@pytest.fixture
def lab(recorded: Result, tmp_path: Path, nothing_running: str) -> Iterator[str]:
    """The address of a JupyterLab with a notebook of a form, an explorer, and sliders."""
    pytest.importorskip("jupyterlab", reason="pip install -e .[notebooks]")
    values = f"engine='simulated', topology='1a', rounds=50, output_dir={str(tmp_path / 'out')!r}"
    cells = [
        f"import workbench as wb\nwb.form('pd_sweep', connector='none', {values})",
        f"wb.explore({str(recorded.folder)!r})",
        f"wb.what_if({str(known_profile().write(tmp_path))!r}, prompt_tokens=4000)",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    root = tmp_path / "notebooks"
    root.mkdir()
    nbformat.write(notebook, root / NOTEBOOK)
    settings = root / "settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text('{"fetchNews": "false"}')
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folders = {"CONFIG_DIR": "config", "DATA_DIR": "data", "RUNTIME_DIR": "runtime"}
    env = os.environ | {f"JUPYTER_{name}": str(root / to) for name, to in folders.items()}
    env |= {
        "JUPYTERLAB_SETTINGS_DIR": str(root / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(root / "workspaces"),
    }
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root",
        "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}", "--IdentityProvider.token=",
        f"--ServerApp.root_dir={root}",
    ]  # fmt: skip
    said = open(root / "lab.log", "w")
    server = subprocess.Popen(command, env=env, stdout=said, stderr=subprocess.STDOUT)
    address = f"http://127.0.0.1:{port}/lab/tree/{NOTEBOOK}"
    try:
        ends_s = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api/status").close()
                break
            except OSError:
                assert time.monotonic() < ends_s, (root / "lab.log").read_text()
                time.sleep(0.2)
        yield address
    finally:
        server.terminate()
        server.wait(20)
        said.close()


@pytest.fixture
def tab(lab: str, tmp_path: Path) -> Iterator[Any]:
    """A page of the browser with the notebook, all its cells run."""
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install -e .[dev]")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = chromium.new_page(viewport={"width": 1280, "height": 1000})
        page.set_default_timeout(90_000)
        page.goto(lab)
        page.get_by_text("| Idle").wait_for()
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_text("Run All Cells", exact=True).click()
        yield page
        chromium.close()


def picture(tab: Any, folder: Path, name: str, part: Any) -> None:
    """What a reader sees, for those who change the widgets: `pytest --basetemp FOLDER`."""
    part.scroll_into_view_if_needed()
    tab.screenshot(path=folder / f"{name}.png")


def lightness(png: Path) -> float:
    """The mean of a picture, from 0 for black to 1 for white."""
    return float(imread(png)[..., :3].mean())


def brush(tab: Any, panel: Any) -> None:
    """Drag a box over the upper half of a panel."""
    panel.scroll_into_view_if_needed()
    box = panel.bounding_box()
    tab.mouse.move(box["x"] + 3, box["y"] + 3)
    tab.mouse.down()
    tab.mouse.move(box["x"] + box["width"] - 3, box["y"] + box["height"] * 0.45, steps=4)
    tab.mouse.up()


def test_a_form_is_filled_and_a_run_cancelled_and_requests_are_explored(
    tab: Any, token: str, tmp_path: Path
) -> None:
    # The form: a wrong value is refused at once, a run starts by keyboard and is cancelled.
    tab.get_by_label("rounds", exact=True).fill("none")
    tab.get_by_role("alert").get_by_text("rounds must be an integer, got 'none'").wait_for()
    run = tab.get_by_role("button", name="Run", exact=True)
    assert run.is_disabled()
    picture(tab, tmp_path, "refused", run)
    tab.get_by_label("rounds", exact=True).fill("40")
    tab.get_by_text("1 arm x 40 rounds").wait_for()
    command = tab.get_by_role("textbox", name="Command")
    assert command.input_value().endswith("-p rounds 40")
    before = marked_processes(token)
    command.focus()
    tab.keyboard.press("Tab")
    assert run.evaluate("(button) => button === document.activeElement")
    tab.keyboard.press("Enter")
    tab.get_by_text("of 80 passes").wait_for()
    tab.locator(".js-plotly-plot .point").first.wait_for()
    assert marked_processes(token).keys() - before.keys()
    cancel = tab.get_by_role("button", name="Cancel", exact=True)
    assert cancel.evaluate("(button) => button === document.activeElement")
    picture(tab, tmp_path, "running", cancel)
    tab.keyboard.press("Enter")
    tab.get_by_text("finished launches are kept, and Run continues").wait_for()
    tab.locator("button:focus", has_text="Run").wait_for()
    assert left_running(token, within_s=10, besides=before) == {}

    # The explorer: list by keyboard, brush, click.
    found = tab.get_by_label("Requests", exact=True)
    found.focus()
    tab.keyboard.press("ArrowDown")
    tab.locator(".wb-one h3").wait_for()
    first = tab.locator(".wb-one h3").inner_text()
    tab.keyboard.press("ArrowDown")
    tab.wait_for_function("(h) => document.querySelector('.wb-one h3').innerText !== h", arg=first)
    figure = tab.locator(".js-plotly-plot").last
    figure.scroll_into_view_if_needed()
    buttons = figure.evaluate(
        "(one) => [...one.querySelectorAll('.modebar-btn')].map(({dataset}) => dataset.title)"
    )
    assert "Reset axes" in buttons and not any("Share" in title for title in buttons)
    for panel in range(3):  # over time, the distribution, by cached share
        brush(tab, figure.locator(".nsewdrag").nth(panel))
        tab.get_by_text("Selection, TTFT, ms").wait_for()
        picture(tab, tmp_path, f"brushed-{panel}", figure)
        tab.get_by_role("button", name="Clear selection").click()
        tab.get_by_text("Selection, TTFT, ms").wait_for(state="detached")
    drawn = figure.evaluate("(one) => one.data.map(({marker}) => marker.symbol)")
    assert None not in drawn
    second = tab.locator(".wb-one h3").inner_text()
    points = figure.locator(".point")
    points.nth(points.count() // 3).scroll_into_view_if_needed()
    spot = points.nth(points.count() // 3).bounding_box()
    tab.mouse.click(spot["x"] + spot["width"] / 2, spot["y"] + spot["height"] / 2)
    tab.wait_for_function("(h) => document.querySelector('.wb-one h3').innerText !== h", arg=second)
    for kind in ("SVG", "PNG"):
        with tab.expect_download() as waiting:
            tab.get_by_role("button", name=f"Save as {kind}").click()
        assert waiting.value.suggested_filename.endswith(f".{kind.lower()}")
        begins = Path(waiting.value.path()).read_bytes()[:8]
        assert begins.startswith({"SVG": b"<svg", "PNG": b"\x89PNG"}[kind])

    # The sliders: by keyboard, and a refusal instead of numbers outside the profiled range.
    said = tab.locator(".workbench [role=status]")
    before_said = said.inner_text()
    rate = tab.locator(".widget-slider", has_text="Rate, req/s").locator(".noUi-handle")
    rate.focus()
    tab.keyboard.press("ArrowRight")
    tab.wait_for_function(
        "(b) => document.querySelector('.workbench [role=status]')?.innerText !== b",
        arg=before_said,
    )
    picture(tab, tmp_path, "sliders", rate)
    prompt = tab.locator(".widget-slider", has_text="Prompt tokens").locator(".noUi-handle")
    prompt.focus()
    tab.keyboard.press("End")
    tab.get_by_role("alert").get_by_text("within the profiled lengths").wait_for()
    assert said.count() == 0 and tab.locator(".wb-drawing").count() == 0
    picture(tab, tmp_path, "sliders-refused", rate)
    tab.keyboard.press("Home")
    tab.get_by_role("alert").get_by_text("within the profiled lengths").wait_for()
    tab.locator(".widget-slider", has_text="Prompt tokens").locator(".widget-readout").fill("4000")
    tab.keyboard.press("Enter")
    said.wait_for()

    # Both schemes can be read.
    picture(tab, tmp_path, "request", tab.locator(".wb-one"))
    tab.get_by_role("menuitem", name="Settings", exact=True).click()
    tab.get_by_text("Theme", exact=True).hover()
    tab.get_by_text("JupyterLab Dark", exact=True).click()
    tab.locator("body[data-jp-theme-light=false]").wait_for(state="attached")
    picture(tab, tmp_path, "request-dark", tab.locator(".wb-one"))
    picture(tab, tmp_path, "form-dark", run)
    picture(tab, tmp_path, "brushed-dark", figure)
    picture(tab, tmp_path, "sliders-dark", rate)
    for number, drawing in enumerate((figure, tab.locator(".wb-drawing"))):
        drawing.screenshot(path=tmp_path / f"dark-{number}.png")
        assert lightness(tmp_path / f"dark-{number}.png") < 0.2
    with tab.expect_download() as waiting:
        tab.get_by_role("button", name="Save as PNG").click()
    waiting.value.save_as(tmp_path / "saved.png")
    assert lightness(tmp_path / "saved.png") > 0.9
