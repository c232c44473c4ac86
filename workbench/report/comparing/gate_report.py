"""The answer of `workbench gate` as text, as Markdown for a CI summary, and as JUnit XML."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from math import ceil, isfinite, isinf, isnan
from statistics import median
from xml.etree import ElementTree

from workbench.experiment.between.regression import Judged, Outcome, Regression
from workbench.experiment.between.unpaired import NAMES
from workbench.metrics.statistics import three_digits

MOST_LINES = 30
"""Of a Markdown summary."""
EXIT_STATUS: dict[Outcome, int] = {"no regression": 0, "regression": 1, "undecided": 2}
_MARKS: dict[Outcome, str] = {"no regression": "●", "regression": "▲", "undecided": "◆"}


def headline(found: Regression) -> str:
    """`Regression: TPOT, 1p1d nixl, cold is 12 % higher (and 3 more comparisons)`."""
    worst = next(iter(found.judged), None)
    if found.outcome == "no regression":
        return f"No regression: every comparison is within {_percent(found.allow)}"
    if found.outcome == "undecided" or worst is None:
        open_ = found.count("undecided") + len(found.missing)
        total = len(found.judged) + len(found.missing)
        if not open_ and found.unfinished:
            return f"Undecided: {', '.join(found.unfinished)} did not finish"
        return f"Undecided: {open_} of {total} comparisons"
    more = found.count("regression") - 1
    also = f" (and {more} more comparison{'s' * (more > 1)})" if more else ""
    return f"Regression: {worst.row.name} is {_change(worst)}{also}"


def next_step(found: Regression) -> str:
    """What would decide it; empty where everything is decided."""
    if found.outcome != "undecided":
        return ""
    if not (found.judged or found.missing):
        return "Repeat the baseline: it has no value to compare with"
    if found.missing:
        return f"Measure what the baseline measured: {'; '.join(found.missing[:3])}"
    if found.unfinished:
        return f"Finish the run that did not finish: {', '.join(found.unfinished)}"
    causes = Counter(_cause(each) for each in found.judged if each.outcome == "undecided")
    if len(causes) < 2:
        return _STEPS[next(iter(causes), "noise")].format(rounds=_rounds(found))
    return "; ".join(
        f"for {times} of {len(found.judged)}: {_lower(_STEPS[cause].format(rounds=_rounds(found)))}"
        for cause, times in causes.most_common()
    )


_STEPS = {
    "rounds": "Measure both runs with -p rounds {rounds}, computed from the spread seen"
    " (power 80 %)",
    "gates": "Repeat the run whose gates failed",
    "no value": "Find out why requests failed (error_message in requests.parquet), and repeat the"
    " run",
    "noise": "More rounds do not decide it: allow more, or measure on a machine with less noise",
}
"""What decides an undecided comparison, by `_cause`."""


def _cause(each: Judged) -> str:
    """Why a comparison is undecided, as a key of _STEPS."""
    if isfinite(each.rounds):
        return "rounds"
    if isinf(each.rounds):
        return "noise"
    return "no value" if isnan(each.row.ratio.value) and not each.row.spoilt.struck else "gates"


def _rounds(found: Regression) -> str:
    """The rounds that decide all that rounds can decide, and those for half of them."""
    known = [each.rounds for each in found.judged if isfinite(each.rounds)]
    half = f" ({ceil(median(known))} decide half of them)" if len({*known}) > 1 else ""
    return f"{found.rounds:.0f}{half}"


def _lower(sentence: str) -> str:
    return f"{sentence[:1].lower()}{sentence[1:]}"


def floor_line(found: Regression) -> str:
    """The noise floor by metric and what it comes from."""
    known = ", ".join(
        f"{NAMES[metric]} {_percent(value)}" for metric, value in found.floor.of.items()
    )
    return f"Noise floor: {known + ', ' if known else ''}{found.floor.source}"


def text_report(found: Regression) -> Iterator[str]:
    """Lines for the terminal."""
    yield headline(found)
    yield f"{found.settings[:1].upper()}{found.settings[1:]}"
    yield floor_line(found)
    width = max((len(each.row.name) for each in found.judged), default=0)
    for each in found.judged:
        yield f"  {_MARKS[each.outcome]} {each.outcome:13}  {each.row.name:{width}}  {_said(each)}"
    yield from _notes(found)
    if step := next_step(found):
        yield f"next: {step}"


def markdown_report(found: Regression) -> str:
    """At most MOST_LINES lines, the worst comparisons first; for GITHUB_STEP_SUMMARY."""
    mark = _MARKS[found.outcome]
    above = [
        f"## {mark} {headline(found)}",
        "",
        f"{found.settings[:1].upper()}{found.settings[1:]}. {floor_line(found)}.",
        "",
    ]
    below = [f"- {text}" for text in _notes(found)]
    if step := next_step(found):
        below.append(f"- Next: {step}.")
    table = ["| | comparison | change [95 % CI] | outcome |", "|---|---|---|---|"]
    room = MOST_LINES - len(above) - len(table) - 3
    below = below[: max(2, room - 5)]
    room -= len(below)
    shown = found.judged[:room]
    rows = [
        f"| {_MARKS[each.outcome]} | {_cell(each.row.name)} | {_cell(_change_with_ends(each))} |"
        f" {_cell(_outcome(each))} |"
        for each in shown
    ]
    if left := found.judged[room:]:
        kinds = {outcome: sum(each.outcome == outcome for each in left) for outcome in _MARKS}
        said = ", ".join(f"{n} {outcome}" for outcome, n in kinds.items() if n)
        below.insert(0, f"- Not listed: {said}.")
    return "\n".join([*above, *(table + rows if rows else []), "", *below]).rstrip() + "\n"


def junit_report(found: Regression, name: str) -> str:
    """JUnit XML: a test case per comparison; a regression is a failure, an undecided one skipped.

    `name` is that of the run.
    """
    suite = ElementTree.Element(
        "testsuite",
        name="workbench gate",
        tests=str(len(found.judged) + len(found.missing) + len(found.unfinished)),
        failures=str(found.count("regression")),
        errors="0",
        skipped=str(found.count("undecided") + len(found.missing) + len(found.unfinished)),
    )
    properties = ElementTree.SubElement(suite, "properties")
    told = {
        "run": name, "allow": _percent(found.allow), "settings": found.settings,
        "noise floor": floor_line(found),
    }  # fmt: skip
    for key, value in told.items():
        ElementTree.SubElement(properties, "property", name=key, value=value)
    for each in found.judged:
        case = ElementTree.SubElement(
            suite, "testcase", classname=f"workbench.gate.{name}", name=each.row.name
        )
        if each.outcome == "regression":
            ElementTree.SubElement(
                case, "failure", type="regression", message=_said(each)
            ).text = _said(each)
        elif each.outcome == "undecided":
            ElementTree.SubElement(case, "skipped", message=f"undecided: {each.why}")
    left = dict.fromkeys(found.missing, "the run did not measure it")
    left |= dict.fromkeys(found.unfinished, "this run did not finish")
    for what, why in left.items():
        case = ElementTree.SubElement(
            suite, "testcase", classname=f"workbench.gate.{name}", name=what
        )
        ElementTree.SubElement(case, "skipped", message=f"undecided: {why}")
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _notes(found: Regression) -> Iterator[str]:
    """How it was decided, and what limits it."""
    yield (
        f"{len(found.judged)} comparisons, each decided by its 95 %"
        f" interval{', widened by the noise floor' if found.floor.of else ''}; a regression also"
        " has to pass Holm's correction for their number."
    )
    for kind in found.missing:
        yield f"Not measured in this run: {kind}."
    if found.added:
        yield f"Without a baseline: {'; '.join(found.added)}."
    if found.simulated:
        yield "Simulated servers: these times are not measurements."
    yield from found.doubts


def _outcome(each: Judged) -> str:
    return f"{each.outcome}: {each.why}" if each.why else each.outcome


def _said(each: Judged) -> str:
    return f"{_change_with_ends(each)}{f'; {each.why}' if each.why else ''}"


def _change(each: Judged) -> str:
    value, *_ = each.row.change
    if isnan(value):
        return "not known"
    return f"{_percent(abs(value))} {'higher' if value >= 0 else 'lower'}"


def _change_with_ends(each: Judged) -> str:
    """`+12.3 % [+8.1, +16.5]`; what a failed gate takes away is withheld."""
    value, low, high = each.change
    if each.row.spoilt.struck:
        return "withheld"
    if isnan(value):
        return "not known"
    ends = "" if isnan(low) else f" [{_signed(low)}, {_signed(high)}]"
    return f"{_signed(value)} %{ends}"


def _signed(share: float) -> str:
    return f"{'+' if share >= 0 else '-'}{three_digits(abs(100 * share))}"


def _percent(share: float) -> str:
    return f"{float(f'{100 * share:.3g}'):g} %"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
