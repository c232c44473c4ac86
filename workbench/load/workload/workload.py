"""Workloads: ordered requests of exact length whose sharing is known before anything is sent.

Prompts are token ids, drawn from the seed alone. Each starts with 16 tokens made from the salt, a
string that is new for every run: so a cold pass is cold even where no cache can be reset.
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

from workbench.errors import ParameterError
from workbench.load.workload.token_ids import FIRST_ID, SALT_TOKENS, TokenIds, drawn_ids, salt_ids


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
    messages: tuple[Mapping[str, str], ...] = ()
    """The same prompt as a chat, which the server's template turns into `prompt_ids`."""
    prompt_text: str = ""
    """The same prompt as text, for a server that takes no token ids; see `written`."""
    salt_start: int = 0
    """Where in the prompt the salt's tokens begin; a chat has its template before them."""
    after: int | None = None
    """Index of the conversation's turn before; its answer belongs into this prompt, see `turns`."""
    question_tokens: int = 0
    """Of a turn: tokens at the prompt's end that come behind the answer of the turn before."""
    return_ids: bool = False
    """Ask the server for the ids of its answer."""

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
    """What a reader has to know of how it was made from a file."""

    def __post_init__(self) -> None:
        for index, times in Counter(request.index for request in self.requests).items():
            if times > 1:
                raise ParameterError(f"workload {self.name!r} has index {index} twice: number them")

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
        for request in self.requests:
            digest.update(f"{request.prompt_tokens}/{request.max_tokens}:".encode())
            start = request.salt_start
            end = start + SALT_TOKENS if self.salt else start
            for part in (request.prompt_ids[:start], request.prompt_ids[end:]):
                digest.update(part.astype("<i4").tobytes())
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
    """Prompts whose first `shared_tokens` (the salt among them) are their group's, then unique.

    Groups take turns. A group's first request reuses nothing and a later one exactly
    `shared_tokens`, or prompt_tokens - 1 where the prompts are identical (see `ideal_reuse`).
    """
    if not SALT_TOKENS <= shared_tokens <= prompt_tokens:
        raise ParameterError(
            f"shared_tokens is {shared_tokens}: it includes the {SALT_TOKENS} tokens of the salt,"
            f" so choose {SALT_TOKENS} to prompt_tokens ({prompt_tokens})"
        )
    lengths = (prompt_tokens, shared_tokens, output_tokens)
    return _grouped("shared_prefix", requests, groups, lengths, vocab_tokens, seed, salt)


def asked_again(workload: Workload, *, share: float = 1.0, seed: int = 0) -> Workload:
    """The prompts of a workload that has been sent, for a warm pass: the same, or partly new.

    Each keeps its first `share` and draws the rest anew from `seed`. Turns of a conversation are
    sent as they were, whatever is answered this time. `ideal_reuse_tokens` is what
    a cache that has seen the first pass would hold: the kept prefix, at most L - 1 tokens.
    """
    if not 0 < share <= 1:
        raise ParameterError(f"share is {share}: a prompt keeps more than 0 and at most all of it")
    again = []
    for request in workload.requests:
        ids = request.prompt_ids.copy()
        kept = max(SALT_TOKENS, int(share * len(ids)))
        if kept < len(ids):
            top = int(ids.max()) + 1
            ids[kept:] = drawn_ids(len(ids) - kept, top, seed, 2, request.index, kept)
            # The first new token differs, so that the prefix in common is exactly `kept`.
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


def check_numbers(salt: str, **least: tuple[int, int]) -> None:
    """Refuse an empty salt, and any (value, least value) below. Raises ParameterError."""
    if not salt:
        raise ParameterError("salt is empty: give a string that no earlier run has used")
    for parameter, (value, low) in least.items():
        if value < low:
            raise ParameterError(
                f"{parameter} is {value}: it has to be at least {low} here"
                + "; a request has a token of its own, so the model's vocabulary allows"
                f" {max(0, value - FIRST_ID)} requests at most" * (parameter == "vocab_tokens")
            )


def assemble(
    name: str, prompts: Sequence[TokenIds], max_tokens: Sequence[int], *, seed: int, salt: str
) -> Workload:
    """The workload of these prompts in this order, with the ideal reuse of each worked out."""
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
