"""Requests of in-process LMCache: which lines belong to one request, and what arrived for it.

A request id alone identifies nothing: each process counts from 0, also after a restart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from workbench.metrics.lmcache_log.event_frames import EventFrames

if TYPE_CHECKING:
    import pandas as pd

_BACK = np.timedelta64(1, "s")
_LONG = np.timedelta64(10, "s")
"""A waiting request is looked up at every engine step: after this gap it is another request."""
_MANY = 8
"""The same after this many lookups of other requests."""


def in_process_requests(frames: EventFrames, *, failing: bool = False) -> pd.DataFrame:
    """One row per request: its last lookup, and what was stored and retrieved for it.

    A waiting request is looked up again at every engine step. Each worker (rank) logs its own line
    for the same tokens: stored tokens are those of the rank with most, retrieved tokens those of
    the rank with least, since the engine can use no more; GB is the sum.

    `asked_to_load` is the need to load of a lookup, `loaded_tokens` what of it arrived. `arrival`
    says how that is known, and is empty without a load:
    `retrieved`  every rank logged it;
    `some ranks` a rank logged nothing, and the others' count is taken;
    `silent`     no line confirms it, although other requests have one or the log has retrieval
                 errors (`failing`): counted as not loaded;
    `looked up`  the log has no retrieval lines at all: counted as loaded.
    """
    import pandas as pd

    rows = frames.lookups.sort_values("offset", ignore_index=True)
    transfers = frames.transfers[frames.transfers["generation"] == "in-process"]
    named = transfers[transfers["request_id"] != ""]
    named = named.assign(lookup=_lookup_of(named, rows))
    bare = transfers[(transfers["request_id"] == "") & (transfers["kind"] == "stored")]
    request = _requests(rows, named, bare, frames)
    rows = rows.assign(
        request=request,
        lookups=np.bincount(request)[request],
        last=~pd.Series(request).duplicated(keep="last"),
    )
    named = named[named["lookup"] >= 0]
    stored = named[named["kind"] == "stored"]
    by_rank = stored.assign(request=request[stored["lookup"]]).groupby(["request", "rank"])
    rows["stored_tokens"] = rows["request"].map(
        by_rank["tokens"].sum().groupby(level="request").max()
    )
    reports = _reports(rows, transfers, named, frames.failures)
    rows = _arrived(rows[rows["last"]], reports, failing)
    return rows.drop(columns=["request", "last"]).reset_index(drop=True)


def _requests(
    rows: pd.DataFrame, named: pd.DataFrame, bare: pd.DataFrame, frames: EventFrames
) -> NDArray[np.int64]:
    """The number of the request that each lookup (in the order of the log) belongs to.

    `named` are transfers that name their request, `bare` stores that do not.
    """
    import pandas as pd

    # A restarted process, or one whose clock was turned back, counts requests from 0 again.
    started = frames.starts[["offset", "process"]].sort_values("offset")
    started["starts"] = started.groupby("process").cumcount() + 1
    starts = pd.merge_asof(rows[["offset", "process"]], started, on="offset", by="process")
    back = rows["at"].dropna().groupby(rows["process"]).diff() < -_BACK
    backs = back.reindex(rows.index, fill_value=False).groupby(rows["process"]).cumsum()
    session = starts["starts"].fillna(0) + backs
    key = rows.groupby(["process", "request_id", session], sort=False).ngroup()

    # The same id again in the same process is another request, unless it may be waiting.
    served = named[(named["kind"] == "stored") | (named["tokens"] >= named["required"])]
    computed = frames.storings.assign(lookup=_lookup_of(frames.storings, rows))
    computed = computed[computed["lookup"] >= 0]
    prompts = rows["prompt_tokens"].reindex(computed["lookup"]).to_numpy()
    done = rows.index.isin([*served["lookup"], *computed["lookup"][computed["tokens"] == prompts]])
    before = rows.assign(done=done, turn=rows.groupby("process").cumcount()).groupby(key)
    grown, hit = before["prompt_tokens"].diff(), before["lmcache_hit_tokens"].diff()
    late = before["at"].diff() > _LONG
    # The first of a queue is looked up again before any other.
    others = before["turn"].diff() - 1
    passed = (others >= _MANY) | ((others > 0) & (hit != 0))
    # The whole prompt was stored and now more of it is found, so it had been computed.
    again = rows[["offset", "prompt_tokens"]].assign(after=before["offset"].shift())[hit > 0]
    stores = bare[["offset", "required"]].assign(stored=bare["offset"])
    last = pd.merge_asof(again, stores, on="offset", left_by="prompt_tokens", right_by="required")
    rose = rows.index.isin(again.index[(last["stored"] > last["after"]).to_numpy()])
    other = late | passed | rose | before["done"].shift(fill_value=False)
    # A longer prompt belongs to a preempted request and includes its output so far.
    new = grown.isna() | (grown < 0) | (~(grown > 0) & other)
    return np.asarray(rows.groupby([key, new.groupby(key).cumsum()]).ngroup(), np.int64)


def _lookup_of(lines: pd.DataFrame, rows: pd.DataFrame) -> NDArray[np.int64]:
    """The last lookup before each line of the same request id, by position; -1 without one.

    Preferably of the same process, else of the same engine, else of any.
    """
    import pandas as pd

    found = np.full(len(lines), -1)
    names = ["offset", "request_id", "engine", "process"]
    mine = rows[names].assign(lookup=range(len(rows)))
    theirs = lines[names].assign(line=range(len(lines))).sort_values("offset")
    for depth in (4, 3, 2):
        waiting = theirs[found[theirs["line"]] < 0]
        if len(waiting) and len(mine):
            both = pd.merge_asof(waiting, mine, on="offset", by=names[1:depth])
            found[both["line"]] = both["lookup"].fillna(-1)
    return found


def _reports(
    rows: pd.DataFrame, transfers: pd.DataFrame, named: pd.DataFrame, failures: pd.DataFrame
) -> pd.DataFrame:
    """Workers' reports on retrievals: lookup (-1 if unknown), rank, failed, tokens, missing, ..."""
    import pandas as pd

    retrieved = named[named["kind"] == "retrieved"]
    older = transfers[(transfers["kind"] == "retrieved") & (transfers["request_id"] == "")]
    lines = pd.concat([retrieved, older.assign(lookup=-1)])
    lines = lines.assign(
        missing=lines["required"] - lines["tokens"], failed=False, retrieved=np.nan
    )
    told = failures.assign(lookup=_lookup_of(failures, rows), required=failures["expected"],
                           failed=True, tokens=np.nan, gb=np.nan, seconds=np.nan)  # fmt: skip
    told = told[(told["request_id"] == "") | (told["lookup"] >= 0)]
    names = ["offset", "engine", "rank", "lookup", "required", "missing", "failed", "retrieved",
             "tokens", "gb", "seconds"]  # fmt: skip
    lines = pd.concat([lines[names], told[names]]).sort_values("offset", ignore_index=True)
    open_ = np.flatnonzero(lines["lookup"] < 0)
    if len(open_):
        lookup = lines["lookup"].to_numpy(np.int64).copy()
        lookup[open_] = _by_size(lines.iloc[open_], rows)
        lines = lines.assign(lookup=lookup)
    return lines


_AWAITED = 64
"""Limit of lookups that wait for their retrieval at a time."""
_SKIPPED = 8
"""A failure may expect this many tokens fewer: the last ones can be left to the engine."""
_ROUNDED = 2048
"""A worker may count this many more: it starts at the chunk in which the engine's hit ends."""


def _by_size(lines: pd.DataFrame, rows: pd.DataFrame) -> Sequence[int]:
    """The lookup of each line without a request: the last one before it of the same size.

    Each rank of an engine reports a lookup once. If it failed, the error repeats the count of the
    Retrieved line before it.
    """
    asked = rows[rows["last"] & (rows["loaded_tokens"] > 0)]
    offsets, engines = asked["offset"].to_numpy(), asked["engine"].to_numpy()
    own = asked["engine_hit_tokens"].to_numpy()
    wanted = asked["lmcache_hit_tokens"].to_numpy() - own
    taken = set[tuple[int, str, bool]]()
    short = dict[tuple[str, str], tuple[float, int]]()
    found = []
    names = ["offset", "required", "rank", "engine", "failed", "tokens", "retrieved"]
    for line in lines[names].itertuples(index=False):
        offset, required, rank, engine, failed, tokens, retrieved = line
        at = int(np.searchsorted(offsets, offset))
        found.append(-1)
        before = short.pop((engine, rank), None)
        if failed and before and before[0] == retrieved:
            found[-1] = before[1]
            continue
        for n in range(at - 1, max(-1, at - 1 - _AWAITED), -1):
            more = required - wanted[n]
            least, most = (-_SKIPPED, 0) if failed else (0, min(own[n], _ROUNDED))
            fits = least <= more <= most
            if fits and engines[n] == engine and (n, rank, failed) not in taken:
                taken.add((n, rank, failed))
                found[-1] = int(asked.index[n])
                if not failed and tokens < required:
                    short[engine, rank] = tokens, found[-1]
                break
    return found


def _arrived(rows: pd.DataFrame, reports: pd.DataFrame, failing: bool) -> pd.DataFrame:
    """The last lookups of requests with what arrived for them."""
    need = rows["loaded_tokens"]  # as looked up
    known = reports[reports["lookup"] >= 0]
    # Exactly what was needed: some versions call the whole lookup "required".
    exact = known["tokens"] == need.reindex(known["lookup"]).to_numpy()
    known = known.assign(missing=known["missing"].mask(exact, 0.0))
    # If successes are not logged, or without their request, a request without a line may have been
    # loaded.
    told = failing or (not known["failed"].all() and len(known) == len(reports))
    each = known.groupby(["lookup", "rank"])
    by_rank = each[["tokens", "gb", "seconds"]].sum(min_count=1)
    # A failure repeats the Retrieved line of its rank.
    sums = known[~known["failed"]].groupby(["lookup", "rank"])["missing"].sum()
    worst = known[known["failed"]].groupby(["lookup", "rank"])["missing"].max()
    missing = np.fmax(*(side.reindex(by_rank.index).to_numpy(float) for side in (sums, worst)))
    wanted = need.reindex(by_rank.index.get_level_values("lookup")).to_numpy()
    got = np.fmin(by_rank["tokens"].to_numpy(float), wanted)  # NaN: only its failure is logged
    got = np.fmin(got, each["retrieved"].min().to_numpy(float))
    by_rank["arrived"] = np.fmax(0.0, np.fmin(got, wanted - np.fmax(0.0, missing)))
    grouped = by_rank.groupby(level="lookup")
    ranks = grouped.size().reindex(rows.index)
    usual = ranks.groupby(rows["engine"]).transform("median")
    arrived = grouped["arrived"].min().reindex(rows.index).fillna(0.0 if told else need)
    seconds = grouped["seconds"].max().reindex(rows.index)
    arrival = np.select(
        [need <= 0, ranks.isna(), ranks < usual],
        ["", "silent" if told else "looked up", "some ranks"],
        "retrieved",
    )
    return rows.assign(
        loaded_tokens=need.where(need <= 0, arrived),
        retrieved_tokens=grouped["tokens"].min().reindex(rows.index),
        seconds=seconds,
        gb_per_s=grouped["gb"].sum(min_count=1).reindex(rows.index) / seconds.where(seconds > 0),
        arrival=arrival,
        asked_to_load=need,
    )
