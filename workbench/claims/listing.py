"""The registry as text to read in a terminal: a list by source, one claim, the mistakes."""

from __future__ import annotations

from textwrap import fill, wrap

from workbench.claims.registry.claim import CHECKS, Claim
from workbench.claims.registry.registry import Registry
from workbench.claims.verdict.verdict import judge
from workbench.errors import ParameterError, nearest

_WIDTH = 98


def list_page(registry: Registry, group: str = "") -> str:
    """One line for each claim, under its source; of one group if given."""
    if group and group not in registry.groups:
        raise ParameterError(f"group {group!r} is not known: {nearest(group, registry.groups)}")
    lines = []
    for name in (group,) if group else registry.groups:
        claims = registry.group(name)
        source = claims[0].source
        lines += [f"{name}: {source.title} ({len(claims)} claims)"]
        if source.own:
            lines += ["  own: definitions and controls of the workbench, published by nobody"]
        if source.withdrawn:
            lines += [fill(f"  withdrawn: {source.withdrawn}", _WIDTH, subsequent_indent="    ")]
        for claim in claims:
            hang = " " * 24
            lines += [fill(f"  {claim.id:<21} {claim.statement}", _WIDTH, subsequent_indent=hang)]
        lines += [""]
    return "\n".join(lines).rstrip()


def show_page(claim: Claim) -> str:
    """All that the registry knows of a claim, and the verdict that its source alone gives."""
    source = claim.source
    verdict = judge(claim)
    rows = [
        ("says", "; ".join(f"{effect.name}: {effect}" for effect in claim.effects)),
        ("metric", f"{claim.metric} ({claim.level}, {claim.phase})"),
        ("subject", claim.subject),
        ("against", claim.comparator or "nothing: an absolute claim"),
        ("model", claim.model or "not stated"),
        ("hardware", claim.hardware or "not stated"),
        ("workload", "; ".join(f"{k}: {v}" for k, v in claim.workload.items()) or "not stated"),
        ("source", f"{source.title}; {source.ref}; {source.location}"),
        ("read", f"{source.confirmation}: {source.how}"),
        ("withdrawn", source.withdrawn),
        ("evidence", claim.evidence.kind),
        ("", claim.evidence.contradicted_by),
        *(
            (check.state, f"{CHECKS[name]} ({name}): {check.why}")
            for name, check in claim.checks.items()
        ),
        ("note", claim.note),
        *((f"test {tier}", how) for tier, how in claim.test.items()),
        ("verdict", f"{verdict.word} ({verdict.gate}, {verdict.code}): {verdict.reason}"),
        ("needed", verdict.needed),
        *(("doubt", doubt) for doubt in verdict.doubts),
    ]
    lines = [claim.id, *wrap(claim.statement, _WIDTH), ""]
    for label, text in rows:
        if text:
            head = f"  {label:<15} "
            lines.append(fill(head + text, _WIDTH, subsequent_indent=" " * len(head)))
    return "\n".join(lines)


def check_page(registry: Registry) -> str:
    """How many claims could be read, and a line for each mistake."""
    own = len(registry.claims) - len(registry.published)
    controls = f" ({own} of them our own)" if own else ""
    read = f"{len(registry.claims)} claims of {len(registry.groups)} sources can be read{controls}"
    return "\n".join([*registry.mistakes, f"{read}, {len(registry.mistakes)} mistakes"])
