"""What all verdicts together say: the headline, the gates of the run, its doubts and limits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from workbench.claims.claim import Claim
from workbench.claims.recipe import Outcome, Setting
from workbench.claims.registry import Registry
from workbench.claims.verdict import Verdict
from workbench.experiment.findings.findings import repeat_command
from workbench.experiment.findings.sentences import headline, marked
from workbench.experiment.result.facts import Card, RunOutcome
from workbench.metrics.gates.gate import Gate
from workbench.metrics.gates.gate import Outcome as Outcome_
from workbench.metrics.gates.gate_table import failed_names
from workbench.params.notebooks import PaperClaimValidation

__all__ = ["concluded"]

_ORDER = (
    "confirmed",
    "contradicted",
    "no-evidence",
    "inconclusive",
    "not-comparable",
    "not-tested",
)

_READ = {
    "contradicted": (
        "{} falls by its own source or physics",
        "{} fall by their own source or physics",
    ),
    "no-evidence": ("{} has no evidence", "{} have no evidence"),
    "not-comparable": ("{} is no fair comparison", "{} are no fair comparison"),
}


def concluded(
    params: PaperClaimValidation,
    setting: Setting,
    registry: Registry,
    claims: Sequence[Claim],
    verdicts: Mapping[str, Verdict],
    accounts: Sequence[dict[str, Any]],
    *,
    outcomes: Mapping[str, Outcome],
    failed: Mapping[str, str],
    steps: int,
) -> dict[str, Any]:
    """The part of result.json that follows from the verdicts."""
    measured = [row for row in accounts if row["measured"]]
    gates = _gates(registry, claims, verdicts, failed, steps, len(outcomes), params.registry)
    finding, unproven = headline(_finding(accounts, measured), failed_names(gates), "counts")
    return {
        "finding": finding,
        "unproven": unproven,
        "outcome": _outcome(gates),
        "scope": _scope(setting, params, outcomes),
        "numbers": marked(_cards(accounts), failed_names(gates)),
        "gates": tuple(gates),
        "doubts": tuple(_doubts(registry, failed, outcomes)),
        "limits": tuple(_limits(setting, accounts)),
        "repeat": repeat_command("paper_claim_validation", params),
        "claims": tuple(sorted(accounts, key=_first_screen)),
        "files": {f"measured {name}": f"measured_{name}.parquet" for name in outcomes},
    }


def _outcome(gates: Sequence[Gate]) -> RunOutcome | None:
    """`judged` where every gate holds: a page of claims says of each whether it is proven."""
    if any(gate.outcome != "PASS" for gate in gates):
        return None
    return RunOutcome(word="judged", severity="ok")


def _first_screen(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Measured claims first, then those judged by reading, then the untested."""
    place = 0 if row["measured"] else 2 if row["kind"] == "not-tested" else 1
    return place, row["own"], _ORDER.index(row["kind"]), row["group"], row["id"]


def _finding(accounts: Sequence[Mapping[str, Any]], measured: Sequence[Mapping[str, Any]]) -> str:
    ours = [row for row in accounts if row["by_construction"]]
    read = [
        row
        for row in accounts
        if not row["measured"] and not row["by_construction"] and row["kind"] != "not-tested"
    ]
    published = sum(not row["own"] for row in measured)
    whose = "" if published == len(measured) else f", {published or 'none'} of them published"
    count = Counter(row["verdict"] for row in measured)
    total = f"{_many(len(accounts), 'claim')}"
    parts = []
    if measured:
        words = ", ".join(f"{n} {word}" for word, n in sorted(count.items(), key=_by_kind))
        parts.append(f"{len(measured)} measured here{whose}: {words}")
    if ours:
        parts.append(f"{len(ours)} by construction")
    if read:
        count_read = Counter(row["kind"] for row in read)
        fell = [
            words[count_read[kind] > 1].format(count_read[kind])
            for kind, words in _READ.items()
            if count_read[kind]
        ]
        parts.append(f"by reading, {', '.join(fell)}" if fell else f"{len(read)} were read")
    if not parts:
        return f"{total}, and none could be judged"
    joint = ", " if measured else "; "
    return f"{total}{joint}{'; '.join(parts)}"


def _by_kind(item: tuple[str, int]) -> tuple[int, str]:
    word = item[0]
    for place, kind in enumerate(_ORDER):
        if word.startswith(kind.replace("-", " ")):
            return place, word
    return 1, word


def _scope(setting: Setting, params: PaperClaimValidation, outcomes: Mapping[str, Outcome]) -> str:
    if not outcomes:
        return "Nothing was measured: verdicts follow from sources, arithmetic and physics."
    model = setting.model.name if params.model else "a tiny local model"
    shapes = (
        ": directions, identities and exact counts are judged, sizes are not"
        if setting.platform == "cpu"
        else ""
    )
    return f"Measured with {model} on {setting.hardware} ({setting.platform}){shapes}."


def _cards(accounts: Sequence[Mapping[str, Any]]) -> list[Card]:
    """How many claims each kind of verdict has; the kinds are never added up."""
    cards = []
    for kind in _ORDER:
        label = kind.replace("-", " ")
        rows = [row for row in accounts if row["kind"] == kind]
        here = sum(row["measured"] for row in rows)
        fixed = sum(row["by_construction"] for row in rows)
        notes = [(here, "measured here"), (fixed, "by construction")]
        note = ", ".join(f"{n} {words}" for n, words in notes if n)
        cards.append(Card(label=label, value=len(rows), note=note, rests_on="counts", kind=kind))
    return cards


def _gates(
    registry: Registry, claims: Sequence[Claim], verdicts: Mapping[str, Verdict],
    failed: Mapping[str, str], steps: int, done: int, folder: str,
) -> list[Gate]:  # fmt: skip
    fixtures = [claim for claim in claims if claim.expected_verdict]
    odd = [c.id for c in fixtures if verdicts[c.id].verdict != c.expected_verdict]
    mistakes = len(registry.mistakes)
    gates = [
        _gate(
            "registry is readable", "INCONCLUSIVE" if mistakes else "PASS",
            f"{len(registry.claims)} claims of {len(registry.groups)} sources were read,"
            f" {mistakes} mistakes" + (f"; first {registry.mistakes[0]}" if mistakes else ""),
            f"mend the registry; `workbench claims check --folder {folder}` lists every mistake"
            if mistakes
            else "",
        ),
    ]  # fmt: skip
    if fixtures:
        gates.append(
            _gate(
                "rules agree with their fixtures", "FAIL" if odd else "PASS",
                f"{len(fixtures) - len(odd)} of {len(fixtures)} claims with a known verdict got it"
                + (f"; not {odd[0]}" if odd else ""),
                "a rule or a claim was changed: read docs/claims.md" if odd else "",
            )
        )  # fmt: skip
    if steps:
        reasons = list(dict.fromkeys(failed.values()))
        gates.append(
            _gate(
                "measurements ended", "INCONCLUSIVE" if done < steps else "PASS",
                "; ".join([f"{done} of {steps} measurements ended well", *reasons[:1]]),
                "see the reason beside each claim" if done < steps else "",
            )
        )  # fmt: skip
    return gates


def _gate(name: str, outcome: Outcome_, sentence: str, next_step: str) -> Gate:
    return Gate(name=name, outcome=outcome, sentence=sentence, next_step=next_step)


def _doubts(
    registry: Registry, failed: Mapping[str, str], outcomes: Mapping[str, Outcome]
) -> list[str]:
    doubts = [f"Not read: {mistake.rstrip('?.')}." for mistake in registry.mistakes]
    doubts += list(dict.fromkeys(f"{reason.rstrip('.')}." for reason in failed.values()))
    for outcome in outcomes.values():
        doubts += [doubt for doubt in outcome.doubts if doubt not in doubts]
    return doubts


def _limits(setting: Setting, accounts: Sequence[Mapping[str, Any]]) -> list[str]:
    limits = [
        "A verdict holds for the versions and conditions beside it and for nothing else.",
        "A claim that is contradicted by its own source may still describe something true: what"
        " was refuted is that its source shows it.",
    ]
    if setting.platform == "cpu":
        limits.append(
            "On a CPU nothing is said about sizes: a confirmed shape is a direction or a count."
        )
    if any(row["own"] for row in accounts):
        limits.append(
            "Claims of our own are controls for the measuring; they are counted with the others"
            " and marked as own."
        )
    return limits


def _many(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"
