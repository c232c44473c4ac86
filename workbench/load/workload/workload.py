"""Workloads: ordered requests of exact length whose sharing is known before anything is sent.

Prompts are token ids that depend on the seed alone. Each starts with 16 tokens made from the salt,
a string that is new in every run, so that a cold pass is cold even if no cache can be reset.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from math import nan

import numpy as np
from numpy.typing import ArrayLike

from workbench.errors import ParameterError, must_be
from workbench.load.workload.token_ids import FIRST_ID, SALT_TOKENS, TokenIds, drawn_ids, salt_ids


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Request:
    """One prompt and the number of output tokens."""

    index: int
    """Position in the workload, from 0."""
    prompt_ids: TokenIds
    """Token ids, shape (prompt_tokens,), read-only."""
    max_tokens: int
    ideal_reuse_tokens: int = 0
    """Prefix tokens that an infinite cache, empty at the start of the workload, would hit."""
    messages: tuple[Mapping[str, str], ...] = ()
    """The same prompt as chat messages, which the chat template turns into `prompt_ids`."""
    prompt_text: str = ""
    """The same prompt as text, for servers that do not accept token ids; see `written`."""
    salt_start: int = 0
    """Position of the first salt token; in a chat the template comes before it."""
    after: int | None = None
    """Index of the previous turn; its response becomes part of this prompt."""
    question_tokens: int = 0
    """Of a turn: tokens at the end of the prompt, after the response of the previous turn."""
    return_ids: bool = False
    """Ask the server for the token ids of its response."""

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
    doubts: tuple[str, ...] = ()
    """What a reader must know about how it was made from a file."""

    def __post_init__(self) -> None:
        for index, times in Counter(request.index for request in self.requests).items():
            if times > 1:
                allowed = f"different for each request of workload {self.name!r}"
                raise ParameterError(must_be("index", allowed, f"{times} x {index}", "index=0"))

    @property
    def prompt_tokens(self) -> int:
        """Prompt tokens of all requests."""
        return sum(request.prompt_tokens for request in self.requests)

    @property
    def ideal_reuse(self) -> float:
        """Fraction of the prompt tokens that an infinite cache would hit; NaN without tokens."""
        reused = sum(request.ideal_reuse_tokens for request in self.requests)
        return reused / self.prompt_tokens if self.prompt_tokens else nan

    @property
    def hash(self) -> str:
        """Twelve hex digits over each request's max_tokens and its ids without the salt."""
        digest = sha256()
        for request in self.requests:
            digest.update(f"{request.prompt_tokens}/{request.max_tokens}:".encode())
            start = request.salt_start
            end = start + SALT_TOKENS if self.salt else start
            for part in (request.prompt_ids[:start], request.prompt_ids[end:]):
                digest.update(part.astype("<i4").tobytes())
        return digest.hexdigest()[:12]


def ideal_reuse(prompts: Iterable[ArrayLike]) -> tuple[int, ...]:
    """Tokens of each prompt that an infinite cache would hit when the prompts come in order.

    The longest common prefix with any earlier prompt, at most L - 1 of L tokens, since the last
    token is always computed. In sorted order that earlier prompt is a neighbour.
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
    """Long unique prompts as in the reference report; nothing is shared within a pass."""
    lengths = (prompt_tokens, 0, output_tokens)
    return _grouped("reference", requests, requests, lengths, vocab_tokens, seed, salt)


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
    lengths = (prompt_tokens, 0, output_tokens)
    return _grouped("short", requests, requests, lengths, vocab_tokens, seed, salt)


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
    """Prompts whose first `shared_tokens`, salt included, are those of their group.

    Groups alternate. A group's first request reuses nothing and each later one exactly
    `shared_tokens`, or prompt_tokens - 1 if the prompts are identical (see `ideal_reuse`).
    """
    if not SALT_TOKENS <= shared_tokens <= prompt_tokens:
        allowed = f"between {SALT_TOKENS} and prompt_tokens ({prompt_tokens:,})"
        raise ParameterError(
            must_be("shared_tokens", allowed, shared_tokens, "-p shared_share 0.9")
        )
    lengths = (prompt_tokens, shared_tokens, output_tokens)
    return _grouped("shared_prefix", requests, groups, lengths, vocab_tokens, seed, salt)


def asked_again(workload: Workload, *, share: float = 1.0, seed: int = 0) -> Workload:
    """The same prompts for a warm pass, unchanged or partly new.

    Each keeps the fraction `share` of its tokens; the rest is drawn anew from `seed`. Turns of a
    conversation are sent as before, whatever the responses are now. `ideal_reuse_tokens` is what a
    cache that saw the first pass would hit: the kept prefix, at most L - 1 tokens.
    """
    if not 0 < share <= 1:
        raise ParameterError(must_be("share", "above 0 and at most 1", share, "share=0.5"))
    again = []
    for request in workload.requests:
        ids = request.prompt_ids.copy()
        kept = max(SALT_TOKENS, int(share * len(ids)))
        if kept < len(ids):
            top = int(ids.max()) + 1
            ids[kept:] = drawn_ids(len(ids) - kept, top, seed, 2, request.index, kept)
            # The first new token differs, so that the common prefix is exactly `kept`.
            ids[kept] = (int(request.prompt_ids[kept]) - FIRST_ID + 1) % (top - FIRST_ID)
            ids[kept] += FIRST_ID
        reuse = min(kept, len(ids) - 1)
        again.append(replace(request, prompt_ids=ids, ideal_reuse_tokens=reuse, after=None))
    return replace(workload, requests=tuple(again))


def _grouped(
    name: str,
    requests: int,
    groups: int,
    lengths: tuple[int, int, int],
    vocab_tokens: int,
    seed: int,
    salt: str,
) -> Workload:
    """Request i belongs to group i % groups. `lengths`: of prompt, shared prefix and output."""
    prompt_tokens, shared_tokens, output_tokens = lengths
    check_numbers(
        salt,
        requests=(requests, 1),
        groups=(groups, 1),
        prompt_tokens=(prompt_tokens, SALT_TOKENS + 1),
        output_tokens=(output_tokens, 1),
        vocab_tokens=(vocab_tokens, FIRST_ID + max(requests, 2)),
        seed=(seed, 0),
    )
    prompts = []
    for index in range(requests):
        rank, group = divmod(index, groups)
        ids = drawn_ids(prompt_tokens, vocab_tokens, seed, 0, group)
        if shared_tokens < prompt_tokens:
            own = drawn_ids(prompt_tokens - shared_tokens, vocab_tokens, seed, 1, index)
            own[0] = FIRST_ID + rank  # no two of a group agree on it, not even by chance
            ids[shared_tokens:] = own
        ids[:SALT_TOKENS] = salt_ids(salt, group, vocab_tokens)
        prompts.append(ids)
    return assemble(name, prompts, [output_tokens] * requests, seed=seed, salt=salt)


_OWN_OPTIONS = ("groups", "projects", "conversations", "rows")
"""Options of a workload that no notebook has as a parameter."""


def check_numbers(salt: str, **least: tuple[int, int]) -> None:
    """Refuse an empty salt, and any value below its minimum. Raises ParameterError."""
    if not salt:
        raise ParameterError(
            must_be("salt", "a string that no earlier run used", salt, "salt=run-42")
        )
    for parameter, (value, low) in least.items():
        if value < low:
            if parameter == "vocab_tokens":  # each request has a token of its own
                most = max(1, value - FIRST_ID)
                allowed = f"at most {most:,} with a vocabulary of {value:,} tokens"
                raise ParameterError(must_be("requests", allowed, low - FIRST_ID, most))
            example = f"{parameter}={low}" if parameter in _OWN_OPTIONS else low
            raise ParameterError(must_be(parameter, f"at least {low}", value, example))


def assemble(
    name: str, prompts: Sequence[TokenIds], max_tokens: Sequence[int], *, seed: int, salt: str
) -> Workload:
    """The workload of these prompts in this order, with the ideal reuse of each."""
    drafted = zip(prompts, max_tokens, ideal_reuse(prompts), strict=True)
    return Workload(
        name=name,
        seed=seed,
        salt=salt,
        requests=tuple(
            Request(index=i, prompt_ids=ids, max_tokens=answer, ideal_reuse_tokens=reuse)
            for i, (ids, answer, reuse) in enumerate(drafted)
        ),
    )
