"""Five scenarios of prefix reuse, each typical of a kind of traffic.

`reuse` is the fraction of all prompt tokens that an infinite cache would hit. `prompt_tokens` is
the longest prompt; most are shorter. The default reuse is an assumption: give your own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from workbench.errors import ParameterError
from workbench.load.workload.reuse import drawn_lengths, reached_level, shared_tokens, turn_lengths
from workbench.load.workload.token_ids import FIRST_ID, SALT_TOKENS, TokenIds, drawn_ids, salt_ids
from workbench.load.workload.workload import Workload, assemble, check_numbers


def long_context_high_reuse(
    *,
    requests: int = 20,
    prompt_tokens: int = 32_768,
    output_tokens: int = 32,
    reuse: float = 0.9,
    vocab_tokens: int = 12_288,
    seed: int = 0,
    salt: str,
) -> Workload:
    """Questions about one long document, each up to a different page of it.

    Prompts have 50 to 100 % of `prompt_tokens`: 16k to 32k by default.
    """
    _check(salt, requests, prompt_tokens, output_tokens, vocab_tokens, seed)
    lengths = drawn_lengths(requests, 1, prompt_tokens, 0.5, seed)
    shared = shared_tokens(lengths, 1, reuse)
    return _grouped(
        "long_context_high_reuse", lengths, shared, 1, output_tokens, vocab_tokens, seed, salt
    )


def code_generation(
    *,
    requests: int = 20,
    prompt_tokens: int = 8_192,
    output_tokens: int = 32,
    projects: int = 2,
    reuse: float = 0.8,
    vocab_tokens: int = 12_288,
    seed: int = 0,
    salt: str,
) -> Workload:
    """Tasks in alternating `projects`: each prompt is its project's files, then its own task.

    Prompts have 75 to 100 % of `prompt_tokens`.
    """
    _check(salt, requests, prompt_tokens, output_tokens, vocab_tokens, seed, projects=projects)
    lengths = drawn_lengths(requests, projects, prompt_tokens, 0.75, seed)
    shared = shared_tokens(lengths, projects, reuse)
    return _grouped(
        "code_generation", lengths, shared, projects, output_tokens, vocab_tokens, seed, salt
    )


def batch_processing(
    *,
    requests: int = 40,
    prompt_tokens: int = 4_096,
    output_tokens: int = 32,
    reuse: float = 0.95,
    vocab_tokens: int = 12_288,
    seed: int = 0,
    salt: str,
) -> Workload:
    """The same instructions before every item; the items differ in length."""
    _check(salt, requests, prompt_tokens, output_tokens, vocab_tokens, seed)
    part = np.random.default_rng((seed, 3)).uniform(0.25, 1.0, requests)
    part[0] = 1.0

    def lengths(instructions: int) -> list[int]:
        items = np.maximum(1, np.rint(part * (prompt_tokens - instructions))).astype(int)
        return [int(instructions + item) for item in items]

    def share(instructions: int) -> float:
        return instructions * (requests - 1) / sum(lengths(instructions))

    instructions = reached_level(reuse, share, SALT_TOKENS, prompt_tokens - 1, requests, 1.0)
    return _grouped(
        "batch_processing",
        lengths(instructions),
        [instructions] * requests,
        1,
        output_tokens,
        vocab_tokens,
        seed,
        salt,
    )


def multi_turn_conversation(
    *,
    requests: int = 14,
    prompt_tokens: int = 4_096,
    output_tokens: int = 32,
    conversations: int = 0,
    reuse: float = 0.85,
    vocab_tokens: int = 12_288,
    seed: int = 0,
    salt: str,
) -> Workload:
    """Conversations with a growing history: previous prompt, its response, a new question.

    `conversations` alternate (0: as few as reach `reuse`); `reuse` sets the length of their first
    prompt. The prepared list has placeholder responses of `output_tokens` each. They are replaced
    by the model's real ones, which have the same length. `reuse` holds for the list; the requests
    sent reuse slightly more, since a cache also has all tokens of a response but the last.
    """
    _check(salt, requests, prompt_tokens, output_tokens, vocab_tokens, seed)
    check_numbers(salt, conversations=(conversations, 0))
    counts = [conversations] if conversations else list(range(1, max(2, requests // 2 + 1)))
    for count in counts:
        try:
            lengths = turn_lengths(requests, count, prompt_tokens, output_tokens, reuse)
            break
        except ParameterError:
            if count == counts[-1]:
                raise
    histories = [drawn_ids(prompt_tokens, vocab_tokens, seed, 4, group) for group in range(count)]
    prompts = []
    for index, length in enumerate(lengths):
        ids = histories[index % count][:length].copy()
        ids[:SALT_TOKENS] = salt_ids(salt, index % count, vocab_tokens)
        prompts.append(ids)
    asked = [output_tokens] * requests
    planned = assemble("multi_turn_conversation", prompts, asked, seed=seed, salt=salt)
    turns = [
        replace(
            request,
            after=(before := index - count if index >= count else None),
            question_tokens=0 if before is None else length - lengths[before] - output_tokens,
            return_ids=True,
        )
        for index, (request, length) in enumerate(zip(planned.requests, lengths, strict=True))
    ]
    return replace(planned, requests=tuple(turns))


def cold_start(
    *,
    requests: int = 8,
    prompt_tokens: int = 4_096,
    output_tokens: int = 32,
    vocab_tokens: int = 12_288,
    seed: int = 0,
    salt: str,
) -> Workload:
    """Nothing is shared, not even the first token.

    Prompts have 50 to 100 % of `prompt_tokens`.
    """
    _check(salt, requests, prompt_tokens, output_tokens, vocab_tokens, seed)
    lengths = drawn_lengths(requests, 1, prompt_tokens, 0.5, seed)
    return _grouped(
        "cold_start", lengths, lengths, requests, output_tokens, vocab_tokens, seed, salt
    )


SCENARIOS: dict[str, Callable[..., Workload]] = {
    "batch_processing": batch_processing,
    "code_generation": code_generation,
    "cold_start": cold_start,
    "long_context_high_reuse": long_context_high_reuse,
    "multi_turn_conversation": multi_turn_conversation,
}
"""The builders by name."""


def _check(
    salt: str,
    requests: int,
    prompt_tokens: int,
    output_tokens: int,
    vocab_tokens: int,
    seed: int,
    **groups: int,
) -> None:
    check_numbers(
        salt,
        requests=(requests, 1),
        prompt_tokens=(prompt_tokens, 2 * SALT_TOKENS + 2),  # half of it holds the salt and a token
        output_tokens=(output_tokens, 1),
        vocab_tokens=(vocab_tokens, FIRST_ID + max(requests, 2)),
        seed=(seed, 0),
        **{name: (value, 1) for name, value in groups.items()},
    )


def _grouped(
    name: str,
    lengths: Sequence[int],
    shared: Sequence[int],
    groups: int,
    output_tokens: int,
    vocab_tokens: int,
    seed: int,
    salt: str,
) -> Workload:
    """Request i of group i % groups shares `shared[i]` tokens with its group's first request.

    That one is the group's longest, so each later one reuses exactly `shared[i]`.
    """
    firsts = [
        drawn_ids(lengths[group], vocab_tokens, seed, 0, group)
        for group in range(min(groups, len(lengths)))
    ]
    prompts: list[TokenIds] = []
    for index, (length, kept) in enumerate(zip(lengths, shared, strict=True)):
        rank, group = divmod(index, groups)
        ids = firsts[group][:length].copy()
        if rank:
            ids[kept:] = drawn_ids(length - kept, vocab_tokens, seed, 1, index)
            # Its first own token is neither the group's nor that of another member.
            span = vocab_tokens - FIRST_ID
            ids[kept] = FIRST_ID + (int(firsts[group][kept]) - FIRST_ID + rank) % span
        ids[:SALT_TOKENS] = salt_ids(salt, group, vocab_tokens)
        prompts.append(ids)
    return assemble(name, prompts, [output_tokens] * len(prompts), seed=seed, salt=salt)
