"""Chat messages with known token counts, for any chat template.

The text is a fixed beginning that no template trims, then words of one token each: every word adds
one token to those of the template. The stored ids are those of the chat after templating.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from workbench.errors import ParameterError
from workbench.load.workload.token_ids import FIRST_ID, first_difference, in_words, salt_ids
from workbench.load.workload.tokenizer import Messages, Tokenizer
from workbench.load.workload.workload import Request, Workload, ideal_reuse

BEGINNING = "Read:"
"""Templates may strip a message; this keeps the space before the first word."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """What a model's chat template puts around one user message."""

    before: int
    """Tokens before the message's first word; the salt begins there."""
    tokens: int
    """Tokens of the template and the beginning, without any words."""

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Frame:
        """Raises ParameterError if words are not one token each in this model's chats."""
        words = tokenizer.words
        if len(words) < 2 * FIRST_ID:
            raise ParameterError(
                f"api chat needs a tokenizer with at least {2 * FIRST_ID} single-token words, got"
                f" {len(words)} (example: -p api completions)"
            )
        one, other = (tokenizer.chat(_said(f"{BEGINNING}{word}")) for word in words[:2])
        before = first_difference(one, other)
        if len(one) != len(other) or one[before + 1 :] != other[before + 1 :]:
            raise ParameterError(
                "api chat needs a chat template that keeps the text of messages, got one that"
                " changes it (example: -p api completions)"
            )
        return cls(before=before, tokens=len(one) - 1)


def _said(text: str) -> tuple[Mapping[str, str], ...]:
    return ({"role": "user", "content": text},)


def spoken(
    make: Callable[[int, int], Workload], *, prompt_tokens: int, tokenizer: Tokenizer
) -> Workload:
    """A workload of token ids as chat messages, with the same lengths and the same sharing.

    `make` builds it for a prompt length and a vocabulary size. The template's tokens are part of
    every prompt and shared by all.
    """
    frame, words = Frame.of(tokenizer), tokenizer.words
    made = make(prompt_tokens - frame.tokens, FIRST_ID + len(words))
    requests = []
    for request in made.requests:
        text = BEGINNING + in_words(request.prompt_ids.tolist(), words)
        ids = tokenizer.chat(_said(text))
        if len(ids) != request.prompt_tokens + frame.tokens:
            raise ParameterError(
                "api chat needs a tokenizer that keeps words apart, got one that makes"
                f" {len(ids)} tokens of {request.prompt_tokens + frame.tokens} (example: -p api"
                " completions)"
            )
        requests.append(
            replace(
                request,
                prompt_ids=np.asarray(ids),
                messages=_said(text),
                salt_start=frame.before,
            )
        )
    return with_reuse(replace(made, requests=tuple(requests)))


def with_reuse(workload: Workload) -> Workload:
    """The workload with the ideal reuse of each prompt computed from its ids."""
    reuse = ideal_reuse(request.prompt_ids for request in workload.requests)
    pairs = zip(workload.requests, reuse, strict=True)
    requests = tuple(replace(request, ideal_reuse_tokens=tokens) for request, tokens in pairs)
    return replace(workload, requests=requests)


def chat_request(
    index: int,
    messages: Messages,
    *,
    max_tokens: int,
    tokenizer: Tokenizer,
    salt: str,
    group: int = 0,
) -> Request:
    """A request of messages with the salt in front, and the ids after templating.

    The salt is 16 words before the text of the first message.
    """
    words = tokenizer.words

    def said(salt: str) -> tuple[Mapping[str, str], ...]:
        ids = salt_ids(salt, group, FIRST_ID + len(words))
        text = BEGINNING + in_words(ids.tolist(), words)
        first, *others = messages
        return ({**first, "content": f"{text}\n{first['content']}"}, *others)

    ids, other = tokenizer.chat(said(salt)), tokenizer.chat(said(f"{salt}, another"))
    return Request(
        index=index,
        prompt_ids=np.asarray(ids),
        max_tokens=max_tokens,
        messages=said(salt),
        salt_start=first_difference(ids, other),
    )
