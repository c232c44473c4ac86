from copy import deepcopy
from itertools import product
from pathlib import Path

import pytest
import yaml

from workbench.claims.listing import show_page
from workbench.claims.registry.registry import EXAMPLE, read_registry
from workbench.errors import ParameterError
from workbench.hardware.machine import repository_root


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


def sums(**fields):
    return entry(arithmetic=[fields])


def read(folder: Path, *claims, **source):
    content = {"source": {"title": "T", "ref": "R"} | source, "claims": list(claims)}
    (folder / "mine.yaml").write_text(yaml.safe_dump(content))
    return read_registry(folder)


def test_all_claims_of_the_repository_can_be_read(registry):
    assert registry.mistakes == ()
    assert len(registry.published) == 75
    own = {c.source.group for c in registry.claims.values() if c.source.own}
    assert own == {"own_runs", "own_statements"}
    withdrawn = {c.source.group for c in registry.claims.values() if c.source.withdrawn}
    assert withdrawn == {"a800_results", "llmir"}
    expected = [claim.expected_verdict for claim in registry.claims.values()]
    assert expected.count("not_comparable") == 15
    assert expected.count("not_confirmed") == 18


def test_all_groups_and_ids_are_selected_once_in_the_order_of_the_registry(registry):
    assert len(registry.select(["all"])) == len(registry.claims)
    chosen = registry.select(["VLLM-APC", "rocm_notes", "S001-LAT"])
    assert chosen[0].id == "VLLM-APC"
    assert len(chosen) == 1 + len(registry.group("rocm_notes"))


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("VLLM-APCC", "did you mean 'VLLM-APC'"),
        ("vllm-apc", "did you mean 'VLLM-APC'"),
        ("litrature", "did you mean 'literature'"),
        ("qqq", "one or more claim ids or groups, got 'qqq'; `workbench claims list` shows all"),
    ],
)
def test_an_unknown_word_gets_the_nearest_claim_or_group(registry, word, sentence):
    with pytest.raises(ParameterError, match=sentence):
        registry.select(["all", word])


@pytest.mark.parametrize(
    ("claim", "sentence"),
    [
        (entry(metric=...), "ONE: metric is missing (example: metric: longest ICL)"),
        (entry(id=...), "claim number 1: id is missing"),
        (entry(level=..., phase=...), "ONE: level, phase are missing (example: level: server)"),
        (entry(modle="x"), "ONE: modle is not a known field; did you mean 'model'?"),
        (entry(statement=5), "statement must be a valid string, got 5 (example: statement: Ch"),
        (entry(level="chip"), "level must be 'op', 'layer', 'model'"),
        (entry(level="chip"), "or 'document', got 'chip' (example: level: server)"),
        (entry(comparator=None), "comparator is missing for the ratio 'all'"),
        (entry(effects=[]), "effects is empty"),
        (entry(workload={"prompts": "long", "asked twice": None}), "workload.asked twice has no"),
        (entry(effects=entry()["effects"] * 2), "effects must have different names"),
        (entry(**effect(unit="tok/s")), "effects[1]: unit must be x for type ratio, got 'tok/s'"),
        (entry(**effect(value="2x")), "effects[1].value must be a valid"),
        (entry(**effect(value=float("nan"))), "effects[1].value must be a finite number, got nan"),
        (entry(**effect(value=True)), "effects[1]: value must be a number, got True"),
        (entry(**effect(value=...)), "effects[1].value is missing (example: value: 0.5)"),
        (entry(**effect(quantifier="about")), "effects[1].quantifier must be 'typical', 'exact'"),
        (entry(**effect(quantifier="range")), "high must be at least value for a range, got None"),
        (entry(**effect(quantifier="range", high=1)), "high must be at least value for a range"),
        (
            entry(**effect(quantifier="unchanged", margin=2)),
            "margin must be between 0 and 1, got 2",
        ),
        (entry(**effect(type="boolean", unit="bool")), "value must be true or false, got 2.0"),
        (entry(effects=[7]), "effects[1] must be a valid dictionary"),
        (entry(evidence={"kind": "hope"}), "evidence.kind must be 'measurement', 'simulation'"),
        (
            entry(checks={"same_modl": {"state": "pass", "why": "-"}}),
            "'same_modl' is not known: did",
        ),
        (entry(checks={"same_dtype": "fail"}), "checks.same_dtype must be a valid dictionary"),
        (entry(checks={"same_dtype": {"state": "no", "why": "-"}}), "must be 'pass', 'fail' or"),
        (entry(bounds=[{"limit": "speed", "gpu": "A100"}]), "bounds[1].limit must be"),
        (
            entry(bounds=[{"limit": "matrix_rate", "gpu": "A100"}]),
            "matrix_rate must be above 0, got",
        ),
        (entry(source={"location": "p", "how": "-"}), "source.confirmation is missing (example:"),
        (entry(test={"tpu": "-"}), "test.tpu must be 'gpu', 'cpu_shape' or 'analytic'"),
        (sums(kind="guess"), "arithmetic[1].kind must be one of 'ratio', "),
        (sums(of="1"), "arithmetic[1].kind is missing (example: kind: ratio)"),
        (sums(kind="ratio", of="1", over="2"), "arithmetic[1].said is missing"),
        (sums(kind="ratio", of="1", over="two", said="3"), "over must be a number, quoted as"),
        ("ONE", "claim number 1: it must be a valid dictionary"),
    ],
)
def test_a_mistake_is_one_sentence_and_the_other_claims_go_on(tmp_path, claim, sentence):
    registry = read(tmp_path, claim, entry(id="TWO"))
    assert list(registry.claims) == ["TWO"]
    (mistake,) = registry.mistakes
    assert mistake.startswith("mine.yaml: ")
    assert sentence in mistake


def test_many_mistakes_of_one_claim_are_three_and_a_number(tmp_path):
    wrong = entry(statement=1, metric=2, subject=3, level=4, phase=5)
    (mistake,) = read(tmp_path, wrong).mistakes
    assert mistake.count(", got ") == 3 and mistake.endswith("; and 2 more")


def test_the_example_of_the_docs_is_the_one_that_mistakes_show(tmp_path):
    text = (repository_root() / "docs" / "claims.md").read_text("utf-8")
    example = text.split("```yaml\n")[1].split("```")[0]
    assert len(example.splitlines()) <= 10
    (written,) = yaml.safe_load(example)
    registry = read(tmp_path, written)
    assert registry.mistakes == () and list(registry.claims) == ["MY-CLAIM"]
    same = {"id", "statement", "metric", "effects", "subject", "level", "evidence"}
    assert {name: written[name] for name in same} == {name: EXAMPLE[name] for name in same}


def test_no_value_anywhere_stops_the_reading(tmp_path):
    bound = {"limit": "prefill_throughput", "gpu": "H200", "model": "Qwen3-8B", "value": 1}
    check = {"same_dtype": {"state": "unknown", "why": "Not said."}}
    good = entry(bounds=[bound], checks=check, test={"gpu": "run it"}, note="n",
                 arithmetic=[{"kind": "ratio", "of": "4", "over": "2", "said": "2"},
                             {"kind": "cells", "of": "ONE", "over": "TWO", "by": "a",
                              "value": "b", "said": "2"}])  # fmt: skip
    odd = [None, "", 0, -1, 1.5, True, [], [None], {}, {"a": 1}, {1: 2}, "text", float("inf")]
    wrong = [
        replaced(good | {"id": f"C{number}"}, path, value)
        for number, (path, value) in enumerate(product(places(good), odd))
    ]
    registry = read(tmp_path, *wrong, entry(id="LAST"))
    assert "LAST" in registry.claims
    assert len(registry.claims) + len(registry.mistakes) == len(wrong) + 1
    for claim in registry.claims.values():
        assert show_page(claim)
        assert all(each.sentence for each in claim.sums(registry.claims))


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
    (mistake,) = read(tmp_path, entry(), entry()).mistakes
    assert "ONE: id must be unique; mine.yaml has it" in mistake


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: [", "mine.yaml: not valid YAML"),
        ("[]", "mine.yaml: it must be a valid dictionary"),
        ("source: {title: T, ref: R}", "mine.yaml: claims is missing"),
        ("claims: []", "mine.yaml: source is missing"),
        ("{source: {title: T, ref: 5}, claims: []}", "source.ref must be a valid string, got 5"),
        ("{source: {title: T}, claims: []}", "mine.yaml: source.ref is missing"),
    ],
)
def test_a_file_that_is_no_list_of_claims(tmp_path, text, sentence):
    (tmp_path / "mine.yaml").write_text(text)
    assert sentence in read_registry(tmp_path).mistakes[0]


def test_an_empty_folder_says_so(tmp_path):
    assert "it has no YAML file" in read_registry(tmp_path).mistakes[0]
