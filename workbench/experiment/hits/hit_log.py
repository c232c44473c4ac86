"""What a log that exists says: the facts of its result, each sentence computed from its rows."""

from __future__ import annotations

import shlex
from math import isnan, nan
from typing import TYPE_CHECKING, Any

from workbench.experiment.hits.hit_rows import examples, log_tokens
from workbench.metrics.gates.gate import Gate, judge
from workbench.metrics.lmcache_log.reader import LogSummary
from workbench.metrics.statistics import quantile

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["log_facts"]

Row = dict[str, Any]


def log_facts(summary: LogSummary, path: str, *, ranks: int = 0) -> dict[str, Any]:
    """What a log's result says: finding to gates, doubts, limits, sentences, tables, `repeat`."""
    words = ["papermill", "notebooks/lmcache_hit_analysis.ipynb", "out.ipynb", "-p", "log_file"]
    words += [path, *(["-p", "log_ranks", str(ranks)] if ranks else [])]
    generations = " and ".join(sorted({*summary.requests["generation"],
                                       *summary.transfers["generation"]}))  # fmt: skip
    return {
        "finding": _finding(summary),
        "scope": f"Read from {path} ({generations}): {summary.matching:,} of {summary.lines:,}"
        f" lines are LMCache's{_span(summary)}.",
        "numbers": _cards(summary),
        "gates": [_whole(summary)],
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


def _span(summary: LogSummary) -> str:
    """From when to when, of every line that has a time."""
    times = [t for rows in (summary.requests, summary.transfers) for t in rows["at"].dropna()]
    if not times:
        return "; no line has a time"
    first, last = min(times), max(times)
    day = "%Y-%m-%d" if summary.dated else "%m-%d"
    until = "%H:%M:%S" if first.date() == last.date() else f"{day} %H:%M:%S"
    return f", {first:{day} %H:%M:%S} to {last:{until}} on the log's clock"


def _finding(summary: LogSummary) -> str:
    credit = summary.credit
    total = credit["engine"] + credit["lmcache"] + credit["computed"]
    if total > 0:
        unsure = (summary.requests["arrival"] == "looked up").any()
        return (
            f"LMCache served {credit['lmcache'] / total:.1%} of {total:,.0f} prompt tokens"
            f"{' by its lookups' if unsure else ''}, the engine's own cache"
            f" {credit['engine'] / total:.1%}; {credit['computed'] / total:.1%} were computed"
        )
    stored, loaded = summary.moved("stored"), summary.moved("retrieved")
    found, lookups = _mp_hits(summary), len(_mp(summary))
    if lookups:
        what = f"{found:,.0f} tokens" if found == found else "an unknown number of tokens"
        share = f" ({loaded / found:.1%} of them)" if 0 <= loaded <= found else ""
        return f"LMCache found {what} in {lookups:,} lookups and loaded {_tokens(loaded)}{share}"
    return f"LMCache stored {_tokens(stored)} tokens and loaded {_tokens(loaded)}"


def _tokens(count: float) -> str:
    return "not known" if isnan(count) else f"{count:,.0f}"


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
    return rows[(rows["generation"] == "mp") & rows["l1_keys"].notna()]


def _mp_hits(summary: LogSummary) -> float:
    """Tokens found; NaN where keys are not turned into tokens."""
    return float(_mp(summary)["lmcache_hit_tokens"].sum(skipna=False))


def _credit(summary: LogSummary) -> list[str]:
    credit, rows = summary.credit, summary.requests
    if isnan(credit["engine"]):
        return []
    known = rows[rows["engine_hit_tokens"].notna() & rows["prompt_tokens"].notna()]
    held, whole = known["lmcache_hit_tokens"], known["lmcache_hit_tokens"] == known["prompt_tokens"]
    vain = known[(held > 0) & (held - whole <= known["engine_hit_tokens"])]
    negative = int((known["need_to_load"] < 0).sum())
    said = [
        f"{len(known):,} requests: {credit['computed']:,.0f} prompt tokens were computed,"
        f" {credit['engine']:,.0f} came from the engine's own cache and {credit['lmcache']:,.0f}"
        " from LMCache."
    ]
    lost = known[known["loaded_tokens"] < known["asked_to_load"]]
    if len(lost):
        said.append(
            f"In {len(lost):,} requests LMCache found {lost['asked_to_load'].sum():,.0f} tokens to"
            f" load, and {lost['loaded_tokens'].sum():,.0f} of them arrived. A hit rate counts all"
            " of them as hits."
        )
    if len(vain):
        printed = f" ({negative:,} of them print a negative need to load)" if negative else ""
        said.append(
            f"In {len(vain):,} requests{printed} LMCache held a prefix and loaded nothing, since"
            f" the engine held as much itself: {vain['lmcache_hit_tokens'].sum():,.0f} tokens that"
            " a hit rate counts for LMCache, and that earn it nothing."
        )
    skipped = known[known["skipped"].eq(True) & (known["need_to_load"] > 0)]
    if len(skipped):
        said.append(
            f"In {len(skipped):,} requests LMCache held {skipped['need_to_load'].sum():,.0f} tokens"
            " more than the engine and did not load them, since they are fewer than min_retrieve."
        )
    return said


def _found(summary: LogSummary) -> list[str]:
    rows, said, keys = _mp(summary), [], summary.keys
    stored, loaded = summary.moved("stored"), summary.moved("retrieved")
    if len(rows):
        known = rows["l1_tokens"].notna().all()
        what = "tokens" if known else "keys"
        l1, l2 = rows[f"l1_{what}"].sum(), rows[f"l2_{what}"].sum()
        said.append(f"{len(rows):,} lookups found {l1:,.0f} {what} in L1 and {l2:,.0f} in L2.")
        if keys.keys_per_chunk > 1:
            said.append(
                f"A chunk of {summary.chunk_tokens:,} tokens is {keys.keys_per_chunk} keys in this"
                f" log, and {keys.retrieving or 'an unknown number of'} workers log each retrieval:"
                " tokens are counted once."
            )
        retrieved = summary.moved("retrieved", "mp")
        idle = _mp_hits(summary) - retrieved
        if idle > 0:
            said.append(
                f"{idle:,.0f} of the tokens found were not retrieved: the engine had them itself,"
                " or the retrieval failed. This log does not say which, and LMCache earns no credit"
                " for them."
            )
        elif idle < 0:
            said.append(
                f"{-idle:,.0f} tokens more were retrieved than lookups in this log found: it begins"
                " or ends between the two, or log_ranks is not the number of workers."
            )
    if summary.transfers.empty:
        return [*said, "The log has no Stored or Retrieved line."]
    return [*said, f"{_tokens(stored)} tokens were stored and {_tokens(loaded)} retrieved."]


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
    if total > 0:
        held = credit["lmcache"] + credit["idle"] + credit["lost"]
        cards = [
            {"label": "prompt tokens from LMCache", "value": 100 * credit["lmcache"] / total,
             "unit": "%", "note": f"of {total:,.0f}"},
            {"label": "from the engine's own cache", "value": 100 * credit["engine"] / total,
             "unit": "%", "note": f"of {total:,.0f}"},
        ]  # fmt: skip
        name = "lost" if credit["lost"] else "idle"
        label = {"lost": "LMCache hits that did not arrive",
                 "idle": "LMCache hits that the engine had too"}[name]  # fmt: skip
        if held:
            cards.append(
                {"label": label, "unit": "%", "value": 100 * credit[name] / held,
                 "note": f"of {held:,.0f}"}
            )  # fmt: skip
        return cards
    numbers = {"tokens found": _mp_hits(summary) if len(_mp(summary)) else 0.0,
               "tokens retrieved": summary.moved("retrieved"),
               "tokens stored": summary.moved("stored")}  # fmt: skip
    return [
        {"label": label, "value": int(value), "unit": "", "note": "from the log"}
        for label, value in numbers.items()
        if value == value
    ]
