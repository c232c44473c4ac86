from math import isnan

import pytest

from tests.whatif.known import COSTS, known_profile
from workbench.errors import ParameterError, PlanError
from workbench.whatif.rate_curve import quick, started, with_link

PROFILE = known_profile(largest_batch=256)


def made(link=1.0, **given):
    return quick(PROFILE, started(PROFILE, {"prompt_tokens": 4_000, **given}), link=link)


def test_it_begins_at_half_of_the_highest_rate():
    begun = started(PROFILE, {"topology": "2p4d", "prompt_tokens": 4_000})
    assert begun["rate_per_s"] == pytest.approx(1 / COSTS.prefill_s(4_000), rel=0.05)
    assert begun["workload"] == "short" and begun["output_tokens"] == 32
    shared = started(PROFILE, {"shared_share": 0.5})
    assert shared["workload"] == "shared_prefix" and shared["prompt_tokens"] == 8_000


def test_the_chosen_rate_has_an_interval_and_equal_aggregated_instances_beside_it():
    found = made(rate_per_s=4.0)
    rows = found.curves.set_index("topology")
    assert set(rows.index) == {"1p2d", "3a"}
    chosen = found.curves[found.curves["chosen"]]
    assert list(chosen["rate_per_s"]) == [4.0, 4.0]
    assert (chosen["ttft_low_s"] < chosen["ttft_high_s"]).any()
    assert found.sentence.startswith(
        "1p2d at 4 req/s: TTFT "
    ) and "bottleneck: prefill queue (" in (found.sentence)
    ttft_s = rows.loc["1p2d"].sort_values("rate_per_s")["ttft_s"]
    assert ttft_s.iloc[-1] > 1.1 * ttft_s.iloc[0]


def test_cached_share_and_link_move_ttft_as_they_should():
    def ttft_s(**given):
        return made(rate_per_s=1.0, **given).prediction.number("ttft_s").value

    plain = ttft_s()
    assert ttft_s(shared_share=0.9) < 0.6 * plain
    moved_s = 4_000 * COSTS.kv_bytes_per_token * COSTS.byte_s
    assert ttft_s(link=0.1) - plain == pytest.approx(9 * moved_s, rel=0.3)
    assert "0.1x the profiled one" in " ".join(made(rate_per_s=1.0, link=0.1).notes)
    assert with_link(PROFILE, 1.0) == PROFILE


def test_a_refusal_has_no_curves_and_no_numbers():
    found = made(rate_per_s=50.0)
    assert "near saturation: not predicted" in found.sentence
    assert found.curves.empty and isnan(found.prediction.number("ttft_s").value)


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"prompt_tokens": 9_000}, PlanError, "prompt_tokens must be within the profiled"),
        ({"topology": "1p1d,2a"}, ParameterError, "topology must be one topology"),
        ({"arrivals": "closed"}, ParameterError, "arrivals must be auto, poisson, constant or"),
    ],
)
def test_what_the_profile_does_not_fit_is_refused(given, error, says):
    with pytest.raises(error, match=says):
        quick(PROFILE, started(PROFILE, {"rate_per_s": 1.0}) | given)
