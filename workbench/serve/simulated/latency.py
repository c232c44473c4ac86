"""How long the pretend engine takes: a seeded model of a step and of a transfer.

The constants are round numbers in the size of a small model's; they measure nothing.
"""

from __future__ import annotations

import random
from collections.abc import Iterable

__all__ = ["SPEED", "Latency"]

SPEED = 10.0
"""How many times faster than its constants the pretend engine runs, so that tests are short."""

STEP_S = 0.010
TOKEN_S = 20e-6
PAIR_S = 8e-10
"""For each new token and each token that it attends to."""
NEIGHBOUR_S = 0.0005
"""What each further sequence of a batch adds."""
TRANSFER_S = 0.002
TRANSFER_BYTES_PER_S = 1e9
SPREAD = 0.03
"""Standard deviation of the logarithm."""


class Latency:
    """Seconds of steps and transfers; the same seed gives the same ones in the same order."""

    def __init__(self, *, seed: int, speed: float = SPEED) -> None:
        self._random = random.Random(seed)
        self.speed = speed

    def step_s(self, batch: Iterable[tuple[int, int]]) -> float:
        """One engine step over (tokens to compute, tokens before them) of each sequence."""
        seconds = STEP_S - NEIGHBOUR_S
        for new, before in batch:
            seconds += NEIGHBOUR_S + new * TOKEN_S + new * (before + new / 2) * PAIR_S
        return self._drawn(seconds)

    def transfer_s(self, moved_bytes: float) -> float:
        """Moving KV into the instance."""
        return self._drawn(TRANSFER_S + moved_bytes / TRANSFER_BYTES_PER_S)

    def _drawn(self, seconds: float) -> float:
        return seconds * self._random.lognormvariate(0.0, SPREAD) / self.speed
