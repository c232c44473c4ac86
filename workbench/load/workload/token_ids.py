"""Token ids of random prompts, drawn from seeds, and those of the salt."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

TokenIds = NDArray[np.int32]

SALT_TOKENS = 16
"""Tokens at the start of each prompt that come from the salt."""

FIRST_ID = 16
"""Ids below it may be special tokens (padding, begin, end, ...)."""


def drawn_ids(tokens: int, vocab_tokens: int, *seeds: int) -> TokenIds:
    """Random ids, the same for the same seeds on any machine; a shorter draw is a prefix.

    Seeds are integers from 0.
    """
    return np.random.default_rng(seeds).integers(FIRST_ID, vocab_tokens, tokens, dtype=np.int32)


def salt_ids(salt: str, group: int, vocab_tokens: int) -> TokenIds:
    """Ids from SHA-256 of the salt and the group; the first differs between any two groups."""
    span = vocab_tokens - FIRST_ID
    start = int.from_bytes(sha256(salt.encode()).digest()[:4], "little")
    digest = sha256(f"{salt}/{group}".encode()).digest()
    ids = np.frombuffer(digest, "<u2", SALT_TOKENS).astype(np.int32) % span
    ids[0] = (start + group) % span
    return np.asarray(ids + FIRST_ID, dtype=np.int32)


def in_words(ids: Sequence[int], words: Sequence[str]) -> str:
    """The text of random ids: one word each."""
    return "".join(words[(token - FIRST_ID) % len(words)] for token in ids)


def first_difference(one: Sequence[int], other: Sequence[int]) -> int:
    """Position of the first difference between two prompts; 0 if there is none."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((n for n, (a, b) in pairs if a != b), 0)
