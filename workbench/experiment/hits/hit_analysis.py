"""The analysis behind `lmcache_hit_analysis`: a live run, running servers, or a log that exists.

All three end as a `HitResult`, so that the notebook shows the same cells for each; what a log
cannot say is an empty table there.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.errors import ResultError
from workbench.experiment.findings.sentences import headline as judged
from workbench.experiment.findings.sentences import marked, told
from workbench.experiment.hits import hit_rows
from workbench.experiment.hits.hit_findings import ratios, tiers
from workbench.experiment.hits.hit_log import log_facts
from workbench.experiment.hits.hit_sentences import by_counters, cards, headline, sentences
from workbench.experiment.plan.arms import plan
from workbench.experiment.plan.plan import ExperimentPlan, run_id
from workbench.experiment.result.facts import SCHEMA, Card, from_plain
from workbench.experiment.result.result import Result
from workbench.experiment.result.run_folder import RunFolder
from workbench.experiment.run.run import run
from workbench.experiment.run.run_log import Echo, echo_line
from workbench.hardware import machine
from workbench.metrics.gates.gate_table import Kind, failed_names, spoil
from workbench.metrics.lmcache_log.reader import read_log
from workbench.params.notebooks import LMCacheHitAnalysis

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["HitAnalysis", "HitResult", "hit_analysis"]

_TOKENS = {
    "prompt_tokens": "prompt", "engine": "engine", "l1": "L1", "l2": "L2",
    "computed": "computed", "idle": "cached, not needed",
}  # fmt: skip
_SHARES = {"hit_share": "served", "ideal_share": "ideal", "claimed_share": "LMCache says"}
_CHUNK = re.compile(r"--chunk-size (\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class HitResult(Result):
    """A result with the tables of the hit analysis; each is empty where it is not known."""

    @property
    def served(self) -> pd.DataFrame:
        """One row per request: tokens by who served them (see `hit_rows.served_tokens`)."""
        return self._marked(self.frames["served"])

    @property
    def tiers(self) -> pd.DataFrame:
        """One row per arm and pass: tokens by tier, hit rate, ideal, LMCache's own counters."""
        return self._marked(self.table("tiers"))

    @property
    def ratios(self) -> pd.DataFrame:
        """Paired ratios of TTFT (see `hit_findings.ratios`)."""
        frame = self.table("ratios")
        numbers = [name for name in ("ratio", "low", "high") if name in frame]
        return self._marked(frame.astype(dict.fromkeys(numbers, float)))

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
    workers = made.params.aggregated_tp if isinstance(made.params, LMCacheHitAnalysis) else 1
    logs = hit_rows.store_logs(result.folder, result.requests, workers=workers)
    served = hit_rows.served_tokens(result.requests, logs)
    counters = _read_frame(result, "counters")
    counts = hit_rows.pass_counts(counters)
    served = hit_rows.credited(served, counts)
    table = tiers(served, counts)
    compared = ratios(result.requests, served, _chunks(result.facts["arms"]))
    failed = result.run.failed_gates
    # Servers that run already have no rival without a store: what every sweep finds is said.
    attached = made.params.engine == "attach"
    found = {} if attached else _headline(headline(compared), failed)
    doubts = [*result.doubts, *_log_doubts(logs, served, counts)]
    facts = (
        result.facts
        | found
        | {
            "numbers": result.facts["numbers"]
            if attached
            else marked(cards(compared, table), failed),
            "sentences": [
                *(told(text, spoil(failed, "counts")) for text in by_counters(table)),
                *result.facts["sentences"],
            ]
            if attached
            else sentences(compared, table, failed),
            "explained": hit_rows.explained(served),
            "tiers": table,
            "ratios": compared,
            "doubts": list(dict.fromkeys(doubts)),
            "limits": [*result.facts["limits"], *_LIMITS],
            "files": result.facts["files"] | {"served": "served.parquet"},
        }
    )
    return _written(facts, result.folder, {**result.frames, "served": served})


_LIMITS = (
    "Prompts are random tokens, sent one at a time: what concurrent requests do to each other's"
    " stores and loads is not in these numbers.",
    "Break-even is that of this machine and model: on a GPU computing is faster, and so is the way"
    " from memory.",
)


def _read_frame(result: Result, name: str) -> pd.DataFrame:
    import pandas as pd

    return pd.read_parquet(result.folder / f"{name}.parquet")


def _chunks(arms: list[dict[str, Any]]) -> dict[str, int]:
    """The chunk of each arm with a store, as its command line has it."""
    found = {}
    for arm in arms:
        for line in arm["command_lines"]:
            if "lmcache.cli.main" in line:
                said = _CHUNK.search(line)
                found[str(arm["label"])] = int(said[1]) if said else 256
    return found


def _log_doubts(
    logs: Mapping[tuple[str, int], Any], served: pd.DataFrame, counts: pd.DataFrame
) -> list[str]:
    """Where the store's log and the engine's counters do not say the same."""
    doubts = [f"{arm}, round {number + 1}: {log.cut} lines of the store's log were cut."
              for (arm, number), log in logs.items() if log.cut]  # fmt: skip
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
    echo(f"{summary.size_bytes / 1e6:,.1f} MB in {took_s:.1f} s: {summary.lines:,} lines,"
         f" {summary.matching:,} of them LMCache's")  # fmt: skip
    if not summary.matching:
        raise ResultError(f"{params.log_file}: {summary.doubts[0]}")
    name = run_id(params)
    folder = RunFolder.open(params.output_dir, "lmcache_hit_analysis", name)
    facts = {
        "schema": SCHEMA,
        "notebook": "lmcache_hit_analysis",
        "run_id": name,
        "status": "success",
        "simulated": False,
        "started_at": began.isoformat(timespec="seconds"),
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "duration_s": round(took_s, 1),
        "parameters": asdict(params),
        "machine": machine.facts().as_dict(),
        "summary": [],
        "comparisons": [],
        "arms": [],
        "files": {"served": "served.parquet"},
    } | _judged_log(log_facts(summary, params.log_file, ranks=params.log_ranks))
    served = hit_rows.log_tokens(summary)
    folder.write("served", served)
    made = from_plain(facts, str(folder.home))
    folder.write_facts(made)
    folder.promote()
    echo(f"success: {folder.home}")
    return HitResult(run=made, folder=folder.home, frames={"served": served})


def _headline(found: str, failed: Sequence[str], kind: Kind = "ratios") -> dict[str, str]:
    finding, unproven = judged(found, failed, kind)
    return {"finding": finding, "unproven": unproven}


def _judged_log(facts: dict[str, Any]) -> dict[str, Any]:
    """The facts of a log, which are counts, with what its failed gates do to them."""
    failed = failed_names(facts["gates"])
    numbers = [Card(**card, rests_on="counts") for card in facts["numbers"]]
    return (
        facts
        | _headline(facts["finding"], failed, "counts")
        | {"numbers": marked(numbers, failed)}
        | {"sentences": [told(text, spoil(failed, "counts")) for text in facts["sentences"]]}
    )


def _written(facts: dict[str, Any], folder: Path, frames: dict[str, pd.DataFrame]) -> HitResult:
    """Write the new facts and rows over those of the finished run."""
    home = RunFolder(home=folder, attempt=folder)
    home.write("served", frames["served"])
    made = from_plain(facts, str(folder))
    home.write_facts(made)
    return HitResult(run=made, folder=folder, frames=frames)
