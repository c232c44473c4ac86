from dataclasses import replace
from itertools import combinations
from math import nan

import pytest

from tests.wording import words
from workbench.experiment.findings import headline, sentences
from workbench.experiment.findings.sentences import break_even, marked
from workbench.experiment.result.finding_rows import Card, Comparison, SummaryRow
from workbench.metrics.gates.gate_effects import spoil, told
from workbench.metrics.gates.gate_table import GATES
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


WARM_UNSURE = ratio("cache-state", "store-warm", *NOISE)
WARM_SLOWER = ratio("cache-state", "store-warm", *SLOWER)
SMALL = "1p1d lmcache"


@pytest.mark.parametrize(
    ("comparisons", "found"),
    [
        ([], "TTFT was measured in one cache state, without a baseline"),
        ([warm(18.12)], "Warm KV store: TTFT 18x faster"),
        # That of the store, where there are two warm states.
        ([warm(18.0), warm(25.0, "engine-warm")], "Warm KV store: TTFT 18x faster"),
        ([warm(25.0, "engine-warm")], "Warm prefix cache: TTFT 25x faster"),
        ([warm(9.0, arm=SMALL), warm(18.0)], "Warm KV store: TTFT 9.0x to 18x faster"),
        (
            [ratio("cache-state", "store-warm", 18.0), beside(1.4)],
            "Warm KV store: TTFT speed-up 18x (too few rounds for a CI)",
        ),
        ([WARM_SLOWER], "Warm KV store: TTFT 2.0x slower"),
        ([WARM_UNSURE], "No significant effect of a warm KV store on TTFT"),
        (
            [replace(WARM_SLOWER, arm=SMALL), warm(18.0)],
            "Warm KV store: mixed effect on TTFT (1 faster, 1 slower of 2 arms)",
        ),
        (
            [replace(WARM_UNSURE, arm=SMALL), warm(18.0), beside(*NOISE)],
            "Warm KV store: TTFT faster (1 of 2 arms); cold PD split: no significant effect",
        ),
        (
            [ratio("cache-state", "store-warm", nan, note="the stream was buffered")],
            "No TTFT comparison: the stream was buffered",
        ),
        # An opponent's own warm pass is not what the sweep is about.
        ([warm(99.0, arm=RIVAL)], "TTFT was measured in one cache state, without a baseline"),
        ([beside(1.4)], "PD split: not judged, too few rounds for intervals"),
        ([beside(*NOISE)], "PD split: no significant effect on cold TTFT"),
        ([beside(*FASTER)], "PD split: cold TTFT 1.40x faster"),
        (
            [beside(*FASTER, baseline="5a"), beside(1.2, 1.1, 1.3)],
            "PD split: cold TTFT 1.20x to 1.40x faster",
        ),
        ([beside(*SLOWER)], "PD split: cold TTFT 2.0x slower"),
        (
            [beside(*SLOWER, baseline="5a"), beside(*NOISE)],
            "PD split: cold TTFT 2.0x slower in 1 of 2 comparisons",
        ),
        (
            [beside(*FASTER, baseline="5a"), beside(*SLOWER)],
            "PD split: mixed effect on cold TTFT",
        ),
        ([warm(18.0), beside(1.4)], "Warm KV store: TTFT 18x faster; PD split: not judged"),
        ([warm(18.0), beside(*FASTER)], "Warm KV store: TTFT 18x faster; cold PD split: faster"),
        (
            [warm(18.0), beside(*NOISE), beside(0.8, 0.7, 0.9, "store-warm")],
            "Warm KV store: TTFT 18x faster; cold PD split: no significant effect",
        ),
        (
            [WARM_UNSURE, beside(*NOISE)],
            "No significant effect of a warm KV store or cold PD split on TTFT",
        ),
    ],
)
def test_the_finding_of_a_sweep_says_what_its_intervals_allow(comparisons, found, sweep):
    said = headline.finding(sweep(topology="1p1d,1p4d"), comparisons)
    assert said == found
    assert words(said) <= 14


def words_at_most(limit, texts):
    too_long = [text for text in texts if words(text) > limit]
    assert not too_long, too_long


def test_every_headline_has_at_most_14_words(sweep, prefix_cache):
    """Whatever the verdicts of a warm cache and of the PD split are, and with every gate."""
    verdicts = [(18.12, nan, nan), (18.12, 17.0, 19.0), FASTER, SLOWER, NOISE]
    warms = [
        ratio("cache-state", "store-warm", *v, arm=a) for v in verdicts for a in (SUBJECT, SMALL)
    ]
    rivals = [beside(*v, name=n) for v in verdicts for n in ("cold", "store-warm")]
    plan = sweep(topology="1p1d,1p4d")
    caches, splits = ([[], *map(list, combinations(rows, 2))] for rows in (warms, rivals))
    found = {headline.finding(plan, [*w, *r]) for w in caches for r in splits}
    assert len(found) > 30
    for workload in ("reference", "batch_processing"):
        plan = prefix_cache(workload=workload)
        gains = [ratio("cache-state", "engine-warm", *v) for v in verdicts]
        found |= {headline.finding(plan, [g, off(*v)]) for g in gains for v in verdicts}
    words_at_most(14, found)
    words_at_most(14, (headline.headline(text, ["client kept up"])[0] for text in found))
    struck = [name for name, row in GATES.items() if "struck" in row.takes.values()]
    kinds = ("ratios", "times", "counts")
    words_at_most(14, (headline.headline("", [name], k)[0] for name in struck for k in kinds))


@pytest.mark.parametrize(
    ("comparisons", "said"),
    [
        ([], "The prefix cache was measured, but no two passes can be compared"),
        ([warm(nan, "engine-warm")], "but no two passes can be compared"),
        ([warm(30.0, "engine-warm")], "Warm prefix cache: TTFT 30x faster"),
        ([warm(30.0, "engine-warm"), off(0.8, 0.7, 0.9)], "TTFT 30x faster; cold TTFT 25 % higher"),
        (
            [warm(30.0, "engine-warm"), off(0.99, 0.9, 1.1)],
            "TTFT 30x faster; cost on cold prompts not significant (cache on vs off: 0.990x"
            " [0.900, 1.10])",
        ),
        (
            [warm(30.0, "engine-warm"), off(0.97, 0.39, 2.39)],
            "TTFT 30x faster; cost on cold prompts too noisy to tell (cache on vs off: 0.970x"
            " [0.390, 2.39])",
        ),
        (
            [ratio("cache-state", "engine-warm", *NOISE), off(*NOISE)],
            "No significant effect of the prefix cache on warm or cold TTFT",
        ),
        ([warm(30.0, "engine-warm"), off(0.99)], "TTFT 30x faster"),
    ],
)
def test_the_finding_of_the_prefix_cache_weighs_gain_and_cost(comparisons, said, prefix_cache):
    assert headline.finding(prefix_cache(), comparisons).endswith(said)


@pytest.mark.parametrize(
    ("gain", "said"),
    [
        ((3.0, 2.5, 3.5), "Prefix cache: cold TTFT 3.0x faster, since 95 % of tokens repeat"),
        ((1.0, 0.9, 1.1), "No significant effect of the prefix cache on cold TTFT"),
        (
            (0.5, 0.4, 0.6),
            "Prefix cache: cold TTFT 2.0x slower, although 95 % of tokens repeat",
        ),
    ],
)
def test_where_prompts_repeat_the_cold_pass_shows_a_gain_and_no_cost(gain, said, prefix_cache):
    plan = prefix_cache(workload="batch_processing")
    assert headline.finding(plan, [warm(30.0, "engine-warm"), off(*gain)]) == said
    text = break_even(plan, prefix_summary(0.2, 0.1, 0.05), [off(*gain)])
    assert text.startswith("These prompts repeat 95 %") and "cold_start" in text


def test_a_failed_gate_stands_before_what_it_spoils(sweep):
    found = "A warm store cuts TTFT"
    proven, unproven = headline.headline(found, ["cold was cold", "same text"])
    assert proven == f"Not valid: {GATES['cold was cold'].meaning}"
    assert unproven == found
    assert headline.headline(found, []) == (found, "")
    (card,) = sentences.cards(sweep(topology="1p4d"), [], [warm(18.0)], ["cold was cold"])
    assert (card.spoilt, card.note) == ("struck", "not valid; 5 rounds, 30 request pairs")


def test_a_busy_machine_leaves_a_headline_whose_interval_is_clear():
    found, busy = "A warm store cuts TTFT", ["client kept up"]
    rough = f"{found} (rough)", ""
    assert headline.headline(found, busy) == (found, "")
    assert headline.headline(found, busy, interval=False) == rough
    assert headline.headline(found, busy, "times") == rough
    assert headline.headline(found, busy, "counts") == (found, "")


def test_each_sentence_obeys_the_gates_on_its_own_passes(sweep):
    rows = [beside(2.0, 1.8, 2.2, name) for name in ("cold", "engine-warm")]
    failed = ["engine-warm was engine-warm"]
    said = sentences.sentences(sweep(topology="1p4d"), [], rows, failed)
    lead = "Not valid (engine-warm state was not reached): "
    assert [text.startswith(lead) for text in said] == [False, True]
    assert ["Cold: " in text for text in said] == [True, False]


NIXL, LMCACHE = "1p1d nixl", "1p1d lmcache"


@pytest.mark.parametrize(
    ("failed", "found"),
    [
        ({}, "Warm KV store: TTFT 9.0x to 18x faster; cold PD split: slower"),
        # The numbers of other arms stay.
        (
            {"KV moved": (NIXL,)},
            "Warm KV store: TTFT 9.0x faster; cold PD split: slower"
            " (left out: 1p1d nixl, KV was not transferred)",
        ),
        # Without its only opponent a subject cannot be judged.
        (
            {"no failures": ("2a",)},
            "Warm KV store: TTFT 9.0x faster; cold PD split: slower (left out: 2a, requests fail",
        ),
        ({"KV moved": (NIXL, LMCACHE)}, "Not valid: decode instances prefilled instead of fetc"),
        ({"no failures": ("2a", "2a lmcache")}, "Not valid: too many requests failed"),
        ({"KV moved": ()}, "Not valid: decode instances prefilled instead of fetching KV"),
        ({"KV moved": (NIXL,), "steady state": ()}, "Not valid: latencies kept growing"),
        # What only makes numbers doubtful leaves no arm out.
        ({"cached tokens plausible": (NIXL,)}, "Warm KV store: TTFT 9.0x to 18x faster; cold PD"),
    ],
)
def test_a_gate_that_failed_in_one_arm_takes_away_what_rests_on_that_arm(sweep, failed, found):
    plan = sweep(topology="1p1d", connector="all", engine="simulated")
    rows = [
        warm(18.0, arm=NIXL), beside(*SLOWER, arm=NIXL, baseline="2a"),
        warm(9.0, arm=LMCACHE), beside(*SLOWER, arm=LMCACHE, baseline="2a lmcache"),
    ]  # fmt: skip
    said, limiting = headline.valid_finding(plan, rows, failed)
    assert headline.headline(said, limiting)[0].startswith(found)


def test_key_numbers_are_of_a_valid_subject_and_its_valid_baseline(sweep):
    plan = sweep(topology="1p1d,1p4d")
    rows = [warm(9.0, arm=SMALL), beside(1.4, arm=SMALL, baseline="2a"), warm(18.0)]
    medians = [median(arm.label, "cold", 0.1) for arm in plan.arms]
    of_big = sentences.cards(plan, medians, rows, {})
    assert all("1p4d lmcache" in card.label for card in of_big)
    of_small = sentences.cards(plan, medians, rows, {"KV moved": ("1p4d lmcache",)})
    assert all("1p1d lmcache" in card.label and not card.spoilt for card in of_small)
    both = {"KV moved": ("1p4d lmcache",), "no failures": ("1p1d lmcache",)}
    assert {card.spoilt for card in sentences.cards(plan, medians, rows, both)} == {"struck"}


def test_what_is_not_valid_is_said_once_and_totals_are_of_valid_arms(sweep):
    plan = sweep(topology="1p1d,1p4d")
    rivals = {SMALL: ("2a", "2a lmcache"), "1p4d lmcache": ("5a", "5a lmcache")}
    rows = [
        beside(*SLOWER, arm=arm, baseline=rival) for arm, both in rivals.items() for rival in both
    ]
    said = sentences.sentences(plan, [], rows, {"KV moved": (SMALL,)})
    assert "cold TTFT of the PD split is slower in 2 of 2 comparisons" in said[0]
    (lost,) = [text for text in said if text.startswith("Not valid (KV was not transferred): ")]
    assert lost.count("Cold: 1p1d lmcache is") == 2
    assert sum(text.startswith("Cold: 1p4d lmcache is") for text in said) == 2


@pytest.mark.parametrize(
    ("given", "start", "end"),
    [
        (
            {"topology": "1p1d", "rounds": 5, "requests": 6},
            "Tiny model on a CPU: expect the direction, not the size, to hold on a GPU. 5 rounds, 6"
            " requests per pass, 22,660-token prompts, closed loop",
            "Brackets are 95 % confidence intervals.",
        ),
        ({"rounds": 1}, "Tiny model", "Too few rounds for confidence intervals of ratios."),
        ({"engine": "simulated"}, "Simulated servers: these numbers say nothing", ""),
        ({"engine": "attach", "base_url": "http://127.0.0.1:1"}, "Attached servers, which", ""),
    ],
)
def test_the_scope_says_where_and_with_what_it_was_measured(given, start, end, sweep):
    said = sentences.scope(sweep(**given))
    assert said.startswith(start) and said.endswith(end)


def test_the_scope_names_the_platform(sweep, machine_has, model):
    assert sentences.scope(sweep(model=str(model))).startswith("Measured on cpu.")
    machine_has("rocm", gpus=8)
    assert sentences.scope(sweep()).startswith("Measured on rocm.")


def test_key_numbers_come_with_their_intervals_and_what_they_rest_on(sweep):
    store, engine, rival = warm(18.0), warm(25.0, "engine-warm"), beside(*NOISE)
    cards = sentences.cards(sweep(topology="1p4d"), [], [engine, store, rival])
    assert [card.label for card in cards] == [
        "TTFT speed-up, warm KV store vs cold (1p4d lmcache)",
        "TTFT speed-up, warm prefix cache vs cold (1p4d lmcache)",
        "Cold TTFT speed-up, 1p4d lmcache over 5a lmcache (below 1x: slower)",
    ]
    assert (cards[0].value, cards[0].unit, cards[0].rests_on) == (18.0, "x", "ratios")
    assert (cards[0].low, cards[0].high) == (store.ratio.low, store.ratio.high)
    assert cards[0].passes == ("store-warm", "cold") and cards[2].passes == ("cold",)
    assert cards[2].note == "no significant difference; 5 rounds, 30 request pairs"
    few = ratio("cache-state", "store-warm", 18.0)
    (card,) = sentences.cards(sweep(topology="1p4d"), [], [few])
    assert card.note == "too few rounds for a CI; 2 rounds, 6 request pairs"
    assert sentences.cards(sweep(topology="1p4d"), [], [warm(nan)]) == ()


def test_the_cold_ttft_fills_up_the_key_numbers_and_there_are_three_at_most(sweep):
    plan, cold = sweep(topology="1p1d,1p4d"), median(SUBJECT, "cold", 3.0)
    (card,) = sentences.cards(plan, [cold], [])
    assert (card.label, card.unit, card.note) == (
        "Median cold TTFT, 1p4d lmcache", "ms", "30 requests"
    )  # fmt: skip
    assert card.value == pytest.approx(3000)
    found = [warm(9.0, arm="1p1d lmcache"), warm(18.0), warm(25.0, "engine-warm"), beside(*FASTER)]
    values = [card.value for card in sentences.cards(plan, [cold], found)]
    assert values == [18.0, 25.0, 1.4]  # of the last subject


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            beside(*FASTER),
            "Cold: 1p4d lmcache is 1.40x faster than 5a lmcache in TTFT [1.30, 1.50] (5 rounds,"
            " 30 request pairs).",
        ),
        (
            beside(*SLOWER),
            "Cold: 1p4d lmcache is 2.00x slower than 5a lmcache in TTFT [1.67, 2.50]",
        ),
        (
            beside(*NOISE),
            "Cold: no significant TTFT difference between 1p4d lmcache and 5a lmcache, baseline /"
            " PD split is 1.05x [0.900, 1.20]",
        ),
        (
            beside(1.4),
            "Cold: too few rounds to compare TTFT of 1p4d lmcache and 5a lmcache, baseline /",
        ),
    ],
)
def test_each_pair_with_an_opponent_is_a_sentence(row, said, sweep):
    assert sentences.sentences(sweep(topology="1p4d"), [], [row])[-1].startswith(said)


def test_totals_say_how_many_comparisons_had_each_verdict(sweep):
    rows = [
        warm(9.0, arm=SMALL), warm(18.0), beside(*NOISE), beside(*SLOWER, baseline="5a"),
        beside(0.8, 0.7, 0.9, "store-warm"), beside(0.8, 0.7, 0.9, "engine-warm"),
    ]  # fmt: skip
    lead = "Compared to the same number of aggregated instances,"
    assert sentences.sentences(sweep(topology="1p1d,1p4d"), [], rows)[:3] == [
        "Compared to cold, TTFT with a warm KV store is faster in 2 of 2 PD arms"
        " (speed-up 9.00x to 18.0x).",
        f"{lead} cold TTFT of the PD split is slower in 1 of 2 comparisons and not significantly"
        " different in 1 (TTFT of the baseline / of the PD split: 0.500x to 1.05x).",
        f"{lead} warm TTFT of the PD split is slower in 2 of 2 comparisons (TTFT of the"
        " baseline / of the PD split: 0.800x).",
    ]


def test_scarce_decode_instances_are_set_beside_ample_ones(sweep):
    plan = sweep(topology="4p1d,2p1d,1p4d,2p2d", opponents=False)
    slow = {"4p1d": 0.030, "2p1d": 0.020, "1p4d": 0.010, "2p2d": 0.012}
    summary = [median(f"{name} lmcache", "cold", s, "tpot_s") for name, s in slow.items()]
    (said,) = sentences.sentences(plan, summary, [])
    assert "up to 30.0 ms (4p1d lmcache). The best PD split with at least as many has 10.0" in said
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
        (off(0.8, 0.7, 0.9), "adds 50.0 ms save 200 ms pays off once 25.0 %"),
        (off(0.99, 0.9, 1.1), "save 200 ms The cost not significant"),
        (off(0.8), "save 200 ms The cost too noisy to tell"),
        (off(1.2, 1.1, 1.3), "not slower save 200 ms any hit pays off"),
    ],
)
def test_break_even_is_cost_over_saving_where_both_are_known(cost, said, prefix_cache):
    text = break_even(prefix_cache(), prefix_summary(0.2, 0.25, 0.05), [cost])
    assert all(word in text for word in said.split())
    assert "cached)" not in text


def test_what_a_warm_prompt_hits_scales_the_break_even(prefix_cache):
    rows = prefix_summary(0.2, 0.25, 0.05)
    text = break_even(prefix_cache(), rows, [off(0.8, 0.7, 0.9)], cached=0.9)
    assert "Engine-warm prompts (90 % cached) save 200 ms" in text and "once 22.5 %" in text


def test_a_hit_that_saves_nothing_has_no_break_even_nor_has_another_notebook(prefix_cache):
    text = break_even(prefix_cache(), prefix_summary(0.2, 0.1, 0.12), [off(1.2, 1.1, 1.3)])
    assert text.startswith("Engine-warm prompts saved no TTFT here")
    assert break_even(prefix_cache(), [], []) == ""
    assert break_even(prefix_cache(), prefix_summary(0.2, 0.25, 0.05), [warm(18.0)]) == ""


RATIO = Card(label="", value=30.0, low=25.8, note="3 rounds", rests_on="ratios")
FEW = Card(label="", value=30.0, note="1 round", rests_on="ratios")
TIME = Card(label="", value=1.1, low=1.0, note="24 requests", rests_on="times")
COUNT = Card(label="", value=3, rests_on="counts")


def test_a_gate_that_failed_spoils_the_key_numbers_that_it_touches_and_no_other():
    cards = marked([RATIO, FEW, TIME, COUNT], ["client kept up"])
    assert [(card.spoilt, card.note) for card in cards] == [
        ("doubt", "use with caution; 3 rounds"),
        ("rough", "rough; 1 round"),
        ("rough", "rough; 24 requests"),
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
    assert told(said, spoil(["client kept up"], "times")) == (
        f"Rough (client did not keep up): {said}"
    )
    assert told(said, spoil(["KV moved", "same text"], "times")) == (
        f"Not valid (KV was not transferred, and 1 more gate failed): {said}"
    )
    assert told(said, spoil(["client kept up"], "ratios")) == said  # a doubt stands elsewhere
    assert told(said, spoil([], "times")) == said
