"""Conversations whose histories have parted: their later answers cannot be held to one another."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench.load.workload.workload import Workload

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["with_same_history"]


def with_same_history(requests: pd.DataFrame, workload: Workload, reference: str) -> pd.DataFrame:
    """The rows whose prompts are those of the reference arm in the same round.

    A turn's prompt holds the cold answers to the turns before it. Where one of these differs from
    the reference's, at a tie of two tokens say, the later turns of that arm and round were asked
    something else, in every pass.
    """
    before = {r.index: r.after for r in workload.requests if r.after is not None}
    if not before or requests.empty:
        return requests
    cold = requests[requests["pass"] == "cold"].set_index(["arm", "round", "index"])["text"]
    texts = cold.to_dict()
    kept = []
    for arm, number, index in zip(
        requests["arm"], requests["round"], requests["index"], strict=True
    ):
        turn: int | None = before.get(index)
        while turn is not None and texts.get((arm, number, turn)) == texts.get(
            (reference, number, turn)
        ):
            turn = before.get(turn)
        kept.append(turn is None)
    return requests[kept]
