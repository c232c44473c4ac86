from pathlib import Path

import pytest

from workbench.claims.recipes.recipe import Setting
from workbench.claims.registry.claim import Check, Claim, Effect, Evidence, Source
from workbench.claims.registry.registry import read_registry
from workbench.claims.verdict.verdict import Conditions, judge
from workbench.hardware.machine import repository_root


@pytest.fixture(scope="session")
def registry():
    """The registry of the repository."""
    return read_registry(repository_root() / "params" / "claims")


@pytest.fixture(scope="session")
def published(registry):
    """Its claims by id, our own among them."""
    return registry.claims


@pytest.fixture
def judged(published):
    """`judged(outcome, id)` is the verdict on a claim from what a recipe measured on a CPU."""

    def make(outcome, claim_id):
        conditions = Conditions(platform="cpu", hardware="2 cores", checks=outcome.checks)
        return judge(published[claim_id], conditions, outcome.measurements[claim_id])

    return make


@pytest.fixture
def cpu():
    """A setting of 60 s on a CPU."""
    return Setting(
        platform="cpu", hardware="2 cores", model=Path("m"), output_dir=Path("o"), budget_s=60
    )


@pytest.fixture
def effect():
    """An effect of so many x; fields can be changed."""

    def make(quantifier="typical", value=2.0, **changed):
        fields = {"name": "all", "type": "ratio", "unit": "x"} | changed
        return Effect(quantifier=quantifier, value=value, **fields)

    return make


@pytest.fixture
def claim(effect):
    """A fair and complete claim that A is 2 times as fast as B on an H200; fields can be changed.

    `checks` are given as states: claim(checks={"same_dtype": "fail"}).
    """

    def make(**changed):
        checks = changed.pop("checks", {})
        fields = {
            "id": "ONE", "statement": "A is twice as fast as B.", "metric": "throughput",
            "effects": (effect(),), "subject": "A", "comparator": "B", "level": "server",
            "phase": "mixed", "hardware": "1x H200", "model": "any", "workload": {},
            "evidence": Evidence(kind="measurement"),
            "checks": {name: Check(state=state, why="So.") for name, state in checks.items()},
            "source": Source(group="g", title="T", ref="R", location="p. 1",
                             confirmation="primary", how="read"),
        }  # fmt: skip
        return Claim(**fields | changed)

    return make
