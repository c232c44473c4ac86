"""The run of the validation with invented recipes: what is written, and what a failure leaves."""

import asyncio
import contextlib
import json
from dataclasses import replace
from math import inf, isnan, nan
from types import SimpleNamespace

import pandas as pd
import pytest

from workbench.claims.all_recipes import recipes
from workbench.claims.recipes.recipe import Curve, Outcome, Recipe
from workbench.claims.registry.registry import read_registry
from workbench.claims.validation import validation
from workbench.claims.validation.validation import validate
from workbench.claims.verdict.decision import Interval
from workbench.claims.verdict.verdict import Measurement
from workbench.errors import DeploymentError, ParameterError
from workbench.experiment.result.result import load_result
from workbench.experiment.run import time_limit
from workbench.experiment.run.progress import read_standing
from workbench.hardware.machine import repository_root
from workbench.params.notebooks import PaperClaimValidation
from workbench.params.run_id import run_id

CLAIMS = read_registry(repository_root() / "params" / "claims").claims
PROVED = {"replicated_runs_with_ci": "pass", "cache_state_controlled": "pass"}


def interval(estimate, low, high, runs=5):
    return Interval(estimate=estimate, low=low, high=high, runs=runs)


def outcome(measurements, **changed):
    points = [("a", 1, 2.0, nan, nan)]
    fields = {
        "table": pd.DataFrame([{"quantity": "ttft_s", "arm": "on", "value": 0.1}]),
        "says": "Prompts of 512 tokens.",
        "checks": PROVED,
        "curves": (Curve(title="TTFT", x="tokens", y="ms", points=points),),
    }
    return Outcome(measurements=measurements, **{**fields, **changed})


def effects(claim, **changed):
    """A measurement of one claim of the registry, all its effects alike."""
    cell = changed.pop("cell")
    return Measurement(
        effects={effect.name: (cell,) for effect in CLAIMS[claim].effects}, **changed
    )


GOOD = outcome(
    {
        "VLLM-APC": Measurement(
            effects={"TTFT": (interval(0.2, 0.18, 0.22),), "TPOT": (interval(1.0, 0.97, 1.03),)}
        ),
        "VLLM-APC-COST": effects("VLLM-APC-COST", cell=interval(0.98, 0.9, 1.07)),
    }
)
HITS = outcome({"OWN-HIT-TOKENS": effects("OWN-HIT-TOKENS", cell=interval(0, 0, 0))})


def recipe(name, claims, result, *, seconds=10.0):
    async def run(setting):
        setting.echo(f"measuring with {setting.runs} runs")
        if isinstance(result, BaseException):
            raise result
        return result

    return Recipe(name=name, level="serving", claims=claims, what="One beside another.",
                  estimate_s=lambda _: seconds, run=run)  # fmt: skip


CACHE = recipe("cache", ("VLLM-APC", "VLLM-APC-COST"), GOOD)


@pytest.fixture
def referee(monkeypatch, tmp_path):
    """`referee(*recipes, **params)` is the validation with these recipes and no others."""

    def make(*recipes, **params):
        monkeypatch.setattr(validation, "recipes", lambda _: recipes)
        defaults = {"platform": "cpu", "output_dir": str(tmp_path)}
        return validate(PaperClaimValidation(**{**defaults, **params}))

    return make


def test_to_read_claims_no_server_is_started(referee, monkeypatch):
    measured = []
    monkeypatch.setattr("workbench.experiment.plan.engine_setup.machine_speed", measured.append)
    referee(CACHE, tiers=["source"])
    assert measured == []


async def judged(made):
    """The accounts of a run, by id."""
    result = await made.run(echo=lambda _: None)
    return result, {row["id"]: row for row in result.facts["claims"]}


async def test_every_verdict_has_its_number_interval_conditions_and_reason(referee):
    result, claims = await judged(referee(CACHE))
    apc = claims["VLLM-APC"]
    assert (apc["verdict"], apc["kind"]) == ("confirmed (on CPU)", "confirmed")
    assert [(n["name"], n["estimate"], n["low"]) for n in apc["number"]] == [
        ("TTFT", 0.2, 0.18), ("TPOT", 1.0, 0.97),
    ]  # fmt: skip
    assert apc["conditions"].startswith("any model; any hardware")
    assert apc["ours"] == "Prompts of 512 tokens."
    assert {check["by"] for check in apc["checked"]} == {"our run"}
    cost = claims["VLLM-APC-COST"]
    assert (cost["verdict"], cost["kind"]) == ("inconclusive", "inconclusive")
    assert all(row["reason"] and row["conditions"] and row["source"] for row in claims.values())
    assert result.claims["id"].tolist()[:2] == ["VLLM-APC", "VLLM-APC-COST"]  # measured ones first
    assert [(card["label"], card["value"], card["note"]) for card in result.facts["numbers"]] == [
        ("measured here", 2, "1 confirmed, 1 inconclusive"),
        ("decided from their source", 34, "16 contradicted, 2 without evidence, 16 not comparable"),
        ("not tested", 39, "the table gives the reasons"),
    ]
    assert result.facts["finding"] == (
        "2 published claims measured here: 1 confirmed, 1 inconclusive"
    )
    assert result.facts["scope"].endswith("Our 16 control claims were not tested.")


async def test_the_run_folder_holds_rows_and_result(referee):
    made = referee(CACHE)
    result, _ = await judged(made)
    assert result.folder.name == run_id(made.params)
    kept = load_result(result.folder).facts
    assert (kept["status"], kept["outcome"]["word"]) == ("success", "judged")
    assert kept["files"] == {"measured cache": "measured_cache.parquet"}
    assert len(pd.read_parquet(result.folder / "measured_cache.parquet")) == 1
    assert {gate["outcome"] for gate in kept["gates"]} == {"PASS"}
    assert "papermill notebooks/paper_claim_validation.ipynb" in kept["repeat"]


async def test_a_claim_that_reading_decides_shows_the_number_of_its_own_table(referee):
    _, claims = await judged(referee(claims=["S003-VLLM-VS-HF-PEAK"]))
    (row,) = claims.values()
    (number,) = row["number"]
    assert number["kind"] == "recomputed"
    assert (round(number["low"], 2), round(number["high"], 2)) == (2.0, 2.35)
    assert row["sums"][1]["rows"][0]["batch"] == 1
    assert row["verdict"] == "not comparable"


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (DeploymentError("the server ended by itself"), "cache failed: the server ended by itself"),
        (KeyError("oops"), "cache failed: KeyError: 'oops'"),
    ],
)
async def test_a_measurement_that_failed_is_a_sentence_and_the_others_go_on(
    referee, error, sentence
):
    broken = recipe("cache", ("VLLM-APC", "VLLM-APC-COST"), error)
    hits = recipe("hits", ("OWN-HIT-TOKENS",), HITS, seconds=30)
    result, claims = await judged(referee(broken, hits))
    row = claims["VLLM-APC"]
    assert (row["verdict"], row["code"], row["number"]) == ("not comparable", "unreliable_run", [])
    assert row["reason"].startswith(sentence)
    assert claims["OWN-HIT-TOKENS"]["verdict"] == "confirmed (on CPU)"
    assert any(doubt.startswith(sentence) for doubt in result.facts["doubts"])
    gates = {gate["name"]: gate["outcome"] for gate in result.facts["gates"]}
    assert gates["measurements ended"] == "INCONCLUSIVE"


def test_a_model_folder_that_is_none_is_refused_before_anything_starts():
    with pytest.raises(
        ParameterError, match=r"model must be an existing folder.* got '/no/such/model'"
    ):
        validate(PaperClaimValidation(model="/no/such/model"))


async def test_what_found_no_room_is_measured_where_the_others_leave_the_time(referee):
    hits = recipe("hits", ("OWN-HIT-TOKENS",), HITS, seconds=70)
    made = referee(CACHE, hits, time_budget_s=75)
    assert [step.recipe.name for step in made.schedule.steps] == ["cache"]
    assert "Not enough time: hits takes about 70 s" in made.schedule.skipped["OWN-HIT-TOKENS"]
    _, claims = await judged(made)
    assert claims["OWN-HIT-TOKENS"]["verdict"] == "confirmed (on CPU)"
    assert claims["OWN-HIT-TOKENS"]["skipped"] == ""


async def test_what_our_own_code_fixes_is_counted_apart_and_is_no_evidence(referee):
    ratios = {"INT8 ratio": 1.97, "INT4 ratio": 3.2, "FP8 ratio": 2.0}
    fixed = Measurement(
        effects={name: (interval(value, value, value),) for name, value in ratios.items()},
        counted=frozenset(ratios), built_in=frozenset(ratios),
    )  # fmt: skip
    bytes_ = recipe("bytes", ("OWN-KV-BYTES",), outcome({"OWN-KV-BYTES": fixed}))
    result, claims = await judged(referee(CACHE, bytes_))
    row = claims["OWN-KV-BYTES"]
    assert (row["verdict"], row["measured"]) == ("holds by construction", False)
    assert "checks our arithmetic, not an engine" in row["limits"][0]
    assert row["id"] not in {claim["id"] for claim in claims.values() if claim["measured"]}
    assert "control claims: 1 confirmed, " in result.facts["scope"]


@pytest.mark.parametrize(
    ("cell", "faults", "kind", "code"),
    [
        (interval(1.0, nan, nan), (), "inconclusive", "inconclusive"),
        (interval(1.0, 0.999, 1.001), ("Gate failed.",), "not-comparable", "unreliable_run"),
    ],
)
async def test_without_an_interval_or_with_a_failed_gate_no_claim_is_green(
    referee, cell, faults, kind, code
):
    made = outcome({"VLLM-APC-COST": effects("VLLM-APC-COST", cell=cell, faults=faults)})
    _, claims = await judged(referee(recipe("cache", ("VLLM-APC-COST",), made)))
    row = claims["VLLM-APC-COST"]
    assert (row["kind"], row["code"]) == (kind, code)
    assert (row["number"][0]["low"] is None) == isnan(cell.low)


class SlowMachine:
    """A machine on which `levels` take `times` as long as estimated, by a clock of its own."""

    def __init__(self, times, levels):
        self.times, self.levels, self.now_s, self.ends_s = times, levels, 0.0, inf

    def __call__(self):
        return self.now_s

    def works(self, level, seconds):
        """Spend time; what goes beyond the limit is broken off there."""
        self.now_s += seconds * (self.times if level in self.levels else 1)
        if self.now_s > self.ends_s:
            self.now_s, self.ends_s = self.ends_s, inf
            raise TimeoutError

    @contextlib.asynccontextmanager
    async def timeout(self, seconds):
        self.ends_s = inf if seconds is None else self.now_s + seconds
        yield SimpleNamespace(expired=lambda: True)
        self.ends_s = inf

    def recipe(self, real):
        """`real` with its costs and claims, and rounds that only take time."""

        async def run(setting):
            once = real.estimate_s(replace(setting, runs=1, allotted_s=0))
            each = real.estimate_s(replace(setting, runs=2, allotted_s=0)) - once
            async with setting.limit.enforced():
                for number in setting.limit.rounds_of(setting.runs):
                    self.works(real.level, each if number else once)
            runs = setting.limit.rounds
            if not runs:
                raise DeploymentError("nothing ended")
            found = interval(0.5, 0.4, 0.6, runs) if runs > 2 else interval(0.5, nan, nan, runs)
            exact = interval(0, 0, 0, runs)
            return outcome({
                name: Measurement(effects={
                    effect.name: (exact if effect.quantifier == "exact" else found,)
                    for effect in CLAIMS[name].effects
                })
                for name in real.claims
            }, checks=PROVED | {
                "replicated_runs_with_ci": "pass" if runs >= 5 else "fail",
                "interleaved_run_order": "pass" if runs > 1 else "fail",
            })  # fmt: skip

        return replace(real, run=run)


@pytest.fixture
def slow(referee, monkeypatch):
    """`slow(times)` is the whole validation of `make report` on a machine so many times slower."""

    async def judge(times, levels=("kernel", "engine", "serving")):
        machine = SlowMachine(times, levels)
        monkeypatch.setattr(time_limit, "timeout", machine.timeout)
        made = referee(*map(machine.recipe, recipes(PaperClaimValidation())), time_budget_s=180.0)
        said = []
        result = await made.run(echo=said.append, clock=machine)
        return result, said, machine.now_s

    return judge


@pytest.mark.parametrize(
    ("times", "measured"), [(0.8, 19), (1, 18), (1.5, 13), (3, 8), (4.2, 8), (6, 8), (10, 1)]
)
async def test_a_budget_holds_on_a_slow_machine_and_leaves_as_much_as_it_can(slow, times, measured):
    result, _, took_s = await slow(times)
    assert took_s <= 1.2 * 180
    claims = {row["id"]: row for row in result.facts["claims"]}
    assert sum(row["measured"] for row in claims.values()) >= measured
    offered = {name for recipe in recipes(PaperClaimValidation()) for name in recipe.claims}
    silent = [
        name
        for name in offered & claims.keys()
        if claims[name]["code"] == "not_measured"
        and not (claims[name]["number"] or claims[name]["skipped"])
    ]
    assert silent == []


async def test_a_recipe_that_turns_out_slow_stops_and_leaves_the_time_to_the_others(slow):
    result, said, _ = await slow(5, levels=("serving",))
    claims = {row["id"]: row for row in result.facts["claims"]}
    assert claims["OWN-HIT-TOKENS"]["kind"] == "confirmed"  # counted, for which a round is enough
    assert (claims["VLLM-APC"]["kind"], claims["VLLM-APC"]["measured"]) == ("inconclusive", True)
    assert claims["OWN-POOL"]["measured"] and claims["OWN-FUSED"]["measured"]
    (doubt,) = (d for d in result.facts["doubts"] if d.startswith("prefix_cache was stopped"))
    assert "after 1 of 5 rounds" in doubt and doubt.endswith("Set a larger time_budget_s.")
    assert doubt in said
    assert doubt in claims["VLLM-APC"]["doubts"]
    assert "Not enough time: store takes about" in claims["OWN-STORE-TTFT"]["skipped"]
    spent = {row["recipe"]: row for row in result.facts["time_spent"]}
    assert (spent["prefix_cache"]["rounds"], spent["prefix_cache"]["planned_rounds"]) == (1, 5)


async def test_the_lines_say_how_far_the_measuring_is_and_the_budget_bounds_what_is_left(slow):
    result, said, _ = await slow(3)
    far = [standing for line in said if (standing := read_standing(line)[1])]
    recipes_run = len(result.facts["time_spent"])
    assert [standing.done for standing in far] == list(range(recipes_run + 1))
    assert (far[-1].total, far[-1].left_s, far[-1].unit) == (recipes_run, 0, "measurements")
    assert all(standing.elapsed_s + standing.left_s <= 1.2 * 180 for standing in far)
    doubts = result.facts["doubts"]
    assert doubts[0].startswith("This machine took 3.0x the planned time; not measured: ")
    cut = [doubt for doubt in doubts if doubt.startswith("prefix_cache was cut to ")]
    assert len(cut) == 1 and cut[0] in said
    assert any(" of 180 s used; new plan: " in line for line in said)


async def test_what_is_broken_off_with_nothing_to_show_says_so_and_failed_nothing(slow):
    result, _, took_s = await slow(30)
    assert took_s <= 1.2 * 180
    claims = {row["id"]: row for row in result.facts["claims"]}
    row = claims["OWN-PAGED"]
    assert (row["kind"], row["number"]) == ("not-tested", [])
    assert row["skipped"].startswith("paging was stopped after 0 of 5 rounds, after 135 of")
    gates = {gate["name"]: gate["outcome"] for gate in result.facts["gates"]}
    assert gates["measurements ended"] == "INCONCLUSIVE"


async def test_cancelling_keeps_what_was_measured_and_spares_the_good_result(referee, tmp_path):
    good, _ = await judged(referee(CACHE))
    stopped = recipe("hits", ("OWN-HIT-TOKENS",), asyncio.CancelledError(), seconds=40)
    with pytest.raises(asyncio.CancelledError):
        await judged(referee(CACHE, stopped))
    assert json.loads((good.folder / "result.json").read_text())["status"] == "success"
    (attempt,) = good.folder.glob("attempt-*")
    facts = json.loads((attempt / "result.json").read_text())
    assert facts["status"] == "cancelled"
    assert any(row["measured"] for row in facts["claims"])


async def test_mistakes_of_a_registry_are_doubts_and_the_other_claims_go_on(referee, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "a.yaml").write_text(
        "source: {title: T, ref: R}\nclaims:\n"
        "- {id: GOOD, statement: A is B., metric: m, effects: [{name: e, quantifier: lower,"
        " type: ratio, unit: x, value: 1}], subject: A, comparator: B, level: server,"
        " phase: mixed, hardware: any, model: any, workload: null, evidence: {kind: measurement},"
        " checks: {}, source: {location: p, confirmation: primary, how: read},"
        " bounds: [{limit: memory_bandwidth, gpu: TPU v9, value: 9}]}\n"
        "- {id: BAD, statement: No unit.}\n"
    )
    result, claims = await judged(referee(registry=str(folder)))
    assert list(claims) == ["GOOD"]
    assert "a.yaml: BAD: metric, effects, subject," in result.facts["doubts"][0]
    assert "GPU 'TPU v9' is not in workbench/hardware" in claims["GOOD"]["doubts"][0]
    gates = {gate["name"]: gate["outcome"] for gate in result.facts["gates"]}
    assert gates["registry is readable"] == "INCONCLUSIVE"


def test_unknown_claims_and_empty_registries_stop_before_anything_starts(referee, tmp_path):
    with pytest.raises(ParameterError, match="did you mean 'VLLM-APC'"):
        referee(claims=["VLLM-APCC"])
    with pytest.raises(ParameterError, match="must be a folder with valid claims"):
        referee(registry=str(tmp_path))


def test_a_plan_prints_and_its_run_id_follows_the_registry(referee, tmp_path):
    made = referee(CACHE, claims=["literature"])
    assert f"28 claims on {made.setting.hardware} (cpu)\n" in str(made) and "cache" in str(made)
    one = run_id(made.params)
    assert one.startswith("literature-420s-")
    assert run_id(PaperClaimValidation(claims=["literature"], registry=str(tmp_path))) != one


async def test_a_number_beside_a_verdict_by_reading_is_shown_and_judges_nothing(referee):
    pool = outcome({"S003-POOL": effects("S003-POOL", cell=interval(2.0, 1.9, 2.1))})
    _, claims = await judged(referee(recipe("pool", ("VLLM-APC", "S003-POOL"), pool)))
    row = claims["S003-POOL"]
    assert (row["verdict"], row["code"]) == ("not comparable", "same_metric_definition")
    assert row["shown_only"] and not row["measured"]
    assert row["number"][0]["estimate"] == 2.0
    assert any("does not change it" in limit for limit in row["limits"])


async def test_reading_alone_starts_nothing(referee):
    never = recipe("cache", ("VLLM-APC",), AssertionError("nothing may start"))
    result, claims = await judged(referee(never, claims=["llmir", "VLLM-APC"], tiers=["source"]))
    assert len(claims) == 17
    assert result.facts["finding"] == (
        "17 published claims: 13 contradicted, 2 without evidence, 2 not tested"
    )
    assert claims["VLLM-APC"]["skipped"].startswith("Needs the tier “serving”, which")


async def test_a_corrected_comparison_stands_beside_our_number(referee):
    name = "S003-VLLM-VS-HF-PEAK"
    ours = outcome({name: effects(name, cell=interval(300, 280, 320))})
    _, claims = await judged(referee(recipe("engines", ("VLLM-APC", name), ours)))
    measured, corrected = claims[name]["number"]
    assert (measured["kind"], measured["estimate"]) == ("measured", 300)
    assert (corrected["kind"], round(corrected["low"], 2)) == ("recomputed", 2.0)


async def test_a_claim_of_which_a_part_was_left_out_is_not_tested_and_shows_the_rest(referee):
    half = outcome({"VLLM-APC": Measurement(effects={"TTFT": (interval(0.2, 0.18, 0.22),)})})
    result, claims = await judged(referee(recipe("cache", ("VLLM-APC",), half)))
    row = claims["VLLM-APC"]
    assert (row["verdict"], row["reason"]) == ("not tested", "TPOT: Not measured.")
    assert row["shown_only"] and row["number"][0]["estimate"] == 0.2
    assert "measured here" not in result.facts["finding"]


async def test_number_and_reason_name_the_same_cell_as_the_weakest(referee):
    steps = (interval(0.5, 0.4, 0.6), interval(0.74, 0.71, 0.77), interval(0.73, 0.66, 0.8))
    made = outcome({"OWN-TTFT-MONOTONE": Measurement(effects={"TTFT": steps}, noise_floor=0.1)})
    _, claims = await judged(referee(recipe("cache", ("OWN-TTFT-MONOTONE",), made)))
    row = claims["OWN-TTFT-MONOTONE"]
    assert (row["number"][0]["low"], row["number"][0]["high"]) == (0.66, 0.8)
    assert "0.73x (0.66 to 0.8) in the weakest of 3 cases" in row["reason"]
