"""Results side by side: runs of the workbench, and result files of other load generators."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.errors import ResultError
from workbench.experiment.percentile_table import percentile_table
from workbench.experiment.result import load_result
from workbench.metrics.definitions import definition_of
from workbench.metrics.gate_table import Spoil, spoil, taken_away
from workbench.metrics.peers import read_peer
from workbench.metrics.percentiles import percentiles
from workbench.metrics.statistics import three_digits
from workbench.report.figures import Chart, latency_panels

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Comparison", "compare_results"]

_CARD = {"vLLM bench": "vllm_bench", "GuideLLM": "guidellm", "AIPerf": "aiperf"}
_LMCACHE = {
    "TTFT": "first text (reasoning only where there is no content) - time before the client's call",
    "TPOT": "(end of the stream - first text) / (output tokens - 1)",
    "E2E": "end of the stream - time before the client's call",
}
"""lmcache/cli/commands/bench/engine_bench/request_sender.py, read at LMCache 0.5.6."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Side:
    """One result: its requests, their percentiles, and whose measurement it is."""

    tool: str
    """Empty for a run of the workbench."""
    label: str
    requests: pd.DataFrame
    percentiles: pd.DataFrame


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What `compare_results` found; `sentences` are to be read before the numbers."""

    requests: pd.DataFrame
    percentiles: pd.DataFrame
    sentences: tuple[str, ...]

    @property
    def table(self) -> pd.DataFrame:
        """p50, p90 and p99 in milliseconds with 95 % intervals; each metric's rows together."""
        rank = self.percentiles["metric"].map(list(dict.fromkeys(self.percentiles["metric"])).index)
        return percentile_table(self.percentiles.iloc[rank.argsort(kind="stable")])

    @property
    def figure(self) -> Chart:
        """Distributions of TTFT, TPS, E2E and output length, a line for each arm and pass."""
        return latency_panels(self.requests)


def compare_results(
    paths: Sequence[Path | str], *, arm: str = "", cache_state: str = ""
) -> Comparison:
    """Compare run folders and result files of other tools, two or more, in the order given.

    `arm` and `cache_state` pick requests of the runs; peers have one kind. Each tool's latencies
    are as it measured them, so the sentences say where two tools mean different things, and what
    the files tell against comparing them at all.

    Raises ResultError for a path that is neither, for a tool or version that is not known, and
    where nothing is left.
    """
    import pandas as pd

    if len(paths) < 2:
        raise ResultError("a comparison needs two results: run folders, or files of other tools")
    sides = [_side(Path(path), arm, cache_state) for path in paths]
    sides = _distinct(sides)
    requests = pd.concat([side.requests for side in sides], ignore_index=True)
    marks = [side.requests.attrs for side in sides]
    failed = [name for mark in marks for name in mark.get("failed_gates", ())]
    requests.attrs = {
        "simulated": any(mark.get("simulated") for mark in marks),
        "failed_gates": list(dict.fromkeys(failed)),
    }
    found = pd.concat([side.percentiles for side in sides], ignore_index=True)
    sentences = (*_spoilt(sides), *_medians(found, sides), *_unlike(sides), *_meanings(sides))
    return Comparison(requests=requests, percentiles=found, sentences=sentences)


def _side(path: Path, arm: str, cache_state: str) -> _Side:
    if not path.is_dir():
        peer = read_peer(path)
        tool = str(peer["arm"].iloc[0])
        return _Side(tool=tool, label=tool, requests=peer, percentiles=percentiles(peer))
    result = load_result(path)
    requests, found = result.requests, result.percentiles
    for column, wanted in (("arm", arm), ("pass", cache_state)):
        if wanted and wanted not in set(requests[column]):
            known = ", ".join(map(str, requests[column].unique()))
            raise ResultError(f"{path} has no {column} {wanted!r}; it has {known}")
        if wanted:
            marks = requests.attrs
            requests, found = (rows[rows[column] == wanted] for rows in (requests, found))
            requests.attrs = marks
    return _Side(tool="", label=path.name, requests=requests, percentiles=found)


def _distinct(sides: Sequence[_Side]) -> list[_Side]:
    """The sides with arms that tell them apart: numbered where two would have the same."""
    arms = [set(side.requests["arm"]) for side in sides]
    clash = any(a & b for i, a in enumerate(arms) for b in arms[i + 1 :])
    if not clash:
        return list(sides)
    renamed = []
    for number, side in enumerate(sides, start=1):
        frames = []
        for frame in (side.requests, side.percentiles):
            marks = frame.attrs
            frames.append(frame.assign(arm=[f"{number}: {name}" for name in frame["arm"]]))
            frames[-1].attrs = marks
        renamed.append(
            _Side(tool=side.tool, label=side.label, requests=frames[0], percentiles=frames[1])
        )
    return renamed


def _failed(side: _Side) -> list[str]:
    return list(side.requests.attrs.get("failed_gates", ()))


def _spoilt(sides: Sequence[_Side]) -> Iterable[str]:
    """What gates that failed take away from the runs."""
    for side in sides:
        for name in _failed(side):
            if taken := taken_away(name):
                yield f"{side.label}: gate “{name}” failed; it {taken}."


def _medians(found: pd.DataFrame, sides: Sequence[_Side]) -> Iterable[str]:
    """Each metric's median of every kind beside that of the first.

    Runs of different files did not take turns, so what gates do to their times they do to these
    comparisons too.
    """
    gates = {arm: _failed(side) for side in sides for arm in side.requests["arm"].unique()}
    medians = found[found["quantile"] == 0.5]
    for metric, name in (("ttft_s", "TTFT"), ("tpot_s", "TPOT"), ("e2e_s", "E2E")):
        rows = medians[medians["metric"] == metric].to_dict("records")
        for row in rows[1:]:
            first = rows[0]
            both = f"{name}: {_median(first)} beside {_median(row)}"
            does = _worse(*(spoil(gates[r["arm"]], "times", passes={r["pass"]})
                            for r in (first, row)))  # fmt: skip
            if does.struck:
                yield f"{name} of {row['arm']}, {row['pass']}, is not compared ({does.said})."
                continue
            if does.effect:
                both = f"{both} ({does.said})"
            if isnan(row["low_s"]) or isnan(first["low_s"]):
                yield f"{both}; too few requests to tell."
            elif row["low_s"] > first["high_s"] or row["high_s"] < first["low_s"]:
                times = three_digits(row["value_s"] / first["value_s"])
                yield f"{both}: {times} times the first, and the intervals do not meet."
            else:
                yield f"{both}: the intervals meet, no difference shown."


def _worse(one: Spoil, other: Spoil) -> Spoil:
    """The worse of what gates do to two numbers."""
    order = ("struck", "rough", "doubt", "")
    return min(one, other, key=lambda does: order.index(does.effect))


def _median(row: dict[Hashable, float]) -> str:
    who = f"{row['arm']}, {row['pass']}"
    if isnan(row["value_s"]):
        return f"{who} not known"
    ends = "" if isnan(row["low_s"]) else f" [{_ms(row['low_s'])}, {_ms(row['high_s'])}]"
    return f"{who} {_ms(row['value_s'])} ms{ends}"


def _ms(seconds: float) -> str:
    return three_digits(1000 * seconds)


def _unlike(sides: Sequence[_Side]) -> Iterable[str]:
    """What the rows tell against comparing the sides."""
    first = sides[0]
    for side in sides[1:]:
        for column, noun in (("prompt_tokens", "prompt"), ("output_tokens", "output")):
            ours, theirs = (
                frame.requests.loc[frame.requests[column] > 0, column].median()
                for frame in (first, side)
            )
            if ours != theirs and not (ours != ours and theirs != theirs):
                yield (
                    f"Unlike work: the median {noun} has {ours:,.0f} tokens in {first.label} and"
                    f" {theirs:,.0f} in {side.label}."
                )
    yield (
        "Files of load generators do not name the machine, the server or its cache state: whether"
        " those were the same is yours to know."
    )


def _meanings(sides: Sequence[_Side]) -> Iterable[str]:
    """What each tool means by the names, where it is not what the workbench means."""
    for tool in dict.fromkeys(side.tool for side in sides if side.tool):
        for metric in ("TTFT", "E2E"):
            theirs = (
                definition_of(metric, _CARD[tool]).formula if tool in _CARD else _LMCACHE[metric]
            )
            ours = definition_of(metric, "workbench").formula
            yield f"{metric} of {tool}: {theirs}; of the workbench: {ours}."
        yield (
            f"TPOT of {tool} is (last - first token) / (output tokens - 1) here: its file does not"
            " tell the tokens of the first chunk."
        )
