from dataclasses import replace
from math import nan

import pytest

from workbench.experiment.findings import sentences
from workbench.experiment.findings.sentences import break_even, marked, told
from workbench.experiment.result.facts import Card, Comparison, SummaryRow
from workbench.metrics.gates.gate_table import spoil
from workbench.metrics.statistics import Estimate, Ratio

SUBJECT, RIVAL = "1p4d lmcache", "5a lmcache"


def ratio(kind, name, value, low=nan, high=nan, *, arm=SUBJECT, baseline=RIVAL, note=""):
    """A comparison of TTFT as `compare` makes it."""
    few = low != low
    return Comparison(
        kind=kind,
        metric="ttft_s",
        arm=arm,
        pass_name=name,
        baseline_arm=arm if kind == "cache-state" else baseline,
        baseline_pass=name if kind == "opponent" else "cold",
        ratio=Ratio(
            value=value,
            low=low,
            high=high,
            rounds=2 if few else 5,
            pairs=6 if few else 30,
            note=note or ("few rounds" if few else ""),
        ),
        sentence=f"{value:g}x",
    )


def warm(value, name="store-warm", **given):
    return ratio("cache-state", name, value, 0.9 * value, 1.1 * value, **given)


def beside(value, low=nan, high=nan, name="cold", **given):
    return ratio("opponent", name, value, low, high, **given)


def off(value, low=nan, high=nan):
    return ratio("cache-off", "cold", value, low, high)


def median(arm, name, seconds, metric="ttft_s"):
    ends = {"low": 0.9 * seconds, "high": 1.1 * seconds}
    return SummaryRow(
        arm=arm, topology="", connector="", pass_name=name, n_requests=30, n_failed=0, n_rounds=5,
        metric=metric, estimate=Estimate(value=seconds, n=30, **ends),
    )  # fmt: skip


FASTER, SLOWER, NOISE = (1.4, 1.3, 1.5), (0.5, 0.4, 0.6), (1.05, 0.9, 1.2)


@pytest.mark.parametrize(
    ("comparisons", "words"),
    [
        ([], "measured in one cache state"),
        ([warm(18.12)], "warm KV store cuts 22,660-token 18.1 times"),
        # That of the store, where there are two warm states.
        ([warm(18.0), warm(25.0, "engine-warm")], "KV store 18 times"),
        ([warm(25.0, "engine-warm")], "engine cache cuts 25 times"),
        ([warm(9.0, arm="1p1d lmcache"), warm(18.0)], "cuts 9 to 18 times"),
        ([ratio("cache-state", "store-warm", 18.0)], "was 18 times too few rounds"),
        ([ratio("cache-state", "store-warm", *SLOWER)], "makes 2 times longer"),
        ([ratio("cache-state", "store-warm", *NOISE)], "cannot be told from noise"),
        (
            [ratio("cache-state", "store-warm", *SLOWER, arm="1p1d lmcache"), warm(18.0)],
            "cuts in 1 lengthens it in 1 of 2 arms",
        ),
        ([ratio("cache-state", "store-warm", nan, note="so")], "cannot be compared: so"),
        # An opponent's own warm pass is not what the sweep is about.
        ([warm(99.0, arm=RIVAL)], "measured in one cache state"),
        ([beside(1.4)], "cannot be judged: too few rounds"),
        ([beside(*NOISE)], "no detectable difference to cold TTFT"),
        ([beside(*FASTER)], "cuts cold TTFT 1.4 times"),
        ([beside(*FASTER, baseline="5a"), beside(1.2, 1.1, 1.3)], "1.2 to 1.4 times"),
        ([beside(*SLOWER)], "up to 2 times longer"),
        ([beside(*SLOWER, baseline="5a"), beside(*NOISE)], "longer in 1 of 2 comparisons"),
        (
            [beside(*FASTER, baseline="5a"), beside(*SLOWER)],
            "cuts cold TTFT in 1 and lengthens it in 1 of 2 comparisons",
        ),
        ([warm(18.0), beside(*NOISE)], "cuts TTFT 18 times; no detectable difference"),
        (
            [beside(*NOISE), beside(0.8, 0.7, 0.9, "store-warm")],
            "no detectable difference to cold TTFT, and warm TTFT is longer in 1 of 1",
        ),
    ],
)
def test_the_finding_of_a_sweep_says_what_its_intervals_allow(comparisons, words, sweep):
    found = sentences.finding(sweep(topology="1p1d,1p4d"), comparisons)
    place = 0
    for word in words.split():
        assert word in found[place:], found
        place = found.index(word, place) + len(word)


@pytest.mark.parametrize(
    ("comparisons", "said"),
    [
        ([], "no pass can be compared"),
        ([warm(nan, "engine-warm")], "no pass can be compared"),
        ([warm(30.0, "engine-warm")], "cuts TTFT of a 2,048-token prompt 30 times"),
        ([warm(30.0, "engine-warm"), off(0.8, 0.7, 0.9)], "cold prompt's TTFT by +25.0 %"),
        ([warm(30.0, "engine-warm"), off(0.99, 0.9, 1.1)], "cannot be told from noise here"),
        ([warm(30.0, "engine-warm"), off(0.99)], "30 times"),
    ],
)
def test_the_finding_of_the_prefix_cache_weighs_gain_and_cost(comparisons, said, prefix_cache):
    assert sentences.finding(prefix_cache(), comparisons).endswith(said)


@pytest.mark.parametrize(
    ("gain", "said"),
    [
        ((3.0, 2.5, 3.5), "cuts TTFT of prompts of up to 4,096 tokens 3 times from cold, since"),
        ((1.0, 0.9, 1.1), "from cold cannot be told from noise here, though"),
        ((0.5, 0.4, 0.6), "2 times longer from cold, though"),
    ],
)
def test_where_prompts_repeat_the_cold_pass_shows_a_gain_and_no_cost(gain, said, prefix_cache):
    plan = prefix_cache(workload="batch_processing")
    for again, end in ((30.0, "cuts that 30 times more"), (1.0, "cannot be told from noise here")):
        found = sentences.finding(plan, [warm(again, "engine-warm"), off(*gain)])
        assert said in found and "repeats 95% of its tokens" in found and found.endswith(end)
    text = break_even(plan, prefix_summary(0.2, 0.1, 0.05), [off(*gain)])
    assert text.startswith("These prompts repeat 95%") and "cold_start" in text


def test_a_failed_gate_stands_before_what_it_spoils(sweep):
    found = "A warm store cuts TTFT"
    proven, unproven = sentences.headline(found, ["cold was cold", "same text"])
    assert proven.startswith("Not proven: ") and "“cold was cold”, and 1 more failed" in proven
    assert unproven == found
    assert sentences.headline(found, []) == (found, "")
    (card,) = sentences.cards(sweep(topology="1p4d"), [], [warm(18.0)], ["cold was cold"])
    assert (card.spoilt, card.note) == (
        "struck",
        "not valid: gate “cold was cold” failed; 5 rounds, 30 pairs",
    )


def test_a_busy_machine_leaves_a_headline_whose_interval_is_clear():
    found, busy = "A warm store cuts TTFT", ["client kept up"]
    rough = f"{found} (rough: gate “client kept up” failed)", ""
    assert sentences.headline(found, busy) == (found, "")
    assert sentences.headline(found, busy, interval=False) == rough
    assert sentences.headline(found, busy, "times") == rough
    assert sentences.headline(found, busy, "counts") == (found, "")


def test_each_sentence_obeys_the_gates_on_its_own_passes(sweep):
    rows = [beside(2.0, 1.8, 2.2, name) for name in ("cold", "engine-warm")]
    failed = ["engine-warm was engine-warm"]
    cold, warm = sentences.sentences(sweep(topology="1p4d"), [], rows, failed)
    assert not cold.startswith("Not proven")
    assert warm.startswith("Not valid: gate “engine-warm was engine-warm” failed. ")


def test_the_scope_says_where_and_with_what_it_was_measured(sweep, machine_has, model):
    said = sentences.scope(sweep(topology="1p1d", rounds=5, requests=6))
    assert said.startswith("Tiny model on a CPU")
    assert "5 rounds, arms interleaved, 6 requests a pass, closed loop, 1 at a time; 95 %" in said
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
    store, engine, rival = warm(18.0), warm(25.0, "engine-warm"), beside(*NOISE)
    cards = sentences.cards(sweep(topology="1p4d"), [], [engine, store, rival])
    assert [card.label for card in cards] == [
        "TTFT cold / store-warm, 1p4d lmcache",
        "TTFT cold / engine-warm, 1p4d lmcache",
        "1p4d lmcache beside 5a lmcache, cold TTFT (above 1: faster)",
    ]
    assert (cards[0].value, cards[0].unit, cards[0].rests_on) == (18.0, "x", "ratios")
    assert (cards[0].low, cards[0].high) == (store.ratio.low, store.ratio.high)
    assert cards[0].passes == ("store-warm", "cold") and cards[2].passes == ("cold",)
    assert cards[2].note == "no difference detectable; 5 rounds, 30 pairs"
    few = ratio("cache-state", "store-warm", 18.0)
    assert sentences.cards(sweep(topology="1p4d"), [], [few])[0].note.endswith("(few rounds)")
    assert sentences.cards(sweep(topology="1p4d"), [], [warm(nan)]) == ()


def test_the_cold_ttft_fills_up_the_key_numbers_and_there_are_three_at_most(sweep):
    plan, cold = sweep(topology="1p1d,1p4d"), median(SUBJECT, "cold", 3.0)
    (card,) = sentences.cards(plan, [cold], [])
    assert (card.label, card.unit, card.note) == (
        "TTFT cold, 1p4d lmcache",
        "ms",
        "median of 30 requests",
    )
    assert card.value == pytest.approx(3000)
    found = [warm(9.0, arm="1p1d lmcache"), warm(18.0), warm(25.0, "engine-warm"), beside(*FASTER)]
    values = [card.value for card in sentences.cards(plan, [cold], found)]
    assert values == [18.0, 25.0, 1.4]  # of the last subject


@pytest.mark.parametrize(
    ("row", "verdict"),
    [
        (beside(*FASTER), "first token sooner"),
        (beside(*SLOWER), "first token later"),
        (beside(*NOISE), "no difference detectable"),
        (beside(1.4), "not judged"),
    ],
)
def test_each_pair_with_an_opponent_is_a_sentence(row, verdict, sweep):
    (said,) = sentences.sentences(sweep(topology="1p4d"), [], [row, warm(18.0)])
    assert said == f"1p4d lmcache beside 5a lmcache, cold: {verdict}, {row.ratio.value:g}x."


def test_scarce_decode_instances_are_set_beside_ample_ones(sweep):
    plan = sweep(topology="4p1d,2p1d,1p4d,2p2d", opponents=False)
    slow = {"4p1d": 0.030, "2p1d": 0.020, "1p4d": 0.010, "2p2d": 0.012}
    summary = [median(f"{name} lmcache", "cold", s, "tpot_s") for name, s in slow.items()]
    (said,) = sentences.sentences(plan, summary, [])
    assert "30.0 ms at worst (4p1d lmcache)" in said and "10.0 ms at best (1p4d lmcache)" in said
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
        (off(0.8, 0.7, 0.9), "50.0 ms longer full hit saves 200 ms pays once 25.0%"),
        (off(0.99, 0.9, 1.1), "cannot be told from noise saves 200 ms"),
        (off(0.8), "cannot be told from noise saves 200 ms"),
        (off(1.2, 1.1, 1.3), "not slower saves 200 ms pays from any hit"),
    ],
)
def test_break_even_is_cost_over_saving_where_both_are_known(cost, said, prefix_cache):
    text = break_even(prefix_cache(), prefix_summary(0.2, 0.25, 0.05), [cost])
    assert all(word in text for word in said.split())


def test_a_hit_that_saves_nothing_has_no_break_even_nor_has_another_notebook(prefix_cache):
    text = break_even(prefix_cache(), prefix_summary(0.2, 0.1, 0.12), [off(1.2, 1.1, 1.3)])
    assert text.startswith("A full hit saved no TTFT here")
    assert break_even(prefix_cache(), [], []) == ""
    assert break_even(prefix_cache(), prefix_summary(0.2, 0.25, 0.05), [warm(18.0)]) == ""


RATIO = Card(label="", value=30.0, low=25.8, note="3 rounds", rests_on="ratios")
FEW = Card(label="", value=30.0, note="1 round", rests_on="ratios")
TIME = Card(label="", value=1.1, low=1.0, note="24 requests", rests_on="times")
COUNT = Card(label="", value=3, rests_on="counts")
BUSY = "gate “client kept up” failed"


def test_a_gate_that_failed_spoils_the_key_numbers_that_it_touches_and_no_other():
    cards = marked([RATIO, FEW, TIME, COUNT], ["client kept up"])
    assert [(card.spoilt, card.note) for card in cards] == [
        ("doubt", f"doubtful: {BUSY}; 3 rounds"),
        ("rough", f"rough: {BUSY}; 1 round"),
        ("rough", f"rough: {BUSY}; 24 requests"),
        ("", ""),
    ]
    assert {card.spoilt for card in marked(cards, ["cold was cold"])} == {"struck"}
    of_machine = Card(label="cores", value=2)
    assert marked([of_machine], ["nothing impossible"]) == (of_machine,)


def test_a_key_number_is_spoilt_by_gates_on_its_own_passes():
    of_warm = replace(RATIO, passes=("engine-warm", "cold"))
    for gate, effect in (("store-warm", ""), ("engine-warm", "struck")):
        (card,) = marked([of_warm], [f"{gate} was {gate}"])
        assert card.spoilt == effect


def test_a_sentence_is_led_by_what_a_failed_gate_does_to_its_numbers():
    said = "1p4d keeps up."
    assert told(said, spoil(["client kept up"], "times")) == f"Rough: {BUSY}. {said}"
    assert told(said, spoil(["KV moved", "same text"], "times")) == (
        f"Not valid: gates “KV moved” and 1 more failed. {said}"
    )
    assert told(said, spoil(["client kept up"], "ratios")) == said  # a doubt stands elsewhere
    assert told(said, spoil([], "times")) == said
