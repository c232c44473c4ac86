from copy import deepcopy
from pathlib import Path

import pytest
import yaml

from workbench.claims.catalogue import show_page
from workbench.claims.registry import read_registry
from workbench.claims.sums import own_sums
from workbench.errors import ParameterError
from workbench.hardware.machine import repository_root

FOLDER = repository_root() / "params" / "claims"


@pytest.fixture(scope="module")
def registry():
    return read_registry(FOLDER)


def entry(**changed):
    """A claim without a mistake, with fields changed, or dropped where they are `...`."""
    claim = {
        "id": "ONE", "statement": "A is twice as fast as B.", "metric": "throughput",
        "effects": [
            {"name": "all", "quantifier": "typical", "type": "ratio", "unit": "x", "value": 2}
        ],
        "subject": "A", "comparator": "B", "level": "server", "phase": "mixed",
        "hardware": None, "model": "any", "workload": None, "evidence": {"kind": "measurement"},
        "checks": {}, "source": {"location": "p. 1", "confirmation": "primary", "how": "read"},
    }  # fmt: skip
    return {k: v for k, v in (claim | changed).items() if v is not ...}


def effect(**changed):
    return {"effects": [{k: v for k, v in (entry()["effects"][0] | changed).items() if v != ...}]}


def read(folder: Path, *claims, **source):
    content = {"source": {"title": "T", "ref": "R"} | source, "claims": list(claims)}
    (folder / "mine.yaml").write_text(yaml.safe_dump(content))
    return read_registry(folder)


def test_all_claims_of_the_repository_can_be_read(registry):
    assert registry.mistakes == ()
    assert len(registry.published) == 75
    own = {c.source.group for c in registry.claims.values() if c.source.own}
    assert own == {"own_runs", "own_statements"}
    expected = [claim.expected_verdict for claim in registry.claims.values()]
    assert expected.count("not_comparable") == 15
    assert expected.count("not_confirmed") == 18


def test_sources_that_their_authors_took_back_are_marked(registry):
    withdrawn = {claim.source.group for claim in registry.claims.values() if claim.source.withdrawn}
    assert withdrawn == {"a800_results", "llmir"}
    assert len(registry.group("literature")) == 28


def test_an_unknown_claim_gets_the_nearest_id(registry):
    with pytest.raises(ParameterError, match="'LLMIR-AVE' is not known: did you mean 'LLMIR-AVG'"):
        registry.claim("LLMIR-AVE")


def test_a_claim_without_a_mistake(tmp_path):
    registry = read(tmp_path, entry())
    assert registry.mistakes == ()
    assert registry.claim("ONE").effects[0].value == 2


@pytest.mark.parametrize(
    ("claim", "sentence"),
    [
        (entry(metric=...), "ONE: metric is missing; every claim has it"),
        (entry(id=...), "claim number 1: id is missing"),
        (entry(level=..., phase=...), "ONE: level, phase are missing; every claim has them"),
        (entry(modle="x"), "ONE: modle is not known: did you mean 'model'?"),
        (entry(statement=5), "ONE: statement is 5; it takes text"),
        (entry(level="chip"), "level is 'chip'; write one of op, layer, model"),
        (entry(comparator=None), "comparator is missing: effect 'all' is a ratio"),
        (entry(effects=[]), "effects is empty"),
        (entry(workload={"prompts": "long", "asked twice": None}), "workload.asked twice has no"),
        (entry(effects=entry()["effects"] * 2), "effects have one name twice"),
        (entry(**effect(unit="tok/s")), "effects[1].unit is 'tok/s'; an effect of type ratio"),
        (entry(**effect(unit="%")), "effects[1].unit is '%'; an effect of type ratio is written"),
        (entry(**effect(value="2x")), "effects[1].value is '2x'; it takes a number"),
        (entry(**effect(value=float("nan"))), "effects[1].value is nan; it takes a number"),
        (entry(**effect(value=...)), "effects[1].value is missing"),
        (entry(**effect(quantifier="about")), "effects[1].quantifier is 'about'; write one of"),
        (entry(**effect(quantifier="range")), "effects[1].high is None; it takes a number"),
        (entry(**effect(quantifier="range", high=1)), "effects[1].high is 1; it is at least value"),
        (entry(**effect(quantifier="unchanged", margin=2)), "margin is 2; it is between 0 and 1"),
        (entry(**effect(type="boolean", unit="bool")), "value is 2; a boolean is exact"),
        (entry(effects=[7]), "effects[1] is 7; it takes name,"),
        (entry(evidence={"kind": "hope"}), "evidence.kind is 'hope'; write one of measurement"),
        (entry(checks={"same_modl": {}}), "checks.same_modl is not known: did you mean"),
        (entry(checks={"same_dtype": "fail"}), "checks.same_dtype is 'fail'; it takes state, why"),
        (entry(checks={"same_dtype": {"state": "no", "why": "-"}}), "state is 'no'; write one of"),
        (entry(bounds=[{"limit": "speed", "gpu": "A100"}]), "bounds[1].limit is 'speed'; write"),
        (entry(source={"location": "p", "how": "-"}), "source.confirmation is missing"),
        (entry(arithmetic=[{"kind": "guess"}]), "arithmetic[1].kind is 'guess'; write one of"),
        (entry(arithmetic=[{"kind": "ratio", "of": "1", "over": "2"}]), "arithmetic[1].said is"),
        (
            entry(arithmetic=[{"kind": "ratio", "of": "1", "over": "two", "said": "3"}]),
            "arithmetic[1].over is 'two'; it takes a number as published",
        ),
        ("ONE", "claim number 1: it is not a list of fields"),
    ],
)
def test_a_mistake_is_one_sentence_and_the_other_claims_go_on(tmp_path, claim, sentence):
    registry = read(tmp_path, claim, entry(id="TWO"))
    assert list(registry.claims) == ["TWO"]
    (mistake,) = registry.mistakes
    assert mistake.startswith("mine.yaml: ")
    assert sentence in mistake


def test_the_example_of_the_docs_is_a_claim_of_at_most_ten_lines(tmp_path):
    text = (repository_root() / "docs" / "claims.md").read_text("utf-8")
    example = text.split("```yaml\n")[1].split("```")[0]
    assert len(example.splitlines()) <= 10
    registry = read(tmp_path, *yaml.safe_load(example))
    assert registry.mistakes == ()
    assert list(registry.claims) == ["MY-CLAIM"]


def test_no_value_anywhere_stops_the_reading(tmp_path):
    bound = {"limit": "prefill_throughput", "gpu": "H200", "model": "Qwen3-8B", "value": 1}
    check = {"same_dtype": {"state": "unknown", "why": "Not said."}}
    good = entry(bounds=[bound], checks=check, test={"gpu": "run it"}, note="n",
                 arithmetic=[{"kind": "ratio", "of": "4", "over": "2", "said": "2"},
                             {"kind": "cells", "of": "ONE", "over": "TWO", "by": "a",
                              "value": "b", "said": "2"}])  # fmt: skip
    odd = [None, "", 0, -1, 1.5, True, [], [None], {}, {"a": 1}, {1: 2}, "text", float("inf")]
    for path in places(good):
        for value in odd:
            registry = read(tmp_path, replaced(good, path, value), entry(id="TWO"))
            assert "TWO" in registry.claims
            assert len(registry.claims) + len(registry.mistakes) == 2, (path, value)
            for claim in registry.claims.values():
                assert show_page(claim)
                assert all(each.sentence for each in own_sums(claim, registry.claims))


def places(value, path=()):
    """The path of each value inside `value`."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        yield (*path, key)
        if isinstance(inner, dict | list):
            yield from places(inner, (*path, key))


def replaced(value, path, new):
    copy = deepcopy(value)
    inner = copy
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = new
    return copy


def test_an_id_is_used_once(tmp_path):
    registry = read(tmp_path, entry(), entry())
    assert registry.mistakes == (
        "mine.yaml: ONE: id is also that of a claim in mine.yaml; an id is used once",
    )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: [", "mine.yaml: cannot be read as YAML"),
        ("[]", "mine.yaml: claims is missing"),
        ("claims: []", "mine.yaml: source is missing"),
        ("{source: {title: T, ref: 5}, claims: []}", "mine.yaml: source.ref is 5; it takes text"),
        ("{source: {title: T}, claims: []}", "mine.yaml: source.ref is missing"),
    ],
)
def test_a_file_that_is_no_list_of_claims(tmp_path, text, sentence):
    (tmp_path / "mine.yaml").write_text(text)
    assert sentence in read_registry(tmp_path).mistakes[0]


def test_an_empty_folder_says_so(tmp_path):
    assert "no YAML file is in it" in read_registry(tmp_path).mistakes[0]
