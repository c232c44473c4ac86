"""The analysis behind `lmcache_hit_analysis`: a live run, running servers, or a log that exists.

All three end as a `HitResult`, so that the notebook shows the same cells for each; what a log
cannot say is an empty table there.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.errors import ResultError
from workbench.experiment.findings.sentences import headline as judged
from workbench.experiment.findings.sentences import marked, told
from workbench.experiment.hits import served_tokens
from workbench.experiment.hits.hit_findings import ratios, tiers
from workbench.experiment.hits.log_sentences import doubt, log_facts
from workbench.experiment.hits.need_to_load import explained
from workbench.experiment.hits.run_sentences import by_counters, cards, headline, sentences
from workbench.experiment.plan.arms import plan
from workbench.experiment.plan.plan import ExperimentPlan, run_id
from workbench.experiment.result.facts import RunFacts
from workbench.experiment.result.result import Result
from workbench.experiment.result.run_folder import RunFolder
from workbench.experiment.run.run import run
from workbench.experiment.run.run_log import Echo, echo_line
from workbench.hardware import machine
from workbench.metrics.gates.gate_table import spoil
from workbench.metrics.lmcache_log.log_summary import LogSummary, read_log
from workbench.params.notebooks import LMCacheHitAnalysis

if TYPE_CHECKING:
    import pandas as pd

_TOKENS = {
    "prompt_tokens": "prompt", "engine": "engine", "l1": "L1", "l2": "L2",
    "computed": "computed", "idle": "cached, not needed",
}  # fmt: skip
_SHARES = {"hit_share": "served", "ideal_share": "ideal", "claimed_share": "LMCache says"}


@dataclass(frozen=True, slots=True, kw_only=True)
class HitResult(Result):
    """A result with the tables of the hit analysis; each is empty where it is not known."""

    @property
    def served(self) -> pd.DataFrame:
        """One row per request: tokens by who served them (see `served_tokens.served`)."""
        return self._marked(self.frames["served"])

    @property
    def tiers(self) -> pd.DataFrame:
        """One row per arm and pass: tokens by tier, hit rate, ideal, LMCache's own counters."""
        return self._marked(self.table("tiers"))

    @property
    def ratios(self) -> pd.DataFrame:
        """Paired ratios of TTFT (see `hit_findings.HitRatio`)."""
        return self._marked(self.table("ratios"))

    @property
    def hits(self) -> pd.DataFrame:
        """Cached tokens of each request beside the ideal; empty for a log, which has no ideal."""
        rows = self.served[self.served["ideal"].notna() & (self.served["ideal"] > 0)]
        return self._marked(
            rows.rename(columns={"ideal": "ideal_tokens"})[
                ["arm", "pass", "prompt_tokens", "cached_tokens", "ideal_tokens"]
            ]
        )

    @property
    def tiers_table(self) -> pd.DataFrame:
        """The tiers for a reader: tokens, and shares of them."""
        import pandas as pd

        rows = self.tiers
        if rows.empty:  # a log before its first hit
            return rows
        shown = pd.DataFrame({"arm and state": rows["arm"] + ", " + rows["pass"]})
        for form, names in (("{:,.0f}", _TOKENS), ("{:.1%}", _SHARES)):
            for name, heading in names.items():
                values = rows[name].astype(float)
                shown[heading] = [form.format(v) if v == v else "not known" for v in values]
        return self._showing(shown, "counts")

    @property
    def ratios_table(self) -> pd.DataFrame:
        """The ratios for a reader, without what a figure alone needs."""
        rows = self.ratios
        if rows.empty:
            return rows
        rows["prompts"] = [f"{n:,} tokens" if n else "all" for n in rows["prompt_tokens"]]
        names = ["what", "arm", "pass", "baseline_arm", "baseline_pass", "prompts", "sentence"]
        return self._showing(rows[names], "ratios")


@dataclass(frozen=True, slots=True, kw_only=True)
class HitAnalysis:
    """What will be done: `plan` for a live run, None for a log."""

    params: LMCacheHitAnalysis
    plan: ExperimentPlan | None

    def __str__(self) -> str:
        if self.plan is not None:
            return str(self.plan)
        sizes = []
        for path in map(Path, self.params.log_files):
            size = f"{path.stat().st_size / 1e6:,.1f} MB" if path.is_file() else "not a file"
            sizes.append(f"{path} ({size})")
        return f"reads {', '.join(sizes)}; nothing is started"

    async def run(self, *, echo: Echo = echo_line) -> HitResult:
        """Measure, or read the log, and write the run folder.

        Raises ParameterError for a log that cannot be read, ResultError for one that has nothing
        of LMCache, and what `run` raises.
        """
        if self.plan is None:
            return _read(self.params, echo)
        result = await run(self.plan, echo=echo)
        return _concluded(result, self.plan)


def hit_analysis(params: LMCacheHitAnalysis) -> HitAnalysis:
    """The analysis of checked parameters; starts nothing. Raises PlanError as `plan` does."""
    return HitAnalysis(params=params, plan=None if params.log_file else plan(params))


def _concluded(result: Result, made: ExperimentPlan) -> HitResult:
    """A finished run with the rows of the store's logs, and what follows from both."""
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
        explained=tuple(explained(rows)),
        tiers=tuple(tier.as_row() for tier in table),
        ratios=tuple(ratio.as_row() for ratio in compared),
        doubts=tuple(dict.fromkeys(doubts)),
        limits=(*result.run.limits, *_LIMITS),
        files={**result.run.files, "served": "served.parquet"},
    )
    if made.params.engine == "attach":
        # Servers that run already have no rival without a store: what every sweep finds is said.
        by_server = (told(text, spoil(failed, "counts")) for text in by_counters(table))
        facts = replace(facts, sentences=(*by_server, *facts.sentences))
    else:
        found, unproven = judged(headline(compared), failed)
        facts = replace(
            facts,
            finding=found,
            unproven=unproven,
            numbers=marked(cards(compared, table), failed),
            sentences=tuple(sentences(compared, table, failed)),
        )
    return _written(
        facts, RunFolder(home=result.folder, attempt=result.folder), rows, result.frames
    )


_LIMITS = (
    "Prompts are random tokens, sent one at a time: what concurrent requests do to each other's"
    " stores and loads is not in these numbers.",
    "Break-even is that of this machine and model: on a GPU computing is faster, and so is the way"
    " from memory.",
)


def _log_doubts(
    logs: Mapping[tuple[str, int], LogSummary], served: pd.DataFrame, counts: pd.DataFrame
) -> list[str]:
    """Where the store's log and the engine's counters do not say the same."""
    doubts = [f"{arm}, round {number + 1}: {log.counts.cut} lines of the store's log were cut."
              for (arm, number), log in logs.items() if log.counts.cut]  # fmt: skip
    keys = ["arm", "round", "pass"]
    by_log = served.assign(by_log=served["l1"] + served["l2"]).groupby(keys)["by_log"].sum()
    both = counts.merge(by_log.reset_index(), on=keys)
    both = both[[key in logs for key in zip(both["arm"], both["round"], strict=True)]]
    odd = both[(both["by_log"] - both["loaded"]).abs() > 0.01 * both["loaded"] + 1]
    for row in odd.head(3).to_dict("records"):
        doubts.append(
            f"{row['arm']}, round {row['round'] + 1}, {row['pass']}: by the store's log"
            f" {row['by_log']:,.0f} tokens were loaded, by the engine's counters"
            f" {row['loaded']:,.0f}."
        )
    return doubts


def _read(params: LMCacheHitAnalysis, echo: Echo) -> HitResult:
    """The result of a log that exists."""
    began, began_s = datetime.now(UTC), time.monotonic()
    summary = read_log(params.log_files, ranks=params.log_ranks)
    took_s = time.monotonic() - began_s
    counts = summary.counts
    echo(f"{counts.size_bytes / 1e6:,.1f} MB in {took_s:.1f} s: {counts.lines:,} lines,"
         f" {summary.matching:,} of them LMCache's")  # fmt: skip
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
    """Write facts and rows into the attempt; of a finished run, over those that are there."""
    folder.write("served", served)
    folder.write_facts(facts)
    return HitResult(run=facts, folder=folder.attempt, frames={**frames, "served": served})
