from dataclasses import replace

import pytest

from tests.whatif.known import COSTS, FRONT_S, known_profile, known_run
from workbench.errors import PlanError, ResultError
from workbench.whatif.held_out import held_out
from workbench.whatif.prediction import predict
from workbench.whatif.prediction_text import prediction_page

PROFILE = known_profile()
LOAD = {"workload": "short", "prompt_tokens": 4_000, "requests": 40}


def predicted(given, profile=PROFILE):
    params = profile.params(LOAD | given)
    return predict(profile, params, params.topologies[0])


def test_a_quiet_topology_has_the_ttft_of_a_lone_request():
    found = predicted({"topology": "4p4d", "rate_per_s": 0.5})
    alone_s = COSTS.prefill_s(4_000) + COSTS.transfer_of(4_000) + COSTS.decode_s(1, 3_999)
    assert found.number("ttft_s").value == pytest.approx(FRONT_S + alone_s, rel=1e-6)
    assert found.refused == "" and found.doubts == ()


def test_more_prefill_instances_shorten_the_queue():
    one, two = (predicted({"topology": t, "rate_per_s": 6}) for t in ("1p4d", "2p4d"))
    assert one.closed.bottleneck == "prefill"
    assert one.number("ttft_s").value > 1.2 * two.number("ttft_s").value
    low, value, high = (getattr(one.number("ttft_s"), n) for n in ("low", "value", "high"))
    assert low <= value <= high


def test_limits_count_the_requests_within_them():
    strict = predicted({"topology": "1p2d", "rate_per_s": 6, "ttft_limit_ms": 150})
    loose = predicted({"topology": "1p2d", "rate_per_s": 6, "ttft_limit_ms": 5_000})
    assert 0 < strict.number("goodput").value < 1 == loose.number("goodput").value


def test_nothing_is_predicted_near_saturation():
    found = predicted({"topology": "1p1d", "rate_per_s": 9})
    assert found.refused.startswith("near saturation: not predicted (prefill at ")
    assert found.numbers == ()


def test_nothing_is_predicted_beyond_the_profiled_batches():
    small = known_profile(largest_batch=2.0)
    found = predicted({"topology": "4p1d", "rate_per_s": 20, "requests": 200}, small)
    assert found.refused.startswith("not predicted: decode batches of up to ")
    assert "profiled up to 2" in found.refused and found.numbers == ()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"prompt_tokens": 500}, r"prompt_tokens must be within the profiled lengths \(1,000 to"),
        ({"ttft_limit_ms": 5}, r"ttft_limit_ms must be at least 25 \(half the TTFT of the"),
        ({"rate_per_s": 0, "rates_per_s": "1,2"}, "rates_per_s must be the profile's"),
        ({"rate_per_s": 0, "workload": "multi_turn_conversation"}, "workload must be one whose"),
    ],
)  # fmt: skip
def test_what_the_profile_does_not_know_is_refused(given, says):
    with pytest.raises(PlanError, match=says):
        predicted({"rate_per_s": 1} | given)


def test_a_prompt_beyond_the_kv_space_is_refused():
    tiny = replace(PROFILE, kv_tokens=PROFILE.kv_tokens | {"decode": 3_000})
    with pytest.raises(PlanError, match=r"at most the KV space of a decode instance \(3,000\)"):
        predicted({"rate_per_s": 1}, tiny)


def test_shared_prefixes_are_hits_where_the_same_instance_has_them():
    shared = {"workload": "shared_prefix", "rate_per_s": 1.0, "shared_share": 0.9}
    cold, warm = predicted({"rate_per_s": 1.0}), predicted(shared)
    assert warm.number("ttft_s").value < 0.5 * cold.number("ttft_s").value


def test_held_out_runs_are_compared_number_by_number():
    rows = held_out(PROFILE, known_run("2p2d"))
    assert [row.requests for row in rows] == [24, 24]
    with pytest.raises(ResultError, match="no cold pass of a topology other than 1p1d"):
        held_out(PROFILE, known_run("1p1d"))


def test_the_page_says_what_was_not_checked(tmp_path):
    path = PROFILE.write(tmp_path)
    page = prediction_page(path, LOAD | {"topology": "1p2d,1p1d", "rate_per_s": "9"})
    assert page.count("near saturation: not predicted") == 2
    page = prediction_page(path, LOAD | {"topology": "1p2d", "rate_per_s": "3"})
    assert page.count("not checked here") == 4 and "p99: not predicted" in page
    assert "Pollaczek-Khinchine" in page
