"""What a log that exists says: the facts of its result, each sentence computed from its rows."""

from __future__ import annotations

import shlex
from dataclasses import replace
from math import isnan
from textwrap import shorten
from typing import TYPE_CHECKING

from workbench.experiment.findings.sentences import headline, marked, told
from workbench.experiment.hits.hit_findings import log_tiers
from workbench.experiment.hits.need_to_load import examples
from workbench.experiment.hits.served_tokens import log_tokens
from workbench.experiment.result.facts import Card, RunFacts
from workbench.metrics.gates.gate import Gate, judge
from workbench.metrics.gates.gate_table import failed_names, spoil
from workbench.metrics.lmcache_log.lines import LOOKED_FOR
from workbench.metrics.lmcache_log.log_summary import Cause, LogDoubt, LogSummary
from workbench.metrics.statistics import quantile

if TYPE_CHECKING:
    import pandas as pd

_SHOWN = 60
"""So many characters of an error stand in a doubt."""
_WANTED = f"looked for {', '.join(LOOKED_FOR)}"
_DOUBTS: dict[Cause, str] = {
    "empty": f"The log is empty; {_WANTED}. LMCache logs them at level INFO.",
    "compressed": "The log is compressed: unpack it first, e.g. with gunzip, zstd -d or unzip.",
    "not text": f"The file is not text ({{log.counts.size_bytes:,}} bytes); {_WANTED}.",
    "nothing of LMCache": "None of its {log.counts.lines:,} lines is one of LMCache's that count"
    f" tokens; {_WANTED}. They stand in the log of vLLM (in-process) or of `lmcache server`, at"
    " level INFO.",
    "retrievals failed": "{n:,} retrieval{s} failed: {tokens:,.0f} tokens were found in LMCache and"
    " did not arrive. They count as computed.",
    "errors": "LMCache logged {n:,} error{s}{errors}.",
    "hit without a retrieval": "{n:,} request{s} with a hit and without a Retrieved line: LMCache"
    " gets no credit for what it found.",
    "ranks without a retrieval": "In {n:,} request{s} not every rank logged what it retrieved: the"
    " others' count is taken.",
    "no line of a retrieval": "The log has no Retrieved line for {n:,} request{s}: LMCache's share"
    " is what was looked up, not what arrived.",
    "id came again": "{n:,} request id{s} came again, from another process or after a restart: each"
    " counts as a request of its own.",
    "lines cut": "{n:,} line{s} of LMCache cut short, or written into by another process: left"
    " out.",
    "not UTF-8": "{n:,} places of the log are not UTF-8.",
    "restarted": "LMCache started {n} times in this log: what its memory held before a restart was"
    " lost, or several servers write into one log.",
    "chunks differ": "The log names chunks of {chunks} tokens, so several servers write into it:"
    " chunks are not turned into tokens.",
    "transfer without a request": "{n:,} Stored or Retrieved lines name no request (an older"
    " version): stored tokens count in totals only.",
    "no year": "The times in the log have no year.",
    "no time": "The log's lines have no time: when anything happened is not known.",
    "runs backwards": "Times in the log run backwards: it was joined from several logs.",
    "no lookups without a hit": "This generation logs no lookup that found nothing, and not what"
    " the engine held: the log alone gives no hit rate and no credit. The counters of the servers"
    " do.",
    "lookups of part of a chunk": "Lookups are not whole multiples of {log.keys.keys_per_chunk}"
    " keys a chunk: several instances of different size use this server, or log_ranks is wrong.",
    "chunk unknown": "The log does not say how long a chunk is: keys are not turned into tokens.",
    "keys unknown": "How many keys a chunk has is not clear from the log, so tokens are not known:"
    " give the workers of an instance (-p log_ranks 4).",
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
    """The facts of a run with what its log says, which are counts, and what gates do to them."""
    path, ranks = run.parameters["log_file"], run.parameters["log_ranks"]
    words = ["papermill", "notebooks/lmcache_hit_analysis.ipynb", "out.ipynb", "-p", "log_file"]
    words += [path, *(["-p", "log_ranks", str(ranks)] if ranks else [])]
    generations = " and ".join(sorted({*log.requests["generation"], *log.transfers["generation"]}))
    gates = (_whole(log),)
    failed = failed_names(gates)
    does = spoil(failed, "counts")
    finding, unproven = headline(_finding(log), failed, "counts")
    sentences = (*_credit(log), *_found(log), *_speed(log), *_evictions(log))
    return replace(
        run,
        finding=finding,
        unproven=unproven,
        scope=f"Read from {path} ({generations}): {log.matching:,} of {log.counts.lines:,} lines"
        f" are LMCache's{_span(log)}.",
        numbers=marked(_cards(log), failed),
        gates=gates,
        sentences=tuple(told(text, does) for text in sentences),
        explained=tuple(examples(log)),
        tiers=tuple(row.as_row() for row in log_tiers(log_tokens(log))),
        doubts=tuple(doubt(log, found) for found in log.doubts),
        limits=(
            "A log has no TTFT and no prompt: the cost of storing, break-even, the effect of the"
            " chunk and ideal reuse need a live run (leave log_file empty) or -p engine attach.",
        ),
        repeat=shlex.join(words),
    )


def _span(log: LogSummary) -> str:
    """From when to when, of every line that has a time."""
    times = [t for rows in (log.requests, log.transfers) for t in rows["at"].dropna()]
    if not times:
        return "; no line has a time"
    first, last = min(times), max(times)
    day = "%Y-%m-%d" if log.dated else "%m-%d"
    until = "%H:%M:%S" if first.date() == last.date() else f"{day} %H:%M:%S"
    return f", {first:{day} %H:%M:%S} to {last:{until}} on the log's clock"


def _finding(log: LogSummary) -> str:
    credit = log.credit
    if credit.total > 0:
        unsure = (log.requests["arrival"] == "looked up").any()
        return (
            f"LMCache served {credit.lmcache / credit.total:.1%} of {credit.total:,.0f} prompt"
            f" tokens{' by its lookups' if unsure else ''}, the engine's own cache"
            f" {credit.engine / credit.total:.1%}; {credit.computed / credit.total:.1%} were"
            " computed"
        )
    stored, loaded = log.moved("stored"), log.moved("retrieved")
    lookups = _mp(log)
    if len(lookups):
        found = _mp_hits(lookups)
        what = "an unknown number of tokens" if isnan(found) else f"{found:,.0f} tokens"
        share = f" ({loaded / found:.1%} of them)" if 0 <= loaded <= found else ""
        return f"LMCache found {what} in {len(lookups):,} lookups and loaded {_n(loaded)}{share}"
    return f"LMCache stored {_n(stored)} tokens and loaded {_n(loaded)}"


def _n(count: float) -> str:
    return "not known" if isnan(count) else f"{count:,.0f}"


def _whole(log: LogSummary) -> Gate:
    """Whether every line of LMCache that the log has could be read."""
    torn = log.counts.cut > 0.01 * log.matching
    lines = f"{log.counts.cut:,} of {log.matching + log.counts.cut:,} lines of LMCache were cut"
    return judge(
        "the log is whole",
        holds=f"{lines}, {log.counts.undecodable:,} places are not UTF-8",
        problems=[f"{lines}: more than 1 %"] if torn else [],
        next_step="take the log from where it was written, one file for each process",
    )


def _mp(log: LogSummary) -> pd.DataFrame:
    """Lookups of the multi-process generation that found something."""
    rows = log.requests
    return rows[(rows["generation"] == "mp") & rows["l1_keys"].notna()]


def _mp_hits(lookups: pd.DataFrame) -> float:
    """Tokens found; NaN where keys are not turned into tokens."""
    return float(lookups["lmcache_hit_tokens"].sum(skipna=False))


def _credit(log: LogSummary) -> list[str]:
    credit, known = log.credit, log.credited
    if known.empty:
        return []
    held, need = known["lmcache_hit_tokens"], known["need_to_load"]
    whole = held == known["prompt_tokens"]
    vain = known[(held > 0) & (held - whole <= known["engine_hit_tokens"])]
    negative = int((need < 0).sum())
    said = [
        f"{len(known):,} requests: {credit.computed:,.0f} prompt tokens were computed,"
        f" {credit.engine:,.0f} came from the engine's own cache and {credit.lmcache:,.0f}"
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
    skipped = known[known["skipped"].eq(True) & (need > 0)]
    if len(skipped):
        said.append(
            f"In {len(skipped):,} requests LMCache held {skipped['need_to_load'].sum():,.0f} tokens"
            " more than the engine and did not load them, since they are fewer than min_retrieve."
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
                f"A chunk of {log.counts.chunk:,} tokens is {keys.keys_per_chunk} keys in this"
                f" log, and {keys.retrieving or 'an unknown number of'} workers log each retrieval:"
                " tokens are counted once."
            )
        idle = _mp_hits(rows) - log.moved("retrieved", "mp")
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
    if log.transfers.empty:
        return [*said, "The log has no Stored or Retrieved line."]
    stored, loaded = log.moved("stored"), log.moved("retrieved")
    return [*said, f"{_n(stored)} tokens were stored and {_n(loaded)} retrieved."]


def _speed(log: LogSummary) -> list[str]:
    said = []
    for kind, verb in (("stored", "Storing"), ("retrieved", "Retrieving")):
        rows = log.transfers[log.transfers["kind"] == kind]
        timed = rows[rows["seconds"] > 0]
        if len(timed):
            rate = quantile(timed["tokens"] / timed["seconds"], 0.5)
            bounds = "" if isnan(rate.low) else f" [{rate.low:,.0f}, {rate.high:,.0f}]"
            said.append(
                f"{verb}: median {rate.value:,.0f}{bounds} tokens per second over {rate.n:,} lines."
            )
    return said


def _evictions(log: LogSummary) -> list[str]:
    return [
        f"Eviction from {tier} was triggered {times:,} times: its memory was too small for what"
        " came."
        for tier, times in sorted(log.counts.evictions.items())
    ]


def _cards(log: LogSummary) -> list[Card]:
    credit = log.credit
    if credit.total > 0:
        unused = ("LMCache hits that the engine had too", credit.idle)
        if credit.lost:
            unused = ("LMCache hits that did not arrive", credit.lost)
        held = credit.lmcache + credit.idle + credit.lost
        shares = [
            ("prompt tokens from LMCache", credit.lmcache, credit.total),
            ("from the engine's own cache", credit.engine, credit.total),
            (*unused, held),
        ]
        return [
            _card(label, 100 * part / whole, "%", f"of {whole:,.0f}")
            for label, part, whole in shares
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
