"""The tables of a result, each made of its records or rows."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import fields
from math import isnan, nan
from typing import TYPE_CHECKING, Any

from workbench.experiment.load_unit import USERS
from workbench.experiment.result.facts import ArmFacts, RunFacts
from workbench.experiment.result.finding_rows import (
    ClockRow,
    Comparison,
    LinkRow,
    LoadRow,
    SizeRow,
    SummaryRow,
)
from workbench.experiment.result.waterfall_diff import milliseconds
from workbench.metrics.gates.gate import Gate
from workbench.metrics.gates.gate_effects import Spoil, spoil
from workbench.metrics.gates.gate_table import Kind, failed_name
from workbench.metrics.latency import system_tps
from workbench.metrics.statistics import t_interval, three_digits
from workbench.metrics.waterfall.waterfall import PARTS, summarise

if TYPE_CHECKING:
    import pandas as pd
    from pandas.io.formats.style import Styler


def frame_of(kind: type, rows: Iterable[Any]) -> pd.DataFrame:
    """Records of one kind as a frame that has their columns, also without a row."""
    import pandas as pd

    names = [field.name for field in fields(kind)]
    table = [[getattr(row, name) for name in names] for row in rows]
    columns = ["pass" if name == "pass_name" else name for name in names]
    return pd.DataFrame(table, columns=columns)


def summary_frame(rows: Sequence[SummaryRow]) -> pd.DataFrame:
    """Medians with the ends of their intervals, a row each."""
    frame = frame_of(SummaryRow, rows)
    found = [row.estimate for row in rows]
    return frame.drop(columns="estimate").assign(
        median=[estimate.value for estimate in found],
        low=[estimate.low for estimate in found],
        high=[estimate.high for estimate in found],
        note=[estimate.note for estimate in found],
    )


def size_frame(rows: Sequence[SizeRow]) -> pd.DataFrame:
    """Working sets with the ratio of TTFT without and with host memory, a row each."""
    frame = frame_of(SizeRow, rows)
    ratios = [row.ratio for row in rows]
    return frame.assign(
        ratio=[ratio.value for ratio in ratios],
        low=[ratio.low for ratio in ratios],
        high=[ratio.high for ratio in ratios],
        verdict=[ratio.verdict for ratio in ratios],
    )


def link_frame(rows: Sequence[LinkRow]) -> pd.DataFrame:
    """The measured links and their results, a row per run, arm, baseline and metric."""
    frame = frame_of(LinkRow, rows)
    for name in ("transfer", "value", "baseline", "ratio"):
        found = frame.pop(name)
        frame[name] = [one.value for one in found]
        frame[f"{name}_low"] = [one.low for one in found]
        frame[f"{name}_high"] = [one.high for one in found]
    return frame.assign(n_rounds=[row.ratio.rounds for row in rows])


def link_table(rows: Sequence[LinkRow]) -> pd.DataFrame:
    """The measured transfer of each run, and the time that its bytes need at the link rate."""
    import pandas as pd

    found = {}
    for row in rows:
        needed_s = 8e-9 * row.kv_bytes / row.gbit_s
        found[row.run_id, row.arm] = {
            "run": row.run_id,
            "arm": row.arm,
            "link, Gbit/s": f"{three_digits(row.gbit_s)}"
            f" [{three_digits(row.gbit_low)}, {three_digits(row.gbit_high)}]",
            "KV per request, MB": three_digits(1e-6 * row.kv_bytes),
            "bytes / rate, ms": three_digits(1000 * needed_s),
            PARTS["transfer_queue_s"] + ", ms": milliseconds(row.transfer.value),
        }
    return pd.DataFrame([*found.values()])


def clock_table(rows: Sequence[ClockRow]) -> pd.DataFrame:
    """The largest differences of each host's clock from ours over all passes."""
    import pandas as pd

    found = []
    for host in dict.fromkeys(row.host for row in rows):
        mine = [row for row in rows if row.host == host]
        widest = max(mine, key=lambda row: row.bound_s)
        apart = max(mine, key=lambda row: abs(row.rate - 1))
        found.append(
            {
                "host": host,
                "time of day, ms ahead of ours": f"{1000 * widest.wall_offset_s:+,.2f}",
                "error at most, ms": three_digits(1000 * widest.bound_s),
                "faster than ours, ppm": f"{1e6 * (apart.rate - 1):+,.0f}",
                "error at most, ppm": f"{1e6 * apart.rate_bound:,.0f}",
                "corrected": f"{sum(row.factor != 1 for row in mine)} of {len(mine)} passes",
            }
        )
    return pd.DataFrame(found)


def comparison_frame(rows: Sequence[Comparison]) -> pd.DataFrame:
    """Ratios with the ends of their intervals, a row each."""
    frame = frame_of(Comparison, rows)
    ratios = [row.ratio for row in rows]
    return frame.assign(
        ratio=[ratio.value for ratio in ratios],
        low=[ratio.low for ratio in ratios],
        high=[ratio.high for ratio in ratios],
        n_rounds=[ratio.rounds for ratio in ratios],
        n_pairs=[ratio.pairs for ratio in ratios],
        note=[ratio.note for ratio in ratios],
        sentence=frame.pop("sentence"),
    )


def model_table(
    rows: Sequence[Comparison], arms: Sequence[ArmFacts], struck: Collection[str]
) -> pd.DataFrame:
    """TTFT speed-ups of several models side by side, a row per comparison and a column per model.

    Cells are `4.60x [4.10, 5.16]`, and `not valid` for `struck` arms; empty for one model.
    """
    import pandas as pd

    of_arm = {arm.label: arm.short_model for arm in arms}
    table: dict[tuple[str, ...], dict[str, str]] = {}
    for row in rows:
        if row.metric != "ttft_s" or not (model := of_arm.get(row.arm, "")):
            continue
        sides = (row.arm, row.pass_name, row.baseline_arm, row.baseline_pass)
        key = tuple(side.removeprefix(f"{model} ") for side in sides)
        ends = f" [{three_digits(row.ratio.low)}, {three_digits(row.ratio.high)}]"
        text = f"{three_digits(row.ratio.value)}x{ends * (not isnan(row.ratio.low))}"
        valid = "-" if isnan(row.ratio.value) else text
        table.setdefault(key, {})[model] = "not valid" if {*row.arms} & {*struck} else valid
    models = [*dict.fromkeys(filter(None, of_arm.values()))]
    return pd.DataFrame(
        [
            {
                "arm": f"{arm}, {state}",
                "baseline": f"{baseline}, {other}" if baseline != arm else other,
                **{model: cells.get(model, "") for model in models},
            }
            for (arm, state, baseline, other), cells in table.items()
        ]
    )


def connector_frame(run: RunFacts, requests: pd.DataFrame) -> pd.DataFrame:
    """What a sweep over connectors compares; empty unless several serve the same topology.

    TTFT is the median over requests. Throughput, and the KV bytes that instances loaded through the
    connector per prompt token, are means over rounds.
    """
    import pandas as pd

    arms = {arm.label: arm for arm in run.arms}
    subjects = [(a.short_model, a.topology) for a in run.arms if a.role == "subject"]
    if run.rates or len(subjects) == len({*subjects}):
        return pd.DataFrame()
    of_model = {row.model: row.kv_bytes_per_token for row in run.models}
    bytes_each = {
        arm.label: of_model.get(arm.short_model, run.engine.kv_bytes_per_token) or nan
        for arm in run.arms
    }
    loaded: dict[tuple[str, str, int], float] = {}
    for tokens in run.token_sources:
        key = tokens.arm, tokens.pass_name, tokens.round
        share = tokens.external_hit / tokens.sent if tokens.sent else nan
        loaded[key] = loaded.get(key, 0.0) + share * bytes_each[tokens.arm]
    found = []
    for row in run.summary:
        if row.metric not in ("ttft_s", "system_tps"):
            continue
        sample = {"n_requests": row.n_requests, "n_rounds": row.n_rounds}
        same = requests[requests["arm"].eq(row.arm) & requests["pass"].eq(row.pass_name)]
        rates = [system_tps(part) for _, part in same.groupby("round")]
        moved = [v for key, v in loaded.items() if key[:2] == (row.arm, row.pass_name)]
        measured = {
            "ttft_s": (row.estimate.value, row.estimate.low, row.estimate.high),
            "system_tps": t_interval(rates),
            "kv_bytes_per_token": t_interval(moved),
        }
        for metric in [row.metric, *(["kv_bytes_per_token"] if row.metric == "ttft_s" else [])]:
            value, low, high = measured[metric]
            found.append(
                {"arm": row.arm, "topology": row.topology, "connector": row.connector,
                 "role": arms[row.arm].role, "gpus": arms[row.arm].gpus, "pass": row.pass_name,
                 "metric": metric, "value": value, "low": low, "high": high, **sample}
            )  # fmt: skip
    return pd.DataFrame(found)


def median_table(rows: Sequence[SummaryRow], metrics: Sequence[str]) -> pd.DataFrame:
    """One row for each arm and pass, a column for each metric: `123 ms [110, 140]`."""
    import pandas as pd

    table: dict[tuple[Any, ...], dict[str, str]] = {}
    for row in rows:
        metric, found = row.metric.removesuffix("_s"), row.estimate
        factor, unit = (1.0, "tok/s") if metric.endswith("tps") else (1000.0, "ms")
        value, low, high = (
            three_digits(factor * each) for each in (found.value, found.low, found.high)
        )
        text = f"{value} {unit}" + ("" if isnan(found.low) else f" [{low}, {high}]")
        cells = table.setdefault((row.arm, row.pass_name, row.n_requests), {})
        cells.setdefault(metric, "not known" if isnan(found.value) else text)
    lines = [[*key, *(cells.get(m, nan) for m in metrics)] for key, cells in table.items()]
    return pd.DataFrame(lines, columns=["arm", "pass", "n_requests", *metrics])


_NAMES = {"ttft_s": "TTFT", "tpot_s": "TPOT", "e2e_s": "E2E", "icl_s": "ICL"}


def percentile_table(found: pd.DataFrame) -> pd.DataFrame:
    """The table of `metrics.percentiles` in milliseconds: `123 [110, 140]`, and n.

    A percentile of too few values is replaced by the number that it needs: `needs 36, has 24`.
    """
    import pandas as pd

    index = [*found.columns[: found.columns.get_loc("metric")], "metric", "n"]
    rows: dict[tuple[Any, ...], dict[str, str]] = {}
    for row in found.assign(metric=found["metric"].map(_NAMES) + ", ms").to_dict("records"):
        value, low, high = (
            three_digits(1000 * row[name]) for name in ("value_s", "low_s", "high_s")
        )
        cells = rows.setdefault(tuple(row[name] for name in index), {})
        bare = row["note"] or value  # a file of another tool may have no interval
        cells[f"p{100 * row['quantile']:g}"] = (
            bare if isnan(row["low_s"]) else f"{value} [{low}, {high}]"
        )
    return pd.DataFrame([dict(zip(index, key, strict=True)) | rows[key] for key in rows])


def no_p99(gates: Iterable[Gate]) -> str:
    """Why no p99 may be printed: `client did not keep up: ...`, or that this is undecided.

    Empty if it may be printed.
    """
    for gate in gates:
        if gate.name == "client kept up" and gate.outcome != "PASS":
            failed = gate.outcome == "FAIL"
            why = failed_name(gate.name) if failed else "client may not have kept up"
            return f"{why}: {gate.sentence}"
    return ""


def without_tails(found: pd.DataFrame) -> pd.DataFrame:
    """The percentiles without those that gates take away; their notes say so.

    Failed gates (`attrs["failed_gates"]`) take away p99 and single gaps of the passes that they
    touch. A client that may have fallen behind (`attrs["no_p99"]`) takes away p99.
    """
    far = found["quantile"] >= 0.99
    if why := found.attrs["no_p99"]:
        _withhold(found, far, why.partition(":")[0])
    for rows, does in _struck(found, "tails"):
        _withhold(found, rows & (far | found["metric"].eq("icl_s")), does.why)
    return found


def without_struck(found: pd.DataFrame) -> pd.DataFrame:
    """The percentiles without passes whose times a failed gate takes away; notes say so.

    For a table of plain text, which cannot strike anything out.
    """
    found = found.copy()
    for rows, does in _struck(found, "times"):
        _withhold(found, rows, does.why)
    return found


def _struck(found: pd.DataFrame, kind: Kind) -> Iterator[tuple[pd.Series[bool], Spoil]]:
    """The rows of each arm and pass whose numbers of this kind failed gates take away."""
    for arm, name in found[["arm", "pass"]].drop_duplicates().itertuples(index=False):
        does = spoil(found.attrs["failed_gates"], kind, passes={str(name)}, arms={str(arm)})
        if does.struck:
            yield found["arm"].eq(arm) & found["pass"].eq(name), does


def _withhold(found: pd.DataFrame, rows: pd.Series[bool], why: str) -> None:
    found.loc[rows, ["value_s", "low_s", "high_s"]] = nan
    found.loc[rows, "note"] = f"withheld: {why}"


def load_table(rows: Iterable[LoadRow], *, limited: bool) -> pd.DataFrame:
    """One row for each arm and load, with units and intervals in the cells.

    `limited` says that there were TTFT or TPOT limits.
    """
    import pandas as pd

    shown = []
    for row in rows:
        few = isnan(row.ttft_low_s) or isnan(row.ttft_high_s)
        middle, low, high = (
            three_digits(1000 * end_s) for end_s in (row.ttft_s, row.ttft_low_s, row.ttft_high_s)
        )
        cells = {"arm": row.arm}
        if row.unit == USERS:
            cells["users"] = f"{row.users:g}"
        else:
            cells["requested, req/s"] = f"{row.rate_per_s:g}"
            cells["offered, req/s"] = three_digits(row.offered_per_s)
        cells |= {
            "throughput, req/s": three_digits(row.achieved_per_s),
            "requests": f"{row.n_requests} in {row.n_rounds} round{'s' * (row.n_rounds != 1)}",
        }
        if limited:
            share, low_share, high_share = (
                f"{100 * each:.0f}" for each in (row.share, row.share_low, row.share_high)
            )
            cells |= {
                "within limits": f"{share} % [{low_share}, {high_share}]",
                "goodput, req/s": three_digits(row.goodput_per_s),
            }
        cells["TTFT p50, ms"] = middle if few else f"{middle} [{low}, {high}]"
        cells["TTFT p90, ms"] = three_digits(1000 * row.ttft_p90_s)
        cells["TPOT p50, ms"] = three_digits(1000 * row.tpot_s)
        shown.append(cells)
    return pd.DataFrame(shown)


def waterfall_table(waterfall: pd.DataFrame) -> pd.DataFrame:
    """Median of every part in milliseconds, a row per cache state and part, a column per arm.

    Cells are `28.8 [25.1, 32.4]`, without brackets if the sample is too small for an interval, and
    empty if an arm has no such pass. Parts that no arm of a pass has are left out.
    """
    import pandas as pd

    def cell(median_s: float, low_s: float, high_s: float) -> str:
        if isnan(median_s):
            return "not known"
        middle = milliseconds(median_s)
        # An arm without the part has exactly none of it.
        plain = isnan(low_s) or low_s == high_s == 0
        return middle if plain else f"{middle} [{milliseconds(low_s)}, {milliseconds(high_s)}]"

    medians = summarise(waterfall)
    names = {**PARTS, "residual_s": "untimed residual", "ttft_s": "TTFT"}
    medians["part of TTFT (median, ms)"] = medians["part"].map(names)
    medians["cell"] = list(map(cell, medians["median"], medians["low"], medians["high"]))
    wide = medians.pivot_table(
        index=["pass", "part of TTFT (median, ms)"],
        columns="arm",
        values="cell",
        aggfunc="first",
        sort=False,
    )
    wide = wide[(wide.fillna("0") != "0").any(axis=1)].fillna("")
    return pd.DataFrame(wide.reset_index()).rename_axis(columns=None)


def styled(table: pd.DataFrame) -> Styler:
    """The ledger for a page: the comparisons that do not match, unexplained ones in red."""
    import pandas as pd

    even = table["closes"] & table["expected"].eq(table["observed"])
    open_ = ~table["closes"]
    shown = table[~even]
    names = shown[["arm", "pass", "role"]].itertuples(index=False)
    where = [", ".join(name).removesuffix(", all") for name in names]
    shown = shown.drop(columns=["arm", "pass", "role", "closes"]).assign(
        **{"arm, pass, role": where}
    )
    numbers = ["expected", "observed"]
    shown = shown.rename(columns={"account": "comparison", "unexplained": "unexplained tokens"})
    shown = shown[["arm, pass, role", "comparison", *numbers, "causes", "unexplained tokens"]]

    colours = pd.DataFrame("", index=shown.index, columns=shown.columns)
    colours.loc[open_[shown.index]] = "color: #b3261e; font-weight: bold"
    return (
        shown.style.hide(axis="index")
        .apply(lambda _: colours, axis=None)
        .set_properties(subset=["comparison", "causes"], **{"text-align": "left"})
        .format(precision=0, thousands=",", na_rep="not known", escape="html")
        .set_caption(
            f"Prompt tokens over all rounds. {int(even.sum())} more comparisons match to the token"
            " and are not listed."
        )
    )
