from __future__ import annotations

import pandas as pd

from workbench.experiment.result.percentile_table import percentile_table


def row(metric: str, q: float, value_s: float, n: int, note: str = "") -> dict[str, object]:
    nan = float("nan")
    low_s, high_s = (nan, nan) if note else (0.9 * value_s, 1.1 * value_s)
    kind = {"arm": "1a", "pass": "cold", "metric": metric, "quantile": q, "value_s": value_s}
    return kind | {"low_s": low_s, "high_s": high_s, "n": n, "note": note}


def test_a_row_per_metric_in_milliseconds_and_no_percentile_of_too_few() -> None:
    found = pd.DataFrame(
        [
            row("ttft_s", 0.5, 0.02, 100),
            row("ttft_s", 0.99, 0.09, 100, "needs n >= 368"),
            row("icl_s", 0.5, 1.5, 9000),
            row("icl_s", 0.99, 2.0, 9000),
            row("tpot_s", 0.5, float("nan"), 0, "no values"),
            row("tpot_s", 0.99, float("nan"), 0, "no values"),
        ]
    )
    table = percentile_table(found)
    assert table.columns.tolist() == ["arm", "pass", "metric", "n", "p50", "p99"]
    assert table.to_numpy().tolist() == [
        ["1a", "cold", "TTFT, ms", 100, "20.0 [18.0, 22.0]", "needs n of 368"],
        ["1a", "cold", "ICL, ms", 9000, "1,500 [1,350, 1,650]", "2,000 [1,800, 2,200]"],
        ["1a", "cold", "TPOT, ms", 0, "no values", "no values"],
    ]
