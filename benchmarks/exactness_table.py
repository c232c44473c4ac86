"""The table of `exactness.py`: target, measured value, baseline."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from statistics import median
from typing import Any

Rows = Sequence[dict[str, Any]]

ALIGNED = ("closed-64", "closed-256")
UNALIGNED = ("closed-64-unaligned", "closed-256-unaligned")
OPEN = ("open-50", "open-200", "open-500")
WORDS = {
    "closed-64": "c=64", "closed-256": "c=256", "closed-64-unaligned": "c=64 unaligned",
    "closed-256-unaligned": "c=256 unaligned", "open-50": "50/s", "open-200": "200/s",
    "open-500": "500/s",
}  # fmt: skip


def table(rows: Rows) -> str:
    """Markdown. Each row says whether it met its target; failures are listed below the table."""
    lines = [
        "| quantity | target | workbench | baseline | met | other programs |",
        "|---|---|---|---|---|---|",
        *_cpu(rows),
        *_errors(rows),
        *_worker(rows),
    ]
    failed = dict.fromkeys(
        f"not measured: {row['client']}, {row['cell']}: {row['error']}"
        for row in rows
        if "error" in row
    )
    return "\n".join([*lines, *failed])


def values(rows: Rows, client: str, cell: str, name: str) -> list[float]:
    """One number per round, without NaN."""
    found = (r.get(name) for r in rows if (r["client"], r["cell"]) == (client, cell))
    return [value for value in found if value is not None and value == value]


def _cpu(rows: Rows) -> Iterable[str]:
    for ours, stamps in (("kernel", "kernel timestamps"), ("user", "user-space timestamps")):
        for cells, target in ((ALIGNED, 2.5), (UNALIGNED, 2.0)):
            for cell in cells:
                yield _ratio(rows, ours, "vllm", cell, target, stamps)
    for peer, target in (("aiperf", 7.0), ("guidellm", 15.0)):
        for cell in ALIGNED:
            yield _ratio(rows, "kernel", peer, cell, target, "kernel timestamps")
            yield _ratio(
                rows, "kernel", peer, cell, target, "whole run with imports",
                name="whole_cpu_us_per_token",
            )  # fmt: skip


def _ratio(
    rows: Rows, ours: str, peer: str, cell: str, target: float, which: str,
    *, name: str = "cpu_us_per_token",
) -> str:  # fmt: skip
    mine = values(rows, ours, cell, name)
    theirs = values(rows, peer, cell, name)
    names = {"vllm": "vllm bench serve", "aiperf": "AIPerf", "guidellm": "GuideLLM"}
    what = f"CPU per token, {WORDS[cell]}, {which}, against {names[peer]}"
    if not (mine and theirs):
        return f"| {what} | {target:g}x | - | - | not measured | |"
    times = [b / a for a, b in zip(mine, theirs, strict=False)]
    met = "yes" if median(times) >= target else "**no**"
    return (
        f"| {what} | {target:g}x less | {_spread(times, '{:.2f}')}x less;"
        f" {_spread(mine, '{:.1f}')} us"
        f" | {_spread(theirs, '{:.1f}')} us | {met} | {_others(rows, (ours, peer), cell)} |"
    )


Limit = tuple[str, tuple[str, ...], str, int, float | None]


def _errors(rows: Rows) -> Iterable[str]:
    limits: list[Limit] = [
        ("TTFT error p50", ("closed-64", "closed-256", "open-200", "open-500"),
         "ttft_error_ms_p50", 1, 0.2),
        ("TTFT error p99", ("closed-64", "open-200"), "ttft_error_ms_p99", 1, 1.0),
        ("TTFT error p99", ("closed-256", "open-500"), "ttft_error_ms_p99", 1, None),
        ("lateness of first-token reads p99", (*ALIGNED, *UNALIGNED, *OPEN[1:]),
         "receive_late_ms_p99", 1000, 50.0),
        ("ICL error p99", (*ALIGNED, *UNALIGNED, *OPEN[1:]), "icl_error_ms_p99", 1000, 50.0),
        ("send lateness p50", ("open-200",), "send_late_ms_p50", 1, 0.3),
        ("send lateness p99", ("open-200",), "send_late_ms_p99", 1, 1.0),
        ("lateness of the server's reads p99", ("closed-64", "closed-256", "open-200"),
         "server_read_late_ms_p99", 1, None),
    ]  # fmt: skip
    for what, cells, name, factor, target in limits:
        for cell in cells:
            yield _error(rows, what, cell, name, factor, target)


def _error(rows: Rows, what: str, cell: str, name: str, factor: int, target: float | None) -> str:
    unit = "us" if factor == 1000 else "ms"
    found: Callable[[str], list[float]] = lambda client: [  # noqa: E731
        factor * value for value in values(rows, client, cell, name)
    ]
    mine, own, theirs = found("kernel"), found("user"), found("vllm")
    asked = f"{target:g} {unit}" if target is not None else "none set"
    if not mine:
        return f"| {what}, {WORDS[cell]} | {asked} | - | - | not measured | |"
    outcome = "" if target is None else ("yes" if median(mine) <= target else "**no**")
    peers = ", ".join(
        f"{name} {_spread(numbers, '{:.3g}')}"
        for name, numbers in (
            ("user-space", own), ("vllm bench", theirs), ("AIPerf", found("aiperf")),
            ("GuideLLM", found("guidellm")),
        )
        if numbers
    )  # fmt: skip
    return (
        f"| {what}, {WORDS[cell]}, kernel timestamps | {asked} | {_spread(mine, '{:.3g}')} {unit}"
        f" | {peers} {unit} | {outcome} | {_others(rows, ('kernel',), cell)} |"
    )


def _worker(rows: Rows) -> Iterable[str]:
    for what, name, target, unit in (
        ("start-up of a worker", "worker_start_up_s", 1.0, "s"),
        ("memory of a worker", "worker_peak_mb", 150.0, "MB"),
    ):
        found = values(rows, "worker", "worker", name)
        if found:
            outcome = "yes" if median(found) <= target else "**no**"
            cost = f"{_spread(found, '{:.3g}')} {unit}"
            yield f"| {what} | {target:g} {unit} | {cost} | | {outcome} | |"


def _spread(found: Sequence[float], form: str) -> str:
    """The median, and the ends where there are several."""
    middle = form.format(median(found))
    if len(found) == 1:
        return middle
    return f"{middle} ({form.format(min(found))} to {form.format(max(found))})"


def _others(rows: Rows, clients: Iterable[str], cell: str) -> str:
    """How much of the client's core other programs used at most, and how long the client waited."""
    taken = [v for c in clients for v in values(rows, c, cell, "others_share")]
    waited = [v for c in clients for v in values(rows, c, cell, "waited_share")]
    return f"{max(taken):.0%}, waited {max(waited):.0%}" if taken and waited else ""
