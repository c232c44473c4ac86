"""The registry in a terminal: a list by source, one claim, the mistakes."""

from __future__ import annotations

from textwrap import fill, wrap

from workbench.claims.registry.claim import CHECKS, Claim, failed_check
from workbench.claims.registry.registry import Registry
from workbench.claims.verdict.verdict import judge
from workbench.errors import ParameterError, nearest

_WIDTH = 98
_TESTS = {"gpu": "test on a GPU", "cpu_shape": "test on a CPU", "analytic": "by calculation"}


def list_page(registry: Registry, group: str = "") -> str:
    """One line for each claim, by source; only one group if given."""
    if group and group not in registry.groups:
        raise ParameterError(f"group {group!r} does not exist; {nearest(group, registry.groups)}")
    lines = []
    for name in (group,) if group else registry.groups:
        claims = registry.group(name)
        source = claims[0].source
        lines += [f"{name}: {source.title} ({len(claims)} claims)"]
        if source.own:
            lines += ["  own: definitions and controls of this workbench, not published elsewhere"]
        if source.withdrawn:
            lines += [fill(f"  withdrawn: {source.withdrawn}", _WIDTH, subsequent_indent="    ")]
        for claim in claims:
            hang = " " * 24
            lines += [fill(f"  {claim.id:<21} {claim.statement}", _WIDTH, subsequent_indent=hang)]
        lines += [""]
    return "\n".join(lines).rstrip()


def show_page(claim: Claim) -> str:
    """Everything known of a claim, and the verdict that its source alone supports."""
    source = claim.source
    verdict = judge(claim)
    rows = [
        ("claims", "; ".join(f"{effect.name}: {effect}" for effect in claim.effects)),
        ("metric", f"{claim.metric} ({claim.level}, {claim.phase})"),
        ("subject", claim.subject),
        ("baseline", claim.comparator or "none, an absolute value"),
        ("model", claim.model or "not stated"),
        ("hardware", claim.hardware or "not stated"),
        ("workload", "; ".join(f"{k}: {v}" for k, v in claim.workload.items()) or "not stated"),
        ("source", source.cited),
        ("confirmed by", f"{source.confirmation}: {source.how}"),
        ("withdrawn", source.withdrawn),
        ("evidence", claim.evidence.kind),
        ("contradicted", claim.evidence.contradicted_by),
        *(
            (f"check {check.state}", f"{_said(name, check.state)} ({name}): {check.why}")
            for name, check in claim.checks.items()
        ),
        ("note", claim.note),
        *((_TESTS[tier], how) for tier, how in claim.test.items()),
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


def _said(name: str, state: str) -> str:
    return failed_check(name) if state == "fail" else CHECKS[name]


def check_page(registry: Registry) -> str:
    """How many claims are valid, and a line for each mistake."""
    own = len(registry.claims) - len(registry.published)
    controls = f" ({own} of them our own)" if own else ""
    valid = f"{len(registry.claims)} claims from {len(registry.groups)} sources are valid{controls}"
    return "\n".join([*registry.mistakes, f"{valid}, {len(registry.mistakes)} mistakes"])
