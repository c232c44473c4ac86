"""What a log that exists says: the facts of its result, each sentence computed from its rows."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from math import isnan, nan
from typing import TYPE_CHECKING, Any

from workbench.experiment.hit_rows import examples, log_tokens
from workbench.metrics.gate import Gate, judge
from workbench.metrics.lmcache_log import LogSummary
from workbench.metrics.statistics import quantile

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["log_facts"]

Row = dict[str, Any]


def log_facts(summary: LogSummary, path: str, *, ranks: int = 1) -> dict[str, Any]:
    """What a log's result says: finding to gates, doubts, limits, sentences, tables, `repeat`."""
    words = ["papermill", "notebooks/lmcache_hit_analysis.ipynb", "out.ipynb", "-p", "log_file"]
    words += [path, *(["-p", "log_ranks", str(ranks)] if ranks > 1 else [])]
    generations = " and ".join(sorted({*summary.requests["generation"],
                                       *summary.transfers["generation"]}))  # fmt: skip
    times = summary.requests["at"].dropna()
    span = f", {times.min():%Y-%m-%d %H:%M:%S} to {times.max():%H:%M:%S} on the log's clock"
    return {
        "finding": _finding(summary),
        "scope": f"Read from {path} ({generations}): {summary.matching:,} of {summary.lines:,}"
        f" lines are LMCache's{span if len(times) else ''}.",
        "numbers": _cards(summary),
        "gates": [asdict(_whole(summary))],
        "sentences": [*_credit(summary), *_found(summary), *_speed(summary), *_evictions(summary)],
        "explained": examples(summary),
        "tiers": _tiers(summary),
        "ratios": [],
        "doubts": list(summary.doubts),
        "limits": [
            "A log has no TTFT and no prompt: the cost of storing, break-even, the effect of the"
            " chunk and ideal reuse need a live run (leave log_file empty) or -p engine attach.",
        ],
        "repeat": shlex.join(words),
    }


def _finding(summary: LogSummary) -> str:
    credit = summary.credit
    total = credit["engine"] + credit["lmcache"] + credit["computed"]
    if total > 0:
        return (
            f"LMCache served {credit['lmcache'] / total:.1%} of {total:,.0f} prompt tokens, the"
            f" engine's own cache {credit['engine'] / total:.1%}; {credit['computed'] / total:.1%}"
            " were computed"
        )
    found, loaded = _mp_hits(summary), _moved(summary, "retrieved", "mp")
    if found > 0:
        return (
            f"LMCache found {found:,.0f} tokens in {len(_mp(summary)):,} lookups and loaded"
            f" {loaded:,.0f} ({loaded / found:.1%}) of them"
        )
    return f"LMCache stored {_moved(summary, 'stored'):,.0f} tokens and loaded {loaded:,.0f}"


def _whole(summary: LogSummary) -> Gate:
    """Whether every line of LMCache that the log has could be read."""
    torn = summary.cut > 0.01 * summary.matching
    lines = f"{summary.cut:,} of {summary.matching + summary.cut:,} lines of LMCache were cut"
    return judge(
        "the log is whole",
        holds=f"{lines}, {summary.undecodable:,} places are not UTF-8",
        problems=[f"{lines}: more than 1 %"] if torn else [],
        unknown=[],
        next_step="take the log from where it was written, one file for each process",
    )


def _mp(summary: LogSummary) -> pd.DataFrame:
    rows = summary.requests
    return rows[(rows["generation"] == "mp") & rows["l1_chunks"].notna()]


def _mp_hits(summary: LogSummary) -> float:
    return float(_mp(summary)["lmcache_hit_tokens"].sum())


def _moved(summary: LogSummary, kind: str, generation: str = "") -> float:
    """Tokens stored or retrieved; of ranks that did the same, those of the one that did most."""
    rows = summary.transfers[summary.transfers["kind"] == kind]
    if generation:
        rows = rows[rows["generation"] == generation]
    return float(rows.groupby("rank")["tokens"].sum().max()) if len(rows) else 0.0


def _credit(summary: LogSummary) -> list[str]:
    credit, rows = summary.credit, summary.requests
    if isnan(credit["engine"]):
        return []
    known = rows[rows["engine_hit_tokens"].notna() & rows["prompt_tokens"].notna()]
    vain = known[(known["lmcache_hit_tokens"] > 0) & (known["loaded_tokens"] == 0)]
    negative = int((known["need_to_load"] < 0).sum())
    said = [
        f"{len(known):,} requests: {credit['computed']:,.0f} prompt tokens were computed,"
        f" {credit['engine']:,.0f} came from the engine's own cache and {credit['lmcache']:,.0f}"
        " from LMCache."
    ]
    if len(vain):
        printed = f" ({negative:,} of them print a negative need to load)" if negative else ""
        said.append(
            f"In {len(vain):,} requests{printed} LMCache held a prefix and loaded nothing, since"
            f" the engine held as much itself: {vain['lmcache_hit_tokens'].sum():,.0f} tokens that"
            " a hit rate counts for LMCache, and that earn it nothing."
        )
    return said


def _found(summary: LogSummary) -> list[str]:
    rows, said = _mp(summary), []
    stored, loaded = _moved(summary, "stored"), _moved(summary, "retrieved")
    if len(rows):
        l1, l2 = rows["l1_chunks"].sum(), rows["l2_chunks"].sum()
        said.append(f"{len(rows):,} lookups found {l1:,.0f} chunks in L1 and {l2:,.0f} in L2.")
        idle = _mp_hits(summary) - _moved(summary, "retrieved", "mp")
        if idle > 0:
            said.append(
                f"{idle:,.0f} of the tokens found were not retrieved: where nothing failed, the"
                " engine had them itself, and LMCache earns no credit for them."
            )
    said.append(f"{stored:,.0f} tokens were stored and {loaded:,.0f} retrieved (per rank).")
    return said


def _speed(summary: LogSummary) -> list[str]:
    said = []
    for kind, verb in (("stored", "Storing"), ("retrieved", "Retrieving")):
        rows = summary.transfers[summary.transfers["kind"] == kind]
        timed = rows[rows["seconds"] > 0]
        if len(timed):
            rate = quantile(timed["tokens"] / timed["seconds"], 0.5)
            bounds = "" if isnan(rate.low) else f" [{rate.low:,.0f}, {rate.high:,.0f}]"
            said.append(
                f"{verb}: median {rate.value:,.0f}{bounds} tokens per second over {rate.n:,} lines."
            )
    return said


def _evictions(summary: LogSummary) -> list[str]:
    return [
        f"Eviction from {tier} was triggered {times:,} times: its memory was too small for what"
        " came."
        for tier, times in sorted(summary.evictions.items())
    ]


def _tiers(summary: LogSummary) -> list[Row]:
    """A row for each generation, as `hit_findings.tiers` has them; NaN where the log is silent."""
    rows = []
    for name, group in log_tokens(summary).groupby("generation", sort=False):
        sums = {
            column: float(group[column].sum(min_count=1))
            for column in ("prompt_tokens", "engine", "l1", "l2", "computed", "held", "idle")
        }
        served = sums["engine"] + sums["l1"] + sums["l2"]
        share = served / sums["prompt_tokens"] if sums["prompt_tokens"] else nan
        rows.append({"arm": "log", "pass": name, "requests": len(group), **sums, "ideal": nan,
                     "hit_share": share, "ideal_share": nan, "claimed_share": nan})  # fmt: skip
    return rows


def _cards(summary: LogSummary) -> list[Row]:
    credit = summary.credit
    total = credit["engine"] + credit["lmcache"] + credit["computed"]
    blank = {"low": None, "high": None}
    if total > 0:
        held = credit["lmcache"] + credit["idle"]
        cards = [
            {"label": "prompt tokens from LMCache", "value": 100 * credit["lmcache"] / total,
             "unit": "%", "note": f"of {total:,.0f}", **blank},
            {"label": "from the engine's own cache", "value": 100 * credit["engine"] / total,
             "unit": "%", "note": f"of {total:,.0f}", **blank},
        ]  # fmt: skip
        if held:
            cards.append(
                {"label": "LMCache hits that the engine had too", "unit": "%",
                 "value": 100 * credit["idle"] / held, "note": f"of {held:,.0f}", **blank}
            )  # fmt: skip
        return cards
    found = _mp_hits(summary)
    numbers = {"tokens found": found, "tokens retrieved": _moved(summary, "retrieved"),
               "tokens stored": _moved(summary, "stored")}  # fmt: skip
    return [
        {"label": label, "value": int(value), "unit": "", "note": "from the log", **blank}
        for label, value in numbers.items()
    ]
