"""The result of a run for notebooks: what it found, and the frames behind every number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from workbench.errors import ResultError, nearest
from workbench.experiment.result import point_tables
from workbench.experiment.result import result_tables as tables
from workbench.experiment.result.facts import RunFacts
from workbench.experiment.result.finding_rows import ClockRow, LoadRow, TokenRow
from workbench.experiment.result.ledger_tables import (
    by_request,
    ledger_table,
    store_table,
    tier_table,
)
from workbench.experiment.result.predicted import (
    FitRow,
    PredictedRow,
    fit_table,
    held_out_table,
    own_error_table,
    prediction_lines,
    prediction_table,
)
from workbench.experiment.result.result_file import from_plain, read_facts, to_plain
from workbench.experiment.result.run_folder import FrameFiles, read_frame
from workbench.experiment.result.waterfall_diff import why
from workbench.metrics.gates.gate import Gate
from workbench.metrics.gates.gate_effects import (
    gate_doubts,
    of_the_run,
    spoil,
    struck_arms,
    touching,
)
from workbench.metrics.gates.gate_table import Kind, failed_name
from workbench.metrics.percentiles import percentiles
from workbench.metrics.waterfall.waterfall import waterfall

if TYPE_CHECKING:
    import pandas as pd

MIME = "application/vnd.workbench.result+json"
"""A notebook output of this type has the facts of a result, and its folder under `folder`."""
FRAMES = ("requests", "legs", "counters", "gauges")

_METRICS = ("ttft", "tpot", "e2e", "system_tps")
_RATIO_OF = {"system_tps": "throughput"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a run found."""

    run: RunFacts
    folder: Path
    frames: Mapping[str, pd.DataFrame] = field(default_factory=dict, repr=False)

    @classmethod
    def from_bundle(cls, bundle: Mapping[str, Any], source: str) -> Self:
        """The result that a notebook shows in an output of type MIME. Raises ResultError."""
        return cls(run=from_plain(bundle, source), folder=Path(str(bundle.get("folder") or "")))

    @property
    def facts(self) -> dict[str, Any]:
        """The content of result.json as plain values (see docs/result.md)."""
        return to_plain(self.run)

    @property
    def requests(self) -> pd.DataFrame:
        """One row per request: constant columns, records.RequestRecord, latencies.

        A large result is loaded without stamps and texts, see run_folder; latencies and counts
        are there.
        """
        return self._marked(self._frame("requests"))

    @property
    def legs(self) -> pd.DataFrame:
        """One row per request at the proxy; empty without one."""
        return self._marked(self._frame("legs"))

    @property
    def models(self) -> list[str]:
        """Short names of the models of a run over several; empty for one."""
        return [row.model for row in self.run.models]

    @property
    def compares_models(self) -> bool:
        """Whether the main figure compares several models, so that each needs its own as well."""
        return bool(self.run.models) and not (self.run.rates or self.run.sizes)

    @property
    def gates(self) -> pd.DataFrame:
        """Every gate: name, outcome, sentence, next_step."""
        return self._marked(tables.frame_of(Gate, self.run.gates))

    @property
    def summary(self) -> pd.DataFrame:
        """Median and 95 % interval per arm, pass and metric; seconds."""
        return self._marked(tables.summary_frame(self.run.summary))

    @property
    def percentiles(self) -> pd.DataFrame:
        """p50, p90 and p99 of TTFT, TPOT, E2E and ICL per arm and pass, see metrics.percentiles.

        Read from the run's file batch by batch: a million requests take seconds, not gigabytes.
        """
        path = self.folder / "requests.parquet"
        found = percentiles(path if path.exists() else self._frame("requests"))
        return tables.without_tails(self._marked(found))

    def percentile_table(self) -> pd.DataFrame:
        """The percentiles as one wide table, in milliseconds."""
        return self._showing(tables.percentile_table(self.percentiles), "times")

    @property
    def comparisons(self) -> pd.DataFrame:
        """Ratios with intervals; above 1 is better than the baseline."""
        return self._marked(tables.comparison_frame(self.run.comparisons))

    @property
    def loads(self) -> pd.DataFrame:
        """One row per arm and load of a sweep or search; empty without one."""
        frame = self._marked(tables.frame_of(LoadRow, self.run.rates))
        frame.attrs["limited"] = self._limited
        return frame

    @property
    def predictions(self) -> pd.DataFrame:
        """One row per predicted topology and metric; empty without predictions."""
        return self._marked(tables.frame_of(PredictedRow, self.run.predictions))

    def prediction_lines(self) -> list[str]:
        """Markdown above the tables of predictions; empty without predictions."""
        return list(prediction_lines(self.run.profile, self.run.held_out, self.run.predictions))

    def held_out_table(self) -> pd.DataFrame:
        """Prediction errors on held-out topologies; empty if none was held out."""
        return self._showing(held_out_table(self.run.held_out), "times")

    def prediction_table(self) -> pd.DataFrame:
        """The predictions, a row per topology, and whether each was checked."""
        return self._showing(prediction_table(self.run.predictions))

    @property
    def fits(self) -> pd.DataFrame:
        """One row per fitted part of the profile; empty without a profile."""
        frame = self._marked(tables.frame_of(FitRow, self.run.fits))
        if self.run.notebook != "profile":  # whose gates are those of its own run
            frame.attrs["failed_gates"] = {}
        frame.attrs["profile"] = self.run.profile
        return frame

    def fit_table(self) -> pd.DataFrame:
        """The fits as one table: formula, residual and valid range."""
        return self._showing(fit_table(self.run.fits))

    def own_error_table(self) -> pd.DataFrame:
        """Prediction errors of the profile on the 1a of its own run; empty without a profile."""
        return self._showing(own_error_table(self.run.own_errors))

    @property
    def points(self) -> pd.DataFrame:
        """One row per arm and cold pass: throughput per GPU, tokens/s per user, cost, energy."""
        frame = self._marked(point_tables.point_frame(self.run.points))
        frame.attrs["unit"] = point_tables.unit_of(self.run)
        return frame

    def point_table(self) -> pd.DataFrame:
        """The operating points as one table with units and intervals."""
        return self._showing(point_tables.point_table(self.run), "times")

    def decision_table(self) -> pd.DataFrame:
        """What each arm serves within the latency limits; empty without limits."""
        return self._showing(point_tables.decision_table(self.run), "times")

    def decision(self) -> list[str]:
        """What each arm serves within the latency limits, and how power was measured."""
        return point_tables.decision_lines(self.run)

    @property
    def sizes(self) -> pd.DataFrame:
        """One row per working set and pass of a sweep over them; empty without one."""
        return self._marked(tables.size_frame(self.run.sizes))

    @property
    def links(self) -> pd.DataFrame:
        """One row per run, arm across hosts, baseline and metric; empty without hosts."""
        return self._marked(tables.link_frame(self.run.links))

    def link_table(self) -> pd.DataFrame:
        """The measured KV transfer over each link and bytes / rate; empty without hosts."""
        return self._showing(tables.link_table(self.run.links), "times")

    def clock_table(self) -> pd.DataFrame:
        """How well the clocks of other hosts agree with ours; empty without hosts."""
        return self._showing(tables.clock_table(self.run.clocks))

    @property
    def panels(self) -> pd.DataFrame:
        """What a Prometheus recorded: a row per panel, line and point; empty without one."""
        import pandas as pd

        path = self.folder / "panels.parquet"
        frame = self._marked(read_frame(path) if path.exists() else pd.DataFrame())
        frame.attrs["pass_times"] = self.run.pass_times
        return frame

    def load_table(self) -> pd.DataFrame:
        """The loads as one table with units and intervals; empty without a sweep or search."""
        return self._showing(tables.load_table(self.run.rates, limited=self._limited), "times")

    @property
    def _limited(self) -> bool:
        """Whether requests had a TTFT or TPOT limit."""
        return any(self.run.parameters.get(name) for name in ("ttft_limit_ms", "tpot_limit_ms"))

    @property
    def connectors(self) -> pd.DataFrame:
        """TTFT, throughput and loaded KV of each arm and pass; empty with one connector.

        value, low and high per metric: `ttft_s`, `system_tps` and `kv_bytes_per_token`.
        """
        return self._marked(tables.connector_frame(self.run, self._frame("requests")))

    def store_table(self) -> pd.DataFrame:
        """What each KV store says it held, wrote, read and evicted; empty without a store."""
        import pandas as pd

        path = self.folder / "counters.parquet"
        counters = read_frame(path) if path.exists() else pd.DataFrame()
        return self._showing(store_table(self.run.arms, counters), "counts")

    @property
    def token_sources(self) -> pd.DataFrame:
        """Prompt tokens of each role and pass: sent, computed, engine_hit, external_hit, and of the
        last, where the store has tiers, what each of them served."""
        import pandas as pd

        rows = tables.frame_of(TokenRow, self.run.token_sources)
        tiers = pd.DataFrame(rows.pop("loaded").to_list(), index=rows.index)
        return self._marked(rows.join(tiers))

    @property
    def store_tiers(self) -> pd.DataFrame:
        """Chunks that each tier below the store's memory was sent, and has; empty without tiers."""
        return self._showing(tier_table(self.run.store_tiers), "counts")

    @property
    def request_ledger(self) -> pd.DataFrame:
        """The ledger of each response: expected and cached prompt tokens, and their difference."""
        return by_request(self.requests)

    @property
    def ledger(self) -> pd.DataFrame:
        """Every account of the token ledger over all rounds, see metrics.ledger.ledger."""
        return ledger_table(self.run.ledger)

    @property
    def doubts(self) -> list[str]:
        return list(self.run.doubts)

    def speedup(self, metric: str) -> pd.DataFrame:
        """The comparisons of one metric, `ttft`, `tpot`, `e2e` or `system_tps`."""
        table = self.comparisons
        known = {f"{name}".removesuffix("_s") for name in table["metric"]} or set(_METRICS)
        if metric.removesuffix("_s") not in known:
            raise ResultError(f"no comparison of {metric!r}: {nearest(metric, known)}")
        rows = table[table["metric"].str.removesuffix("_s") == metric.removesuffix("_s")]
        shown = self._showing(rows.drop(columns=["kind", "metric", "sentence"]), "ratios")
        name = metric.removesuffix("_s")
        shown.attrs["headers"] = {"ratio": f"{_RATIO_OF.get(name, name.upper())} ratio"}
        return shown

    def model_table(self) -> pd.DataFrame:
        """TTFT speed-ups of several models side by side; empty for one."""
        failed = self.run.failed_gates
        bad = struck_arms(failed, "ratios")
        frame = tables.model_table(self.run.comparisons, self.run.arms, bad)
        frame.attrs["failed_gates"] = of_the_run(failed)
        frame.attrs["shows"] = ("ratios",)
        return frame

    def medians(self, *metrics: str) -> pd.DataFrame:
        """Medians of some metrics as one wide table, in milliseconds and tokens per second."""
        known = dict.fromkeys(row.metric.removesuffix("_s") for row in self.run.summary)
        unknown = [metric for metric in metrics if metric not in known]
        if unknown:
            raise ResultError(f"no metric {unknown[0]!r}; this result has {', '.join(known)}")
        return self._showing(tables.median_table(self.run.summary, metrics), "times")

    def waterfall(self) -> pd.DataFrame:
        """One row per request: its TTFT in parts, see `metrics.waterfall.waterfall`; seconds."""
        untimed = " and ".join(self.run.engine.lacks)
        clocks = tables.frame_of(ClockRow, self.run.clocks)
        found = waterfall(self.requests, self.legs, untimed=untimed, clocks=clocks)
        return self._marked(found)

    def waterfall_medians(self) -> pd.DataFrame:
        """Median of every part of TTFT with its interval, in milliseconds; a column per arm."""
        return self._showing(tables.waterfall_table(self.waterfall()), "times")

    def why(self) -> list[str]:
        """Which parts of TTFT differ, a sentence per pair of arms and cache state."""
        failed = self.run.failed_gates
        does = spoil(of_the_run(failed), "ratios")
        doubts = gate_doubts(does.gates)
        if does.struck:
            said = f"{does.said[:1].upper()}{does.said[1:]}"
            doubts = [f"{said}. Do not use these differences."]
        bad = struck_arms(failed, "ratios")
        if bad and not does.struck:
            each = "; ".join(f"{arm} ({failed_name(name)})" for arm, name in bad.items())
            doubts.append(f"Left out: {each}.")
        rows = [row for row in self.run.comparisons if not {*row.arms} & bad.keys()]
        return doubts + why(self.waterfall(), rows if bad else self.run.comparisons)

    @property
    def whole_passes(self) -> pd.DataFrame:
        """The requests of passes in which nothing or everything is cached."""
        rows = self.requests
        whole = rows[rows["pass"].isin(["cold", "engine-warm"])]
        failed = touching(rows.attrs["failed_gates"], passes=set(whole["pass"]))
        whole.attrs = rows.attrs | {"failed_gates": failed}
        return whole

    @property
    def hits(self) -> pd.DataFrame:
        """Cached tokens of each request, and what an infinite cache would have held."""
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
        frame = pd.DataFrame(value)
        # A column without any value becomes one of numbers, not of nulls.
        return frame.astype({name: float for name in frame if frame[name].isna().all()})

    def _showing(self, frame: pd.DataFrame, *kinds: Kind) -> pd.DataFrame:
        """A table for readers, marked with the kinds of number in it."""
        frame = self._marked(frame)
        frame = frame.drop(columns="model", errors="ignore")  # labels of arms begin with it
        frame.attrs["shows"] = kinds
        return frame

    def _marked(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The frame, marked with what its figures must say: simulated, and failed gates.

        Of several models, rows of an arm have a column `model`.
        """
        if self.run.models and "arm" in frame and "model" not in frame:
            of_arm = {arm.label: arm.short_model for arm in self.run.arms}
            frame = frame.assign(model=frame["arm"].map(of_arm))
        frame.attrs["simulated"] = self.run.simulated
        sides = [frame[name] for name in ("arm", "baseline_arm") if name in frame]
        arms = {str(arm) for side in sides for arm in side.unique()}
        frame.attrs["failed_gates"] = touching(self.run.failed_gates, arms=arms)
        frame.attrs["no_p99"] = tables.no_p99(self.run.gates)
        frame.attrs["swept"] = bool(self.run.rates)
        return frame

    def _frame(self, name: str) -> pd.DataFrame:
        if name not in self.frames:
            raise ResultError(f"{self.folder} has no {name}.parquet, so these rows are missing")
        return self.frames[name]

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        text = f"{self.run.finding}\n{self.folder}"
        return {MIME: self.facts | {"folder": str(self.folder)}, "text/plain": text}


def load_result(folder: Path | str) -> Result:
    """Read a run folder. Raises ResultError for what is missing or unreadable."""
    folder = Path(folder)
    run = read_facts(folder / "result.json")
    return Result(run=run, folder=folder, frames=FrameFiles(folder, FRAMES))
