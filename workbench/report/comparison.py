"""Compare results: runs of the workbench, and result files of other load generators.

Only like is compared with like: the same arm and pass, else the same topology and pass.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from math import isnan, nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.errors import ResultError
from workbench.experiment.result.facts import EngineFacts
from workbench.experiment.result.result import load_result
from workbench.experiment.result.result_tables import percentile_table, without_struck
from workbench.metrics.definitions import VERSIONS, definition_of
from workbench.metrics.gates.gate_effects import Spoil, spoil, taken_away, touching
from workbench.metrics.gates.gate_table import failed_name
from workbench.metrics.peers.not_read import KNOWN_FILES
from workbench.metrics.peers.read_peer import read_peer
from workbench.metrics.percentiles import QUANTILES, percentiles
from workbench.metrics.statistics import three_digits
from workbench.report.figures import Chart, latency_panels

if TYPE_CHECKING:
    import pandas as pd


_Kind = tuple[str, str]
"""An arm and a pass."""
_CARD = {"vLLM bench": "vllm_bench", "GuideLLM": "guidellm", "AIPerf": "aiperf"}
_OTHERS = {
    "GuideLLM": {
        "E2E": "from request start to the last token; the tool's own E2E ends with the stream",
    },
    "LMCache bench": {
        "version": "0.5.6",
        "TTFT": "from before the call to the first text (reasoning only if there is no content)",
        "E2E": "from before the call to the end of the stream",
    },
    "SGLang bench_serving": {
        "version": "00f9ec4",
        "TTFT": "from before the POST to the first chunk with text (in a chat, or reasoning)",
        "E2E": "TTFT plus all gaps; the tool's own E2E is not in its file",
    },
    "Benchmark Report": {
        "version": "0.2",
        "TTFT": "as the load generator that the file names defines it",
        "E2E": "likewise",
    },
    "multi-round-qa": {
        "version": "production-stack 0a330da",
        "TTFT": "from before the call to the first text (or reasoning, in later versions)",
        "E2E": "from before the call to the end of the stream",
    },
}
"""Definitions of tools that the definition card does not cover, and the version that was read:
lmcache/cli/commands/bench/engine_bench/request_sender.py, sglang/benchmark/serving.py,
benchmarks/multi-round-qa/multi-round-qa.py."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Side:
    """One result: its requests and percentiles, and where they come from."""

    tool: str
    """Empty for a run of the workbench."""
    label: str
    requests: pd.DataFrame
    percentiles: pd.DataFrame
    engine: EngineFacts = field(default_factory=EngineFacts)
    """Model and number format of a run; empty if the result does not say."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Parameters, machine and versions of a run."""
    arms: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Label and topology of each arm of a run, by its name in `requests`."""

    @property
    def arm(self) -> str:
        """The name of its first arm; a file of another tool has one."""
        return str(self.percentiles["arm"].iloc[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class SideBySide:
    """The comparison by `compare_results`; read `sentences` before the numbers."""

    requests: pd.DataFrame
    percentiles: pd.DataFrame
    sentences: tuple[str, ...]
    """First which settings differ, then what was found and why to doubt it."""
    parts: dict[str, tuple[int, int]]
    """Arms whose file holds only some of the requests: those in the file, and all."""

    @property
    def table(self) -> pd.DataFrame:
        """p50, p90 and p99 in milliseconds with 95 % intervals; each metric's rows together.

        The column `in the file` shows how many requests an incomplete file holds.
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
        """Distributions of TTFT, TPS, E2E and output length, one line per arm and pass."""
        return latency_panels(self.requests, note=" ".join(_parts_told(self.parts)))


def compare_results(
    paths: Sequence[Path | str], *, arm: str = "", cache_state: str = ""
) -> SideBySide:
    """Compare run folders and result files of other tools with the first of them.

    `arm` and `cache_state` select requests of the runs. Latencies are as each tool measured them;
    `sentences` name the definitions that differ and what speaks against the comparison.

    Raises ResultError for a path that is neither, for an unknown tool or version, if nothing is
    left to compare, and for runs with different engines.
    """
    import pandas as pd

    if len(paths) < 2:
        raise ResultError(
            f"compare needs at least two results, got {len(paths)} (example: workbench compare"
            " outputs/pd_sweep/RUN bench.json)"
        )
    sides = [_side(Path(path), arm, cache_state) for path in paths]
    _check_engines(sides)
    sides = _distinct(sides)
    requests = pd.concat([side.requests for side in sides], ignore_index=True)
    marks = [side.requests.attrs for side in sides]
    failed: dict[str, tuple[str, ...]] = {}
    for name, arms in (item for side in sides for item in _failed(side).items()):
        both = failed.get(name, arms)
        failed[name] = tuple(dict.fromkeys((*both, *arms))) if both and arms else ()
    requests.attrs = {
        "simulated": any(mark.get("simulated") for mark in marks),
        "failed_gates": failed,
    }
    found = pd.concat([side.percentiles for side in sides], ignore_index=True)
    parts = {
        side.arm: (mark["kept"], mark["total"])
        for side, mark in zip(sides, marks, strict=True)
        if side.tool and 0 < mark["kept"] < mark["total"]
    }
    sentences = (
        *_settings(sides),
        *_parts_told(parts),
        *_spoilt(sides),
        *_medians(found, parts, sides),
        *(told for side in sides if side.tool for told in _told_by_file(side)),
        *_unlike(sides),
        *_meanings(side.tool for side in sides if side.tool),
    )
    return SideBySide(requests=requests, percentiles=found, sentences=sentences, parts=parts)


def _side(path: Path, arm: str, cache_state: str) -> _Side:
    theirs = any((path / name).is_file() for name in KNOWN_FILES)
    if not path.is_dir() or (theirs and not (path / "result.json").exists()):
        peer = read_peer(path)
        tool = str(peer.attrs["tool"])
        found = _quantiles_told(peer) if peer.empty else percentiles(peer)
        return _Side(tool=tool, label=tool, requests=peer, percentiles=found)
    result = load_result(path)
    requests, found = result.requests, result.percentiles
    for column, wanted in (("arm", arm), ("pass", cache_state)):
        if wanted and wanted not in set(requests[column]):
            known = ", ".join(map(str, requests[column].unique()))
            raise ResultError(f"{column} must be one of {known} in {path}, got {wanted!r}")
        if wanted:
            marks = requests.attrs
            requests, found = (rows[rows[column] == wanted] for rows in (requests, found))
            requests.attrs = marks
    passes, arms = set(requests["pass"]), set(requests["arm"])
    requests.attrs["failed_gates"] = touching(requests.attrs["failed_gates"], passes, arms)
    found.attrs = requests.attrs
    found = without_struck(found)
    run = result.run
    topologies = {facts.label: facts.topology for facts in run.arms}
    return _Side(
        tool="",
        label=path.name,
        requests=requests,
        percentiles=found,
        engine=run.engine,
        settings={
            "notebook": run.notebook,
            **{name: value for name, value in run.parameters.items() if name != "output_dir"},
            **{name: run.machine.get(name) for name in ("cpu", "cores", "gpus")},
            **run.machine.get("versions", {}),
        },
        arms={name: (name, topologies.get(name, name)) for name in requests["arm"].unique()},
    )


def _quantiles_told(peer: pd.DataFrame) -> pd.DataFrame:
    """The percentiles that a file without single requests has, without intervals."""
    import pandas as pd

    told, tool, total = (peer.attrs[name] for name in ("quantiles", "tool", "total"))
    rows = []
    for metric, quantile in product(("ttft_s", "tpot_s", "e2e_s"), QUANTILES):
        value_s = told.get((metric, quantile), nan)
        note = "not in the file" if isnan(value_s) else ""
        rows.append([tool, "measured", metric, quantile, value_s, nan, nan, total, note])
    columns = ["arm", "pass", "metric", "quantile", "value_s", "low_s", "high_s", "n", "note"]
    return pd.DataFrame(rows, columns=columns)


def _check_engines(sides: Sequence[_Side]) -> None:
    """Refuse runs with different number formats or numbers of layers."""
    told = [side for side in sides if side.engine.dtype]
    for side in told[1:]:
        one, other = told[0].engine, side.engine
        for noun, ours, theirs in (
            ("dtype", one.dtype, other.dtype),
            ("layers of the model", one.layers, other.layers),
        ):
            if ours != theirs:
                raise ResultError(
                    f"{noun} must be the same in both runs, got {ours} in {told[0].label} and"
                    f" {theirs} in {side.label}. Measure both with the same model and dtype"
                    " (example: -p dtype float32)"
                )


def _distinct(sides: Sequence[_Side]) -> list[_Side]:
    """The sides with distinct arm names: numbered if two sides have the same name."""
    arms = [set(side.percentiles["arm"]) for side in sides]
    clash = any(a & b for i, a in enumerate(arms) for b in arms[i + 1 :])
    if not clash:
        return list(sides)
    renamed = []
    for number, side in enumerate(sides, start=1):
        frames = []
        for frame in (side.requests, side.percentiles):
            failed = {
                name: tuple(f"{number}: {arm}" for arm in own)
                for name, own in _failed(side).items()
            }
            marks = frame.attrs | ({"failed_gates": failed} if failed else {})
            frames.append(frame.assign(arm=[f"{number}: {name}" for name in frame["arm"]]))
            frames[-1].attrs = marks
        named = {f"{number}: {name}": arm for name, arm in side.arms.items()}
        renamed.append(replace(side, requests=frames[0], percentiles=frames[1], arms=named))
    return renamed


def _failed(side: _Side) -> dict[str, tuple[str, ...]]:
    return touching(side.requests.attrs.get("failed_gates", {}))


def _settings(sides: Sequence[_Side]) -> Iterable[str]:
    """How many settings of each run differ from those of the first run."""
    if any(side.tool for side in sides):
        yield (
            "Settings cannot be compared, because files of other tools do not record the machine,"
            " the server or the cache state. Verify that these match."
        )
    runs = [side for side in sides if not side.tool]
    for side in runs[1:]:
        one, other = runs[0].settings, side.settings
        differ = [name for name in one if name in other and one[name] != other[name]]
        where = f" between {runs[0].label} and {side.label}" if len(runs) > 2 else ""
        if not differ:
            yield f"No setting differs{where}."
        elif len(differ) == 1:
            (name,) = differ
            yield f"1 setting differs{where}: {name} ({one[name]!s:.60} and {other[name]!s:.60})."
        else:
            names = ", ".join(differ[:6]) + f" and {len(differ) - 6} more" * (len(differ) > 6)
            yield f"{len(differ)} settings differ{where}, so no cause can be named: {names}."


def _spoilt(sides: Sequence[_Side]) -> Iterable[str]:
    """What limits the use of the runs: simulated servers, and gates that failed."""
    for side in sides:
        if side.requests.attrs.get("simulated"):
            yield f"{side.label} is simulated. Its times are not measurements."
        for name, arms in _failed(side).items():
            if taken := taken_away(name, arms):
                yield f"{side.label}: {failed_name(name)}; {taken}."


def _pairs(sides: Sequence[_Side]) -> tuple[list[tuple[_Kind, _Kind]], list[str]]:
    """Each (arm, pass) of the later sides with its like in the first, and what has none.

    Like is the same arm and pass, else the only ones left with the same topology and pass. A file
    of another tool names neither, so it is paired with everything.
    """
    first, pairs, alone = sides[0], list[tuple[_Kind, _Kind]](), list[str]()
    for side in sides[1:]:
        ours, theirs = (
            list(dict.fromkeys(zip(each.percentiles["arm"], each.percentiles["pass"], strict=True)))
            for each in (first, side)
        )
        if first.tool or side.tool:
            pairs += product(ours, theirs)
            continue
        for name in (0, 1):  # the arm's label, then its topology
            like = [
                (one, other)
                for one, other in product(ours, theirs)
                if one[1] == other[1] and first.arms[one[0]][name] == side.arms[other[0]][name]
            ]
            once = Counter(kind for pair in like for kind in set(pair))
            found = [pair for pair in like if once[pair[0]] == once[pair[1]] == 1]
            pairs += found
            ours, theirs = (
                [kind for kind in kinds if kind not in {pair[n] for pair in found}]
                for n, kinds in enumerate((ours, theirs))
            )
        alone += map(", ".join, (*ours, *theirs))
    more = f" and {len(alone) - 4} more" * (len(alone) > 4)
    told = f"In one run only, so not compared: {'; '.join(alone[:4])}{more}."
    return pairs, [told] if alone else []


def _medians(
    found: pd.DataFrame, parts: Mapping[str, tuple[int, int]], sides: Sequence[_Side]
) -> Iterable[str]:
    """The medians of each pair of like requests.

    Runs of different files did not alternate, so gates that limit their times limit these
    comparisons too.
    """
    gates = {arm: _failed(side) for side in sides for arm in side.percentiles["arm"].unique()}
    medians = {
        (row["metric"], row["arm"], row["pass"]): row
        for row in found[found["quantile"] == 0.5].to_dict("records")
    }
    some = {arm: f" ({n:,} of {total:,} requests)" for arm, (n, total) in parts.items()}
    pairs, alone = _pairs(sides)
    yield from alone
    for metric, name in (("ttft_s", "TTFT"), ("tpot_s", "TPOT"), ("e2e_s", "E2E")):
        for kinds in pairs:
            first, row = (medians[metric, *kind] for kind in kinds)
            who = [f"{r['arm']}, {r['pass']}{some.get(r['arm'], '')}" for r in (first, row)]
            same = {text.partition(": ")[2] for text in who}
            if len(same) == 1 and "" not in same:
                both = f"{name}, {same.pop()}: {_median(first)}, {_median(row)}"
            else:
                texts = (f"{text} {_median(r)}" for text, r in zip(who, (first, row), strict=True))
                both = f"{name}: {', '.join(texts)}"
            does = _worse(
                *(
                    spoil(gates[r["arm"]], "times", passes={r["pass"]}, arms={r["arm"]})
                    for r in (first, row)
                )
            )
            if does.struck:
                yield f"{name} of {row['arm']}, {row['pass']}, is not compared ({does.said})."
                continue
            if does.effect:
                both = f"{both} ({does.said})"
            if isnan(row["value_s"]) or isnan(first["value_s"]):
                yield f"{both}. Not compared, because a median is unknown."
            elif isnan(row["low_s"]) or isnan(first["low_s"]):
                bare = {side.arm for side in sides if side.requests.empty}
                why = "Without single requests there is no" if bare else "Too few requests for a"
                yield f"{both}. {why} confidence interval."
            elif row["low_s"] > first["high_s"] or row["high_s"] < first["low_s"]:
                times = row["value_s"] / first["value_s"]
                word, size = ("slower", times) if times > 1 else ("faster", 1 / times)
                yield f"{both}. The second is {three_digits(size)}x {word}."
            else:
                yield f"{both}. No significant difference (the 95 % CIs overlap)."


def _worse(one: Spoil, other: Spoil) -> Spoil:
    """The stronger of two effects of gates."""
    order = ("struck", "rough", "doubt", "")
    return min(one, other, key=lambda does: order.index(does.effect))


def _median(row: dict[Hashable, Any]) -> str:
    if isnan(row["value_s"]):
        return "unknown"
    ends = "" if isnan(row["low_s"]) else f" [{_ms(row['low_s'])}, {_ms(row['high_s'])}]"
    return f"{_ms(row['value_s'])} ms{ends}"


def _ms(seconds: float) -> str:
    return three_digits(1000 * seconds)


def _unlike(sides: Sequence[_Side]) -> Iterable[str]:
    """Differences of the requests that speak against comparing the sides."""
    first = sides[0]
    for side in sides[1:]:
        for column, noun in (("prompt_tokens", "prompt"), ("output_tokens", "output")):
            ours, theirs = (
                frame.requests.loc[frame.requests[column] > 0, column].median()
                for frame in (first, side)
            )
            if ours != theirs and not (isnan(ours) or isnan(theirs)):
                yield (
                    f"Different workload: the median {noun} has {ours:,.0f} tokens in"
                    f" {first.label} and {theirs:,.0f} in {side.label}."
                )


def _parts_told(parts: Mapping[str, tuple[int, int]]) -> Iterable[str]:
    """Arms whose file holds only some of the requests."""
    for arm, (kept, total) in parts.items():
        yield f"{arm}: the file holds {kept:,} of {total:,} requests."


def _told_by_file(side: _Side) -> Iterable[str]:
    """What a tool's file lacks, and what it holds in addition to requests."""
    arm, marks = side.arm, side.requests.attrs
    version = f" ({marks['version']})" if marks["version"] else ""
    for doubt in marks["doubts"]:
        yield f"{arm}{version}: {doubt}"
    if marks["own"] and marks["kept"] < marks["total"]:
        own = ", ".join(f"{name} {_ms(value)} ms" for name, value in marks["own"].items())
        yield f"{arm}, the tool's own summary of all requests: {own}."
    yield from _server_times(arm, side.requests)


def _server_times(arm: str, requests: pd.DataFrame) -> Iterable[str]:
    """The server's own queue time and first token, if a file has them."""
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
        "unknown" if isnan(value) else f"{_ms(value)} ms"
        for value in (queue_s.median(), first_s.median(), outside_s.median())
    )
    yield (
        f"{arm}, medians of the server's own times of {len(told):,} requests: queue {queue},"
        f" scheduling to first token {first}, TTFT outside the engine {rest}."
    )


def _meanings(tools: Iterable[str]) -> Iterable[str]:
    """How each tool defines the metrics."""
    for tool in dict.fromkeys(tools):
        version = VERSIONS[_CARD[tool]] if tool in _CARD else _OTHERS[tool]["version"]
        for metric in ("TTFT", "E2E"):
            theirs = _OTHERS.get(tool, {}).get(metric)
            if theirs is None:
                theirs = definition_of(metric, _CARD[tool]).formula
            ours = definition_of(metric, "workbench").formula
            yield f"{metric} in {tool} ({version}): {theirs}. In the workbench: {ours}."
        if tool == "Benchmark Report":
            continue  # its TPOT is the tool's own
        yield (
            f"TPOT of {tool} is computed as (last - first token) / (output tokens - 1), because its"
            " file does not give the tokens of the first chunk."
        )
