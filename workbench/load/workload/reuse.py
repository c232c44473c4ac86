"""Lengths of prompts, and how much of each is shared, so that a list meets the reuse that is asked.

The ideal reuse of what comes out is within 1 % of the target, or a ParameterError says what it
takes: the first prompt of a list reuses nothing.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from math import ceil

import numpy as np

from workbench.errors import ParameterError
from workbench.load.workload.token_ids import SALT_TOKENS

_TOLERANCE = 0.01
"""The list's ideal reuse is within this share of the target."""


def drawn_lengths(
    requests: int, groups: int, prompt_tokens: int, shortest: float, seed: int
) -> list[int]:
    """Lengths drawn between a share of `prompt_tokens` and all of it; a group's first has all."""
    low = ceil(shortest * prompt_tokens)
    drawn = np.random.default_rng((seed, 3)).integers(low, prompt_tokens + 1, requests)
    drawn[:groups] = prompt_tokens
    return [int(length) for length in drawn]


def shared_tokens(lengths: Sequence[int], groups: int, reuse: float) -> list[int]:
    """How many tokens each prompt shares with its group's first: a like share of each length."""
    longest = lengths[0]

    def shared(level: int) -> list[int]:
        return [min(length - 1, max(SALT_TOKENS, level * length // longest)) for length in lengths]

    def share(level: int) -> float:
        return sum(shared(level)[groups:]) / sum(lengths)

    mean = sum(lengths) / len(lengths)
    firsts = groups * longest / mean
    return shared(reached_level(reuse, share, SALT_TOKENS, longest, len(lengths), firsts))


def turn_lengths(
    requests: int, conversations: int, prompt_tokens: int, output_tokens: int, reuse: float
) -> list[int]:
    """Prompt lengths of turns that grow evenly, the last turn's being `prompt_tokens`."""
    turns = ceil(requests / conversations)
    if turns < 2:
        raise ParameterError(
            f"requests is {requests} and conversations {conversations}: a conversation has at"
            f" least 2 turns, so ask for {2 * conversations} requests or more"
        )
    longest_first = prompt_tokens - (turns - 1) * (output_tokens + 1)
    if longest_first <= SALT_TOKENS:
        raise ParameterError(
            f"prompt_tokens is {prompt_tokens}: {turns} turns with answers of {output_tokens}"
            f" tokens need {SALT_TOKENS + 1 + (turns - 1) * (output_tokens + 1)} or more"
        )

    def lengths(first: int) -> list[int]:
        grown = [first + (prompt_tokens - first) * n // (turns - 1) for n in range(turns)]
        return [grown[index // conversations] for index in range(requests)]

    def share(first: int) -> float:
        each = lengths(first)
        return sum(each[: requests - conversations]) / sum(each)

    unused = 1.3 * conversations  # last turns, longer than the mean, are never reused
    return lengths(reached_level(reuse, share, SALT_TOKENS + 1, longest_first, requests, unused))


def reached_level(
    reuse: float,
    share: Callable[[int], float],
    low: int,
    high: int,
    requests: int,
    firsts: float,
) -> int:
    """The least level whose share is `reuse`; `share` grows with the level.

    `firsts` is how many mean prompts the cold first ones weigh. Raises ParameterError.
    """
    if not 0 < reuse < 1:
        raise ParameterError(
            f"the target reuse is {reuse}: a share above 0 and below 1; cold_start shares nothing"
        )
    bottom = low + bisect_left(range(low, high), reuse, key=share)
    nearest_level = min((max(low, bottom - 1), bottom), key=lambda n: abs(share(n) - reuse))
    reached = share(nearest_level)
    if abs(reached - reuse) <= _TOLERANCE * reuse:
        return nearest_level
    if reached < reuse:
        enough = max(requests + 1, ceil(1.1 * firsts / (1 - reuse)) + 1)
        raise ParameterError(
            f"a reuse of {reuse:g} cannot be met with requests {requests}: the first prompts reuse"
            f" nothing, so it ends at {reached:.3f}; raise requests, e.g. to {enough}, or lower the"
            " target"
        )
    raise ParameterError(
        f"a reuse of {reuse:g} cannot be met: these prompts share {reached:.3f} at least; raise"
        " prompt_tokens or the target"
    )
