"""Rows of a waterfall that tests of its table and of its differences share."""

import pandas as pd

from workbench.metrics.waterfall.waterfall import PARTS


def split(arm, name="cold", rounds=5, **parts_ms):
    """Two requests a round with those parts, and 1 ms of residual."""
    rows = []
    for number in range(rounds):
        for index in range(2):
            parts = dict.fromkeys(PARTS, 0.0) | {k: v / 1000 for k, v in parts_ms.items()}
            ttft_s = sum(parts.values()) + 0.001
            rows.append(
                {
                    "arm": arm,
                    "round": number,
                    "pass": name,
                    "index": index,
                    **parts,
                    "residual_s": 0.001,
                    "ttft_s": ttft_s,
                    "note": "",
                }
            )
    return pd.DataFrame(rows)
