"""Results side by side: runs of the workbench, and result files of other load generators."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isnan, nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.errors import ResultError
from workbench.experiment.result.facts import EngineFacts
from workbench.experiment.result.result import load_result
from workbench.experiment.result.result_tables import percentile_table, without_struck
from workbench.metrics.definitions import VERSIONS, definition_of
from workbench.metrics.gates.gate_table import Spoil, spoil, taken_away, touching
from workbench.metrics.peers.not_read import KNOWN_FILES
from workbench.metrics.peers.read_peer import read_peer
from workbench.metrics.percentiles import percentiles
from workbench.metrics.statistics import three_digits
from workbench.report.figures import Chart, latency_panels

if TYPE_CHECKING:
    import pandas as pd


_CARD = {"vLLM bench": "vllm_bench", "GuideLLM": "guidellm", "AIPerf": "aiperf"}
_OTHERS = {
    "GuideLLM": {
        "E2E": "last token - request start here; the tool's own runs to the end of the stream",
    },
    "LMCache bench": {
        "version": "0.5.6",
        "TTFT": "first text (reasoning only where there is no content) - time before the call",
        "E2E": "end of the stream - time before the call",
    },
    "SGLang bench_serving": {
        "version": "00f9ec4",
        "TTFT": "first chunk with text (chat: or reasoning) - time before the POST",
        "E2E": "TTFT + all gaps; the tool's own E2E, to the last line, is not in its file",
    },
    "multi-round-qa": {
        "version": "production-stack 0a330da",
        "TTFT": "first text (or reasoning, in later versions) - time before the call",
        "E2E": "end of the stream - time before the call",
    },
}
"""What the numbers read from a file mean, where the definition card does not say, and the version
whose source was read:
lmcache/cli/commands/bench/engine_bench/request_sender.py, sglang/benchmark/serving.py,
benchmarks/multi-round-qa/multi-round-qa.py."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Side:
    """One result: its requests, their percentiles, and whose measurement it is."""

    tool: str
    """Empty for a run of the workbench."""
    label: str
    requests: pd.DataFrame
    percentiles: pd.DataFrame
    engine: EngineFacts = field(default_factory=EngineFacts)
    """Of a run: its model and number format; empty where the result does not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SideBySide:
    """What `compare_results` found; `sentences` are to be read before the numbers."""

    requests: pd.DataFrame
    percentiles: pd.DataFrame
    sentences: tuple[str, ...]
    parts: dict[str, tuple[int, int]]
    """Arms whose file holds a part of the requests only: those in the file, and all."""

    @property
    def table(self) -> pd.DataFrame:
        """p50, p90 and p99 in milliseconds with 95 % intervals; each metric's rows together.

        Where a file holds a part of its requests, a column `in the file` says which.
        """
        rank = self.percentiles["metric"].map(list(dict.fromkeys(self.percentiles["metric"])).index)
        shown = percentile_table(self.percentiles.iloc[rank.argsort(kind="stable")])
        if self.parts:
            told = {arm: f"{kept:,} of {total:,}" for arm, (kept, total) in self.parts.items()}
            place = list(shown.columns).index("n") + 1
            shown.insert(place, "in the file", shown["arm"].map(told).fillna("all"))
        return shown

    @property
    def figure(self) -> Chart:
        """Distributions of TTFT, TPS, E2E and output length, a line for each arm and pass."""
        return latency_panels(self.requests, note=" ".join(_parts_told(self.parts)))


def compare_results(
    paths: Sequence[Path | str], *, arm: str = "", cache_state: str = ""
) -> SideBySide:
    """Compare run folders and result files of other tools, two or more, in the order given.

    `arm` and `cache_state` pick requests of the runs; peers have one kind. Each tool's latencies
    are as it measured them, so the sentences say where two tools mean different things, and what
    the files tell against comparing them at all.

    Raises ResultError for a path that is neither, for a tool or version that is not known, where
    nothing is left, and for runs of unlike engines.
    """
    import pandas as pd

    if len(paths) < 2:
        raise ResultError("a comparison needs two results: run folders, or files of other tools")
    sides = [_side(Path(path), arm, cache_state) for path in paths]
    _check_engines(sides)
    sides = _distinct(sides)
    requests = pd.concat([side.requests for side in sides], ignore_index=True)
    marks = [side.requests.attrs for side in sides]
    failed = [name for mark in marks for name in mark.get("failed_gates", ())]
    requests.attrs = {
        "simulated": any(mark.get("simulated") for mark in marks),
        "failed_gates": list(dict.fromkeys(failed)),
    }
    found = pd.concat([side.percentiles for side in sides], ignore_index=True)
    parts = {
        str(side.requests["arm"].iloc[0]): (mark["kept"], mark["total"])
        for side, mark in zip(sides, marks, strict=True)
        if side.tool and mark["kept"] < mark["total"]
    }
    sentences = (
        *_parts_told(parts),
        *_spoilt(sides),
        *_medians(found, parts, sides),
        *(told for side in sides if side.tool for told in _told_by_file(side.requests)),
        *_unlike(sides),
        *_meanings(side.tool for side in sides if side.tool),
    )
    return SideBySide(requests=requests, percentiles=found, sentences=sentences, parts=parts)


def _side(path: Path, arm: str, cache_state: str) -> _Side:
    theirs = any((path / name).is_file() for name in KNOWN_FILES)
    if not path.is_dir() or (theirs and not (path / "result.json").exists()):
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
    passes = set(requests["pass"])
    requests.attrs["failed_gates"] = touching(requests.attrs["failed_gates"], passes)
    found.attrs = requests.attrs
    found = without_struck(found)
    return _Side(
        tool="", label=path.name, requests=requests, percentiles=found, engine=result.run.engine
    )


def _check_engines(sides: Sequence[_Side]) -> None:
    """Refuse runs in two number formats, or of tiny models of two sizes."""
    told = [side for side in sides if side.engine.dtype]
    for side in told[1:]:
        one, other = told[0].engine, side.engine
        for noun, ours, theirs in (
            ("dtype", one.dtype, other.dtype),
            ("layers of the model", one.layers, other.layers),
        ):
            if ours != theirs:
                raise ResultError(
                    f"{told[0].label} and {side.label} differ in {noun} ({ours} and {theirs}):"
                    " their times and KV bytes cannot be compared. Measure both on one machine,"
                    " or with the same dtype, e.g. -p dtype float32"
                )


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
        renamed.append(replace(side, requests=frames[0], percentiles=frames[1]))
    return renamed


def _failed(side: _Side) -> list[str]:
    return list(side.requests.attrs.get("failed_gates", ()))


def _spoilt(sides: Sequence[_Side]) -> Iterable[str]:
    """What takes away from the runs: pretended servers, and gates that failed."""
    for side in sides:
        if side.requests.attrs.get("simulated"):
            yield f"{side.label}: simulated; its times are made up and measure nothing."
        for name in _failed(side):
            if taken := taken_away(name):
                yield f"{side.label}: gate “{name}” failed; {taken}."


def _medians(
    found: pd.DataFrame, parts: Mapping[str, tuple[int, int]], sides: Sequence[_Side]
) -> Iterable[str]:
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
            both = f"{name}: {_median(first, parts)} beside {_median(row, parts)}"
            does = _worse(*(spoil(gates[r["arm"]], "times", passes={r["pass"]})
                            for r in (first, row)))  # fmt: skip
            if does.struck:
                yield f"{name} of {row['arm']}, {row['pass']}, is not compared ({does.said})."
                continue
            if does.effect:
                both = f"{both} ({does.said})"
            if isnan(row["value_s"]) or isnan(first["value_s"]):
                yield f"{both}; nothing to compare."
            elif isnan(row["low_s"]) or isnan(first["low_s"]):
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


def _median(row: dict[Hashable, Any], parts: Mapping[str, tuple[int, int]]) -> str:
    who = f"{row['arm']}, {row['pass']}"
    if row["arm"] in parts:
        kept, total = parts[row["arm"]]
        who += f" ({kept:,} of {total:,} requests)"
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
    if any(side.tool for side in sides):
        yield (
            "Files of load generators do not name the machine, the server or its cache state;"
            " verify that these match."
        )


def _parts_told(parts: Mapping[str, tuple[int, int]]) -> Iterable[str]:
    """Which arms are drawn and computed from a part of their requests."""
    for arm, (kept, total) in parts.items():
        yield f"{arm}: {kept:,} of {total:,} requests are in the file."


def _told_by_file(requests: pd.DataFrame) -> Iterable[str]:
    """What a tool's file says of itself: what it lacks, and what it tells beside requests."""
    arm, marks = str(requests["arm"].iloc[0]), requests.attrs
    version = f" ({marks['version']})" if marks["version"] else ""
    for doubt in marks["doubts"]:
        yield f"{arm}{version}: {doubt}"
    if marks["own"] and marks["kept"] < marks["total"]:
        own = ", ".join(f"{name} {_ms(value)} ms" for name, value in marks["own"].items())
        yield f"{arm}, the tool's own summary of its whole run: {own}."
    yield from _server_times(arm, requests)


def _server_times(arm: str, requests: pd.DataFrame) -> Iterable[str]:
    """The server's own queue and first token beside the client's TTFT, where a file has them."""
    told = requests[(requests["engine_metrics"] != "") & requests["ttft_s"].notna()]
    if told.empty:
        return
    server = told["engine_metrics"].map(json.loads)
    queue_s, first_s = (
        server.map(lambda found, name=name: found.get(name, nan)) / 1000
        for name in ("queue_time_ms", "time_to_first_token_ms")
    )
    outside_s = told["ttft_s"] - queue_s - first_s
    queue, first, rest = (
        "not known" if isnan(value) else f"{_ms(value)} ms"
        for value in (queue_s.median(), first_s.median(), outside_s.median())
    )
    yield (
        f"{arm}, medians of {len(told):,} by the server's own times: queue {queue}, from scheduling"
        f" to the first token {first}; TTFT outside the engine {rest}."
    )


def _meanings(tools: Iterable[str]) -> Iterable[str]:
    """What each tool means by the names, where it is not what the workbench means."""
    for tool in dict.fromkeys(tools):
        version = VERSIONS[_CARD[tool]] if tool in _CARD else _OTHERS[tool]["version"]
        for metric in ("TTFT", "E2E"):
            theirs = _OTHERS.get(tool, {}).get(metric)
            if theirs is None:
                theirs = definition_of(metric, _CARD[tool]).formula
            ours = definition_of(metric, "workbench").formula
            yield f"{metric} of {tool} (read at {version}): {theirs}; of the workbench: {ours}."
        yield (
            f"TPOT of {tool} is (last - first token) / (output tokens - 1) here: its file does not"
            " tell the tokens of the first chunk."
        )
