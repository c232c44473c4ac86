"""What the serving recipes read from a run, here of simulated servers with true counters."""

from dataclasses import replace
from pathlib import Path

import pytest

from workbench.claims import serving_plans as plans
from workbench.claims.recipe import Setting
from workbench.claims.registry import read_registry
from workbench.claims.serving import read_cache, read_store, serving_recipes
from workbench.experiment.run.run import run
from workbench.hardware.machine import repository_root
from workbench.params.notebooks import PaperClaimValidation

CLAIMS = read_registry(repository_root() / "params" / "claims").claims
SIMULATED = PaperClaimValidation(engine="simulated")


def setting(folder: Path, **changed) -> Setting:
    fields = {"platform": "cpu", "hardware": "2 CPU cores", "model": folder,
              "output_dir": folder, "budget_s": 100.0, "runs": 1}  # fmt: skip
    return Setting(**{**fields, **changed})


def test_recipes_serve_claims_that_exist_by_the_effects_that_they_have():
    for recipe in serving_recipes(SIMULATED):
        assert set(recipe.claims) <= set(CLAIMS)


def test_equal_arms_stand_beside_the_others_in_every_plan(tmp_path):
    at = setting(tmp_path, runs=5)
    labels = {
        "cache": [arm.label for arm in plans.cache_plan(SIMULATED, at).arms],
        "store": [arm.label for arm in plans.store_plan(SIMULATED, at).arms],
        "pd": [arm.label for arm in plans.topology_plan(SIMULATED, at, "1p1d", "none").arms],
        "odd": [arm.label for arm in plans.topology_plan(SIMULATED, at, "2p1d", "lmcache").arms],
    }
    assert labels == {
        "cache": ["cache off", "cache off again", "cache on"],
        "store": ["no store", "no store again", "lmcache"],
        "pd": ["1p1d lmcache", "2a", "2a again"],
        "odd": ["2p1d lmcache", "3a lmcache", "3a lmcache again"],
    }


def test_a_short_budget_sends_fewer_requests_and_never_fewer_launches(tmp_path):
    short = plans.cache_plan(SIMULATED, setting(tmp_path, budget_s=60.0, runs=5))
    long = plans.cache_plan(SIMULATED, setting(tmp_path, budget_s=400.0, runs=5))
    assert short.rounds == long.rounds == 5
    sizes = [len(made.workload.build("s").requests) for made in (short, long)]
    assert sizes == [6, 12]
    costs = [plans.estimate_s(made, launch_s=1, instance_s=1) for made in (short, long)]
    assert costs[0] < costs[1]


@pytest.mark.parametrize(
    ("share", "cache", "store"),
    [(1.0, plans.CACHE_LENGTHS, plans.STORE_LENGTHS),
     (0.5, (700, 1024, 2049), (700, 1024)), (0.34, (700, 1024), (700, 1024))],
)  # fmt: skip
def test_a_recipe_that_has_to_be_short_sends_fewer_requests(tmp_path, share, cache, store):
    at = setting(tmp_path, budget_s=1000.0, requests_share=share)
    each = 2 if share == 1 else 1
    for made, wanted in (
        (plans.cache_plan(SIMULATED, at), cache), (plans.store_plan(SIMULATED, at), store),
    ):  # fmt: skip
        sent = [request.prompt_tokens for request in made.workload.build("s").requests]
        assert sorted(sent) == sorted(wanted * each)
    pd = plans.topology_plan(SIMULATED, at, "1p1d", "none")
    assert len(pd.workload.build("s").requests) == round(6 * share)


def test_servers_start_in_the_number_format_that_was_asked_for(tmp_path):
    asked = PaperClaimValidation(dtype="float32", platform="cpu")
    for made in (
        plans.cache_plan(asked, setting(tmp_path)), plans.store_plan(asked, setting(tmp_path)),
    ):  # fmt: skip
        assert {arm.settings.dtype for arm in made.arms} == {"float32"}


async def test_exact_counts_of_the_prefix_cache(tmp_path):
    made = plans.cache_plan(SIMULATED, setting(tmp_path))
    found = read_cache(await run(made, echo=lambda _: None))
    assert set(found.measurements) == set(serving_recipes(SIMULATED)[0].claims)
    for claim, effects in found.measurements.items():
        assert set(effects.effects) == {effect.name for effect in CLAIMS[claim].effects}
    hits = found.measurements["OWN-HIT-TOKENS"]
    assert hits.counted == {"tokens off"}
    (off,) = hits.effects["tokens off"]
    assert (off.low, off.high, off.runs) == (0, 0, 6)  # six lengths, whole blocks among them
    (text,) = found.measurements["OWN-SAME-TEXT"].effects["answers that differ"]
    assert (text.low, text.high) == (0, 0)
    (twice,) = found.measurements["OWN-TOKEN-IDENTITY"].effects["tokens off"]
    assert (twice.low, twice.high) == (0, 0)
    assert len(found.measurements["OWN-TTFT-MONOTONE"].effects["TTFT"]) == 4
    assert found.checks["replicated_runs_with_ci"] == "fail"  # one round
    assert found.checks["aa_noise_floor"] == "unknown"
    curve, against = found.curves
    assert against.claims == ("OWN-HIT-TOKENS",)
    assert set(curve.points["series"]) == {f"{n:,} tokens" for n in plans.CACHE_LENGTHS}
    assert list(found.table.columns[:3]) == ["quantity", "arm", "cell"]


async def test_a_wrong_hit_is_seen(tmp_path):
    result = await run(plans.cache_plan(SIMULATED, setting(tmp_path)), echo=lambda _: None)
    rows = result.frames["requests"]
    warm = rows.index[rows["pass"].eq("engine-warm")][0]
    rows.loc[warm, "cached_tokens"] += 128
    rows.loc[warm, "text"] = "another"
    found = read_cache(result).measurements
    (off,) = found["OWN-HIT-TOKENS"].effects["tokens off"]
    assert (off.estimate, off.low, off.high) == (128, 0, 128)
    (text,) = found["OWN-SAME-TEXT"].effects["answers that differ"]
    assert text.high == 1
    rows.loc[warm, "parting_nat"] = 0.1  # the model held both tokens for equally good
    (tie,) = read_cache(result).measurements["OWN-SAME-TEXT"].effects["answers that differ"]
    assert tie.high == 0
    rows.loc[warm, "cached_tokens"] = -1  # a server that does not say
    (unknown,) = read_cache(result).measurements["OWN-HIT-TOKENS"].effects["tokens off"]
    assert unknown.runs == 0


async def test_a_run_that_was_broken_off_confirms_nothing_about_an_arm_that_it_lacks(tmp_path):
    result = await run(plans.cache_plan(SIMULATED, setting(tmp_path)), echo=lambda _: None)
    rows = result.frames["requests"]
    result.frames["requests"] = rows[~rows["pass"].eq("engine-warm")]
    found = read_cache(result).measurements
    (text,) = found["OWN-SAME-TEXT"].effects["answers that differ"]
    (off,) = found["OWN-HIT-TOKENS"].effects["tokens off"]
    assert (text.runs, off.runs) == (0, 0)
    result.frames["requests"] = rows[rows["arm"].str.startswith("cache off")]
    found = read_cache(result).measurements
    (text,) = found["OWN-SAME-TEXT"].effects["answers that differ"]
    assert text.runs == 0 and found["OWN-TTFT-MONOTONE"].effects["TTFT"] == ()


async def test_the_store_earns_what_it_loads(tmp_path):
    result = await run(plans.store_plan(SIMULATED, setting(tmp_path)), echo=lambda _: None)
    credit = read_store(result).measurements["OWN-STORE-CREDIT"]
    assert {name: (c.low, c.high) for name, (c,) in credit.effects.items()} == {
        "warm in the engine": (0, 0), "warm in the store": (0, 0),
    }  # fmt: skip
    # A store that takes the engine's credit.
    rows = (
        replace(row, external_hit=row.external_hit + 256 * (row.pass_name == "engine-warm"))
        for row in result.run.token_sources
    )
    result = replace(result, run=replace(result.run, token_sources=tuple(rows)))
    (wrong,) = read_store(result).measurements["OWN-STORE-CREDIT"].effects["warm in the engine"]
    assert wrong.low == 256


async def test_a_simulated_engine_confirms_nothing(tmp_path):
    store = next(r for r in serving_recipes(SIMULATED) if r.name == "store")
    found = await store.run(setting(tmp_path))
    assert all("simulated engine" in measured.faults[0] for measured in found.measurements.values())


@pytest.mark.parametrize("name", ["prefix_cache", "store", "pd_1p1d", "pd_2p1d"])
def test_an_estimate_grows_with_the_runs(tmp_path, name):
    recipe = next(r for r in serving_recipes(SIMULATED) if r.name == name)
    once, twice = (recipe.estimate_s(setting(tmp_path, runs=n)) for n in (1, 2))
    assert 0 < once < twice
