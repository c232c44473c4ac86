"""Workloads: ordered requests of exact length whose sharing is known before anything is sent.

Prompts are token ids, drawn from the seed alone; the special ids below 16 are never used. Each
starts with 16 tokens made from the salt, a string that is new for every run, so that a cold pass
is cold even where no cache can be reset. The salt differs between prompts that share nothing, so
it is no shared prefix itself, and `Workload.hash` leaves it out: two runs of one workload are alike.
"""

from __future__ import annotations

import inspect
from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from hashlib import sha256
from math import nan
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from workbench.errors import ParameterError, nearest

__all__ = [
    "SALT_TOKENS",
    "WORKLOADS",
    "Request",
    "TokenIds",
    "Workload",
    "build",
    "ideal_reuse",
    "reference",
    "shared_prefix",
    "short",
]

TokenIds = NDArray[np.int32]

SALT_TOKENS = 16
"""Tokens at the start of each prompt that come from the salt."""

_FIRST_ID = 16
"""Ids below it are special (padding, begin, end, ...) in the models in use."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Request:
    """One prompt and how many tokens are asked of it."""

    index: int
    """Position in the workload, from 0."""
    prompt_ids: TokenIds
    """Token ids, shape (prompt_tokens,); kept read-only."""
    max_tokens: int
    ideal_reuse_tokens: int = 0
    """Prefix tokens that an infinite cache, empty at the start of the workload, would have."""

    def __post_init__(self) -> None:
        ids = np.array(self.prompt_ids, dtype=np.int32)
        ids.setflags(write=False)
        object.__setattr__(self, "prompt_ids", ids)

    @property
    def prompt_tokens(self) -> int:
        return len(self.prompt_ids)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Workload:
    """Requests in the order in which they are sent. An empty `salt` means unsalted prompts."""

    name: str
    seed: int
    salt: str
    requests: tuple[Request, ...]

    @property
    def prompt_tokens(self) -> int:
        """Prompt tokens of all requests."""
        return sum(request.prompt_tokens for request in self.requests)

    @property
    def ideal_reuse(self) -> float:
        """Share of the prompt tokens that an infinite cache would have; NaN without tokens."""
        reused = sum(request.ideal_reuse_tokens for request in self.requests)
        return reused / self.prompt_tokens if self.prompt_tokens else nan

    @property
    def hash(self) -> str:
        """Twelve hex digits over each request's ids after the salt and its max_tokens."""
        digest = sha256()
        skip = SALT_TOKENS if self.salt else 0
        for request in self.requests:
            digest.update(f"{request.prompt_tokens}/{request.max_tokens}:".encode())
            digest.update(request.prompt_ids[skip:].astype("<i4").tobytes())
        return digest.hexdigest()[:12]


def ideal_reuse(prompts: Iterable[ArrayLike]) -> tuple[int, ...]:
    """Tokens of each prompt that an infinite cache would have when the prompts come in order.

    The longest prefix in common with any earlier prompt, at most L - 1 of L tokens: the logits of
    the last token are always computed. In sorted order that earlier prompt is a neighbour.
    """
    seen: list[bytes] = []
    reuse = []
    for prompt in prompts:
        key = np.asarray(prompt, dtype=">u4").tobytes()  # big-endian: bytes sort as the ids do
        at = bisect_left(seen, key)
        common = (_common_tokens(key, other) for other in seen[max(0, at - 1) : at + 1])
        reuse.append(max(0, min(max(common, default=0), len(key) // 4 - 1)))
        seen.insert(at, key)
    return tuple(reuse)


def _common_tokens(a: bytes, b: bytes) -> int:
    length = min(len(a), len(b))
    differ = np.frombuffer(a[:length], ">u4") != np.frombuffer(b[:length], ">u4")
    return int(differ.argmax()) if differ.any() else length // 4


def reference(
    *,
    requests: int = 3,
    prompt_tokens: int = 22_660,
    output_tokens: int = 32,
    vocab_tokens: int = 12_288,
    seed: int = 0,
    salt: str,
) -> Workload:
    """Long unique prompts, as in the reference report: nothing is shared within a pass."""
    return _grouped(
        "reference",
        requests=requests,
        prompt_tokens=prompt_tokens,
        shared_tokens=0,
        groups=requests,
        output_tokens=output_tokens,
        vocab_tokens=vocab_tokens,
        seed=seed,
        salt=salt,
    )


def short(
    *,
    requests: int = 3,
    prompt_tokens: int = 1_024,
    output_tokens: int = 32,
    vocab_tokens: int = 12_288,
    seed: int = 0,
    salt: str,
) -> Workload:
    """Short unique prompts: `reference` at a length that takes seconds on a CPU."""
    return _grouped(
        "short",
        requests=requests,
        prompt_tokens=prompt_tokens,
        shared_tokens=0,
        groups=requests,
        output_tokens=output_tokens,
        vocab_tokens=vocab_tokens,
        seed=seed,
        salt=salt,
    )


def shared_prefix(
    *,
    requests: int,
    prompt_tokens: int,
    shared_tokens: int,
    groups: int = 1,
    output_tokens: int = 32,
    vocab_tokens: int = 12_288,
    seed: int = 0,
    salt: str,
) -> Workload:
    """Prompts whose first `shared_tokens` (the salt among them) are their group's, then unique.

    Groups take turns. A group's first request reuses nothing and a later one exactly
    `shared_tokens`, or prompt_tokens - 1 where the prompts are identical (see `ideal_reuse`).
    """
    if not SALT_TOKENS <= shared_tokens <= prompt_tokens:
        raise ParameterError(
            f"shared_tokens is {shared_tokens}: it includes the {SALT_TOKENS} tokens of the salt,"
            f" so choose {SALT_TOKENS} to prompt_tokens ({prompt_tokens})"
        )
    return _grouped(
        "shared_prefix",
        requests=requests,
        prompt_tokens=prompt_tokens,
        shared_tokens=shared_tokens,
        groups=groups,
        output_tokens=output_tokens,
        vocab_tokens=vocab_tokens,
        seed=seed,
        salt=salt,
    )


WORKLOADS: dict[str, Callable[..., Workload]] = {
    "reference": reference,
    "shared_prefix": shared_prefix,
    "short": short,
}
"""The builders by name."""


def build(name: str, *, salt: str, **options: Any) -> Workload:
    """The named workload. Raises ParameterError for a name, option or value it cannot have."""
    if name not in WORKLOADS:
        raise ParameterError(f"there is no workload {name!r}; {nearest(name, WORKLOADS)}")
    parameters = inspect.signature(WORKLOADS[name]).parameters
    for option in options:
        if option not in parameters:
            raise ParameterError(
                f"workload {name!r} has no option {option!r}; {nearest(option, parameters)}"
            )
    required = [p.name for p in parameters.values() if p.default is p.empty]
    missing = [option for option in required if option not in {"salt", *options}]
    if missing:
        raise ParameterError(f"workload {name!r} needs {', '.join(missing)}: give each a number")
    return WORKLOADS[name](salt=salt, **options)


def _grouped(
    name: str,
    *,
    requests: int,
    prompt_tokens: int,
    shared_tokens: int,
    groups: int,
    output_tokens: int,
    vocab_tokens: int,
    seed: int,
    salt: str,
) -> Workload:
    """Request i belongs to group i % groups, and is rank i // groups in it."""
    _check(
        salt=salt,
        at_least={
            "requests": (requests, 1),
            "groups": (groups, 1),
            "prompt_tokens": (prompt_tokens, SALT_TOKENS + 1),
            "output_tokens": (output_tokens, 1),
            "vocab_tokens": (vocab_tokens, _FIRST_ID + max(requests, 2)),
            "seed": (seed, 0),
        },
    )
    prompts = []
    for index in range(requests):
        rank, group = divmod(index, groups)
        ids = _drawn(prompt_tokens, vocab_tokens, seed, 0, group)
        if shared_tokens < prompt_tokens:
            own = _drawn(prompt_tokens - shared_tokens, vocab_tokens, seed, 1, index)
            own[0] = _FIRST_ID + rank  # no two of a group agree on it, not even by chance
            ids[shared_tokens:] = own
        ids[:SALT_TOKENS] = _salt_ids(salt, group, vocab_tokens)
        prompts.append(ids)
    drafted = zip(prompts, ideal_reuse(prompts), strict=True)
    return Workload(
        name=name,
        seed=seed,
        salt=salt,
        requests=tuple(
            Request(index=i, prompt_ids=ids, max_tokens=output_tokens, ideal_reuse_tokens=reuse)
            for i, (ids, reuse) in enumerate(drafted)
        ),
    )


def _drawn(tokens: int, vocab_tokens: int, *seeds: int) -> TokenIds:
    return np.random.default_rng(seeds).integers(_FIRST_ID, vocab_tokens, tokens, dtype=np.int32)


def _salt_ids(salt: str, group: int, vocab_tokens: int) -> TokenIds:
    """Ids from SHA-256 of the salt and the group; the first differs between any two groups."""
    span = vocab_tokens - _FIRST_ID
    start = int.from_bytes(sha256(salt.encode()).digest()[:4], "little")
    digest = sha256(f"{salt}/{group}".encode()).digest()
    ids = np.frombuffer(digest, "<u2", SALT_TOKENS).astype(np.int32) % span
    ids[0] = (start + group) % span
    return np.asarray(ids + _FIRST_ID, dtype=np.int32)


def _check(*, salt: str, at_least: dict[str, tuple[int, int]]) -> None:
    if not salt:
        raise ParameterError("salt is empty: give a string that no earlier run has used")
    for name, (value, least) in at_least.items():
        if value < least:
            raise ParameterError(f"{name} is {value}: it has to be at least {least} here")
