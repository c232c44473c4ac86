from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from workbench.hardware.machine import repository_root
from workbench.metrics.definitions import METRICS, TOOLS, VERSIONS, card, definition_of
from workbench.metrics.latency import DEFINITIONS
from workbench.metrics.waterfall.waterfall import CARD
from workbench.records import RequestRecord, to_frame


def request(**facts: object) -> RequestRecord:
    """Sent at 10; five tokens in three chunks at 11, 11.2 and 11.6; the stream ends at 12."""
    given: dict[str, object] = {
        "index": 0,
        "request_id": "r0",
        "prompt_tokens": 100,
        "ideal_reuse_tokens": 0,
        "max_tokens": 5,
        "scheduled_s": 9.5,
        "sent_s": 10.0,
        "chunk_s": (11.0, 11.2, 11.6),
        "chunk_tokens": (2, 1, 2),
        "output_tokens": 5,
        "stream_end_s": 12.0,
    }
    return RequestRecord(**{**given, **facts})  # type: ignore[arg-type]


def test_the_same_stamps_by_hand():
    nan = math.nan
    expected = pd.DataFrame(
        {
            "workbench": [1.0, 0.6 / 3, 0.3, nan, 1.6, 1],
            "vllm_bench": [1.0, 0.6 / 4, nan, 0.3, 1.6, 1],
            "guidellm": [1.0, 1.6 / 5, nan, 0.6 / 4, 2.0, 1],
            "aiperf": [1.0, nan, 0.3, 0.6 / 3, 1.6, 1],
        },
        index=pd.Index([*METRICS, "requests"], name="metric"),
    )
    pd.testing.assert_frame_equal(card(to_frame([request()])), expected)


def test_aiperf_assumes_one_token_where_the_stream_does_not_tell_or_tells_nonsense():
    for told in ((), (5, 0, 0), (0, 3, 2)):
        found = card(to_frame([request(chunk_tokens=told)]))
        assert found.at["ITL", "aiperf"] == pytest.approx(0.6 / 4)


def test_other_tools_count_broken_streams_as_successes():
    frame = to_frame(
        [
            request(),
            request(error="truncated", chunk_s=(13.0,), chunk_tokens=(), output_tokens=-1),
            request(error="stream_error", chunk_s=(15.0,), chunk_tokens=(), output_tokens=-1),
            request(error="stream_error", chunk_s=(), chunk_tokens=(), output_tokens=-1),
            request(error="reset", chunk_s=(19.0,), chunk_tokens=(), output_tokens=-1),
        ]
    )
    found = card(frame)
    assert found.loc["requests"].to_dict() == {
        "workbench": 1,
        "vllm_bench": 3,
        "guidellm": 2,
        "aiperf": 3,
    }
    assert found.at["TTFT", "workbench"] == pytest.approx(1.0)
    assert found.at["TTFT", "guidellm"] == pytest.approx(2.0)  # the median of 1 and 3
    assert found.at["TTFT", "vllm_bench"] == pytest.approx(3.0)  # of 1, 3 and 5


def test_nothing_that_succeeded_gives_no_number():
    for frame in (to_frame([]), to_frame([request(error="connect", chunk_s=())])):
        found = card(frame)
        assert np.isnan(found.loc[list(METRICS)].to_numpy()).all()
        assert (found.loc["requests"] == 0).all()


def test_every_cell_says_what_it_is_and_where_that_is_written():
    for metric in METRICS:
        for tool in TOOLS:
            definition = definition_of(metric, tool)
            assert definition.formula
            assert bool(definition.source) == (definition.values is not None)
            without = definition.formula.startswith(("not reported", "reported as ITL"))
            assert without == (definition.values is None)


def test_a_sentence_on_another_tool_says_for_which_versions_it_holds():
    assert set(VERSIONS) == set(TOOLS)
    assert all(VERSIONS[tool] for tool in TOOLS[1:])
    chat = definition_of("TTFT", "vllm_bench").formula
    assert "first message with choices" in chat  # completions, all versions
    assert "chat since 0.33: to the first chunk with a token" in chat
    assert "up to 0.3: (last token - first token)" in definition_of("TPOT", "guidellm").formula


def test_the_page_of_metrics_has_every_definition_word_by_word():
    page = (repository_root() / "docs" / "metrics.md").read_text()
    rows = [(f"`{name}`", formula, unknown) for name, formula, unknown in DEFINITIONS]
    rows += [row[1:] for row in CARD]
    assert all(f"| {' | '.join(row)} |" in page for row in rows)
    for metric in METRICS:
        for tool in TOOLS[1:]:
            known = definition_of(metric, tool)
            assert f"| {known.formula} | {known.source and f'`{known.source}`'} |" in page
            assert VERSIONS[tool] in page
