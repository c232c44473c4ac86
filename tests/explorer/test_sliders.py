"""The sliders without a browser, and the figure that replaces them."""

import asyncio

import pytest

import workbench as wb
from tests.whatif.known import known_profile
from workbench.errors import ResultError
from workbench.explorer import sliders as sliders_module


@pytest.fixture
def file(tmp_path):
    return known_profile(largest_batch=256).write(tmp_path)


def opened(file, **values):
    return wb.what_if(file, interactive=True, prompt_tokens=4000, **values)


def test_a_move_predicts_again(file):
    shown = opened(file, topology="1p2d", rate_per_s=2)
    before = shown.sentence.value
    assert "1p2d at 2 req/s: TTFT " in before and "<svg" in shown.drawing.value
    assert "Utilisation of 1p2d" in shown.numbers.value and "3a</th>" in shown.numbers.value
    shown.inputs["rate_per_s"].value = 6.0
    assert "1p2d at 6 req/s" in shown.sentence.value
    shown.inputs["topology"].value = "4a"
    assert "4a at 6 req/s" in shown.sentence.value and shown.found.beside is None
    shown.inputs["shared_share"].value = 0.5
    shown.inputs["link"].value = 0.5
    assert "0.5x the profiled one" in shown.drawing.value


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("prompt_tokens", 9_000, "prompt_tokens must be within the profiled lengths"),
        ("rate_per_s", 40.0, "near saturation: not predicted"),
        ("topology", "p4d", "topology must be like 1p4d"),
    ],
)
def test_outside_the_profiled_range_a_sentence_replaces_numbers_and_figure(file, name, value, says):
    shown = opened(file, rate_per_s=2)
    shown.inputs[name].value = value
    assert says in shown.problem.value
    assert shown.sentence.value == shown.numbers.value == shown.drawing.value == ""


async def test_moves_in_quick_succession_are_predicted_once(file, monkeypatch):
    shown, calls = opened(file, rate_per_s=2), []
    monkeypatch.setattr(sliders_module, "AFTER_S", 0.01)
    monkeypatch.setattr(shown, "predict", lambda: calls.append(shown.inputs["rate_per_s"].value))
    for rate in (2.5, 3.0, 3.5):
        shown.inputs["rate_per_s"].value = rate
    await asyncio.sleep(0.05)
    assert calls == [3.5]


def test_without_a_front_end_there_is_a_figure_or_a_sentence(file):
    chart = wb.what_if(file, interactive=False, prompt_tokens=4000, rate_per_s=2)
    assert chart.svg.startswith("<svg") and "1p2d at 2 req/s: TTFT" in chart.alt
    assert "Predicted, not measured." in chart.caption and "150 requests" in chart.caption
    told = wb.what_if(file, interactive=False, prompt_tokens=4000, rate_per_s=40)
    assert "near saturation: not predicted" in told.data


def test_a_file_that_is_no_profile_is_refused(tmp_path):
    (tmp_path / "profile.json").write_text("{}")
    with pytest.raises(ResultError, match="is not a profile"):
        wb.what_if(tmp_path / "profile.json")
