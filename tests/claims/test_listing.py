import re

import pytest

from workbench import cli
from workbench.claims.registry.claim import Effect


def run(capsys, *arguments):
    code = cli.main(["claims", *arguments])
    return code, *capsys.readouterr()


def test_the_list_is_grouped_and_marks_what_was_withdrawn(capsys):
    code, out, _ = run(capsys, "list")
    assert code == 0
    assert "literature: Papers, blogs and documentation of the field (28 claims)" in out
    assert "withdrawn: Deleted by its authors on 2026-06-08" in out
    assert "  VLLM-APC-COST         Without reuse, prefix caching costs less than 1 %" in out
    assert max(map(len, out.splitlines())) <= 100


def test_one_source_can_be_listed(capsys):
    code, out, _ = run(capsys, "list", "rocm_notes")
    assert code == 0
    assert "S001-TPUT" in out and "LLMIR" not in out


def test_a_claim_is_shown_with_its_conditions_and_its_failed_checks(capsys):
    code, out, _ = run(capsys, "show", "S003-VLLM-VS-HF-PEAK")
    assert code == 0
    assert "throughput: 270.3 %" in out
    assert "check fail      The sides differ in batch size" in out
    assert max(map(len, out.splitlines())) <= 100


def test_check_is_content_with_the_repository(capsys):
    code, out, _ = run(capsys, "check")
    assert code == 0 and re.fullmatch(
        r"\d+ claims from \d+ sources are valid \(\d+ of them our own\), 0 mistakes\n", out
    )


def test_check_fails_on_a_mistake(capsys, tmp_path):
    (tmp_path / "mine.yaml").write_text("claims: []")
    code, out, _ = run(capsys, "check", "--folder", str(tmp_path))
    assert code == 2
    assert out.startswith("mine.yaml: source is missing")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["show", "FA9"], "claim 'FA9' does not exist; did you mean 'FA"),
        (["list", "litrature"], "group 'litrature' does not exist; did you mean 'literature'?"),
    ],
)
def test_unknown_names(capsys, arguments, sentence):
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert sentence in err


@pytest.mark.parametrize(
    ("effect", "words"),
    [
        ({"quantifier": "range", "unit": "x", "value": 2, "high": 4}, "2x to 4x"),
        ({"quantifier": "up_to", "unit": "x", "value": 15}, "up to 15x"),
        ({"quantifier": "unchanged", "unit": "x", "value": 1, "margin": 0.1},
         "unchanged within 10 %"),
        ({"quantifier": "lower", "unit": "x", "value": 1}, "below 1x"),
        ({"quantifier": "exact", "unit": "bool", "type": "boolean", "value": False}, "no"),
    ],
)  # fmt: skip
def test_an_effect_in_words(effect, words):
    assert str(Effect(**{"name": "e", "type": "ratio", **effect})) == words
