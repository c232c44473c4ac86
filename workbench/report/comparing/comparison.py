"""Compare results: runs of the workbench, and result files of other load generators.

Arms and passes are compared with the same arm and pass, else with the same topology and pass.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import isnan, nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.errors import ResultError
from workbench.experiment.between.differences import (
    check_alike,
    differences,
    distinct_labels,
    first_line,
)
from workbench.experiment.between.unpaired import (
    Kind,
    Launches,
    compared,
    launches_of,
    pairs_of,
    selected,
    worst,
)
from workbench.experiment.result.facts import RunFacts
from workbench.experiment.result.result import load_result
from workbench.experiment.result.result_tables import percentile_table, without_struck
from workbench.metrics.gates.gate_effects import spoil, taken_away, touching
from workbench.metrics.gates.gate_table import failed_name
from workbench.metrics.peers.not_read import KNOWN_FILES
from workbench.metrics.peers.read_peer import read_peer
from workbench.metrics.percentiles import QUANTILES, percentiles
from workbench.metrics.statistics import three_digits
from workbench.report.comparing.run_pair import (
    RunPair,
    milliseconds,
    ratio_table,
    told_by_ratios,
)
from workbench.report.comparing.tool_notes import meanings, told_by_file
from workbench.report.figures import Chart, between_runs, latency_panels

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True, kw_only=True)
class _Side:
    """One result: its requests and percentiles, and where they come from."""

    tool: str
    """Empty for a run of the workbench."""
    label: str
    requests: pd.DataFrame
    percentiles: pd.DataFrame
    run: RunFacts | None = None
    launches: Launches | None = None
    """Of a run."""

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
    labels: tuple[str, ...]
    runs: tuple[RunPair, ...]
    """Each run of the workbench beside the first one; empty unless that is a run too."""

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
    def ratio_tables(self) -> list[pd.DataFrame]:
        """The ratios of each run as text: `1.05x [1.01, 1.09]`, and what they say."""
        return [ratio_table(pair) for pair in self.runs]

    @property
    def figure(self) -> Chart:
        """Distributions of TTFT, TPS, E2E and output length, one line per arm and pass."""
        return latency_panels(self.requests, note=" ".join(_parts_told(self.parts)))

    @property
    def ratio_figures(self) -> list[Chart]:
        """The ratios of each run with their intervals."""
        simulated = bool(self.requests.attrs.get("simulated"))
        return [
            between_runs(pair.ratios, pair.label, pair.baseline, simulated=simulated)
            for pair in self.runs
        ]


def compare_results(
    paths: Sequence[Path | str],
    *,
    arm: str = "",
    cache_state: str = "",
    unlike: Collection[str] = (),
) -> SideBySide:
    """Compare run folders and result files of other tools with the first of them.

    `arm` and `cache_state` select requests of the runs. Latencies are as each tool measured them;
    `sentences` name the definitions that differ and what limits the comparison.

    Raises ResultError for a path that is neither, for an unknown tool or version, if nothing is
    left to compare, and for runs with another machine, workload or model, unless `unlike` names it.
    """
    import pandas as pd

    if len(paths) < 2:
        raise ResultError(
            f"compare needs at least two results, got {len(paths)} (example: workbench compare"
            " outputs/pd_sweep/RUN bench.json)"
        )
    sides = _labelled([_side(Path(path), arm, cache_state) for path in paths])
    check_alike({side.label: side.run for side in sides if side.run}, unlike)
    pairs = tuple(_run_pairs(sides))
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
        *_settings(sides, pairs),
        *_parts_told(parts),
        *_spoilt(sides),
        *(told for pair in pairs for told in told_by_ratios(pair, several=len(pairs) > 1)),
        *_medians(found, parts, sides),
        *(told for side in sides if side.tool for told in told_by_file(side.arm, side.requests)),
        *_unlike(sides),
        *meanings(side.tool for side in sides if side.tool),
    )
    return SideBySide(
        requests=requests, percentiles=found, sentences=sentences, parts=parts,
        labels=tuple(side.label for side in sides), runs=pairs,
    )  # fmt: skip


def _side(path: Path, arm: str, cache_state: str) -> _Side:
    theirs = any((path / name).is_file() for name in KNOWN_FILES)
    if not path.is_dir() or (theirs and not (path / "result.json").exists()):
        peer = read_peer(path)
        tool = str(peer.attrs["tool"])
        found = _quantiles_told(peer) if peer.empty else percentiles(peer)
        return _Side(tool=tool, label=tool, requests=peer, percentiles=found)
    result = load_result(path)
    requests, found = selected(result, arm=arm, cache_state=cache_state), result.percentiles
    for column, wanted in (("arm", arm), ("pass", cache_state)):
        found = found[found[column] == wanted] if wanted else found
    passes, arms = set(requests["pass"]), set(requests["arm"])
    requests.attrs["failed_gates"] = touching(requests.attrs["failed_gates"], passes, arms)
    found.attrs = requests.attrs
    return _Side(
        tool="",
        label=path.name,
        requests=requests,
        percentiles=without_struck(found),
        run=result.run,
        launches=launches_of(result, arm=arm, cache_state=cache_state),
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


def _labelled(sides: Sequence[_Side]) -> list[_Side]:
    """The sides with distinct labels: repetitions in other folders have the same name."""
    labels = distinct_labels([side.label for side in sides])
    return [replace(side, label=label) for side, label in zip(sides, labels, strict=True)]


def _run_pairs(sides: Sequence[_Side]) -> Iterable[RunPair]:
    first, *others = sides
    for side in others:
        if not (first.run and first.launches and side.run and side.launches):
            continue
        found = differences(first.run, side.run)
        _, (ours, theirs) = pairs_of(side.launches, first.launches, any_topology=True)
        yield RunPair(
            label=side.label,
            baseline=first.label,
            settings=first_line(found),
            differences=found,
            rows=tuple(compared(side.launches, first.launches, any_topology=True)),
            alone=(
                *(f"{first.label}: {', '.join(kind)}" for kind in theirs),
                *(f"{side.label}: {', '.join(kind)}" for kind in ours),
            ),
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
        renamed.append(replace(side, requests=frames[0], percentiles=frames[1]))
    return renamed


def _failed(side: _Side) -> dict[str, tuple[str, ...]]:
    return touching(side.requests.attrs.get("failed_gates", {}))


def _settings(sides: Sequence[_Side], pairs: Sequence[RunPair]) -> Iterable[str]:
    """How many settings of each run differ from those of the first run."""
    if any(side.tool for side in sides):
        yield (
            "Settings cannot be compared, because files of other tools do not record the machine,"
            " the server or the cache state. Verify that these match."
        )
    for pair in pairs:
        said = f"{pair.settings[:1].upper()}{pair.settings[1:]}"
        yield f"{said}." if len(pairs) == 1 else f"{pair.label} vs {pair.baseline}: {said}."


def _spoilt(sides: Sequence[_Side]) -> Iterable[str]:
    """What limits the use of the runs: simulated, unfinished, or with gates that failed."""
    for side in sides:
        if side.requests.attrs.get("simulated"):
            yield f"{side.label} is simulated. Its times are not measurements."
        if side.run and side.run.status != "success":
            yield f"{side.label} did not finish: its result is partial."
        for name, arms in _failed(side).items():
            if taken := taken_away(name, arms):
                yield f"{side.label}: {failed_name(name)}; {taken}."


def _medians(
    found: pd.DataFrame, parts: Mapping[str, tuple[int, int]], sides: Sequence[_Side]
) -> Iterable[str]:
    """The medians of another tool's file and of each arm and pass that it is compared with.

    Gates that limit the times of a run limit these comparisons too.
    """
    gates = {arm: _failed(side) for side in sides for arm in side.percentiles["arm"].unique()}
    medians = {
        (row["metric"], row["arm"], row["pass"]): row
        for row in found[found["quantile"] == 0.5].to_dict("records")
    }
    some = {arm: f" ({n:,} of {total:,} requests)" for arm, (n, total) in parts.items()}
    first, *others = sides
    pairs = [
        pair
        for side in others
        if first.tool or side.tool
        for pair in product(*map(_kinds, (first, side)))
    ]
    for metric, name in (("ttft_s", "TTFT"), ("tpot_s", "TPOT"), ("e2e_s", "E2E")):
        for kinds in pairs:
            one, row = (medians[metric, *kind] for kind in kinds)
            who = [f"{r['arm']}, {r['pass']}{some.get(r['arm'], '')}" for r in (one, row)]
            same = {text.partition(": ")[2] for text in who}
            if len(same) == 1 and "" not in same:
                both = f"{name}, {same.pop()}: {_median(one)}, {_median(row)}"
            else:
                texts = (f"{text} {_median(r)}" for text, r in zip(who, (one, row), strict=True))
                both = f"{name}: {', '.join(texts)}"
            does = worst(
                *(
                    spoil(gates[r["arm"]], "times", passes={r["pass"]}, arms={r["arm"]})
                    for r in (one, row)
                )
            )
            if does.struck:
                yield f"{name} of {row['arm']}, {row['pass']}, is not compared ({does.said})."
                continue
            if does.effect:
                both = f"{both} ({does.said})"
            if isnan(row["value_s"]) or isnan(one["value_s"]):
                yield f"{both}. Not compared, because a median is unknown."
            elif isnan(row["low_s"]) or isnan(one["low_s"]):
                bare = any(side.requests.empty for side in sides)
                why = "Without single requests there is no" if bare else "Too few requests for a"
                yield f"{both}. {why} confidence interval."
            elif row["low_s"] > one["high_s"] or row["high_s"] < one["low_s"]:
                times = row["value_s"] / one["value_s"]
                word, size = ("slower", times) if times > 1 else ("faster", 1 / times)
                yield f"{both}. The second is {three_digits(size)}x {word}."
            else:
                yield f"{both}. No significant difference (the 95 % CIs overlap)."


def _kinds(side: _Side) -> list[Kind]:
    """The arms and passes of a side; a file of another tool names neither."""
    columns = zip(side.percentiles["arm"], side.percentiles["pass"], strict=True)
    return list(dict.fromkeys(columns))


def _median(row: dict[Hashable, Any]) -> str:
    if isnan(row["value_s"]):
        return "unknown"
    ends = (
        ""
        if isnan(row["low_s"])
        else f" [{milliseconds(row['low_s'])}, {milliseconds(row['high_s'])}]"
    )
    return f"{milliseconds(row['value_s'])} ms{ends}"


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
