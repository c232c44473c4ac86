"""The readiness list: what needs a hand comes first, with what to do."""

from pathlib import Path

from workbench.experiment.result.facts import RunFacts
from workbench.experiment.result.result import Result
from workbench.metrics.gates.gate import Gate
from workbench.report import figures


def checked(*gates: Gate, answers: tuple[str, str] = ("yes", "no")) -> Result:
    asked = ("Can this machine run the workbench?", "Is it idle enough for timing?")
    facts = RunFacts(
        notebook="environment_check", run_id="here", status="success", gates=gates,
        questions=tuple({"question": q, "answer": a, "why": ""}
                        for q, a in zip(asked, answers, strict=True)),
        next_step="papermill a.ipynb",
    )  # fmt: skip
    return Result(run=facts, folder=Path())


def gate(name: str, outcome: str = "PASS", sentence: str = "fine", step: str = "") -> Gate:
    return Gate(name=name, outcome=outcome, sentence=sentence, next_step=step)


def test_each_question_has_its_answer_its_checks_and_next_steps():
    shown = figures.readiness(
        checked(
            gate("packages"),
            gate("memory", "FAIL", "1 GB free", "end other programs"),
            gate("other programs", "INCONCLUSIVE", "Not read.\nmore", "look again"),
        )
    )
    assert shown.text.splitlines() == [
        "Can this machine run the workbench? Yes.",
        "▲ Too little RAM is free: 1 GB free. Next: end other programs",
        "● Packages fit together: fine",
        "Is it idle enough for timing? No.",
        "◆ CPU is idle? Not read. Next: look again",
        "Next step: papermill a.ipynb",
    ]
    assert shown._repr_mimebundle_()["text/html"].count("<li") == 3


def test_checks_of_the_smoke_run_that_passed_are_one_line():
    smoke = (gate("smoke run: KV moved"), gate("smoke run: same text", "FAIL", "1 <differs>"))
    shown = figures.readiness(
        checked(*smoke, gate("smoke run: cold was cold"), gate("smoke run: loop lag"))
    )
    assert "● Smoke run: 2 gates passed on a real 1p1d deployment" in shown.text
    assert "▲ Smoke run: responses differ: 1 <differs>" in shown.text
    assert "1 &lt;differs&gt;" in shown.html
