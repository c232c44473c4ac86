"""Targets: sentences that a run meets, misses or leaves undecided, such as `pd throughput >= 150%`.

    [MODEL:] [ARM] [PASS] METRIC cut >= N% [of REFERENCE]      a latency that is N % lower
    [MODEL:] [ARM] [PASS] METRIC gain >= N% [of REFERENCE]     a throughput that is N % higher
    [MODEL:] [ARM] [PASS] METRIC >= N% [of REFERENCE]          in percent of the reference; also <=
    [MODEL:] [ARM] [PASS] METRIC within N% [of REFERENCE]      neither higher nor lower by more

METRIC is ttft, tpot, e2e or throughput. REFERENCE is `aggregated` (instances on the same number of
GPUs, in the same pass) or `cold` (the same arm). ARM is `pd` (every PD split), a topology or a
label; left out, it is every arm that was asked for.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

from workbench.errors import ParameterError, must_be
from workbench.topology import Topology

Measure = Literal["cut", "gain", "of", "within"]
Reference = Literal["aggregated", "cold"]

EXAMPLE = "store-warm ttft cut >= 60%"
_ALLOWED = (
    "[ARM] [PASS] METRIC (ttft, tpot, e2e, throughput) with 'cut >= N%' (latency), 'gain >= N%'"
    " (throughput), '>= N%', '<= N%' or 'within N%' [of aggregated|cold]"
)
_METRICS = {"ttft": "ttft_s", "tpot": "tpot_s", "e2e": "e2e_s", "throughput": "system_tps"}
_FORM = re.compile(
    r"(?:(?P<model>.+):\s+)?(?P<who>.*?)\s*\b(?P<metric>ttft|tpot|e2e|throughput)\s+"
    r"(?:(?P<measure>cut|gain)\s*)?(?:(?P<sign>>=|<=)|(?P<within>within\b))\s*"
    r"(?P<percent>\d+(?:\.\d+)?)\s*%(?:\s+of\s+(?P<reference>aggregated|cold))?",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One sentence, parsed."""

    text: str
    model: str
    who: str
    """Arm and pass as they were written; either may be missing."""
    metric: str
    measure: Measure
    at_least: bool
    """Unused with `within`."""
    share: float
    """The limit: 0.6 for 60 %."""
    reference: Reference

    @classmethod
    def parse(cls, text: str) -> Target:
        """Raises ParameterError for a sentence of another form."""
        found = _FORM.fullmatch(text.strip())
        if found is None:
            raise ParameterError(_mistake(text))
        measure: Measure = "within" if found["within"] else "of"
        if found["measure"]:
            measure = "cut" if found["measure"].lower() == "cut" else "gain"
        metric, share = _METRICS[found["metric"].lower()], float(found["percent"]) / 100
        slower = metric == "system_tps"
        if (found["within"] and measure != "within") or share <= 0:
            raise ParameterError(_mistake(text))
        if (measure == "cut" and (slower or share >= 1)) or (measure == "gain" and not slower):
            raise ParameterError(_mistake(text))
        who = " ".join(found["who"].split())
        split = "pd" in who.casefold().split()
        said = (found["reference"] or ("aggregated" if split else "cold")).lower()
        return cls(
            text=text.strip(), model=(found["model"] or "").strip(), who=who, metric=metric,
            measure=measure, at_least=found["sign"] != "<=", share=share,
            reference="aggregated" if said == "aggregated" else "cold",
        )  # fmt: skip

    @property
    def kind(self) -> str:
        """The kind of comparison that answers it."""
        return "opponent" if self.reference == "aggregated" else "cache-state"

    def selects(self, kind: str, arm: Named, pass_name: str) -> bool:
        """Whether it is about this comparison of an arm in a pass."""
        if kind != self.kind or not self.of_model(arm):
            return False
        # Without a pass the cold one is meant.
        passes = (f" {pass_name}".casefold(), *([""] if pass_name == "cold" else []))
        called = {f"{n}{p}".strip() for n, p in product(arm.called, passes)}
        return self.who.casefold() in called

    def of_model(self, arm: Named) -> bool:
        """Whether it is about the model of an arm."""
        return not self.model or self.model.casefold() == arm.model.casefold()

    def names_no_pass(self, arm: Named) -> bool:
        """Whether it names this arm, or none, and nothing else."""
        return self.of_model(arm) and self.who.casefold() in arm.called

    def holds(self, relative: float) -> bool:
        """Whether a value meets the limit; `relative` is the arm's metric / the reference's."""
        if self.measure == "within":
            return 1 / (1 + self.share) <= relative <= 1 + self.share
        value = self.measured(relative)
        return value >= self.share if self.at_least else value <= self.share

    def measured(self, relative: float) -> float:
        """The value to compare with the limit: a cut or gain as a fraction, else `relative`."""
        if self.measure == "cut":
            return 1 - relative
        return relative - 1 if self.measure in ("gain", "within") else relative


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """An arm, as a sentence may name it."""

    label: str
    topology: str
    model: str = ""
    subject: bool = True

    @property
    def names(self) -> Iterator[str]:
        """In lower case: the label, without its model or its GPUs too, its topology, or `pd`."""
        own = self.label.removeprefix(f"{self.model} ") if self.model else self.label
        for name in (self.label, own, own.partition(",")[0]):
            yield name.casefold()
        yield self.topology.casefold()
        try:
            if Topology.parse(self.topology).disaggregated:
                yield "pd"
        except ParameterError:  # attached servers may have any label
            return

    @property
    def called(self) -> set[str]:
        """Its names, and the empty one of an arm that was asked for."""
        return {*self.names, *([""] if self.subject else [])}


def target_mistakes(targets: Sequence[str]) -> Iterator[str]:
    """What is wrong with the form of sentences."""
    for text in targets:
        try:
            Target.parse(text)
        except ParameterError as error:
            yield str(error)


def not_answered(target: Target, answered: Collection[tuple[str, Named, str]]) -> str:
    """The refusal of a target that no comparison of a plan answers; empty if one does.

    `answered` has the kind, arm and pass of each comparison.
    """
    if any(target.selects(*each) for each in answered):
        return ""
    models = list(dict.fromkeys(arm.model for _, arm, _ in answered if arm.model))
    if target.model and not any(target.of_model(arm) for _, arm, _ in answered):
        allowed = f"without a model, or of one of {', '.join(models)}" if models else (
            "without a model, since only one is measured"
        )  # fmt: skip
        return must_be("targets", allowed, target.text, "-p targets 'pd throughput >= 150%'")
    same_kind = [each for each in answered if each[0] == target.kind and each[1].subject]
    if target.kind == "cache-state" and any(target.names_no_pass(arm) for _, arm, _ in same_kind):
        passes = list(dict.fromkeys(name for _, _, name in same_kind))
        allowed = f"for a pass to compare with cold ({', '.join(passes[:4])})"
        return must_be("targets", allowed, target.text, f"-p targets '{EXAMPLE}'")
    names = list(dict.fromkeys(f"{arm.label}, {name}" for _, arm, name in same_kind))
    more = f" and {len(names) - 4} more" * (len(names) > 4)
    said = f"{'; '.join(names[:4])}{more}" or "nothing"
    example = "-p topology 1p1d -p targets 'pd throughput >= 150%'"
    return (
        f"targets must name an arm and pass that are measured; this plan compares {said} with"
        f" {target.reference}, got {target.text!r} (example: {example})"
    )


def _mistake(text: str) -> str:
    return must_be("targets", _ALLOWED, text, f"-p targets '{EXAMPLE}'")
