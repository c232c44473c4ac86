from dataclasses import replace
from pathlib import Path

import pytest

from workbench.claims.recipes.recipe import Recipe, Setting
from workbench.claims.validation.budget import schedule, undecidable
from workbench.errors import PlanError

CPU = Setting(
    platform="cpu", hardware="2 CPU cores", model=Path("m"), output_dir=Path("o"), budget_s=100,
    runs=5,
)  # fmt: skip
ALL = ("source", "kernel", "engine", "serving")


def recipe(name, claims, each_s, **changed):
    """A recipe that takes `each_s` for each run and never runs here."""

    async def never(setting):
        raise AssertionError("a plan starts nothing")

    fields = {"level": "serving", "what": "So.", "estimate_s": lambda s: each_s * s.runs}
    return Recipe(name=name, claims=claims, run=never, **{**fields, **changed})


@pytest.fixture
def falls(claim, effect):
    """A claim about a direction, which a CPU can decide."""
    return lambda name, **changed: claim(
        id=name, hardware="any", effects=(effect("lower", 1.0),), **changed
    )


def plan(claims, recipes, *, budget_s=100, tiers=ALL, setting=CPU):
    return schedule(claims, recipes, setting, tiers=tiers, budget_s=budget_s)


def test_time_goes_to_what_can_be_decided_first(claim, falls):
    size = claim(id="SIZE")  # 2 x on an H200: a number here, but no verdict
    made = plan(
        [size, falls("SHAPE")],
        [recipe("slow", ("SIZE",), 10), recipe("quick", ("SHAPE",), 12)],
        budget_s=70,
    )
    assert [step.recipe.name for step in made.steps] == ["quick"]
    assert made.skipped == {
        "SIZE": "Not enough time: slow takes about 50 s, 10 of 70 s are left. Set time_budget_s to"
        " 110."
    }


def test_what_the_environment_lacks_is_told_with_the_parameter_that_helps(falls):
    made = plan([falls("A")], [recipe("attention", ("A",), 1, level="kernel", needs="no_torch")])
    assert made.steps == ()
    assert made.skipped == {
        "A": "attention needs no_torch, which this environment does not have. Set engine_python to"
        " an interpreter that has it."
    }


def test_what_gives_a_number_without_a_verdict_comes_last_and_still_runs(claim, falls):
    made = plan([claim(id="SIZE"), falls("SHAPE")],
                [recipe("size", ("SIZE",), 1), recipe("shape", ("SHAPE",), 9)])  # fmt: skip
    assert [step.recipe.name for step in made.steps] == ["shape", "size"]


def test_what_found_no_room_waits_and_what_is_left_makes_nothing_longer(falls):
    made = plan(
        [falls("LONG"), falls("SHORT")],
        [recipe("long", ("LONG",), 14), recipe("short", ("SHORT",), 10, most_s=lambda _: 400)],
        budget_s=90,
    )
    assert [(step.recipe.name, step.estimate_s) for step in made.steps] == [("short", 50)]
    assert [step.recipe.name for step in made.waiting] == ["long"]
    assert "if time remains: LONG" in str(made)


def by_requests(each_s):
    return {"estimate_s": lambda s: each_s * s.runs * s.requests_share, "fewer": (0.5, 0.25)}


@pytest.mark.parametrize(
    ("budget_s", "runs", "share"),
    [(100, 5, 1.0), (99, 5, 0.5), (30, 5, 0.25), (24, 3, 0.25), (15, 3, 0.25)],
)
def test_a_recipe_is_cut_to_fewer_requests_and_then_to_fewer_rounds(falls, budget_s, runs, share):
    made = plan([falls("A")], [recipe("r", ("A",), 0, **by_requests(20))], budget_s=budget_s)
    (step,) = made.steps
    assert (step.runs, step.requests_share) == (runs, share)
    assert step.estimate_s == 20 * runs * share <= budget_s
    assert bool(step.cut) == (budget_s < 100)


def test_what_was_cut_and_why_is_a_sentence(falls):
    made = plan([falls("A")], [recipe("r", ("A",), 0, **by_requests(20))], budget_s=20)
    assert made.steps[0].cut == (
        "r was cut to 3 of 5 rounds and 25 % of its requests to fit 20 s. In full it takes 100 s;"
        " set time_budget_s to 100."
    )
    assert "3 rounds, 25 % of its requests, shortened: A" in str(made)
    assert "duration: about 0.2 minutes" in str(made)


def test_less_than_three_rounds_are_begun_for_a_count_only(claim, effect, falls):
    count = claim(id="COUNT", hardware="any", effects=(effect("exact", 0.0),))
    assert plan([falls("A")], [recipe("r", ("A",), 10)], budget_s=29).steps == ()
    (step,) = plan([count], [recipe("r", ("COUNT",), 10)], budget_s=29).steps
    assert step.runs == 1
    few = replace(CPU, runs=2)  # as many as were asked for, where they fit
    (step,) = plan([count], [recipe("r", ("COUNT",), 10)], budget_s=29, setting=few).steps
    assert (step.runs, step.cut) == (2, "")


def test_the_time_that_is_gone_and_the_pace_of_the_machine_count(falls):
    names = ("KERNEL", "SERVER")
    recipes = [recipe("k", ("KERNEL",), 2, level="kernel"), recipe("s", ("SERVER",), 2)]
    made = schedule(
        [falls(name) for name in names], recipes, CPU, tiers=ALL, budget_s=100, spent_s=50,
        slowness={"kernel": 1.0, "serving": 4.0}.__getitem__,
    )  # fmt: skip
    assert {step.recipe.name: (step.runs, step.estimate_s) for step in made.steps} == {
        "k": (5, 10), "s": (5, 40),
    }  # fmt: skip
    assert made.waiting == ()


def test_time_that_nothing_waits_for_goes_to_larger_cells(falls):
    made = plan(
        [falls("ONE"), falls("OTHER")],
        [recipe("one", ("ONE",), 4, most_s=lambda _: 30), recipe("other", ("OTHER",), 8)],
        budget_s=100,
    )
    assert {step.recipe.name: step.estimate_s for step in made.steps} == {"one": 30, "other": 40}


def test_of_all_choices_those_are_taken_that_decide_most_together(falls):
    """One that decides 2 claims in 60 s leaves no room for two that decide 3 in 100 s."""
    names = ("A", "B", "C", "D", "E")
    recipes = [
        recipe("two", ("A", "B"), 12),
        recipe("one", ("C",), 8),
        recipe("other", ("D", "E"), 14),
    ]
    made = plan([falls(name) for name in names], recipes, budget_s=101)
    assert {step.recipe.name for step in made.steps} == {"two", "one"}
    made = plan([falls(name) for name in names], recipes, budget_s=131)
    assert {step.recipe.name for step in made.steps} == {"two", "other"}


def test_a_cheap_recipe_comes_first_and_shows_the_pace_of_the_machine(falls):
    names = ("A", "B", "C")
    recipes = [recipe("large", ("A", "B"), 10), recipe("small", ("C",), 8)]
    claims = [falls(name) for name in names]
    assert [step.recipe.name for step in plan(claims, recipes).steps] == ["small", "large"]
    later = schedule(claims, recipes, CPU, tiers=ALL, budget_s=200, spent_s=1)
    assert [step.recipe.name for step in later.steps] == ["large", "small"]


def test_claims_that_reading_decides_cost_nothing(claim):
    unfair = claim(checks={"same_dtype": "fail"})
    made = plan([unfair], [recipe("r", ("ONE",), 1)])
    assert (made.by_reading, made.steps, made.skipped) == (("ONE",), (), {})


def test_reasons_for_not_measuring_are_sentences(falls):
    claims = [falls(name) for name in ("KERNEL", "GPU", "NONE", "DOCS", "BROKEN")]
    claims[3] = falls("DOCS", test={"gpu": "Nothing to measure: it is a configuration."})
    claims[2] = falls("NONE", test={"gpu": "Two pinned versions on H200."})

    def refuses(setting):
        raise PlanError("5 instances need 4.0 GB and 1.2 GB are free")

    made = plan(
        claims,
        [
            recipe("attention", ("KERNEL",), 1, level="kernel"),
            recipe("rdma", ("GPU",), 1, platforms=("cuda",)),
            recipe("pd", ("BROKEN",), 1, estimate_s=refuses),
        ],
        tiers=("source", "serving"),
    )
    assert made.steps == ()
    assert made.skipped == {
        "KERNEL": (
            "Needs the tier “kernel”, which the parameter “tiers” does not include."
            " Add it to run attention."
        ),
        "GPU": "rdma needs cuda; this machine has cpu.",
        "NONE": "This run does not measure this claim. To test it: Two pinned versions on H200.",
        "DOCS": "Nothing to measure: it is a configuration.",
        "BROKEN": "pd cannot run here: 5 instances need 4.0 GB and 1.2 GB are free",
    }


def test_time_that_is_left_goes_to_small_effects(claim, effect, falls):
    fine = claim(id="FINE", hardware="any", effects=(effect("unchanged", 1.0, margin=0.01),))
    recipes = [recipe("cost", ("FINE",), 5), recipe("rough", ("ROUGH",), 5)]
    made = plan([fine, falls("ROUGH")], recipes, budget_s=67)
    assert {step.recipe.name: step.runs for step in made.steps} == {"cost": 8, "rough": 5}
    assert made.estimate_s == 65
    rich = plan([fine, falls("ROUGH")], recipes, budget_s=1000)
    assert max(step.runs for step in rich.steps) == 10  # more tell little more


def test_no_budget_measures_nothing(falls):
    made = plan([falls("A")], [recipe("r", ("A",), 1)], budget_s=0)
    assert made.steps == () and "0 of 0 s are left" in made.skipped["A"]


def test_what_no_run_settles_is_known_before_it_runs(claim, falls):
    assert not undecidable(falls("A"), CPU)
    assert undecidable(claim(), CPU)  # a size of another machine
    assert undecidable(falls("A", checks={"strong_tuned_baseline": "unknown"}), CPU)
