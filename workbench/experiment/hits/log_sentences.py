"""The findings of an existing log in words, each sentence computed from the log's rows."""

from __future__ import annotations

import shlex
from dataclasses import replace
from math import isnan
from textwrap import shorten
from typing import TYPE_CHECKING

from workbench.experiment.findings.headline import headline
from workbench.experiment.findings.sentences import marked
from workbench.experiment.hits.hit_findings import log_tiers, percent
from workbench.experiment.hits.need_to_load import explained
from workbench.experiment.hits.served_tokens import log_tokens
from workbench.experiment.result.facts import RunFacts
from workbench.experiment.result.finding_rows import Card
from workbench.metrics.gates.gate import Gate, judge
from workbench.metrics.gates.gate_effects import failed_gates, spoil, told
from workbench.metrics.lmcache_log.lines import LOOKED_FOR
from workbench.metrics.lmcache_log.log_summary import Cause, LogDoubt, LogSummary
from workbench.metrics.statistics import quantile

if TYPE_CHECKING:
    import pandas as pd

_SHOWN = 60
"""Characters of an error that a doubt quotes."""
_WANTED = f"Expected INFO lines such as {LOOKED_FOR}"
_DOUBTS: dict[Cause, str] = {
    "empty": f"The log is empty. {_WANTED}.",
    "compressed": "The log is compressed. Unpack it first, for example with gunzip or zstd -d.",
    "not text": f"The file is not text ({{log.counts.size_bytes:,}} bytes). {_WANTED}.",
    "nothing of LMCache": "None of its {log.counts.lines:,} lines is an LMCache line with token"
    f" counts. {_WANTED}, in the log of vLLM or `lmcache server`.",
    "retrievals failed": "{n:,} retrieval{s} failed: {tokens:,.0f} tokens found in LMCache were"
    " not loaded. They count as computed.",
    "errors": "LMCache logged {n:,} error{s}{errors}.",
    "hit without a retrieval": "{n:,} request{s} had an LMCache hit but no Retrieved line. These"
    " tokens are not counted as served by LMCache.",
    "ranks without a retrieval": "In {n:,} request{s}, some ranks logged no retrieval. The other"
    " ranks' token count is used.",
    "no line of a retrieval": "The log has no Retrieved line for {n:,} request{s}. LMCache's"
    " numbers are an upper limit, because tokens that were found may not have been loaded.",
    "id came again": "{n:,} request id{s} occurred again, in another process or after a restart."
    " Each occurrence counts as its own request.",
    "lines cut": "{n:,} LMCache line{s} were truncated or overwritten by another process, and are"
    " left out.",
    "not UTF-8": "The log has {n:,} byte sequence{s} that are not UTF-8.",
    "restarted": "LMCache started {n} times in this log. Either its memory was lost at each"
    " restart, or several servers write to one log.",
    "chunks differ": "The log names chunks of {chunks} tokens, so several servers write to it."
    " Chunks are not converted to tokens.",
    "transfer without a request": "{n:,} Stored or Retrieved line{s} name no request (older"
    " LMCache). Their tokens count in totals only.",
    "no year": "The timestamps in the log have no year.",
    "no time": "The log lines have no timestamps, so times are unknown.",
    "runs backwards": "Timestamps in the log run backwards, so it was joined from several logs.",
    "no lookups without a hit": "LMCache's multi-process mode logs neither misses nor engine hits,"
    " so this log gives no hit rate. The servers' counters do.",
    "lookups of part of a chunk": "Some lookups are not whole chunks of {log.keys.keys_per_chunk}"
    " keys: instances of different size share this server, or log_ranks is wrong.",
    "chunk unknown": "The log does not name the chunk size, so keys are not converted to tokens.",
    "keys unknown": "The log does not show how many keys make a chunk, so token counts are unknown."
    " Give the workers per instance (-p log_ranks 4).",
}


def doubt(log: LogSummary, found: LogDoubt) -> str:
    """The sentence of a log's doubt."""
    return _DOUBTS[found.cause].format(
        log=log,
        n=found.count,
        s="" if found.count == 1 else "s",
        tokens=found.tokens,
        errors=_errors(log),
        chunks=", ".join(map(str, sorted(log.counts.chunk_tokens))),
    )


def _errors(log: LogSummary) -> str:
    messages = [f"“{shorten(text, _SHOWN, placeholder='…')}”" for text in [*log.counts.errors][:2]]
    more = ", for example" if len(log.counts.errors) > 2 else ""
    return f"{more}: {' and '.join(messages)}"


def log_facts(run: RunFacts, log: LogSummary) -> RunFacts:
    """The facts of a run with the findings of its log, marked by the gates that failed."""
    path, ranks = run.parameters["log_file"], run.parameters["log_ranks"]
    words = ["papermill", "notebooks/lmcache_hit_analysis.ipynb", "out.ipynb", "-p", "log_file"]
    words += [path, *(["-p", "log_ranks", str(ranks)] if ranks else [])]
    gates, tokens = (_whole(log),), log_tokens(log)
    failed = failed_gates(gates)
    does = spoil(failed, "counts")
    finding, unproven = headline(_finding(log), failed, "counts")
    sentences = (*_served(log), *_found(log), *_speed(log), *_evictions(log))
    return replace(
        run,
        finding=finding,
        unproven=unproven,
        scope=f"Read from {path}: {log.matching:,} of {log.counts.lines:,} lines are LMCache lines"
        f" that could be parsed. {_span(log)}. {_server(log)}.",
        numbers=marked(_cards(log), failed),
        gates=gates,
        sentences=tuple(told(text, does) for text in sentences),
        explained=tuple(explained(tokens)),
        tiers=tuple(log_tiers(tokens)),
        doubts=tuple(doubt(log, found) for found in log.doubts),
        limits=(
            "A log shows neither TTFT nor prompts. Run without log_file to measure the cost of"
            " storing, break-even, the effect of the chunk size and the ideal hit rate.",
        ),
        repeat=shlex.join(words),
    )


def _server(log: LogSummary) -> str:
    """How LMCache ran: inside vLLM, or as a server of its own."""
    ran = {"in-process": "inside vLLM (not as a separate server)", "mp": "as a separate server"}
    found = sorted({*log.requests["generation"], *log.transfers["generation"]})
    return f"LMCache ran {' and '.join(ran[name] for name in found)}"


def _span(log: LogSummary) -> str:
    """The first and last timestamp of the log."""
    times = [t for rows in (log.requests, log.transfers) for t in rows["at"].dropna()]
    if not times:
        return "The lines have no timestamps"
    first, last = min(times), max(times)
    day = "%Y-%m-%d" if log.dated else "%m-%d"
    until = "%H:%M:%S" if first.date() == last.date() else f"{day} %H:%M:%S"
    return f"Log time: {first:{day} %H:%M:%S} to {last:{until}}"


def _finding(log: LogSummary) -> str:
    credit = log.credit
    if credit.total > 0:
        return (
            f"LMCache served {_at_most(log)}{percent(credit.lmcache / credit.total)} of prompt"
            f" tokens, the engine's prefix cache {percent(credit.engine / credit.total)}"
        )
    stored, loaded = log.moved("stored"), log.moved("retrieved")
    lookups = _mp(log)
    if len(lookups):
        found = _mp_hits(lookups)
        share = f" ({percent(loaded / found)})" if 0 <= loaded <= found else ""
        return (
            f"LMCache found {_tokens(found)} in {len(lookups):,} lookups and loaded"
            f" {_tokens(loaded)}{share}"
        )
    return f"LMCache stored {_tokens(stored)} and loaded {_tokens(loaded)}"


def _at_most(log: LogSummary) -> str:
    """`at most ` if some retrievals are not logged: they may have loaded less than was found."""
    return "at most " * bool((log.requests["arrival"] == "looked up").any())


def _tokens(count: float) -> str:
    return "an unknown number of tokens" if isnan(count) else f"{count:,.0f} tokens"


def _whole(log: LogSummary) -> Gate:
    """Whether the log's LMCache lines could be read, all but 1 %."""
    torn = log.counts.cut > 0.01 * log.matching
    lines = f"{log.counts.cut:,} of {log.matching + log.counts.cut:,} LMCache lines were truncated"
    return judge(
        "the log is whole",
        holds=f"{lines} (limit 1 %)",
        problems=[f"{lines} (limit 1 %), so the counts are too low"] if torn else [],
        next_step="Copy the original log again, one file per process.",
    )


def _mp(log: LogSummary) -> pd.DataFrame:
    """Lookups with a hit in multi-process mode."""
    rows = log.requests
    return rows[(rows["generation"] == "mp") & rows["l1_keys"].notna()]


def _mp_hits(lookups: pd.DataFrame) -> float:
    """Tokens found; NaN if keys are not converted to tokens."""
    return float(lookups["lmcache_hit_tokens"].sum(skipna=False))


def _requests(rows: pd.DataFrame) -> str:
    return f"{len(rows):,} request{'s' if len(rows) != 1 else ''}"


def _served(log: LogSummary) -> list[str]:
    credit, known = log.credit, log.credited
    if known.empty:
        return []
    held, need = known["lmcache_hit_tokens"], known["need_to_load"]
    whole = held == known["prompt_tokens"]
    said = [
        f"Of {credit.total:,.0f} prompt tokens in {_requests(known)}, {credit.engine:,.0f} hit"
        f" the engine's prefix cache and {_at_most(log)}{credit.lmcache:,.0f} were loaded from"
        f" LMCache. The other {credit.computed:,.0f} were computed."
    ]
    lost = known[known["loaded_tokens"] < known["asked_to_load"]]
    if len(lost):
        said.append(
            f"In {_requests(lost)}, {lost['loaded_tokens'].sum():,.0f} of"
            f" {lost['asked_to_load'].sum():,.0f} needed tokens were loaded. LMCache's own hit rate"
            f" counts {lost['asked_to_load'].sum():,.0f} as hits."
        )
    idle = known[(held > 0) & (held - whole <= known["engine_hit_tokens"])]
    if len(idle):
        negative = int((need < 0).sum())
        logged = f" ({negative:,} logged a negative need to load)" if negative else ""
        said.append(
            f"In {_requests(idle)}{logged}, the engine's prefix cache already had all the tokens"
            " that LMCache had. LMCache's own hit rate still counts these"
            f" {idle['lmcache_hit_tokens'].sum():,.0f} tokens."
        )
    skipped = known[known["skipped"].eq(True) & (need > 0)]
    if len(skipped):
        said.append(
            f"In {_requests(skipped)}, LMCache held {skipped['need_to_load'].sum():,.0f} tokens"
            " more than the engine. It did not load them, because they are fewer than its setting"
            " min_retrieve."
        )
    return said


def _found(log: LogSummary) -> list[str]:
    rows, said, keys = _mp(log), [], log.keys
    if len(rows):
        what = "tokens" if rows["l1_tokens"].notna().all() else "keys"
        l1, l2 = rows[f"l1_{what}"].sum(), rows[f"l2_{what}"].sum()
        said.append(f"{len(rows):,} lookups found {l1:,.0f} {what} in L1 and {l2:,.0f} in L2.")
        if keys.keys_per_chunk > 1:
            said.append(
                f"In this log, a {log.counts.chunk:,}-token chunk has {keys.keys_per_chunk} keys,"
                f" and {keys.retrieving or 'an unknown number of'} workers log each retrieval. Each"
                " token is counted once."
            )
        idle = _mp_hits(rows) - log.moved("retrieved", "mp")
        if idle > 0:
            said.append(
                f"{idle:,.0f} of the tokens found were not retrieved, because the engine already"
                " had them or the retrieval failed. They do not count as served by LMCache."
            )
        elif idle < 0:
            said.append(
                f"{-idle:,.0f} more tokens were retrieved than found: the log begins or ends within"
                " a request, or log_ranks is not the number of workers."
            )
    if log.transfers.empty:
        return [*said, "The log has no Stored or Retrieved lines."]
    stored, loaded = (_tokens(log.moved(kind)) for kind in ("stored", "retrieved"))
    if not log.moved("retrieved") > 0:
        return [*said, f"LMCache stored {stored}. The log has no Retrieved lines."]
    return [*said, f"LMCache stored {stored} and retrieved {loaded}."]


def _speed(log: LogSummary) -> list[str]:
    said = []
    for kind, verb in (("stored", "store"), ("retrieved", "retrieve")):
        rows = log.transfers[log.transfers["kind"] == kind]
        timed = rows[rows["seconds"] > 0]
        if len(timed):
            rate = quantile(timed["tokens"] / timed["seconds"], 0.5)
            value, low, high = (_rounded(end) for end in (rate.value, rate.low, rate.high))
            ends = "" if isnan(rate.low) or low == high else f"95 % CI {low} to {high}; "
            said.append(f"Median {verb} rate: {value} tokens/s ({ends}{rate.n:,} log lines).")
    return said


def _rounded(value: float) -> str:
    """`299,000` of 299,369: three digits."""
    return "unknown" if isnan(value) else f"{float(f'{value:.3g}'):,.0f}"


def _evictions(log: LogSummary) -> list[str]:
    return [
        f"{tier} was too small for this load: eviction was triggered {times:,} times."
        for tier, times in sorted(log.counts.evictions.items())
    ]


def _cards(log: LogSummary) -> list[Card]:
    credit = log.credit
    if credit.total > 0:
        unused = ("of the LMCache-hit tokens were already in the prefix cache", credit.idle)
        if credit.lost:
            unused = ("of the LMCache-hit tokens were not loaded", credit.lost)
        held, came = credit.lmcache + credit.idle + credit.lost, "of the prompt tokens came from"
        shares = [
            (f"{came} LMCache", credit.lmcache, credit.total, "prompt tokens"),
            (f"{came} the prefix cache", credit.engine, credit.total, "prompt tokens"),
            (*unused, held, "LMCache-hit tokens"),
        ]
        return [
            _card(label, 100 * part / whole, "%", f"{whole:,.0f} {tokens}")
            for label, part, whole, tokens in shares
            if whole
        ]
    numbers = {
        "tokens found": _mp_hits(_mp(log)),
        "tokens retrieved": log.moved("retrieved"),
        "tokens stored": log.moved("stored"),
    }
    return [
        _card(label, int(value), "", "from the log")
        for label, value in numbers.items()
        if not isnan(value)
    ]


def _card(label: str, value: float, unit: str, note: str) -> Card:
    return Card(label=label, value=value, unit=unit, note=note, rests_on="counts")
