"""Prompt lengths and shared prefixes that reach a target reuse.

The ideal reuse is within 1 % of the target, or a ParameterError says what is needed: the first
prompt of a list reuses nothing.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from math import ceil

import numpy as np

from workbench.errors import ParameterError, must_be
from workbench.load.workload.token_ids import SALT_TOKENS

_TOLERANCE = 0.01
"""Largest relative distance between the ideal reuse and the target."""


def drawn_lengths(
    requests: int, groups: int, prompt_tokens: int, shortest: float, seed: int
) -> list[int]:
    """Lengths between `shortest` x `prompt_tokens` and all of it; a group's first has all."""
    low = ceil(shortest * prompt_tokens)
    drawn = np.random.default_rng((seed, 3)).integers(low, prompt_tokens + 1, requests)
    drawn[:groups] = prompt_tokens
    return [int(length) for length in drawn]


def shared_tokens(lengths: Sequence[int], groups: int, reuse: float) -> list[int]:
    """Tokens that each prompt shares with its group's first: the same fraction of each length."""
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
        allowed = f"at least {2 * conversations} (two turns per conversation)"
        raise ParameterError(must_be("requests", allowed, requests, 2 * conversations))
    longest_first = prompt_tokens - (turns - 1) * (output_tokens + 1)
    if longest_first <= SALT_TOKENS:
        least = SALT_TOKENS + 1 + (turns - 1) * (output_tokens + 1)
        allowed = f"at least {least:,} for {turns} turns with {output_tokens} output tokens each"
        raise ParameterError(must_be("prompt_tokens", allowed, prompt_tokens, least))

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
    """The lowest level whose share is `reuse`; `share` grows with the level.

    `firsts` is the length of the cold first prompts in mean prompts. Raises ParameterError.
    """
    if not 0 < reuse < 1:
        raise ParameterError(must_be("target_reuse", "above 0 and below 1", reuse, 0.5))
    bottom = low + bisect_left(range(low, high), reuse, key=share)
    nearest_level = min((max(low, bottom - 1), bottom), key=lambda n: abs(share(n) - reuse))
    reached = share(nearest_level)
    if abs(reached - reuse) <= _TOLERANCE * reuse:
        return nearest_level
    if reached < reuse:
        enough = max(requests + 1, ceil(1.1 * firsts / (1 - reuse)) + 1)
        allowed = f"at most {reached:.3f} with {requests:,} requests (the first ones reuse nothing)"
        raise ParameterError(must_be("target_reuse", allowed, reuse, f"-p requests {enough}"))
    allowed = f"at least {reached:.3f} with such short prompts"
    raise ParameterError(must_be("target_reuse", allowed, reuse, f"{min(0.99, 1.1 * reached):.2f}"))
