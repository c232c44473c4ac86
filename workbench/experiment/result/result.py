"""A run's result: what it found, and the frames behind every number.

Format of result.json, `schema`: 1 (first).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.errors import ResultError, nearest
from workbench.experiment.findings.rate_table import rate_table
from workbench.experiment.result.frame_file import FrameFiles
from workbench.experiment.result.ledger_table import by_request, ledger_table
from workbench.experiment.result.percentile_table import no_p99, percentile_table, without_tails
from workbench.experiment.result.run_folder import jsonable
from workbench.experiment.result.why import table, why
from workbench.metrics.gates.gate_table import Kind, failed_names, gate_doubts, spoil, touching
from workbench.metrics.percentiles import percentiles
from workbench.metrics.waterfall import waterfall

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["SCHEMA", "Result", "load_result"]

SCHEMA = 1
MIME = "application/vnd.workbench.result+json"
FRAMES = ("requests", "legs", "counters", "gauges")

_METRICS = ("ttft", "tpot", "e2e", "system_tps")
_COLUMNS = {
    "comparisons": [
        *("kind", "metric", "arm", "pass", "baseline_arm", "baseline_pass", "ratio"),
        *("low", "high", "n_rounds", "n_pairs", "note", "sentence"),
    ]
}
"""Of a table that may be empty: a sweep over rates with one arm compares nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a run found. `facts` is the content of result.json (see docs/result.md)."""

    facts: dict[str, Any]
    folder: Path
    frames: Mapping[str, pd.DataFrame] = field(default_factory=dict, repr=False)

    @property
    def requests(self) -> pd.DataFrame:
        """One row per request: constant columns, records.RequestRecord, latencies.

        A large result is loaded without stamps and texts, see frame_file; latencies and counts
        are there.
        """
        return self._marked(self.frames["requests"])

    @property
    def legs(self) -> pd.DataFrame:
        """One row per request at the proxy; empty without one."""
        return self._marked(self.frames["legs"])

    @property
    def gates(self) -> pd.DataFrame:
        """Every gate: name, outcome, sentence, next_step."""
        return self._table("gates")

    @property
    def summary(self) -> pd.DataFrame:
        """Median and 95 % interval per arm, pass and metric; seconds."""
        return self._table("summary")

    @property
    def percentiles(self) -> pd.DataFrame:
        """p50, p90 and p99 of TTFT, TPOT, E2E and ICL per arm and pass, see metrics.percentiles.

        Read from the run's file batch by batch: a million requests take seconds, not gigabytes.
        """
        path = self.folder / "requests.parquet"
        found = percentiles(path if path.exists() else self.frames["requests"])
        return without_tails(self._marked(found))

    def percentile_table(self) -> pd.DataFrame:
        """The percentiles as one wide table, in milliseconds."""
        return self._showing(percentile_table(self.percentiles), "times")

    @property
    def comparisons(self) -> pd.DataFrame:
        """Ratios with intervals; above 1 is better than the baseline."""
        return self._table("comparisons")

    @property
    def rates(self) -> pd.DataFrame:
        """One row per arm and offered rate of a sweep or search; empty without one."""
        frame = self._table("rates")
        frame.attrs["limited"] = self._limited
        return frame

    def rate_table(self) -> pd.DataFrame:
        """The rates as one table with units and intervals; empty without a sweep or search."""
        return self._showing(rate_table(self.rates, limited=self._limited), "times")

    @property
    def _limited(self) -> bool:
        """Whether requests had a TTFT or TPOT limit to keep."""
        asked = self.facts["parameters"]
        return any(asked.get(name) for name in ("ttft_limit_ms", "tpot_limit_ms"))

    @property
    def token_sources(self) -> pd.DataFrame:
        """Prompt tokens of each role and pass: sent, computed, engine_hit, external_hit."""
        return self._table("token_sources")

    @property
    def request_ledger(self) -> pd.DataFrame:
        """The ledger of each answer: expected and cached prompt tokens, and their difference."""
        return by_request(self.requests)

    @property
    def ledger(self) -> pd.DataFrame:
        """Every account of the token ledger over all rounds, see metrics.ledger.ledger."""
        return ledger_table(self.facts["ledger"])

    @property
    def doubts(self) -> list[str]:
        return list(self.facts["doubts"])

    def speedup(self, metric: str) -> pd.DataFrame:
        """The comparisons of one metric, `ttft`, `tpot`, `e2e` or `system_tps`."""
        table = self.comparisons
        known = {f"{name}".removesuffix("_s") for name in table["metric"]} or set(_METRICS)
        if metric.removesuffix("_s") not in known:
            raise ResultError(f"no comparison of {metric!r}: {nearest(metric, known)}")
        rows = table[table["metric"].str.removesuffix("_s") == metric.removesuffix("_s")]
        return self._showing(rows.drop(columns=["kind", "metric", "sentence"]), "ratios")

    def medians(self, *metrics: str) -> pd.DataFrame:
        """The summary of some metrics as one wide table, in milliseconds and tokens per second."""
        table = self.summary
        table["metric"] = table["metric"].str.removesuffix("_s")
        unknown = set(metrics) - set(table["metric"])
        if unknown:
            raise ResultError(f"no metric {unknown.pop()!r}: it has {', '.join(set(table.metric))}")
        columns = (table[name].to_list() for name in ("metric", "median", "low", "high"))
        table["shown"] = [_shown(*row) for row in zip(*columns, strict=True)]
        wide = table.pivot_table(
            index=["arm", "pass", "n_requests"], columns="metric", values="shown",
            aggfunc="first", sort=False,
        )  # fmt: skip
        wide = wide[list(metrics)].reset_index().rename_axis(columns=None)
        return self._showing(wide, "times")

    def waterfall(self) -> pd.DataFrame:
        """One row per request: its TTFT in parts, as `metrics.waterfall` defines them; seconds."""
        return self._marked(waterfall(self.requests, self.legs))

    def waterfall_medians(self) -> pd.DataFrame:
        """Median of every part of TTFT with its interval, in milliseconds; a column per arm."""
        return self._showing(table(self.waterfall()), "times")

    def why(self) -> list[str]:
        """A sentence for each pair of arms and cache state: which parts of TTFT differ."""
        waterfall = self.waterfall()
        does = spoil(waterfall.attrs["failed_gates"], "ratios")
        doubts = gate_doubts(does.gates)
        if does.struck:
            said = f"{does.said[:1].upper()}{does.said[1:]}"
            doubts = [f"{said}: what follows may have other causes."]
        return doubts + why(waterfall, self.comparisons)

    @property
    def whole_passes(self) -> pd.DataFrame:
        """The requests of passes that find nothing or everything cached."""
        rows = self.requests
        whole = rows[rows["pass"].isin(["cold", "engine-warm"])]
        failed = touching(rows.attrs["failed_gates"], set(whole["pass"]))
        whole.attrs = rows.attrs | {"failed_gates": failed}
        return whole

    @property
    def hits(self) -> pd.DataFrame:
        """Cached tokens of each request beside what an infinite cache would have held."""
        rows = self.requests
        known = rows[(rows["cached_tokens"] >= 0) & (rows["arm"] != "cache off")]
        return known.rename(columns={"ideal_reuse_tokens": "ideal_tokens"})[
            ["pass", "prompt_tokens", "cached_tokens", "ideal_tokens"]
        ]

    def table(self, name: str) -> pd.DataFrame:
        """A list or mapping of `facts` as a table, such as `platforms` or `machine`."""
        import pandas as pd

        value = self.facts[name]
        if isinstance(value, Mapping):
            flat = pd.json_normalize(dict(value)).iloc[0]
            found = [f"{v:.1f}" if isinstance(v, float) else str(v) for v in flat]
            return pd.DataFrame({"what": flat.index, "found": found})
        return pd.DataFrame(value)

    def _table(self, name: str) -> pd.DataFrame:
        import pandas as pd

        # An interval that is all null reads back as objects; numbers are numbers here.
        rows = self.facts[name]
        frame = pd.DataFrame(rows, columns=None if rows else _COLUMNS.get(name))
        numeric = [c for c in ("median", "ratio", "low", "high") if c in frame]
        return self._marked(frame.astype(dict.fromkeys(numeric, float)))

    def _showing(self, frame: pd.DataFrame, *kinds: Kind) -> pd.DataFrame:
        """A table for readers, with the kinds of number in it."""
        frame = self._marked(frame)
        frame.attrs["shows"] = kinds
        return frame

    def _marked(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The frame with what its figures must say: simulated, and gates that failed."""
        frame.attrs["simulated"] = bool(self.facts.get("simulated"))
        gates = self.facts.get("gates", ())
        frame.attrs["failed_gates"] = failed_names(gates)
        frame.attrs["no_p99"] = no_p99(gates)
        frame.attrs["swept"] = bool(self.facts.get("rates"))
        return frame

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        text = f"{self.facts['finding']}\n{self.folder}"
        return {MIME: jsonable(self.facts | {"folder": str(self.folder)}), "text/plain": text}


def _shown(metric: str, median: float, low: float, high: float) -> str:
    """`123 ms [110, 140]`, without an interval where there is none."""
    factor, unit = (1.0, "/s") if metric.endswith("tps") else (1000.0, "ms")
    if math.isnan(median):
        return "not known"
    text = f"{factor * median:,.4g} {unit}"
    return text if math.isnan(low) else f"{text} [{factor * low:,.4g}, {factor * high:,.4g}]"


def load_result(folder: Path | str) -> Result:
    """Read a run folder. Raises ResultError with a sentence for what is missing or unreadable."""

    folder = Path(folder)
    path = folder / "result.json"
    if not path.exists():
        raise ResultError(f"{path} does not exist: no run has succeeded in this folder")
    try:
        facts = json.loads(path.read_text())
    except ValueError as error:
        raise ResultError(f"{path} is not JSON ({error}): the file was cut or edited") from error
    schema = facts.get("schema") if isinstance(facts, dict) else None
    if not isinstance(schema, int):
        raise ResultError(f"{path} names no schema: it was not written by the workbench")
    if schema > SCHEMA:
        raise ResultError(
            f"{path} has schema {schema} and this workbench reads up to {SCHEMA}: update it"
        )
    return Result(facts=facts, folder=folder, frames=FrameFiles(folder, FRAMES))
