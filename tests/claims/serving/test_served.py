"""What the serving recipes read from a run, here of simulated servers with true counters."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from workbench.claims.recipes.recipe import Setting
from workbench.claims.serving import disaggregation, kv_store, prefix_cache
from workbench.experiment.run.run import run
from workbench.params.notebooks import PaperClaimValidation
from workbench.serve import simulated

SIMULATED = PaperClaimValidation(engine="simulated")


def setting(folder: Path, **changed) -> Setting:
    fields = {"platform": "cpu", "hardware": "2 CPU cores", "model": folder,
              "output_dir": folder, "budget_s": 100.0, "runs": 1}  # fmt: skip
    return Setting(**{**fields, **changed})


def recipes(params=SIMULATED):
    return (prefix_cache.recipe(params), kv_store.recipe(params), *disaggregation.recipes(params))


def plans(at, params=SIMULATED):
    pd = disaggregation.topology_plan
    return {
        "cache": prefix_cache.cache_plan(params, at),
        "store": kv_store.store_plan(params, at),
        "pd": pd(params, at, "1p1d", "none"),
        "odd": pd(params, at, "2p1d", "lmcache"),
    }


def lengths_of(made):
    return sorted(request.prompt_tokens for request in made.workload.build("s").requests)


def test_equal_arms_stand_beside_the_others_in_every_plan(tmp_path):
    made = plans(setting(tmp_path, runs=5))
    assert {name: [arm.label for arm in each.arms] for name, each in made.items()} == {
        "cache": ["cache off", "cache off again", "cache on"],
        "store": ["no store", "no store again", "lmcache"],
        "pd": ["1p1d lmcache", "2a", "2a again"],
        "odd": ["2p1d lmcache", "3a lmcache", "3a lmcache again"],
    }


@pytest.mark.parametrize(
    ("budget_s", "share", "cache", "of_store", "each"),
    [
        (1000.0, 1.0, prefix_cache.LENGTHS, kv_store.LENGTHS, 2),
        (60.0, 1.0, prefix_cache.LENGTHS, kv_store.LENGTHS, 1),
        (1000.0, 0.5, (700, 1024, 2049), (700, 1024), 1),
        (1000.0, 0.34, (700, 1024), (700, 1024), 1),
    ],
)
def test_what_has_to_be_short_sends_fewer_requests_and_never_fewer_launches(
    tmp_path, budget_s, share, cache, of_store, each
):
    made = plans(setting(tmp_path, budget_s=budget_s, requests_share=share, runs=5))
    assert {plan.rounds for plan in made.values()} == {5}
    assert lengths_of(made["cache"]) == sorted(cache * each)
    assert lengths_of(made["store"]) == sorted(of_store * each)
    assert len(lengths_of(made["pd"])) == round(6 * share)


@pytest.mark.parametrize("model", ["", str(Path(simulated.__file__).parent)])
def test_an_estimate_grows_with_the_runs_and_the_requests(tmp_path, model):
    """Of a model whose speed nobody knows too, as if it were the tiny one."""
    asked = PaperClaimValidation(platform="cpu", model=model)
    for recipe in recipes(asked):
        once, twice, fewer = (
            recipe.estimate_s(setting(tmp_path, runs=runs, requests_share=share))
            for runs, share in ((1, 1.0), (2, 1.0), (1, 0.34))
        )
        assert 0 < fewer < once < twice, recipe.name


def test_servers_start_in_the_number_format_that_was_asked_for(tmp_path):
    asked = PaperClaimValidation(dtype="float32", platform="cpu")
    for made in plans(setting(tmp_path), asked).values():
        assert {arm.settings.dtype for arm in made.arms} == {"float32"}


@pytest.fixture(scope="module")
def cached(tmp_path_factory):
    """A run of the prefix cache's plan, one round."""
    made = prefix_cache.cache_plan(SIMULATED, setting(tmp_path_factory.mktemp("cache")))
    return asyncio.run(run(made, echo=lambda _: None))


@pytest.fixture
def counts(cached):
    """`counts(rows)` is what a run with these rows says, by claim, of effects that are counted."""

    def make(rows):
        found = prefix_cache.read(replace(cached, frames={"requests": rows})).measurements
        names = {"OWN-HIT-TOKENS": "token difference", "OWN-SAME-TEXT": "responses that differ"}
        return {claim: found[claim].effects[name][0] for claim, name in names.items()}

    return make


def test_exact_counts_of_the_prefix_cache(cached, published):
    found = prefix_cache.read(cached)
    assert set(found.measurements) == set(recipes()[0].claims)
    for claim, effects in found.measurements.items():
        assert set(effects.effects) == {effect.name for effect in published[claim].effects}
    for claim, runs in (("OWN-HIT-TOKENS", 6), ("OWN-SAME-TEXT", 3), ("OWN-TOKEN-IDENTITY", 7)):
        measured = found.measurements[claim]
        ((off,),) = measured.effects.values()
        assert (off.low, off.high, off.runs) == (0, 0, runs) and measured.counted, claim
    steps = found.measurements["OWN-TTFT-MONOTONE"].effects["TTFT"]
    assert [step.cell for step in steps] == [
        "25% cached / cold", "50% cached / 25% cached", "75% cached / 50% cached",
        "engine-warm / 75% cached",
    ]  # fmt: skip
    assert found.checks["replicated_runs_with_ci"] == "fail"  # one round
    assert found.checks["aa_noise_floor"] == "unknown"
    curve, against = found.curves
    assert against.claims == ("OWN-HIT-TOKENS",)
    assert {point[0] for point in curve.points} == {f"{n:,} tokens" for n in prefix_cache.LENGTHS}
    assert list(found.table.columns[:3]) == ["quantity", "arm", "cell"]


def test_a_wrong_hit_is_seen(cached, counts):
    rows = cached.frames["requests"].copy()
    warm = rows.index[rows["pass"].eq("engine-warm")][0]
    rows.loc[warm, "cached_tokens"] += 128
    rows.loc[warm, "text"] = "another"
    off = counts(rows)["OWN-HIT-TOKENS"]
    assert (off.estimate, off.low, off.high) == (128, 0, 128)
    assert counts(rows)["OWN-SAME-TEXT"].high == 1
    rows.loc[warm, "parting_nat"] = 0.1  # the model held both tokens for equally good
    assert counts(rows)["OWN-SAME-TEXT"].high == 0
    rows.loc[warm, "cached_tokens"] = -1  # a server that does not say
    assert counts(rows)["OWN-HIT-TOKENS"].runs == 0


def test_a_run_that_was_broken_off_confirms_nothing_about_an_arm_that_it_lacks(cached, counts):
    rows = cached.frames["requests"]
    for left in (~rows["pass"].eq("engine-warm"), rows["arm"].str.startswith("cache off")):
        assert {interval.runs for interval in counts(rows[left]).values()} == {0}


async def test_the_store_earns_what_it_loads(tmp_path):
    result = await run(kv_store.store_plan(SIMULATED, setting(tmp_path)), echo=lambda _: None)
    credit = kv_store.read(result).measurements["OWN-STORE-CREDIT"]
    assert {name: (c.low, c.high) for name, (c,) in credit.effects.items()} == {
        "warm in the engine": (0, 0), "warm in the store": (0, 0),
    }  # fmt: skip
    # A store that takes the engine's credit.
    rows = (
        replace(row, external_hit=row.external_hit + 256 * (row.pass_name == "engine-warm"))
        for row in result.run.token_sources
    )
    result = replace(result, run=replace(result.run, token_sources=tuple(rows)))
    (wrong,) = kv_store.read(result).measurements["OWN-STORE-CREDIT"].effects["warm in the engine"]
    assert wrong.low == 256


async def test_a_simulated_engine_confirms_nothing(tmp_path):
    found = await kv_store.recipe(SIMULATED).run(setting(tmp_path))
    assert all(
        "servers were simulated" in measured.faults[0] for measured in found.measurements.values()
    )
