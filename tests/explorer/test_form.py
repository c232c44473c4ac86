"""The form without a browser, on plans that start nothing."""

import asyncio
import os

import pytest

from workbench.explorer import form as form_module
from workbench.explorer.form import Form
from workbench.explorer.running import Planned, Seen, last_log_lines
from workbench.records import RequestRecord

PLAN = "2 rounds\n\nduration: 0:08"


def record(number):
    return RequestRecord(
        index=number, request_id=f"r-{number}", prompt_tokens=9, ideal_reuse_tokens=0,
        max_tokens=1, scheduled_s=0.0, sent_s=1.0, chunk_s=(1.5,), output_tokens=1,
    )  # fmt: skip


@pytest.fixture
def started(monkeypatch):
    """How the runs of the form's plans ended; they wait until they are cancelled."""
    ended = []

    async def run(echo, on_record):
        echo("round 1/2  5a  cold  TTFT 5 ms  [1/4 passes, 0:02 elapsed, about 0:06 left]")
        on_record(record(0), {"arm": "5a", "pass": "cold", "round": 0})
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    monkeypatch.setattr(form_module, "planned", lambda _: Planned(PLAN, run))
    monkeypatch.setattr(form_module, "PLAN_AFTER_S", 0.0)
    monkeypatch.setattr(form_module, "TICK_S", 0.02)
    return ended


async def until(true, within_s=10.0):
    async with asyncio.timeout(within_s):
        while not true():
            await asyncio.sleep(0.01)


async def test_a_wrong_value_is_refused_while_it_is_typed(started):
    form = Form("pd_sweep", {"topology": "1a"})
    await until(lambda: not form.run_button.disabled)
    assert form.plan_text.value == "<pre tabindex='0'>2 rounds</pre><p>Duration: 0:08</p>"
    assert form.command.value == "papermill notebooks/pd_sweep.ipynb out.ipynb -p topology 1a"
    form.inputs["rounds"].value = "none"
    assert "rounds must be an integer, got &#x27;none&#x27;" in form.problem.value
    assert form.run_button.disabled and "wb-wrong" in form.inputs["rounds"]._dom_classes
    assert form.plan_text.value == form.command.value == ""
    form.inputs["rounds"].value = "2"
    assert form.problem.value == "" and "wb-wrong" not in form.inputs["rounds"]._dom_classes
    await until(lambda: not form.run_button.disabled)
    assert form.command.value.endswith("-p topology 1a -p rounds 2")


async def test_every_wrong_value_is_reported_at_its_field_and_its_group(started):
    form = Form("pd_sweep", {})
    typed = {"topology": "2x3", "rounds": "0", "prompt_tokens": "ten"}
    for name, text in typed.items():
        form.inputs[name].value = text
    for name in typed:
        assert "wb-wrong" in form.inputs[name]._dom_classes
        assert name in form.problem.value and "wb-error" in form._said[name].value
    assert "What is compared (5, 2 wrong)" in [one.description for one in form._buttons.values()]
    assert sum("1 wrong" in one.description for one in form._buttons.values()) == 1


async def test_a_run_shows_its_progress_and_ends_when_it_is_cancelled(started):
    form = Form("pd_sweep", {})
    await until(lambda: not form.run_button.disabled)
    form.run_button.click()
    await until(lambda: form.chart.children)
    await until(lambda: "1 of 4 passes, about 0:06 left" in form.state.value)
    assert (form.bar.value, form.bar.max) == (1, 4)
    assert list(form.chart.children[0].data[0].y) == [500.0]
    assert form.run_button.disabled and not form.cancel_button.disabled
    form.cancel_button.click()
    await until(lambda: not form.running)
    assert started == ["cancelled"] and form.state.value.startswith("cancelled")
    assert form.cancel_button.disabled and not form.run_button.disabled and form.result is None


async def test_an_error_of_a_run_is_shown(started, monkeypatch):
    async def fails(echo, on_record):
        raise RuntimeError("no <GPU>")

    monkeypatch.setattr(form_module, "planned", lambda _: Planned("plan", fails))
    form = Form("environment_check", {})
    await until(lambda: not form.run_button.disabled)
    form.run_button.click()
    await until(lambda: form.state.value.startswith("failed"))
    assert "RuntimeError(&#x27;no &lt;GPU&gt;&#x27;)" in form.problem.value


async def test_a_finished_run_is_explored(started, monkeypatch, recorded):
    async def run(echo, on_record):
        return recorded

    monkeypatch.setattr(form_module, "planned", lambda _: Planned("plan", run))
    form = Form("pd_sweep", {})
    await until(lambda: not form.run_button.disabled)
    form.run_button.click()
    await until(lambda: form.below.children)
    assert form.result is recorded
    assert "All 171 requests are drawn." in form.below.children[1].note.value


def test_the_last_log_lines_are_those_of_logs_written_since(tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "decode-0.log").write_text("one\ntwo\n\n")
    (tmp_path / "logs" / "simulated-0.log").touch()
    earlier = tmp_path / "round-0" / "logs" / "decode-0.log"
    earlier.parent.mkdir(parents=True)
    earlier.write_text("zero\n")
    os.utime(earlier, (1, 1))
    before = tmp_path / "round-0" / "logs" / "simulated-0.log"
    before.write_text("of a launch that has ended\n")  # the newer one is empty
    os.utime(before, (1, 1))
    assert last_log_lines(tmp_path, since_s=0) == [("logs/decode-0", "two")]
    assert last_log_lines(tmp_path, since_s=1e12) == []


def test_requests_that_ended_are_taken_once():
    seen = Seen()
    seen.record(record(1), {"arm": "5a", "pass": "cold"})
    assert list(seen.taken()["ttft_s"]) == [0.5]
    assert seen.taken().empty
