"""What a run over several models found: the headline, key numbers, and speed-ups side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain, zip_longest
from math import isnan

from workbench.experiment.findings.headline import effect
from workbench.experiment.findings.load_findings import reached
from workbench.experiment.findings.sentences import (
    WARM,
    matching,
    overall,
    ratio_text,
    subjects,
    warm_rows,
)
from workbench.experiment.findings.size_findings import pays_at
from workbench.experiment.plan.offered_load.search import Answer
from workbench.experiment.plan.plan import ExperimentPlan
from workbench.experiment.result.finding_rows import Card, Comparison, LoadRow, SizeRow
from workbench.metrics.gates.gate_effects import Failed, listed, struck_arms, touching
from workbench.metrics.gates.gate_table import failed_name
from workbench.metrics.passes import is_cold

_WORDS = 14
"""Of a headline, outside brackets."""
_CARDS = 4
"""Key numbers of two models; more models have one each."""


def models_finding(
    plan: ExperimentPlan,
    comparisons: Sequence[Comparison],
    loads: Sequence[LoadRow],
    answered: Mapping[str, Answer],
    sizes: Sequence[SizeRow],
    failed: Failed,
) -> tuple[str, Failed]:
    """One sentence about all models, and which gates limit it.

    `Warm KV store: TTFT 4.6x faster on A, 2.1x faster on B`. A model whose arms all failed a gate
    is left out and named in brackets, if another one is valid.
    """
    bad = struck_arms(failed, "times" if loads else "ratios")
    valid = [part for part in plan.parts if not {arm.label for arm in part.arms} <= bad.keys()]
    left_out = [part.model for part in plan.parts if part not in valid] if valid else []
    parts = valid or list(plan.parts)
    good = bad if valid else {}
    lead, each = "", {part.model: "" for part in parts}
    if loads:
        noun = loads[0].unit.noun
        lead = f"Highest {noun} within the limits:" if answered else "Throughput"
        each = {
            part.model: reached([r for r in loads if r.arm in _labels(part)], answered)
            for part in parts
        }
    elif sizes:
        lead = "Offloading: TTFT"
        each = {part.model: pays_at([r for r in sizes if r.arm in _labels(part)]) for part in parts}
    else:
        rows = [row for row in comparisons if not {*row.arms} & good.keys()]
        lead, each = _compared(parts, rows)
    text = _on_models(lead, each)
    if left_out:
        name = next(failed_name(bad[arm.label]) for arm in plan.arms if arm.model in left_out)
        text = f"{text} (left out: {listed(left_out)}, {name})"
    shown = [arm.label for part in parts for arm in part.arms if arm.label not in good]
    return text, touching(failed, arms=shown) if good else failed


def _labels(part: ExperimentPlan) -> set[str]:
    return {arm.label for arm in part.arms}


def _compared(
    parts: Sequence[ExperimentPlan], comparisons: Sequence[Comparison]
) -> tuple[str, dict[str, str]]:
    """What a warm cache does to TTFT on each model; without warm passes, what the PD split does."""
    known = [r for r in matching(comparisons, metric="ttft_s") if not isnan(r.ratio.value)]
    for state, what in WARM.items():
        warm = {part.model: warm_rows(part, known, state) for part in parts}
        if any(warm.values()):
            lead = f"Warm {what}: TTFT"
            return lead, {name: effect(rows, "arm") for name, rows in warm.items()}
    split = {
        part.model: [
            row
            for row in matching(known, kind="opponent")
            if row.arm in subjects(part) and is_cold(row.pass_name)
        ]
        for part in parts
    }
    if any(split.values()):
        return "PD split: cold TTFT", {n: effect(rows, "comparison") for n, rows in split.items()}
    return "TTFT was measured without a comparison", {}


def _on_models(lead: str, each: Mapping[str, str]) -> str:
    """`lead 4.6x faster on A, 2.1x faster on B`; in brackets where that has too many words."""
    if not each:
        return lead
    if len(set(each.values())) == 1:
        return f"{lead} {next(iter(each.values()))} on {listed(list(each))}"
    text = f"{lead} {', '.join(f'{said} on {name}' for name, said in each.items())}"
    if len(text.split()) <= _WORDS and "(" not in text:
        return text
    return f"{lead.removesuffix(':')} by model ({'; '.join(f'{n}: {s}' for n, s in each.items())})"


def models_cards(each: Sequence[Sequence[Card]]) -> tuple[Card, ...]:
    """The first key numbers of each model, those of one kind beside one another."""
    beside = [card for card in chain.from_iterable(zip_longest(*each)) if card is not None]
    return tuple(beside[: _CARDS if len(each) < 3 else len(each)])


def side_by_side(
    plan: ExperimentPlan, comparisons: Sequence[Comparison]
) -> list[tuple[str, tuple[str, ...]]]:
    """The TTFT speed-up of each subject and warm state, model by model, and the arms it is of."""
    known = [r for r in matching(comparisons, metric="ttft_s") if not isnan(r.ratio.value)]
    found: dict[tuple[str, str], dict[str, Comparison]] = {}
    for part in plan.parts:
        for state in WARM:
            for row in warm_rows(part, known, state):
                own = row.arm.removeprefix(f"{part.model} ")
                found.setdefault((own, state), {})[part.model] = row
    return [
        (
            f"{own}, {state} vs cold TTFT:"
            f" {', '.join(f'{ratio_text(row.ratio)} on {name}' for name, row in rows.items())}"
            f"{_note(list(rows.values()))}.",
            tuple(row.arm for row in rows.values()),
        )
        for (own, state), rows in found.items()
        if len(rows) > 1
    ]


def _note(rows: Sequence[Comparison]) -> str:
    return " (too few rounds for a CI)" if overall(rows) == "no_interval" else ""
