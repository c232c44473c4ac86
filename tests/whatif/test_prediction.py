import json
from dataclasses import replace
from math import isnan

import pytest

from tests.whatif.known import COSTS, FRONT_S, known_profile, known_run
from workbench.errors import PlanError, ResultError
from workbench.experiment.result.predicted import check_words
from workbench.metrics.gates.gate import Gate
from workbench.whatif.held_out import checked_error, held_out
from workbench.whatif.model.closed_form import closed_form
from workbench.whatif.prediction import SATURATED, interval, predict
from workbench.whatif.prediction_text import prediction_page
from workbench.whatif.profiles.fits import RESAMPLES

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
    assert one.closed.bottleneck == "prefill queue"
    assert one.number("ttft_s").value > 1.2 * two.number("ttft_s").value
    low, value, high = (getattr(one.number("ttft_s"), n) for n in ("low", "value", "high"))
    assert low <= value <= high


def test_limits_count_the_requests_within_them():
    strict = predicted({"topology": "1p2d", "rate_per_s": 6, "ttft_limit_ms": 150})
    loose = predicted({"topology": "1p2d", "rate_per_s": 6, "ttft_limit_ms": 5_000})
    assert 0 < strict.number("goodput").value < 1 == loose.number("goodput").value


def test_nothing_is_predicted_near_saturation():
    found = predicted({"topology": "1p1d", "rate_per_s": 9})
    assert found.refused.startswith("near saturation: not predicted (prefill queue at ")
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


@pytest.mark.parametrize(
    ("quiet", "busy"),
    [
        ({"arrivals": "ramp", "rate_per_s": 0.1, "end_rate_per_s": 1}, {"end_rate_per_s": 9}),
        ({"arrivals": "closed", "concurrency": 1}, {"concurrency": 8}),
    ],
)
def test_a_ramp_and_a_closed_loop_saturate_too(quiet, busy):
    found = predicted({"topology": "1p1d"} | quiet | busy)
    assert found.refused.startswith("near saturation: not predicted (prefill queue at ")
    found = predicted({"topology": "4p4d"} | quiet)
    assert found.refused == "" and 0 < found.closed.utilisation < 0.2


def test_one_request_in_flight_waits_for_no_other_however_busy_its_prefill_is():
    lone = {"topology": "1p1d", "arrivals": "closed", "concurrency": 1}
    lone |= {"prompt_tokens": 8_000, "output_tokens": 2}
    found = predicted(lone)
    assert found.refused == "" and found.closed.utilisation > SATURATED


@pytest.mark.parametrize(("gap_ms", "busy"), [(1_000, 0.1), (100, 1.0)])
def test_a_trace_has_the_rate_of_its_timestamps(tmp_path, gap_ms, busy):
    rows = [{"timestamp": gap_ms * n, "input_length": 4_000, "output_length": 8,
             "hash_ids": [8 * n + k for k in range(8)]} for n in range(20)]  # fmt: skip
    file = tmp_path / "trace.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    given = {"workload": "trace", "trace_file": str(file), "trace_speed": 1.0, "requests": 20}
    found = predicted({"topology": "1p1d"} | given)
    assert found.closed.rate_per_s == pytest.approx(1_000 / gap_ms)
    assert bool(found.refused) == (busy == 1.0)


def test_a_burst_saturates_although_it_has_no_rate(tmp_path):
    row = {"timestamp": 0, "input_length": 8_000, "output_length": 2, "hash_ids": []}
    rows = [row | {"hash_ids": [16 * n + k for k in range(16)]} for n in range(40)]
    file = tmp_path / "burst.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    burst = {"workload": "trace", "trace_file": str(file), "trace_speed": 1.0}
    found = predicted({"topology": "1p1d", "requests": 40} | burst)
    assert found.refused.startswith("near saturation")


def test_nothing_is_predicted_beyond_the_profiled_kv():
    long = {"topology": "1p1d", "arrivals": "constant", "rate_per_s": 0.005, "requests": 3,
            "output_tokens": 10_000}  # fmt: skip
    assert predicted(long).refused == ""
    decode = replace(PROFILE.decode, ranges=PROFILE.decode.ranges | {"kv_tokens": (1e3, 9e3)})
    found = predicted(long, replace(PROFILE, decode=decode))
    assert found.refused.startswith("not predicted: decode batches with up to 13,999 KV")
    assert "profiled up to 9,000" in found.refused and found.numbers == ()
    # From 4,000 to 14,000 tokens, half of the steps are beyond 9,000.
    decoded_s = sum(found.simulated.batch_s.values())
    assert found.simulated.kv_above_s == pytest.approx(0.5 * decoded_s, rel=0.01)


@pytest.mark.parametrize(("transfer_s", "said"), [(0.004, "doubt"), (0.3, "refused")])
def test_transfers_beside_more_others_than_profiled(transfer_s, said):
    fit = replace(PROFILE.transfer, coefficients=(transfer_s, 1e-9, 0.0), resamples=((1, 0, 0),))
    given = {"topology": "4p1d", "rate_per_s": 12}
    found = predicted(given, replace(PROFILE, transfer=fit))
    if said == "refused":
        assert found.refused.startswith("not predicted: transfers beside up to ")
    else:
        assert any("of transfers overlap with more others than" in one for one in found.doubts)


def test_a_tpot_limit_that_no_request_can_meet_is_refused():
    with pytest.raises(PlanError, match=r"tpot_limit_ms must be at least 4.8 \(half a decode"):
        predicted({"rate_per_s": 1, "tpot_limit_ms": 0.0001})


def in_a_closed_loop(**given):
    """A run of 2p2d with prompts of 4,000 tokens at 1 and 4 in flight, predicted as such."""
    run = known_run("2p2d", shortest=4_000, longest=4_000, **given)
    own = {"prompt_tokens": 4_000, "requests": len(run.requests) // 3}
    return replace(run, run=replace(run.run, parameters=run.run.parameters | own))


def gated(result, name):
    gate = Gate(name=name, outcome="FAIL", sentence="")
    return replace(result, run=replace(result.run, gates=(gate,)))


def test_a_held_out_pass_that_is_not_valid_gives_no_error():
    (struck, _) = held_out(PROFILE, gated(known_run("2p2d"), "no failed transfers"))
    assert struck.spoiled.struck and isnan(struck.error("ttft_s"))
    (rough, _) = held_out(PROFILE, gated(known_run("2p2d"), "client kept up"))
    assert rough.spoiled.said.startswith("rough: ") and not isnan(rough.error("ttft_s"))


@pytest.fixture
def page(tmp_path, monkeypatch):
    """What `workbench predict` prints for 2p2d in the closed loop of a measured run."""
    monkeypatch.setattr("workbench.whatif.prediction.RESAMPLES", 1)

    def printed(run, profile=PROFILE, times=1, **given):
        monkeypatch.setattr("workbench.whatif.prediction_text.load_result", lambda _: run)
        asked = LOAD | {"topology": "2p2d", "concurrency": 4, "requests": 24} | given
        return prediction_page(profile.write(tmp_path), asked, [tmp_path] * times)

    return printed


def test_a_checked_number_has_the_error_of_its_check(page):
    found = page(in_a_closed_loop())
    assert "not checked here" not in found
    assert found.count("  checked: +") + found.count("  checked: -") == 4
    within = page(in_a_closed_loop(), ttft_limit_ms="500").splitlines()
    assert ["within limits" in line for line in within if "not checked here" in line] == [True]


def test_an_error_above_the_goal_refutes_the_number(page):
    slow = replace(PROFILE.decode, coefficients=tuple(4 * x for x in PROFILE.decode.coefficients))
    found = page(in_a_closed_loop(), replace(PROFILE, decode=slow)).splitlines()
    (tpot,) = (line for line in found if line.startswith("  TPOT, median"))
    assert "refuted here: +3" in tpot


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"topology": "2p1d"}, ""),
        ({"concurrency": 8}, "utilisation "),
        ({"concurrency": 1, "rate_per_s": "1"}, "arrivals closed, here poisson"),
        ({"prompt_tokens": 6_000}, "4,000 prompt tokens, here 6,000"),
        ({"output_tokens": 64}, "32 output tokens, here 64"),
        ({"workload": "shared_prefix"}, "workload short, here shared_prefix"),
    ],
)
def test_another_load_or_topology_is_not_checked(page, given, says):
    found = page(in_a_closed_loop(), **given)
    assert found.count("not checked here") == 4
    assert ("held-out 2p2d at 4 users does not check it: " + says in found) == bool(says)
    assert "checked on 2p2d up to " in found and "only, worst TTFT error " in found


def test_a_number_shows_the_largest_error_of_its_checks():
    found = predicted({"topology": "2p2d", "concurrency": 4, "requests": 24})
    (_, row) = held_out(PROFILE, in_a_closed_loop())
    off = replace(row, measured={name: value / 2 for name, value in row.measured.items()})
    error = checked_error([row, off, row], found, "tpot_s")
    assert error == off.error("tpot_s") and check_words(error).startswith("refuted here: +1")
    assert check_words(0.151) == "refuted here: +15.1 %"
    assert check_words(0.1504) == "checked: +15.0 %"  # the goal, as far as it is shown


def test_a_few_requests_of_an_open_loop_are_doubted():
    few, enough = (predicted({"topology": "4p4d", "rate_per_s": 1, "requests": n}) for n in (3, 20))
    assert few.doubts[0].startswith("Only 3 requests per pass of an open loop: their arrival times")
    assert enough.doubts == ()


def test_the_same_run_is_compared_once(page, tmp_path):
    assert page(in_a_closed_loop(), times=2) == page(in_a_closed_loop())


@pytest.mark.parametrize(
    ("run", "says"),
    [
        (gated(in_a_closed_loop(), "no failed transfers"), "left out, not valid: KV transfers"),
        (gated(in_a_closed_loop(), "client kept up"), "(rough: "),
        (in_a_closed_loop(requests_each=1), "6 answered requests (a check in a closed loop needs"),
    ],
)
def test_a_pass_that_is_rough_or_small_checks_nothing(page, run, says):
    found = page(run)
    assert says in found
    assert found.count("not checked here") == 4 and "checked nowhere" in found


def test_held_out_runs_are_compared_number_by_number():
    rows = held_out(PROFILE, known_run("2p2d"))
    assert [row.requests for row in rows] == [24, 24]
    with pytest.raises(ResultError, match="no cold pass of a topology other than 1p1d"):
        held_out(PROFILE, known_run("1p1d"))


def test_one_length_is_one_number_and_no_wait_is_negative(tmp_path, monkeypatch):
    def noisy(*given, **more):
        return replace(closed_form(*given, **more), simulated_wait_s=-1.6e-4)

    monkeypatch.setattr("workbench.whatif.prediction.closed_form", noisy)
    quiet = LOAD | {"topology": "1p2d", "rate_per_s": "0.01"}
    found = prediction_page(PROFILE.write(tmp_path), quiet)
    assert "prompts of 4,000 tokens" in found
    assert "simulated 0 ms (" in found
    with pytest.raises(PlanError, match="got '500'"):
        predicted({"prompt_tokens": 500, "rate_per_s": 1})


def test_the_page_says_what_was_not_checked(tmp_path):
    path = PROFILE.write(tmp_path)
    page = prediction_page(path, LOAD | {"topology": "1p2d,1p1d", "rate_per_s": "9"})
    assert page.count("near saturation: not predicted") == 2
    assert "errors on the profile's own 1a" not in page
    path = replace(PROFILE, aggregated={"cold, 4 in flight": (0.04, -0.1)}).write(tmp_path)
    page = prediction_page(path, LOAD | {"topology": "1p2d", "rate_per_s": "3"})
    assert "errors on the profile's own 1a (not fitted), 4 in flight: TTFT +4 %, TPOT -10 %" in page
    assert page.count("not checked here") == 4 and "p99: not predicted" in page
    assert "Pollaczek-Khinchine" in page
    assert (
        "40 requests (short), prompts of 4,000 tokens, 32 output tokens; open loop, Poisson at 3"
        in page
    )


def test_the_page_says_the_limits_and_the_fraction_that_must_meet_them(tmp_path):
    given = {"topology": "1p2d", "rate_per_s": "1", "ttft_limit_ms": "500", "limits_share": "0.999"}
    page = prediction_page(PROFILE.write(tmp_path), LOAD | given)
    assert "  limits: TTFT at most 500 ms for 99.9 % of requests\n" in page
    assert (
        "differ from their fit, in the median: prefill 0 %, decode step 0 %, transfer 0 %" in page
    )


def test_a_range_of_draws_is_named_by_its_level():
    assert interval(10) == "83 % prediction interval (range of 11 simulations)"
    assert interval(RESAMPLES).startswith("91 % ")  # as the charts of a run say
