"""What all verdicts together say: the headline, the gates of the run, its doubts and limits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from workbench.claims.recipes.recipe import Outcome, Setting
from workbench.claims.registry.registry import Registry
from workbench.experiment.findings.findings import repeat_command
from workbench.experiment.findings.sentences import headline, marked
from workbench.experiment.result.claim_account import ClaimAccount
from workbench.experiment.result.facts import Card, RunOutcome
from workbench.metrics.gates.gate import Gate, judge
from workbench.metrics.gates.gate_table import failed_names
from workbench.params.notebooks import PaperClaimValidation

_ORDER = (
    "confirmed",
    "contradicted",
    "no-evidence",
    "inconclusive",
    "not-comparable",
    "not-tested",
)
_READ = {
    "contradicted": ("falls by its own source or physics", "fall by their own source or physics"),
    "no-evidence": ("has no evidence", "have no evidence"),
    "not-comparable": ("is no fair comparison", "are no fair comparison"),
}
"""How verdicts by reading are counted, of one claim and of several."""


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

    `odd_fixtures` are claims with a known verdict that did not get it, `failed` says of claims why
    their measurement failed, and `steps` measurements were begun.
    """
    gates = [_readable(registry, params.registry)]
    fixtures = sum(registry.claims[row.id].expected_verdict is not None for row in accounts)
    if fixtures:
        gates.append(_as_expected(fixtures, odd_fixtures))
    if steps:
        gates.append(_ended(steps, len(outcomes), failed))
    failed_gates = failed_names(gates)
    finding, unproven = headline(_finding(accounts), failed_gates, "counts")
    # A page of claims says of each whether it is proven.
    judged = RunOutcome(word="judged", severity="ok")
    return {
        "finding": finding,
        "unproven": unproven,
        "outcome": judged if all(gate.outcome == "PASS" for gate in gates) else None,
        "scope": _scope(setting, params, measured=bool(outcomes)),
        "numbers": marked(_cards(accounts), failed_gates),
        "gates": tuple(gates),
        "doubts": tuple(_doubts(registry, failed, outcomes)),
        "limits": tuple(_limits(setting, accounts)),
        "repeat": repeat_command("paper_claim_validation", params),
        "claims": tuple(sorted(accounts, key=_first_screen)),
        "files": {f"measured {name}": f"measured_{name}.parquet" for name in outcomes},
    }


def _first_screen(row: ClaimAccount) -> tuple[Any, ...]:
    """Measured claims first, then those judged by reading, then the untested."""
    place = 0 if row.measured else 2 if row.kind == "not-tested" else 1
    return place, row.own, _ORDER.index(row.kind), row.group, row.id


def _finding(accounts: Sequence[ClaimAccount]) -> str:
    measured = [row for row in accounts if row.measured]
    fixed = sum(row.by_construction for row in accounts)
    read = Counter(
        row.kind
        for row in accounts
        if not row.measured and not row.by_construction and row.kind != "not-tested"
    )
    parts = []
    if measured:
        published = sum(not row.own for row in measured)
        whose = f", {published or 'none'} of them published" if published < len(measured) else ""
        count = Counter((_ORDER.index(row.kind), row.verdict) for row in measured)
        words = ", ".join(f"{n} {word}" for (_, word), n in sorted(count.items()))
        parts.append(f"{len(measured)} measured here{whose}: {words}")
    if fixed:
        parts.append(f"{fixed} by construction")
    if read:
        fell = [f"{read[kind]} {_READ[kind][read[kind] > 1]}" for kind in _READ if read[kind]]
        parts.append(f"by reading, {', '.join(fell)}" if fell else f"{read.total()} were read")
    total = f"{len(accounts)} claim{'' if len(accounts) == 1 else 's'}"
    if not parts:
        return f"{total}, and none could be judged"
    return f"{total}{', ' if measured else '; '}{'; '.join(parts)}"


def _scope(setting: Setting, params: PaperClaimValidation, *, measured: bool) -> str:
    if not measured:
        return "Nothing was measured: verdicts follow from sources, arithmetic and physics."
    model = setting.model.name if params.model else "a tiny local model"
    shapes = ""
    if setting.platform == "cpu":
        shapes = ": directions, identities and exact counts are judged, sizes are not"
    return f"Measured with {model} on {setting.hardware} ({setting.platform}){shapes}."


def _cards(accounts: Sequence[ClaimAccount]) -> list[Card]:
    """How many claims each kind of verdict has; the kinds are never added up."""
    cards = []
    for kind in _ORDER:
        rows = [row for row in accounts if row.kind == kind]
        here, fixed = sum(row.measured for row in rows), sum(row.by_construction for row in rows)
        notes = [(here, "measured here"), (fixed, "by construction")]
        note = ", ".join(f"{n} {words}" for n, words in notes if n)
        label = kind.replace("-", " ")
        cards.append(Card(label=label, value=len(rows), note=note, rests_on="counts", kind=kind))
    return cards


def _readable(registry: Registry, folder: str) -> Gate:
    said = (
        f"{len(registry.claims)} claims of {len(registry.groups)} sources were read,"
        f" {len(registry.mistakes)} mistakes"
    )
    return judge(
        "registry is readable",
        holds=said,
        unknown=[f"{said}; first {mistake}" for mistake in registry.mistakes[:1]],
        if_unknown=f"mend the registry; `workbench claims check --folder {folder}` lists every"
        " mistake",
    )


def _as_expected(fixtures: int, odd: Sequence[str]) -> Gate:
    said = f"{fixtures - len(odd)} of {fixtures} claims with a known verdict got it"
    return judge(
        "rules agree with their fixtures",
        holds=said,
        problems=[f"{said}; not {name}" for name in odd[:1]],
        next_step="a rule or a claim was changed: read docs/claims.md",
    )


def _ended(steps: int, done: int, failed: Mapping[str, str]) -> Gate:
    reasons = list(dict.fromkeys(failed.values()))[:1]
    said = "; ".join([f"{done} of {steps} measurements ended well", *reasons])
    return judge(
        "measurements ended",
        holds=said,
        unknown=[said] if done < steps else [],
        if_unknown="see the reason beside each claim",
    )


def _doubts(
    registry: Registry, failed: Mapping[str, str], outcomes: Mapping[str, Outcome]
) -> list[str]:
    doubts = [f"Not read: {mistake.rstrip('?.')}." for mistake in registry.mistakes]
    doubts += [f"{reason.rstrip('.')}." for reason in failed.values()]
    doubts += [doubt for outcome in outcomes.values() for doubt in outcome.doubts]
    return list(dict.fromkeys(doubts))


def _limits(setting: Setting, accounts: Sequence[ClaimAccount]) -> list[str]:
    limits = [
        "A verdict holds for the versions and conditions beside it and for nothing else.",
        "A claim that is contradicted by its own source may still describe something true: what"
        " was refuted is that its source shows it.",
    ]
    if setting.platform == "cpu":
        limits.append(
            "On a CPU nothing is said about sizes: a confirmed shape is a direction or a count."
        )
    if any(row.own for row in accounts):
        limits.append(
            "Claims of our own are controls for the measuring; they are counted with the others"
            " and marked as own."
        )
    return limits
