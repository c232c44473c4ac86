"""What all verdicts together say: headline, numbers, gates, doubts and limits of the run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from workbench.claims.recipes.recipe import Outcome, Setting
from workbench.claims.registry.registry import Registry
from workbench.experiment.findings.findings import repeat_command
from workbench.experiment.findings.headline import headline
from workbench.experiment.findings.sentences import marked
from workbench.experiment.result.claim_account import SECTIONS, ClaimAccount
from workbench.experiment.result.facts import RunOutcome
from workbench.experiment.result.finding_rows import Card
from workbench.metrics.gates.gate import Gate, judge
from workbench.metrics.gates.gate_effects import failed_gates
from workbench.params.notebooks import PaperClaimValidation

_KINDS = {
    "confirmed": "confirmed",
    "contradicted": "contradicted",
    "no-evidence": "without evidence",
    "inconclusive": "inconclusive",
    "not-comparable": "not comparable",
    "not-tested": "not tested",
}
"""The kinds of verdicts in the order of the table, and how they are counted."""


def concluded(
    params: PaperClaimValidation,
    setting: Setting,
    registry: Registry,
    accounts: Sequence[ClaimAccount],
    *,
    odd_fixtures: Sequence[str],
    outcomes: Mapping[str, Outcome],
    failed: Mapping[str, str],
    steps: int,
) -> dict[str, Any]:
    """The part of result.json that follows from the verdicts.

    `odd_fixtures` are claims that did not get their known verdict, `failed` says why the
    measurement of a claim failed, and `steps` measurements were started.
    """
    gates = [_readable(registry, params.registry)]
    fixtures = sum(registry.claims[row.id].expected_verdict is not None for row in accounts)
    if fixtures:
        gates.append(_as_expected(fixtures, odd_fixtures))
    if steps:
        gates.append(_ended(steps, len(outcomes), failed))
    spoiling = failed_gates(gates)
    finding, unproven = headline(_finding(accounts, params), spoiling, "counts")
    # The page says of each claim whether it holds, so the run as a whole is only judged.
    judged = RunOutcome(word="judged", severity="ok")
    return {
        "finding": finding,
        "unproven": unproven,
        "outcome": judged if all(gate.outcome == "PASS" for gate in gates) else None,
        "scope": _scope(setting, params, accounts, measured=bool(outcomes)),
        "numbers": marked(_cards(accounts), spoiling),
        "gates": tuple(gates),
        "doubts": tuple(_doubts(registry, failed, outcomes)),
        "limits": tuple(_limits(setting, accounts)),
        "repeat": repeat_command("paper_claim_validation", params),
        "claims": tuple(sorted(accounts, key=_place)),
        "files": {f"measured {name}": f"measured_{name}.parquet" for name in outcomes},
    }


def _place(row: ClaimAccount) -> tuple[Any, ...]:
    """Its place in the table."""
    return list(SECTIONS).index(row.section), list(_KINDS).index(row.kind), row.group, row.id


def _counts(rows: Sequence[ClaimAccount]) -> str:
    """`1 confirmed, 2 inconclusive`."""
    count = Counter(row.kind for row in rows)
    return ", ".join(f"{count[kind]} {words}" for kind, words in _KINDS.items() if count[kind])


def _published(accounts: Sequence[ClaimAccount]) -> Sequence[ClaimAccount]:
    """The published claims; our own where no others were asked for."""
    return [row for row in accounts if not row.own] or accounts


def _finding(accounts: Sequence[ClaimAccount], params: PaperClaimValidation) -> str:
    rows = _published(accounts)
    whose = "claims of our own" if rows[0].own else "published claims"
    measured = [row for row in rows if row.measured or row.by_construction]
    if measured:
        whose = whose if len(measured) > 1 else whose.replace("claims", "claim")
        how = "on simulated servers" if params.engine == "simulated" else "measured here"
        return f"{len(measured)} {whose} {how}: {_counts(measured)}"
    judged = [row for row in rows if row.kind != "not-tested"]
    if judged:
        return f"{len(rows)} {whose}: {_counts(rows)}"
    return f"None of {len(rows)} {whose} could be judged"


def _scope(
    setting: Setting, params: PaperClaimValidation, accounts: Sequence[ClaimAccount], *,
    measured: bool,
) -> str:  # fmt: skip
    own = [row for row in accounts if row.own]
    controls = f" Our {len(own)} control claims: {_counts(own)}." if own else ""
    if own and all(row.kind == "not-tested" for row in own):
        controls = f" Our {len(own)} control claims were not tested."
    if not measured:
        return (
            "Nothing was measured: verdicts follow from sources, arithmetic and hardware limits."
            f"{controls}"
        )
    if params.engine == "simulated":
        return f"The servers were simulated, so the numbers measure nothing.{controls}"
    model = setting.model.name if params.model else "a tiny local model"
    judged = (
        " Only directions and counts are judged, not sizes." if setting.platform == "cpu" else ""
    )
    return f"Measured with {model} on {setting.hardware}.{judged}{controls}"


def _cards(accounts: Sequence[ClaimAccount]) -> list[Card]:
    """How many claims were measured, decided from their source, and not tested."""
    rows = _published(accounts)
    measured = [row for row in rows if row.measured or row.by_construction]
    untested = [row for row in rows if row.kind == "not-tested"]
    read = [row for row in rows if row not in measured and row not in untested]
    return [
        Card(
            label=label,
            value=len(some),
            note=_counts(some) if notes else "the table gives the reasons",
            rests_on="counts",
        )
        for label, some, notes in (
            ("measured here", measured, True),
            ("decided from their source", read, True),
            ("not tested", untested, False),
        )
    ]


def _readable(registry: Registry, folder: str) -> Gate:
    read = f"{len(registry.claims)} claims from {len(registry.groups)} sources are valid"
    wrong = len(registry.mistakes)
    return judge(
        "registry is readable",
        holds=f"{read}.",
        unknown=[
            f"{read}, {wrong} {'is invalid and was' if wrong == 1 else 'are invalid and were'} left"
            f" out: {mistake}"
            for mistake in registry.mistakes[:1]
        ],
        if_unknown=f"Correct the files; `workbench claims check --folder {folder}` lists all"
        " mistakes.",
    )


def _as_expected(fixtures: int, odd: Sequence[str]) -> Gate:
    said = f"{fixtures - len(odd)} of {fixtures} claims with known verdicts were judged as expected"
    return judge(
        "rules agree with their fixtures",
        holds=f"{said}.",
        problems=[f"{said}, but {name} was not. Do not trust the others" for name in odd[:1]],
        next_step="Find the rule or claim that was changed (rules: docs/claims.md).",
    )


def _ended(steps: int, done: int, failed: Mapping[str, str]) -> Gate:
    reasons = list(dict.fromkeys(failed.values()))[:1]
    said = f"{done} of {steps} measurements finished"
    return judge(
        "measurements ended",
        holds=f"{said}.",
        unknown=["; ".join([said, *reasons])] if done < steps else [],
        if_unknown="The table shows the reason for each claim.",
    )


def _doubts(
    registry: Registry, failed: Mapping[str, str], outcomes: Mapping[str, Outcome]
) -> list[str]:
    doubts = [f"Left out: {mistake.rstrip('?.')}." for mistake in registry.mistakes]
    doubts += [f"{reason.rstrip('.')}." for reason in failed.values()]
    doubts += [doubt for outcome in outcomes.values() for doubt in outcome.doubts]
    return list(dict.fromkeys(doubts))


def _limits(setting: Setting, accounts: Sequence[ClaimAccount]) -> list[str]:
    limits = [
        "A verdict holds only for the versions and conditions shown with it.",
        "A claim that its own source contradicts may still be true: only its evidence is refuted.",
    ]
    if setting.platform == "cpu":
        limits.append("On a CPU, only directions and counts are judged, not effect sizes.")
    if any(row.own for row in accounts):
        limits.append("Our own claims, marked “own”, check the workbench itself.")
    return limits
