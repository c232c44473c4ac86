"""What pools and quantised KV measured: gains, true ratios of bytes, errors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench.claims.conditions import by_construction, curve, known, proven, times, where
from workbench.claims.decision import difference
from workbench.claims.intervals import counted, mean_of_runs, noise_floor, of_runs, points, ratios
from workbench.claims.kernels import allocation
from workbench.claims.recipe import Outcome
from workbench.claims.verdict import Measurement

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

    from workbench.claims.decision import Interval
    from workbench.claims.recipe import Setting
    from workbench.claims.rows import Rows

__all__ = ["of_allocation", "of_quantisation"]

_RATIOS = frozenset({"INT8 ratio", "FP8 ratio", "INT4 ratio"})


def of_allocation(rows: Rows, setting: Setting) -> Outcome:
    """What a pool gains, and what is left of it once the blocks are filled."""
    table = rows.table
    take, fill = (
        ratios(table, quantity, over=allocation.FRESH, under=allocation.POOL)
        for quantity in ("take", "take and fill")
    )
    gains = [_gain(table, quantity) for quantity in ("take and fill", "take")]
    left = (gains[0] / gains[1]).dropna(how="all")
    kept = tuple(mean_of_runs(row.to_numpy(float), cells=len(left)) for _, row in left.iterrows())
    floor = noise_floor(table, "take", one=allocation.FRESH, other=allocation.AGAIN)
    x = {cell: float(cell.split()[0]) for cell in take}
    return Outcome(
        measurements={
            "OWN-POOL": Measurement(
                effects={"take": tuple(take.values()), "gain left after filling": kept},
                noise_floor=floor,
            ),
            "S003-POOL": Measurement(
                effects={"allocation speed-up": tuple(take.values())}, noise_floor=floor
            ),
        },
        table=table,
        says=f"Time to take {allocation.BLOCKS} fresh blocks over that from a pool, alone and with"
        f" KV written into them, {where(rows, setting)}; equal arms differ by {difference(floor)}.",
        checks=proven(rows) | by_construction("same_metric_definition")
        | {"aa_noise_floor": known(floor)},
        curves=(
            curve(
                "Fresh blocks over blocks from a pool", "KiB a block", "times as long as pooled",
                [*points("take", take, x), *points("take and fill", fill, x)],
            ),
        ),
        doubts=rows.doubts,
    )  # fmt: skip


def _gain(table: pd.DataFrame, quantity: str) -> pd.DataFrame:
    """Fresh over pooled, for each cell and run."""
    return of_runs(table, quantity, allocation.FRESH) / of_runs(table, quantity, allocation.POOL)


def of_quantisation(rows: Rows, setting: Setting) -> Outcome:
    """True ratios of bytes, and the error of each format."""
    table = rows.table
    bytes_ = {
        name: counted(of_runs(table, "ratio", name).to_numpy(float).ravel().tolist())
        for name in ("int8", "fp8", "int4")
    }
    # Layers of one prompt are not independent: a run's error is the mean over its layers.
    errors = {
        name: mean_of_runs(of_runs(table, "error", name).mean().to_numpy(float))
        for name in ("bf16", *bytes_)
    }
    layers = table[table["quantity"] == "error"].assign(cell="all layers")
    whole = layers.groupby(["quantity", "arm", "cell", "run"])["value"].mean().reset_index()
    order = {
        f"{over.upper()} over {under.upper()}": tuple(
            ratios(whole, "error", over=over, under=under).values()
        )
        for over, under in (("fp8", "int8"), ("int4", "fp8"))
    }
    percent = {name: times(error, 100) for name, error in errors.items()}
    return Outcome(
        measurements={
            "OWN-KV-BYTES": Measurement(
                effects={f"{name.upper()} ratio": (ratio,) for name, ratio in bytes_.items()},
                counted=_RATIOS, built_in=_RATIOS, tolerance=0.005,
            ),
            "OWN-KV-ERROR": Measurement(effects=order),
            "LLMIR-QUANT": _published(bytes_, errors),
            "S003-QUANT": _published(bytes_, percent),
        },
        table=table,
        says="Bytes of KV with scales, 128 wide, beside bf16; and the attention output of the"
        f" model's own queries, keys and values beside float64, {where(rows, setting)}: off by"
        f" {errors['bf16'].estimate:.2%} of its norm as bf16, {errors['int8'].estimate:.2%} as"
        f" INT8, {errors['fp8'].estimate:.2%} as FP8, {errors['int4'].estimate:.2%} as INT4.",
        # The quality measure is the error beside float64, and it has an interval or it has not.
        checks=proven(rows) | by_construction("one_factor_changed") | {
            "output_quality_checked": known(*(error.low for error in errors.values())),
        },
        curves=(
            curve(
                "Error of the attention output", "format", "% of the output's norm",
                points("all layers", percent, {name: name for name in percent}),
            ),
        ),
        doubts=rows.doubts,
    )  # fmt: skip


def _published(bytes_: Mapping[str, Interval], loss: Mapping[str, Interval]) -> Measurement:
    """As those sources count: beside FP32, which doubles every ratio."""
    effects = {f"{name.upper()} ratio": (times(bytes_[name], 2),) for name in ("int8", "int4")}
    effects |= {f"{name.upper()} loss": (loss[name],) for name in ("int8", "int4")}
    return Measurement(effects=effects, counted=frozenset({"INT8 ratio", "INT4 ratio"}))
