"""Where the TTFT of a request goes: a waterfall of parts timed by client, proxy and engine.

Each part was timed by one of them, or is the proxy's duration minus the engine's; none is an
estimate. The residual checks the join and both clocks. docs/engine.md explains vLLM's timestamps.

Client and proxy are on one host and stamp by one clock. Engines say only durations, so the offset
of another host's clock does not matter, but its rate does (`metrics.waterfall.clocks`).
"""

from __future__ import annotations

import json
from math import ceil
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np

from workbench.metrics.gates.gate_effects import spoil
from workbench.metrics.latency import latencies, succeeded
from workbench.metrics.statistics import needed_n, quantile

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

CARD = (
    ("proxy", "proxy", "request received until forwarded: reading and parsing", "proxy"),
    (
        "prefill_server",
        "prefill API server",
        "time of the prefill request outside queue and compute, for HTTP, JSON, hashing and"
        " detokenizing (aggregated: until the first byte)",
        "proxy; the engine's own times are subtracted",
    ),
    (
        "prefill_queue",
        "prefill queue",
        "from QUEUED to SCHEDULED (vLLM events); includes lookup in and load from a KV store",
        "engine",
    ),
    ("prefill_compute", "prefill compute", "from SCHEDULED to the first token", "engine"),
    ("handoff", "hand-off", "prefill request done until decode request sent", "proxy"),
    (
        "decode_server",
        "decode API server",
        "time of the decode request until its first byte, outside the next two parts",
        "proxy; the engine's own times are subtracted",
    ),
    (
        "transfer_queue",
        "KV transfer + decode queue",
        "from QUEUED to SCHEDULED on the decode instance: lookup, transfer and queue together (both"
        " legs at once: all until the first decode step outside prefill, so both API servers too)",
        "engine; both legs at once: proxy, engine times are subtracted",
    ),
    (
        "decode_step",
        "first decode step",
        "from SCHEDULED to the first token on the decode instance",
        "engine",
    ),
    (
        "stream",
        "stream",
        "first byte at the proxy until first token at the client",
        "client, proxy",
    ),
    (
        "residual",
        "untimed residual",
        "TTFT minus all other parts: mostly the hop from client to proxy",
        "difference",
    ),
)
PARTS = {f"{name}_s": label for name, label, *_ in CARD[:-1]}
"""Column -> name of each part, in the order in which a request passes them. `CARD` adds the formula
of each, and whose timestamps it uses."""

_KEYS = ("arm", "round", "pass", "request_id")
_STAMPS = (
    "received_s", "prefill_sent_s", "prefill_done_s", "decode_sent_s", "decode_first_byte_s",
)  # fmt: skip
_RESIDUAL_S = 0.002
_RESIDUAL_SHARE = 0.02
_NO_LEG = "the workbench's proxy has no unique record of them"
_NO_METRICS = (
    "the {role} instance sent no timing (start vLLM with --enable-per-request-metrics and stream"
    " usage)"
)


def parts() -> pd.DataFrame:
    """The definition card: name of each part, its formula, and whose timestamps it uses."""
    import pandas as pd

    return pd.DataFrame([row[1:] for row in CARD], columns=["part", "definition", "timed by"])


def waterfall(
    requests: pd.DataFrame,
    legs: pd.DataFrame,
    *,
    untimed: str = "",
    clocks: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """One row per request: arm, round, pass, index, request_id, the PARTS, residual_s, ttft_s.

    `requests` and `legs` are the frames of a run. An aggregated request has exactly 0 in the
    parts that only a split one has. `at_once` marks requests whose legs were sent at once.
    Unknown parts are NaN, and `note` says why: the request
    failed, has no leg or no engine timing, or its durations contradict each other (then no part of
    it is shown). `untimed` says why these engines send no timing, if they cannot. Seconds.

    `clocks` has a row per arm, round, pass and host: `factor`, which makes its seconds ours, and
    `rate_bound`, its largest error. A part that is smaller than the error of the clocks is shown
    together with its neighbour: it is 0, the other part has both, and `joined` says so.
    """
    timed = requests if "ttft_s" in requests else latencies(requests)
    rows = timed[[*_KEYS, "index", "error", "engine_metrics", "sent_s", "ttft_s"]]
    names = ("prefill_instance", "decode_instance", "prefill_engine_metrics", "at_once")
    seen = legs.reindex(columns=[*_KEYS, *_STAMPS, *names])
    # An id that the proxy saw twice has two sets of timestamps, so neither is used.
    seen = seen.drop_duplicates([*_KEYS], keep=False)
    seen = seen.astype({key: requests[key].dtype for key in _KEYS})
    both = rows.merge(seen, on=[*_KEYS], how="left")
    split = (both["prefill_instance"].notna() & both["prefill_instance"].ne("")).to_numpy(bool)
    at_once = both["at_once"].eq(True).to_numpy(bool)
    found, joined = _durations(both, split, at_once, clocks)
    found[~succeeded(both).to_numpy(bool)] = np.nan
    found["residual_s"] = both["ttft_s"] - found[[*PARTS]].sum(axis=1, skipna=False)
    # A microsecond is more than subtracting such floats can lose.
    impossible = (found < -1e-6).any(axis=1)
    found[impossible] = np.nan
    notes = _notes(both, found, split, at_once, impossible, untimed or _NO_METRICS)
    head = both[["arm", "round", "pass", "index", "request_id"]]
    joined[notes != ""] = ""
    return head.join(found).assign(
        ttft_s=both["ttft_s"], at_once=at_once, joined=joined, note=notes
    )


def _durations(
    both: pd.DataFrame,
    split: NDArray[np.bool_],
    at_once: NDArray[np.bool_],
    clocks: pd.DataFrame | None,
) -> tuple[pd.DataFrame, NDArray[np.object_]]:
    """The parts of each row, NaN where a timestamp is missing, and what was joined."""
    import pandas as pd

    t = {name: both[name].to_numpy(float) for name in _STAMPS}
    prefill_factor, prefill_bound = _clock_of(both, "prefill_instance", clocks)
    factor, bound = _clock_of(both, "decode_instance", clocks)
    prefill_queue, prefill_compute = (
        prefill_factor * seconds for seconds in _engine_s(both["prefill_engine_metrics"])
    )
    queue, step = (factor * seconds for seconds in _engine_s(both["engine_metrics"]))
    # The largest error of a difference between the proxy's clock and an engine's.
    prefill_open_s = prefill_bound * (prefill_queue + prefill_compute)
    open_s = bound * (queue + step)
    prefill_server = t["prefill_done_s"] - t["prefill_sent_s"] - prefill_queue - prefill_compute
    server = t["decode_first_byte_s"] - t["decode_sent_s"] - queue - step
    handoff = t["decode_sent_s"] - t["prefill_done_s"]
    late = np.where(at_once, np.maximum(handoff, 0.0), handoff)
    # Of legs sent at once, both API servers and the transfer run side by side.
    waited = t["decode_first_byte_s"] - t["prefill_sent_s"] - late
    waited -= prefill_queue + prefill_compute + step
    columns = {
        "proxy_s": np.where(split, t["prefill_sent_s"], t["decode_sent_s"]) - t["received_s"],
        "prefill_server_s": np.select([at_once, split], [0.0, prefill_server], server),
        "prefill_queue_s": np.where(split, prefill_queue, queue),
        "prefill_compute_s": np.where(split, prefill_compute, step),
        "handoff_s": np.where(split, late, 0.0),
        "decode_server_s": np.where(split & ~at_once, server, 0.0),
        "transfer_queue_s": np.select([at_once, split], [waited, queue], 0.0),
        "decode_step_s": np.where(split, step, 0.0),
        "stream_s": both["sent_s"] + both["ttft_s"] - t["decode_first_byte_s"],
    }
    found = pd.DataFrame(columns, index=both.index)
    found[np.isnan(t["received_s"])] = np.nan  # no leg, so unknown whether it was split
    joined = np.full(len(both), "", dtype=object)
    in_turn = split & ~at_once
    for applies, part, beside, left_open_s in (
        (in_turn, "prefill_server_s", "prefill_compute_s", prefill_open_s),
        (~split, "prefill_server_s", "prefill_compute_s", open_s),
        (in_turn, "decode_server_s", "transfer_queue_s", open_s),
        (at_once, "transfer_queue_s", "prefill_compute_s", prefill_open_s + open_s),
    ):
        small = applies & (found[part].abs().to_numpy() < left_open_s)
        found.loc[small, beside] += found.loc[small, part]
        found.loc[small, part] = 0.0
        joined[small] += f"{PARTS[part]} is shown with {PARTS[beside]}; "
    return found, joined


def _clock_of(
    both: pd.DataFrame, instance: str, clocks: pd.DataFrame | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The factor that converts each row's engine times to ours, and its error; 1, 0 on our host."""
    if clocks is None or clocks.empty:
        return np.ones(len(both)), np.zeros(len(both))
    hosts = {url: urlsplit(url).hostname for url in both[instance].dropna().unique()}
    keys = ["arm", "round", "pass", "host"]
    rows = both[keys[:-1]].assign(host=both[instance].map(hosts))
    found = rows.merge(clocks[[*keys, "factor", "rate_bound"]], on=keys, how="left")
    return (
        found["factor"].fillna(1.0).to_numpy(float),
        found["rate_bound"].fillna(0.0).to_numpy(float),
    )


def _engine_s(texts: pd.Series[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Queue time and time to first token of each row of engine metrics, in seconds."""
    said = [json.loads(text) if isinstance(text, str) and text else {} for text in texts]

    def column(key: str) -> NDArray[np.float64]:
        values = [one.get(key) if isinstance(one, dict) else None for one in said]
        return np.array([np.nan if value is None else value / 1000 for value in values], float)

    return column("queue_time_ms"), column("time_to_first_token_ms")


def _notes(
    both: pd.DataFrame,
    found: pd.DataFrame,
    split: NDArray[np.bool_],
    at_once: NDArray[np.bool_],
    impossible: pd.Series[bool],
    no_metrics: str,
) -> NDArray[np.object_]:
    """Why a row is not split, the first reason that applies; empty where it is."""
    missing = found.isna()
    streamed = missing[["transfer_queue_s", "decode_step_s"]].any(axis=1)
    prefilled = missing[["prefill_queue_s", "prefill_compute_s"]].any(axis=1)
    reasons = (
        (~succeeded(both), "they failed"),
        (both["received_s"].isna(), _NO_LEG),
        (impossible & at_once, "decode did not wait for prefill"),
        (impossible, "their durations contradict each other, so clocks may differ"),
        (split & prefilled, no_metrics.format(role="prefill")),
        (split & streamed, no_metrics.format(role="decode")),
        (~split & prefilled, no_metrics.format(role="aggregated")),
        (missing.any(axis=1), "a timestamp of the proxy or the client is missing"),
    )
    notes = np.full(len(both), "", dtype=object)
    for applies, reason in reversed(reasons):
        notes[np.asarray(applies, bool)] = reason
    return notes


def closes(frame: pd.DataFrame) -> pd.Series[bool]:
    """Which rows of a waterfall close: residual at most 2 ms or 2 % of TTFT. False where NaN."""
    limit_s = np.maximum(_RESIDUAL_S, _RESIDUAL_SHARE * frame["ttft_s"].to_numpy(float))
    return frame["residual_s"].abs() <= limit_s


def doubts(frame: pd.DataFrame) -> list[str]:
    """A sentence for each reason why requests are not split, and one on large residuals."""
    counts = frame.loc[frame["note"] != "", "note"].value_counts(sort=False)
    said = [
        f"{n} of {len(frame)} requests have no complete waterfall, because {w}."
        for w, n in counts.items()
    ]
    if "joined" in frame:
        joined = frame["joined"].str.removesuffix("; ")
        said += [
            f"In {n} of {len(frame)} requests {what}: it is smaller than the error of the two"
            " hosts' clocks."
            for what, n in joined[joined != ""].value_counts(sort=False).items()
        ]
    wide = frame[frame["residual_s"].notna() & ~closes(frame)]
    if len(wide):
        worst = wide.sort_values("residual_s").iloc[-1]
        said.append(
            f"The untimed residual exceeds both 2 ms and 2 % of TTFT in {len(wide)} of"
            f" {frame['residual_s'].count()} requests. The largest is"
            f" {1000 * worst['residual_s']:.1f} ms ({worst['arm']}, {worst['pass']}). The proxy"
            " accepted the connection late, or the machine was busy."
        )
    return said


def summarise(frame: pd.DataFrame) -> pd.DataFrame:
    """Median of each part with its 95 % interval, per arm and pass; a row each. Seconds.

    Columns arm, pass, part (a column of `waterfall`), median, low, high, n, note. Medians of
    parts do not add up to the median of TTFT; the parts of one request do (`representatives`).
    """
    import pandas as pd

    rows = []
    for (arm, name), group in frame.groupby(["arm", "pass"], sort=False):
        whole = group[group["residual_s"].notna()]
        for part in (*PARTS, "residual_s", "ttft_s"):
            got = quantile(whole[part], 0.5)
            rows.append((arm, name, part, got.value, got.low, got.high, got.n, got.note))
    columns = ["arm", "pass", "part", "median", "low", "high", "n", "note"]
    return pd.DataFrame(rows, columns=columns)


def representatives(frame: pd.DataFrame) -> pd.DataFrame:
    """Two requests of each arm and pass: rows of the waterfall with a column `which` in front.

    `median` is the request with the median TTFT (the lower of two). The other is `p99` where the
    sample has the 368 requests for that quantile, otherwise `slowest`. No p99 is picked where
    `frame.attrs["no_p99"]` gives a reason, and neither of them where a failed gate
    (`frame.attrs["failed_gates"]`) rules out tails. Only requests with a complete waterfall count.
    """
    import pandas as pd

    chosen = []
    failed = frame.attrs.get("failed_gates", ())
    for (arm, name), group in frame.groupby(["arm", "pass"], sort=False):
        ordered = group[group["residual_s"].notna()].sort_values("ttft_s", kind="stable")
        n = len(ordered)
        if not n:
            continue
        picks = [("median", (n + 1) // 2)]
        if spoil(failed, "tails", passes={str(name)}, arms={str(arm)}).struck:
            pass
        elif n < needed_n(0.99):
            picks.append(("slowest", n))
        elif not frame.attrs.get("no_p99"):
            picks.append(("p99", ceil(0.99 * n)))
        chosen += [ordered.iloc[[at - 1]].assign(which=which) for which, at in picks[: min(n, 2)]]
    found = pd.concat(chosen) if chosen else frame.iloc[:0].assign(which="")
    return found[["which", *(name for name in found if name != "which")]].reset_index(drop=True)
