from math import nan

import pytest

from workbench.experiment.findings import sentences
from workbench.experiment.findings.cache_sentences import break_even

SUBJECT, RIVAL = "1p4d lmcache", "5a lmcache"


def ratio(kind, name, value, low=nan, high=nan, *, arm=SUBJECT, baseline=RIVAL, metric="ttft_s"):
    """A comparison as `compare` makes it."""
    few = low != low
    return {
        "kind": kind,
        "metric": metric,
        "arm": arm,
        "pass": name,
        "baseline_arm": arm if kind == "cache-state" else baseline,
        "baseline_pass": name if kind == "opponent" else "cold",
        "ratio": value,
        "low": low,
        "high": high,
        "n_rounds": 2 if few else 5,
        "n_pairs": 6 if few else 30,
        "note": "few rounds: no interval under 3" if few else "",
        "sentence": f"{value:g}x",
    }


def warm(value, name="store-warm", **given):
    return ratio("cache-state", name, value, 0.9 * value, 1.1 * value, **given)


def beside(value, low=nan, high=nan, **given):
    return ratio("opponent", "cold", value, low, high, **given)


def median(arm, name, seconds, metric="ttft_s"):
    return {"arm": arm, "pass": name, "metric": metric, "median": seconds, "low": 0.9 * seconds,
            "high": 1.1 * seconds, "n_requests": 30}  # fmt: skip


LEAD = "splitting prefill and decode by itself"


@pytest.mark.parametrize(
    ("comparisons", "said"),
    [
        ([], "TTFT of a 22,660-token prompt was measured in one cache state"),
        ([warm(18.12)], "A warm KV store cuts TTFT of a 22,660-token prompt 18.1 times"),
        (
            [warm(18.0), warm(25.0, "engine-warm")],
            "A warm KV store cuts TTFT of a 22,660-token prompt 18 times",
        ),
        (
            [warm(25.0, "engine-warm")],
            "A warm engine cache cuts TTFT of a 22,660-token prompt 25 times",
        ),
        ([beside(1.4)], f"{LEAD} cannot be judged: too few rounds for an interval"),
        ([beside(1.05, 0.9, 1.2)], f"{LEAD} makes no detectable difference to cold TTFT"),
        ([beside(1.4, 1.3, 1.5)], f"{LEAD} cuts cold TTFT 1.4 times"),
        (
            [beside(1.4, 1.3, 1.5, baseline="5a"), beside(1.2, 1.1, 1.3)],
            f"{LEAD} cuts cold TTFT 1.2 to 1.4 times",
        ),
        ([beside(0.5, 0.4, 0.6)], f"{LEAD} makes cold TTFT up to 2 times longer"),
        (
            [beside(0.5, 0.4, 0.6, baseline="5a"), beside(1.05, 0.9, 1.2)],
            f"{LEAD} makes cold TTFT up to 2 times longer in 1 of 2 comparisons",
        ),
        (
            [beside(1.4, 1.3, 1.5, baseline="5a"), beside(0.5, 0.4, 0.6)],
            f"{LEAD} cuts cold TTFT in 1 and lengthens it in 1 of 2 comparisons",
        ),
        (
            [warm(18.0), beside(1.05, 0.9, 1.2)],
            "A warm KV store cuts TTFT of a 22,660-token prompt 18 times;"
            f" {LEAD} makes no detectable difference to cold TTFT",
        ),
        (
            [ratio("cache-state", "store-warm", 18.0)],
            "Cold TTFT of a 22,660-token prompt was 18 times that with a warm KV store,"
            " in too few rounds for an interval",
        ),
        (
            [ratio("cache-state", "store-warm", 0.5, 0.4, 0.6)],
            "A warm KV store makes TTFT of a 22,660-token prompt 2 times longer",
        ),
        (
            [ratio("cache-state", "store-warm", 1.1, 0.9, 1.3)],
            "What a warm KV store does to TTFT of a 22,660-token prompt cannot be told from noise"
            " here",
        ),
        (
            [beside(1.05, 0.9, 1.2), ratio("opponent", "store-warm", 0.8, 0.7, 0.9)],
            f"{LEAD} makes no detectable difference to cold TTFT, and warm TTFT is longer in 1"
            " of 1",
        ),
        (  # an opponent's own warm pass is not what the sweep is about
            [warm(99.0, arm=RIVAL)],
            "TTFT of a 22,660-token prompt was measured in one cache state",
        ),
        (
            [ratio("cache-state", "store-warm", nan) | {"note": "the stream was buffered"}],
            "TTFT of a 22,660-token prompt cannot be compared: the stream was buffered",
        ),
    ],
)
def test_the_finding_of_a_sweep_says_what_its_intervals_allow(comparisons, said, sweep):
    assert sentences.finding(sweep(topology="1p4d"), comparisons) == said


def test_several_topologies_give_a_span(sweep):
    plan = sweep(topology="1p1d,1p4d")
    found = [warm(9.0, arm="1p1d lmcache"), warm(18.0)]
    assert "cuts TTFT of a 22,660-token prompt 9 to 18 times" in sentences.finding(plan, found)


@pytest.mark.parametrize(
    ("comparisons", "said"),
    [
        ([], "measured with a 2,048-token prompt, but no pass can be compared"),
        ([warm(nan, "engine-warm")], "but no pass can be compared"),
        (
            [warm(30.0, "engine-warm")],
            "A warm prefix cache cuts TTFT of a 2,048-token prompt 30 times",
        ),
        (
            [warm(30.0, "engine-warm"), ratio("cache-off", "cold", 0.8, 0.7, 0.9)],
            "30 times; keeping it changes a cold prompt's TTFT by +25.0 %",
        ),
        (
            [warm(30.0, "engine-warm"), ratio("cache-off", "cold", 0.99, 0.9, 1.1)],
            "30 times; what keeping it costs a cold prompt cannot be told from noise here",
        ),
        (
            [warm(30.0, "engine-warm"), ratio("cache-off", "cold", 0.99)],
            "A warm prefix cache cuts TTFT of a 2,048-token prompt 30 times",
        ),
    ],
)
def test_the_finding_of_the_prefix_cache_weighs_gain_and_cost(comparisons, said, prefix_cache):
    assert sentences.finding(prefix_cache(), comparisons).endswith(said)


@pytest.mark.parametrize(
    ("gain", "said"),
    [
        (
            (3.0, 2.5, 3.5),
            "The prefix cache cuts TTFT of prompts of up to 4,096 tokens 3 times from cold, since"
            " this workload repeats 95% of its tokens; a warm one cuts that 30 times more",
        ),
        ((1.0, 0.9, 1.1), "from cold cannot be told from noise here, though this workload repeats"),
        ((0.5, 0.4, 0.6), "2 times longer from cold, though this workload repeats 95%"),
    ],
)
def test_where_prompts_repeat_the_cold_pass_shows_a_gain_and_no_cost(gain, said, prefix_cache):
    plan = prefix_cache(workload="batch_processing")
    found = [warm(30.0, "engine-warm"), ratio("cache-off", "cold", *gain)]
    assert said in sentences.finding(plan, found)
    same = [warm(1.0, "engine-warm"), found[1]]
    assert sentences.finding(plan, same).endswith("a warm one adds cannot be told from noise here")
    told = break_even(plan, prefix_summary(0.2, 0.1, 0.05), found)
    assert told.startswith("These prompts repeat 95% of their tokens") and "cold_start" in told


def test_a_failed_gate_stands_before_what_it_spoils(sweep):
    plan = sweep(topology="1p4d")
    found = sentences.finding(plan, [warm(18.0)])
    assert sentences.headline(found, ["cold was cold", "same text"]) == {
        "finding": "Not proven: a pass that is called cold found its prompts in a cache"
        " (gate “cold was cold”, and 1 more failed)",
        "unproven": found,
    }
    assert sentences.headline(found, []) == {"finding": found, "unproven": ""}
    (card,) = sentences.cards(plan, [], [warm(18.0)], ["cold was cold"])
    assert card["note"] == "not proven: gate “cold was cold” failed; 5 rounds, 30 pairs"


def test_a_busy_machine_leaves_a_headline_whose_interval_is_clear(sweep):
    found = sentences.finding(sweep(topology="1p4d"), [warm(32.0)])
    busy = ["client kept up"]
    assert sentences.headline(found, busy) == {"finding": found, "unproven": ""}
    rough = f"{found} (rough: gate “client kept up” failed)"
    assert sentences.headline(found, busy, interval=False)["finding"] == rough
    assert sentences.headline(found, busy, "times")["finding"] == rough
    assert sentences.headline(found, busy, "counts")["finding"] == found


def test_each_sentence_obeys_the_gates_on_its_own_passes(sweep):
    plan = sweep(topology="1p4d")
    rows = [ratio("opponent", name, 2.0, 1.8, 2.2) for name in ("cold", "engine-warm")]
    for row in rows:
        row["baseline_pass"] = row["pass"]
    cold, warm = sentences.sentences(plan, [], rows, ["engine-warm was engine-warm"])
    assert not cold.startswith("Not proven")
    assert warm.startswith("Not proven: gate “engine-warm was engine-warm” failed. ")


def test_topologies_that_differ_are_counted(sweep):
    plan = sweep(topology="1p1d,1p4d")
    found = [ratio("cache-state", "store-warm", 0.5, 0.4, 0.6, arm="1p1d lmcache"), warm(18.0)]
    assert sentences.finding(plan, found) == (
        "A warm KV store cuts TTFT of a 22,660-token prompt in 1 and lengthens it in 1 of 2 arms"
    )


def test_the_scope_says_where_and_with_what_it_was_measured(sweep, machine_has, model):
    plan = sweep(topology="1p1d", rounds=5, requests=6)
    assert sentences.scope(plan) == (
        "Tiny model on a CPU: ratios are shapes, not promises for a GPU. 5 rounds, arms"
        " interleaved, 6 requests a pass, closed loop, 1 at a time; 95 % intervals."
    )
    few = sentences.scope(sweep(rounds=1))
    assert " 1 round, " in few and few.endswith("; too few rounds for intervals of ratios.")
    assert sentences.scope(sweep(model=str(model))).startswith("Measured on cpu.")
    simulated = sweep(engine="simulated")
    assert sentences.scope(simulated).startswith("Simulated servers: nothing was measured.")
    attached = sweep(engine="attach", base_url="http://127.0.0.1:1")
    assert sentences.scope(attached).startswith("Servers started by somebody else.")
    machine_has("rocm", gpus=8)
    assert sentences.scope(sweep()).startswith("Measured on rocm.")


def test_key_numbers_come_with_their_intervals_and_what_they_rest_on(sweep):
    store, engine, rival = warm(18.0), warm(25.0, "engine-warm"), beside(1.05, 0.9, 1.2)
    cards = sentences.cards(sweep(topology="1p4d"), [], [engine, store, rival])
    assert [card["label"] for card in cards] == [
        "TTFT cold / store-warm, 1p4d lmcache",
        "TTFT cold / engine-warm, 1p4d lmcache",
        "1p4d lmcache beside 5a lmcache, cold TTFT (above 1: faster)",
    ]
    assert cards[0]["value"] == 18.0 and cards[0]["unit"] == "x"
    assert (cards[0]["low"], cards[0]["high"]) == (store["low"], store["high"])
    assert cards[0]["note"] == "5 rounds, 30 pairs"
    assert cards[2]["note"] == "no difference detectable; 5 rounds, 30 pairs"


def test_what_is_not_known_is_no_key_number(sweep):
    assert sentences.cards(sweep(topology="1p4d"), [], [warm(nan)]) == []


def test_a_key_number_from_few_rounds_says_so(sweep):
    few = ratio("cache-state", "store-warm", 18.0)
    (card,) = sentences.cards(sweep(topology="1p4d"), [], [few])
    assert card["note"] == "2 rounds, 6 pairs (few rounds: no interval under 3)"


def test_the_cold_ttft_fills_up_the_key_numbers_in_milliseconds(sweep):
    (card,) = sentences.cards(sweep(topology="1p4d"), [median(SUBJECT, "cold", 3.0)], [])
    assert (card["label"], card["unit"]) == ("TTFT cold, 1p4d lmcache", "ms")
    assert card["value"] == pytest.approx(3000)
    assert card["note"] == "median of 30 requests"


def test_there_are_never_more_than_three_key_numbers(sweep):
    found = [warm(18.0), warm(25.0, "engine-warm"), beside(1.4, 1.3, 1.5)]
    summary = [median(SUBJECT, "cold", 3.0)]
    assert len(sentences.cards(sweep(topology="1p4d"), summary, found)) == 3


def test_the_last_subject_gives_the_key_numbers(sweep):
    plan = sweep(topology="1p1d,1p4d")
    (card,) = sentences.cards(plan, [], [warm(9.0, arm="1p1d lmcache"), warm(18.0)])
    assert card["value"] == 18.0


@pytest.mark.parametrize(
    ("row", "verdict"),
    [
        (beside(1.4, 1.3, 1.5), "first token sooner"),
        (beside(0.5, 0.4, 0.6), "first token later"),
        (beside(1.05, 0.9, 1.2), "no difference detectable"),
        (beside(1.4), "not judged"),
    ],
)
def test_each_pair_with_an_opponent_is_a_sentence(row, verdict, sweep):
    (said,) = sentences.sentences(sweep(topology="1p4d"), [], [row, warm(18.0)])
    assert said == f"1p4d lmcache beside 5a lmcache, cold: {verdict}, {row['ratio']:g}x."


def test_scarce_decode_instances_are_set_beside_ample_ones(sweep):
    plan = sweep(topology="4p1d,2p1d,1p4d,2p2d", opponents=False)
    slow = {"4p1d": 0.030, "2p1d": 0.020, "1p4d": 0.010, "2p2d": 0.012}
    summary = [median(f"{name} lmcache", "cold", s, "tpot_s") for name, s in slow.items()]
    (said,) = sentences.sentences(plan, summary, [])
    assert said == (
        "With fewer decode than prefill instances TPOT is 30.0 ms at worst (4p1d lmcache),"
        " with as many or more 10.0 ms at best (1p4d lmcache), cold."
    )
    assert sentences.sentences(plan, summary[:2], []) == []  # nothing ample beside it


def prefix_summary(off_s, cold_s, warm_s):
    return [
        median("cache off", "cold", off_s),
        median("cache on", "cold", cold_s),
        median("cache on", "engine-warm", warm_s),
    ]


@pytest.mark.parametrize(
    ("cost", "said"),
    [
        (
            ratio("cache-off", "cold", 0.8, 0.7, 0.9),
            "A cold prompt takes 50.0 ms longer with the cache on, a full hit saves 200 ms of TTFT:"
            " the cache pays once 25.0% of a prompt's tokens are found in it.",
        ),
        (
            ratio("cache-off", "cold", 0.99, 0.9, 1.1),
            "What the cache costs a cold prompt cannot be told from noise;"
            " a full hit saves 200 ms of TTFT.",
        ),
        (
            ratio("cache-off", "cold", 0.8),
            "What the cache costs a cold prompt cannot be told from noise;"
            " a full hit saves 200 ms of TTFT.",
        ),
        (
            ratio("cache-off", "cold", 1.2, 1.1, 1.3),
            "A cold prompt is not slower with the cache on; a full hit saves 200 ms of TTFT:"
            " it pays from any hit.",
        ),
    ],
)
def test_break_even_is_cost_over_saving_where_both_are_known(cost, said, prefix_cache):
    assert break_even(prefix_cache(), prefix_summary(0.2, 0.25, 0.05), [cost]) == said


def test_a_hit_that_saves_nothing_has_no_break_even(prefix_cache):
    cost = ratio("cache-off", "cold", 1.2, 1.1, 1.3)
    told = break_even(prefix_cache(), prefix_summary(0.2, 0.1, 0.12), [cost])
    assert told.startswith("A full hit saved no TTFT here")


def test_break_even_is_for_the_prefix_cache_only(prefix_cache):
    assert break_even(prefix_cache(), [], []) == ""
    assert break_even(prefix_cache(), prefix_summary(0.2, 0.25, 0.05), [warm(18.0)]) == ""
