import pytest

from workbench.claims.claim import Check, Claim, Effect, Evidence, Source


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
            "software": None, "evidence": Evidence(kind="measurement"),
            "checks": {name: Check(state=state, why="So.") for name, state in checks.items()},
            "source": Source(group="g", title="T", ref="R", location="p. 1",
                             confirmation="primary", how="read"),
        }  # fmt: skip
        return Claim(**fields | changed)

    return make
