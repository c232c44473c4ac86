"""The analysis behind `lmcache_hit_analysis`: a live run, running servers, or an existing log.

All three give a `HitResult`, so the notebook shows the same cells for each; a table that a log
cannot fill is empty.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.errors import ResultError
from workbench.experiment.findings.headline import headline as judged
from workbench.experiment.findings.sentences import marked
from workbench.experiment.hits import served_tokens
from workbench.experiment.hits.hit_findings import percent, ratios, tiers
from workbench.experiment.hits.log_sentences import doubt, log_facts
from workbench.experiment.hits.need_to_load import explained, place
from workbench.experiment.hits.run_sentences import by_counters, cards, headline, sentences
from workbench.experiment.plan.arms import plan
from workbench.experiment.plan.plan import ExperimentPlan
from workbench.experiment.result.facts import RunFacts
from workbench.experiment.result.result import Result
from workbench.experiment.result.run_folder import RunFolder
from workbench.experiment.run.run import run
from workbench.experiment.run.run_log import Echo, OnRecord, echo_line
from workbench.hardware import machine
from workbench.metrics.gates.gate_effects import spoil, told
from workbench.metrics.lmcache_log.log_summary import LogSummary, read_log
from workbench.metrics.statistics import Verdict, three_digits, verdict_of
from workbench.params.notebooks import LMCacheHitAnalysis
from workbench.params.run_id import run_id

if TYPE_CHECKING:
    import pandas as pd

_TOKENS = {
    "prompt_tokens": "prompt", "engine": "engine prefix cache",
    "l1": "LMCache L1", "l2": "LMCache L2",
    "computed": "computed", "idle": "LMCache hit, already in prefix cache",
}  # fmt: skip
_SHARES = {
    "hit_share": "hit rate",
    "ideal_share": "ideal hit rate",
    "claimed_share": "hit rate reported by LMCache",
}


_VERDICTS: Mapping[Verdict, str] = {
    "faster": "faster",
    "slower": "slower",
    "undecided": "not significant",
    "no_interval": "too few rounds",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class HitResult(Result):
    """A result with the tables of the hit analysis; a table without data is empty."""

    @property
    def served(self) -> pd.DataFrame:
        """One row per request: prompt tokens by cache (see `served_tokens.served`)."""
        return self._marked(self.frames["served"])

    @property
    def tiers(self) -> pd.DataFrame:
        """One row per arm and pass: tokens by tier, hit rates, LMCache's own counters."""
        return self._marked(self.table("tiers"))

    @property
    def ratios(self) -> pd.DataFrame:
        """Paired ratios of TTFT (see `hit_findings.HitRatio`)."""
        return self._marked(self.table("ratios"))

    @property
    def hits(self) -> pd.DataFrame:
        """Cached and ideal tokens per request; empty for a log, which does not show the ideal."""
        rows = self.served[self.served["ideal"].notna() & (self.served["ideal"] > 0)]
        return self._marked(
            rows.rename(columns={"ideal": "ideal_tokens"})[
                ["arm", "pass", "prompt_tokens", "cached_tokens", "ideal_tokens"]
            ]
        )

    @property
    def tiers_table(self) -> pd.DataFrame:
        """The tiers for a reader: tokens and hit rates."""
        import pandas as pd

        rows = self.tiers
        if rows.empty:  # a log before its first hit
            return rows
        places = [place(*row) for row in zip(rows["arm"], rows["pass"], strict=True)]
        shown = pd.DataFrame({"source" if (rows["arm"] == "log").all() else "arm, pass": places})
        for name, heading in (_TOKENS | _SHARES).items():
            shown[heading] = [
                percent(value) if name in _SHARES else f"{value:,.0f}".replace("nan", "unknown")
                for value in rows[name].astype(float)
            ]
        own = _SHARES["claimed_share"]  # without LMCache, or in a log, nothing reports it
        shown[own] = shown[own].replace("unknown", "not reported")
        return self._showing(shown, "counts")

    @property
    def ratios_table(self) -> pd.DataFrame:
        """The ratios for a reader."""
        import pandas as pd

        rows = self.ratios
        if rows.empty:
            return rows
        found = list(zip(rows["ratio"], rows["low"], rows["high"], strict=True))
        shown = {
            "effect of": rows["what"],
            "arm, pass": rows["arm"] + ", " + rows["pass"],
            "baseline arm, pass": rows["baseline_arm"] + ", " + rows["baseline_pass"],
            "prompts": [f"{n:,} tokens" if n else "all" for n in rows["prompt_tokens"]],
            "TTFT ratio": [_speed_up(*bounds) for bounds in found],
            "verdict": [_VERDICTS[verdict_of(*bounds)] for bounds in found],
            "rounds": rows["n_rounds"],
            "request pairs": rows["n_pairs"],
        }
        return self._showing(pd.DataFrame(shown), "ratios")


@dataclass(frozen=True, slots=True, kw_only=True)
class HitAnalysis:
    """An analysis before it runs; `plan` is None for a log."""

    params: LMCacheHitAnalysis
    plan: ExperimentPlan | None

    def __str__(self) -> str:
        if self.plan is not None:
            return str(self.plan)
        sizes = []
        for path in map(Path, self.params.log_files):
            size = f"{path.stat().st_size:,} bytes" if path.is_file() else "file not found"
            sizes.append(f"{path} ({size})")
        return f"Reads {', '.join(sizes)}. No servers are started."

    async def run(self, *, echo: Echo = echo_line, on_record: OnRecord | None = None) -> HitResult:
        """Measure, or read the log, and write the run folder.

        Raises ParameterError for a log that cannot be read, ResultError for a log without LMCache
        lines, and what `run` raises.
        """
        if self.plan is None:
            return _read(self.params, echo)
        result = await run(self.plan, echo=echo, on_record=on_record)
        return _concluded(result, self.plan)


def _speed_up(value: float, low: float, high: float) -> str:
    if isnan(value):
        return "unknown"
    ends = "" if isnan(low) else f" [{three_digits(low)}, {three_digits(high)}]"
    return f"{three_digits(value)}x{ends}"


def hit_analysis(params: LMCacheHitAnalysis) -> HitAnalysis:
    """The analysis of checked parameters; starts nothing. Raises PlanError as `plan` does."""
    return HitAnalysis(params=params, plan=None if params.log_file else plan(params))


def _concluded(result: Result, made: ExperimentPlan) -> HitResult:
    """A finished run with the rows of the store's logs, and the findings from both."""
    import pandas as pd

    workers = made.params.aggregated_tp if isinstance(made.params, LMCacheHitAnalysis) else 1
    logs = served_tokens.store_logs(result.folder, result.requests, workers=workers)
    counts = served_tokens.pass_counts(pd.read_parquet(result.folder / "counters.parquet"))
    rows = served_tokens.credited(served_tokens.served(result.requests, logs), counts)
    table = tiers(rows, counts)
    chunks = {
        arm.label: arm.chunk_tokens
        for arm in made.arms
        if arm.kv_connector and arm.kv_connector.store
    }
    compared = ratios(result.requests, rows, chunks)
    failed = result.run.failed_gates
    doubts = [*result.doubts, *_log_doubts(logs, rows, counts)]
    facts = replace(
        result.run,
        explained=tuple(explained(rows[rows["need"].notna() & (rows["held"] > 0)])),
        tiers=tuple(table),
        ratios=tuple(ratio.as_row() for ratio in compared),
        doubts=tuple(dict.fromkeys(doubts)),
        limits=(*result.run.limits, *_LIMITS),
        files={**result.run.files, "served": "served.parquet"},
    )
    if made.params.engine == "attach":
        # Attached servers have no arm without a store: the sweep's own findings stay.
        by_server = (told(text, spoil(failed, "counts")) for text in by_counters(table))
        facts = replace(facts, sentences=(*by_server, *facts.sentences))
    else:
        found, unproven = judged(headline(compared), failed)
        facts = replace(
            facts,
            finding=found,
            unproven=unproven,
            numbers=marked(cards(compared, table), failed),
            sentences=sentences(compared, table, failed),
        )
    return _written(
        facts, RunFolder(home=result.folder, attempt=result.folder), rows, result.frames
    )


_LIMITS = (
    "Prompts are random tokens, sent one at a time. Concurrent requests may slow each other's"
    " stores and loads.",
    "Break-even holds for this machine and model. A GPU computes and copies faster.",
)


def _log_doubts(
    logs: Mapping[tuple[str, int], LogSummary], served: pd.DataFrame, counts: pd.DataFrame
) -> list[str]:
    """Where the store's log and the engine's counters differ."""
    doubts = [f"{arm}, round {number + 1}: {log.counts.cut} lines of LMCache's log were truncated."
              for (arm, number), log in logs.items() if log.counts.cut]  # fmt: skip
    keys = ["arm", "round", "pass"]
    by_log = served.assign(by_log=served["l1"] + served["l2"]).groupby(keys)["by_log"].sum()
    both = counts.merge(by_log.reset_index(), on=keys)
    both = both[[key in logs for key in zip(both["arm"], both["round"], strict=True)]]
    odd = both[(both["by_log"] - both["loaded"]).abs() > 0.01 * both["loaded"] + 1]
    for row in odd.head(3).to_dict("records"):
        doubts.append(
            f"{row['arm']}, round {row['round'] + 1}, {row['pass']}: LMCache's log shows"
            f" {row['by_log']:,.0f} tokens loaded, the engine's counters {row['loaded']:,.0f}."
        )
    return doubts


def _read(params: LMCacheHitAnalysis, echo: Echo) -> HitResult:
    """The result of an existing log."""
    began, began_s = datetime.now(UTC), time.monotonic()
    summary = read_log(params.log_files, ranks=params.log_ranks)
    took_s = time.monotonic() - began_s
    echo(f"Read {summary.counts.lines:,} lines in {took_s:.1f} s, {summary.matching:,} of LMCache")
    if not summary.matching:
        raise ResultError(f"{params.log_file}: {doubt(summary, summary.doubts[0])}")
    name = run_id(params)
    folder = RunFolder.open(params.output_dir, "lmcache_hit_analysis", name)
    run = RunFacts(
        notebook="lmcache_hit_analysis",
        run_id=name,
        status="success",
        started_at=began.isoformat(timespec="seconds"),
        finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
        duration_s=round(took_s, 1),
        parameters=asdict(params),
        machine=machine.facts().as_dict(),
        files={"served": "served.parquet"},
    )
    facts = log_facts(run, summary)
    result = _written(facts, folder, served_tokens.log_tokens(summary), {})
    folder.promote()
    echo(f"success: {folder.home}")
    return replace(result, folder=folder.home)


def _written(
    facts: RunFacts,
    folder: RunFolder,
    served: pd.DataFrame,
    frames: Mapping[str, pd.DataFrame],
) -> HitResult:
    """Write facts and rows into the attempt, replacing those of a finished run."""
    folder.write("served", served)
    folder.write_facts(facts)
    return HitResult(run=facts, folder=folder.attempt, frames={**frames, "served": served})
