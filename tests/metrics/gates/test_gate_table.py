"""The effect of each gate: the table, and the one function that reads it."""

import ast
from collections.abc import Iterator

import pytest

from workbench.hardware.machine import repository_root
from workbench.metrics.gates.gate import Gate
from workbench.metrics.gates.gate_effects import (
    Spoil,
    gate_doubts,
    of_the_run,
    spoil,
    struck_arms,
    taken_away,
)
from workbench.metrics.gates.gate_table import GATES, KINDS, as_markdown, gate_row, lead_of

STATES = ("engine-warm", "cross-instance", "store-warm", "offload-warm", "disk-warm", "remote-warm")
BUSY, FAR = "client kept up", "KV moved"


def made() -> Iterator[str]:
    """The name of every gate that a call in the package makes, as it stands in the source."""
    for path in sorted((repository_root() / "workbench").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                called = getattr(node.func, "id", getattr(node.func, "attr", ""))
                named = [word.value for word in node.keywords if word.arg == "name"]
                first = node.args[:1] if called in ("judge", "_limit") else []
                if called in ("judge", "_limit", "Gate"):
                    yield from (ast.unparse(value) for value in [*first, *named])


def names() -> set[str]:
    """Those that are a text; `f"{state} was {state}"` stands for each cache state."""
    texts = set(made())
    assert "f'{state} was {state}'" in texts
    plain = {ast.literal_eval(text) for text in texts if text.startswith(("'", '"'))}
    return plain | {f"{state} was {state}" for state in STATES}


def test_every_gate_that_the_workbench_makes_is_in_the_table_and_no_other():
    assert names() == set(GATES)


@pytest.mark.parametrize(
    ("name", "effects"),
    [
        (BUSY, {"ratios": "doubt", "times": "rough", "tails": "struck"}),
        ("cold was cold", dict.fromkeys(["counts", "ratios", "times", "tails"], "struck")),
        ("caches were emptied", dict.fromkeys(["counts", "ratios", "times", "tails"], "struck")),
        # Wrong text is no gain, however fast.
        ("same text", dict.fromkeys(["ratios", "times", "tails", "text"], "struck")
         | {"counts": "doubt"}),
        ("of a later version", dict.fromkeys(KINDS, "struck")),
    ],
)  # fmt: skip
def test_a_failed_gate_affects_what_depends_on_it(name: str, effects: dict[str, str]):
    assert {kind: did for kind in KINDS if (did := spoil([name], kind).effect)} == effects


def test_a_ratio_without_an_interval_does_not_contain_the_noise():
    assert spoil([BUSY], "ratios", interval=False).effect == "rough"


def test_the_worst_effect_counts_and_names_its_gates():
    assert spoil([BUSY, FAR], "times") == Spoil(effect="struck", gates=(FAR,))
    assert spoil([BUSY], "counts", "times", "tails").effect == "struck"
    both = spoil([FAR, "cold was cold"], "counts")
    assert both.said == "not valid: KV was not transferred, and 1 more gate failed"


def test_a_warm_pass_that_was_not_warm_spoils_its_own_numbers_only():
    failed = ["store-warm was store-warm"]
    assert spoil(failed, "ratios", passes={"store-warm", "cold"}).effect == "struck"
    assert spoil(failed, "ratios", passes={"engine-warm", "cold"}).effect == ""
    assert spoil(failed, "ratios").effect == "struck"


def test_gates_of_a_smoke_run_have_the_effects_of_a_run():
    assert gate_row("smoke run: KV moved") == gate_row(FAR)


def test_the_effect_of_a_gate_in_one_line():
    effect = "do not use p99 or ITL; absolute times are rough; use ratios with caution"
    assert taken_away(BUSY) == effect
    assert taken_away("nothing impossible") == "do not use any number or text of this run"
    assert taken_away("disk-warm was disk-warm") == "do not use any number of disk-warm passes"
    assert taken_away("memory") == ""
    assert taken_away("no failures", ["1p1d nixl"]) == (
        "do not use ratios, absolute times, p99 or ITL of 1p1d nixl; use token counts of 1p1d nixl"
        " with caution"
    )
    assert taken_away("disk-warm was disk-warm", ["2a"]) == (
        "do not use any number of disk-warm passes of 2a"
    )
    assert taken_away("KV moved", ["a", "b", "c"]).startswith(
        "do not use any number of a and 2 more arms"
    )


def test_a_gate_of_some_arms_affects_only_numbers_of_those_arms():
    failed = {"KV moved": ("1p1d nixl",), "no failures": ()}
    assert spoil(failed, "times", arms=["2a"]).gates == ("no failures",)
    assert spoil(failed, "times", arms=["2a", "1p1d nixl"]).gates == ("KV moved", "no failures")
    assert spoil(failed, "times").gates == ("KV moved", "no failures")  # of all arms
    assert spoil({"KV moved": ("1p1d nixl",)}, "times", arms=["2a"]).effect == ""
    assert struck_arms(failed, "ratios") == {"1p1d nixl": "KV moved"}
    assert of_the_run(failed) == {"no failures": ()}
    assert gate_doubts(failed)[0].startswith("1p1d nixl: Decode instances prefilled prompts.")


@pytest.mark.parametrize(
    ("name", "outcome", "lead"),
    [
        (BUSY, "PASS", "Client kept up: "),
        (BUSY, "FAIL", "Client did not keep up: "),
        (BUSY, "INCONCLUSIVE", "Client kept up? "),
        (f"smoke run: {FAR}", "FAIL", "Smoke run: KV was not transferred: "),
        ("store-warm was store-warm", "PASS", "Store-warm state was reached: "),
        ("of a later version", "FAIL", "Gate “of a later version” failed: "),
    ],
)
def test_a_line_with_a_gate_begins_with_what_its_outcome_means(name, outcome, lead):
    step = "" if outcome == "PASS" else "Repeat the run"
    assert lead_of(Gate(name=name, outcome=outcome, sentence="Found", next_step=step)) == lead


@pytest.mark.parametrize("name", GATES)
def test_every_gate_has_a_short_name_for_each_outcome(name: str):
    row = gate_row(name)
    assert row.shown != row.failed_name
    assert max(len(text.split()) for text in (row.shown, row.failed_name)) <= 6


@pytest.mark.parametrize("name", GATES)
def test_every_gate_has_a_meaning_that_fits_a_headline(name: str):
    meaning = gate_row(name).meaning
    assert 3 <= len(meaning.split()) <= 9
    assert meaning[0].islower() or meaning.startswith(("KV", "vLLM", "/dev/shm"))
    assert not meaning.endswith(".")


def test_the_page_for_readers_is_made_from_the_table():
    page = (repository_root() / "docs" / "metrics.md").read_text()
    assert f"\n\n{as_markdown()}" in page  # python -m workbench.metrics.gates.gate_table
    assert all(f"- **{kind}**: {what}\n" in page for kind, what in KINDS.items())


def test_readers_are_told_when_each_gate_of_a_run_holds():
    text = (repository_root() / "docs" / "metrics.md").read_text()
    table = text.partition("| name | holds when | INCONCLUSIVE when |")[2].partition("\n\n")[0]
    told = {line.split("|")[1].strip() for line in table.splitlines()[2:]}
    others = {"the log is whole", "registry is readable", "rules agree with their fixtures",
              "measurements ended", "packages", "memory", "shared memory", "GPUs",
              "stale servers", "smoke run", "ports", "other programs", "loop lag"}  # fmt: skip
    assert told == set(GATES) - others


def test_a_doubt_that_the_table_promises_is_in_words_and_short():
    for name, row in GATES.items():
        assert bool(row.doubt) == ("doubt" in row.takes.values()), name
        assert len(row.doubt.split()) <= 25
