import os
import shlex
from dataclasses import replace
from math import nan
from pathlib import Path

import pandas as pd
import pytest
from papermill.cli import _resolve_type

from workbench.experiment.findings import findings
from workbench.experiment.findings.doubts import draft_doubts
from workbench.experiment.findings.findings import repeat_command
from workbench.experiment.result.facts import RunFacts
from workbench.experiment.result.result_file import from_plain, to_plain
from workbench.metrics.counters import DraftCounters, TokenSources
from workbench.metrics.gates.gate_table import GATES
from workbench.metrics.passes import PassCounters
from workbench.params.notebooks import PrefixCache, check_params
from workbench.params.pd_sweep import PdSweep
from workbench.params.run_id import run_id
from workbench.records import to_frame

ATTACH = {"engine": "attach", "base_url": "http://127.0.0.1:1"}


def measured(plan, rows, ttft_s=(1.0, 1.0, 1.0), rounds=3):
    """The rows of a whole run in which every request took the same time."""
    return pd.concat(
        [
            rows(arm.label, p.name, list(ttft_s), round=number)
            for number in range(rounds)
            for arm in plan.arms
            for p in arm.passes
        ],
        ignore_index=True,
    )


def cold_passes(plan, *, engine_hit=0.0):
    sources = TokenSources(computed=3000, engine_hit=engine_hit, external_hit=0)
    return [
        PassCounters(
            arm=arm.label,
            round=0,
            pass_name="cold",
            requests_sent=3,
            prompt_tokens_sent=3000,
            sources={"aggregated": sources},
        )
        for arm in plan.arms
    ]


def test_the_share_of_accepted_drafts_is_a_doubt(sweep):
    plan = sweep(topology="1a", connector="none")
    plain = cold_passes(plan)
    drafted = [
        replace(p, drafts=DraftCounters(proposed=n, accepted=a))
        for p, n, a in zip(plain * 2, (600, 44), (4, 1), strict=True)
    ]
    assert draft_doubts(plan, plain) == []
    (doubt,) = draft_doubts(plan, drafted)
    assert doubt == (
        "Speculative decoding accepted 0.8 % of 644 draft tokens. TPOT depends on that, and random"
        " prompts do not show it for real text."
    )


def every_pass(plan):
    """Counters of each pass of each arm, in which every token was computed."""
    told = TokenSources(computed=3000, engine_hit=0, external_hit=0)
    return [
        PassCounters(
            arm=arm.label,
            round=0,
            pass_name=p.name,
            requests_sent=3,
            prompt_tokens_sent=3000,
            sources={role: told for role, _ in arm.topology.roles}
            if arm.settings and arm.topology
            else {},
        )
        for arm in plan.arms
        for p in arm.passes
    ]


def conclude(plan, requests, passes=(), doubts=()):
    begun = RunFacts(notebook=plan.notebook, run_id=plan.run_id, status="success", doubts=doubts)
    return findings.conclude(begun, plan, requests=requests, passes=passes)


def gates(facts):
    return {gate.name: gate.outcome for gate in facts.gates}


def test_a_conclusion_has_everything_that_a_page_shows(sweep, rows):
    plan = sweep(topology="1p1d", rounds=3, requests=3)
    facts = conclude(plan, measured(plan, rows), doubts=("a doubt from the run",))
    assert facts.finding and facts.scope and facts.numbers
    assert facts.doubts[1] == "a doubt from the run"  # after that of a gate
    assert {row.arm for row in facts.summary} == {"1p1d lmcache", "2a", "2a lmcache"}
    assert {row.kind for row in facts.comparisons} == {"cache-state", "opponent"}
    assert facts.workload.requests == 3
    assert facts.workload.hash == plan.workload.build("any").hash
    plain = to_plain(facts)
    assert to_plain(from_plain(plain, "itself")) == plain


def test_the_words_of_a_whole_run(sweep, rows):
    """All sentences of a run at once; elsewhere tests look at verdicts and numbers."""
    plan = sweep(topology="1p1d", rounds=3, requests=3)
    slow = {"1p1d lmcache": 2.0, "2a": 1.0, "2a lmcache": 1.0}
    part = {"cold": 1.0, "engine-warm": 0.1, "cross-instance": 0.2, "store-warm": 0.25}
    requests = pd.concat(
        [
            rows(arm.label, p.name, [slow[arm.label] * part[p.name]] * 3, round=number)
            for number in range(3)
            for arm in plan.arms
            for p in arm.passes
        ],
        ignore_index=True,
    )
    facts = conclude(plan, requests, every_pass(plan))
    cards = (f"{card.label}: {card.value:g} {card.unit} ({card.note})" for card in facts.numbers)
    gates = (f"{g.outcome} {g.name}: {g.sentence}. Next: {g.next_step}" for g in facts.gates)
    words = [facts.finding, facts.unproven, facts.scope, *cards, *facts.sentences, *gates]
    words += [*facts.doubts, *facts.limits]
    golden = Path(__file__).with_name("whole_run.txt")
    if os.environ.get("GOLDEN") == "write":  # as in tests/golden
        golden.write_text("\n".join(words) + "\n")
    assert "\n".join(words) + "\n" == golden.read_text()


def test_a_run_that_measured_nothing_says_so_and_nothing_else(sweep):
    facts = conclude(sweep(), to_frame(()))
    assert facts.finding == "Nothing was measured"
    assert facts.gates == facts.summary == facts.comparisons == facts.numbers == ()
    assert facts.repeat.startswith("papermill")


@pytest.mark.parametrize(
    ("params", "applies"),
    [
        (
            {"topology": "1p4d"},
            "caches were emptied; cold was cold; KV moved; engine-warm was engine-warm;"
            " cross-instance was cross-instance; store-warm was store-warm; same text",
        ),
        (
            {"topology": "1p1d", "connector": "nixl", "opponents": False},
            "no failed transfers; caches were emptied; cold was cold; KV moved; engine-warm was"
            " engine-warm; same text",
        ),
        (
            {"topology": "2a", "connector": "none"},
            "caches were emptied; cold was cold; engine-warm was engine-warm; same text",
        ),
        ({**ATTACH, "topology": "1p4d"}, "cold was cold; engine-warm was engine-warm; same text"),
    ],
)
def test_a_gate_is_asked_where_it_means_something(params, applies, sweep, rows):
    plan = sweep(**params)
    asked = list(gates(conclude(plan, measured(plan, rows), every_pass(plan))))
    always = (
        "every pass ran",
        "no failures",
        "the ledger closes",
        "output counts equal",
        "nothing impossible",
        "client kept up",
        "answers were streamed",
    )
    assert set(always) <= set(asked)
    assert [name for name in asked if name not in always] == applies.split("; ")


def test_gates_judge_rows_and_counters(prefix_cache, rows):
    plan = prefix_cache(shares=[0.5], concurrency=1)
    good = gates(conclude(plan, measured(plan, rows), cold_passes(plan)))
    assert good["cold was cold"] == "PASS"
    assert good["no failures"] == good["same text"] == "PASS"
    assert good["engine-warm was engine-warm"] == "INCONCLUSIVE"  # no such counters were given
    warm = gates(conclude(plan, measured(plan, rows), cold_passes(plan, engine_hit=9)))
    assert warm["cold was cold"] == "FAIL"


def test_failed_requests_fail_their_gate(sweep, rows):
    plan = sweep(topology="1p1d", opponents=False)
    facts = conclude(plan, measured(plan, rows, ttft_s=(1.0, nan, nan)))
    assert gates(facts)["no failures"] == "FAIL"


def test_a_failed_gate_is_in_the_headline(prefix_cache, rows):
    plan = prefix_cache(shares=[0.5], concurrency=1)
    facts = conclude(plan, measured(plan, rows), cold_passes(plan, engine_hit=9))
    assert facts.finding == f"Not valid: {GATES['cold was cold'].meaning}"
    assert GATES["every pass ran"].doubt in facts.doubts
    assert "prefix cache" in facts.unproven


def test_launches_that_differ_are_a_doubt(sweep, rows):
    plan = sweep(topology="1p1d", opponents=False, rounds=5)
    requests = pd.concat(
        [
            rows("1p1d lmcache", p.name, [1.0 + number] * 12, round=number)
            for number in range(5)
            for p in plan.arms[0].passes
        ],
        ignore_index=True,
    )
    doubts = conclude(plan, requests).doubts
    assert any(
        "vary more between launches than their confidence intervals" in doubt for doubt in doubts
    )


def test_partly_new_prompts_need_not_have_the_same_answer(prefix_cache, rows):
    plan = prefix_cache(shares=[0.5], concurrency=1)
    requests = measured(plan, rows)
    requests.loc[requests["pass"] == "50% cached", "text"] = "another"
    assert gates(conclude(plan, requests))["same text"] == "PASS"
    requests.loc[requests["pass"] == "engine-warm", "text"] = "another"
    assert gates(conclude(plan, requests))["same text"] == "FAIL"


@pytest.mark.parametrize(
    ("rounds", "doubt"),
    [
        (1, "With only 1 round, ratios have no confidence interval"),
        (2, "With only 2 rounds, ratios have no confidence interval"),
        (4, "With only 4 rounds, confidence intervals of ratios are wide"),
    ],
)
def test_few_rounds_are_a_doubt(rounds, doubt, sweep):
    doubts = conclude(sweep(rounds=rounds), to_frame(())).doubts
    assert doubts[0].startswith(doubt)
    assert conclude(sweep(rounds=5), to_frame(())).doubts == ()


def test_few_requests_are_a_doubt_with_the_number_needed(sweep, rows):
    plan = sweep(topology="1p1d", opponents=False, rounds=5)
    _, doubt = conclude(plan, measured(plan, rows, rounds=5)).doubts
    assert doubt == (
        "15 requests per arm and pass are too few for a confidence interval of p90 (needs 36) or"
        " p99 (needs 368)."
    )
    _, less = conclude(plan, measured(plan, rows, [1.0] * 40, rounds=1)).doubts
    assert "p90" not in less and "p99 (needs 368)" in less


@pytest.mark.parametrize(
    ("workload", "said"),
    [
        ({"workload": "batch_processing"}, "Prompts repeat 95 % of their tokens within a pass, so"),
        ({"workload": "shared_prefix", "shared_share": 0.2}, "also serve part of a cold pass"),
        ({"workload": "cold_start"}, ""),
    ],
)
def test_what_prompts_repeat_is_served_in_a_cold_pass_too(workload, said, sweep):
    limits = conclude(sweep(**workload), to_frame(())).limits
    told = [limit for limit in limits if limit.startswith("Prompts repeat")]
    assert len(told) == bool(said) and said in "".join(told)


def test_limits_are_those_of_this_run(sweep, machine_has):
    on_cpu = " ".join(conclude(sweep(), to_frame(())).limits)
    assert "On a CPU" in on_cpu and "closed loop" in on_cpu and "random tokens" in on_cpu
    attached = conclude(sweep(**ATTACH, rate_per_s=1.0), to_frame(())).limits
    assert "On a CPU" not in " ".join(attached) and "closed loop" not in " ".join(attached)
    machine_has("cuda", gpus=8)
    assert "On a CPU" not in " ".join(conclude(sweep(), to_frame(())).limits)


@pytest.mark.parametrize(
    ("notebook", "params"),
    [
        ("pd_sweep", PdSweep()),
        ("pd_sweep", PdSweep(topology="1p1d,1p4d", connector="nixl", fork=False, rate_per_s=0.5)),
        ("pd_sweep", PdSweep(model="/models/my model's", store_gb=2.5, seed=7)),
        (
            "pd_sweep",
            PdSweep(**ATTACH, topology="7", decode_urls=["http://a:1", "http://b:2"]),
        ),
        ("pd_sweep", PdSweep(**ATTACH, decode_urls=["http://a:1"])),
        ("single_instance_prefix_cache", PrefixCache(shares=[0.5])),
        ("single_instance_prefix_cache", PrefixCache(shares=[0.1, 0.9], requests=100)),
        ("single_instance_prefix_cache", PrefixCache(shares=[])),
    ],
)
def test_the_repeat_command_repeats_the_run(notebook, params, sweep, prefix_cache):
    plan = sweep() if notebook == "pd_sweep" else prefix_cache()
    object.__setattr__(plan, "params", params)
    words = shlex.split(repeat_command(plan.notebook, plan.params))
    assert words[:3] == ["papermill", f"notebooks/{notebook}.ipynb", "out.ipynb"]
    assert words[3::3] == ["-p"] * len(words[3::3])
    given = dict(zip(words[4::3], map(_resolve_type, words[5::3]), strict=True))
    assert check_params(notebook, given) == params
    assert run_id(check_params(notebook, given)) == run_id(params)


def test_the_repeat_command_names_only_what_is_not_the_default(sweep):
    plan = sweep(topology="1p1d", rounds=5)
    assert repeat_command(plan.notebook, plan.params) == (
        "papermill notebooks/pd_sweep.ipynb out.ipynb -p topology 1p1d -p rounds 5"
    )
