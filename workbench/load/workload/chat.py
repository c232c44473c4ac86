"""Chats whose token counts are known before they are sent, whatever template the model has.

The text is words of one token each, behind a beginning that no template trims: every word adds one
token to those of the template. The ids kept are those of the whole chat as the template writes it.
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
"""Templates may trim a message; this keeps the space of the first word."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """What a model's template puts around one message of a user."""

    before: int
    """Tokens in front of the message's first word; the salt begins there."""
    tokens: int
    """Tokens of the template and the beginning, without any word."""

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Frame:
        """Raises ParameterError for a model whose words are not one token each in a chat."""
        words = tokenizer.words
        if len(words) < 2 * FIRST_ID:
            raise ParameterError(
                f"the model's tokenizer has {len(words)} plain words of one token, too few to make"
                " prompts of exact length for chat; take api completions"
            )
        one, other = (tokenizer.chat(_said(f"{BEGINNING}{word}")) for word in words[:2])
        before = first_difference(one, other)
        if len(one) != len(other) or one[before + 1 :] != other[before + 1 :]:
            raise ParameterError(
                "the model's chat template changes the text of a message, so its tokens cannot be"
                " known beforehand; take api completions"
            )
        return cls(before=before, tokens=len(one) - 1)


def _said(text: str) -> tuple[Mapping[str, str], ...]:
    return ({"role": "user", "content": text},)


def spoken(
    make: Callable[[int, int], Workload], *, prompt_tokens: int, tokenizer: Tokenizer
) -> Workload:
    """A workload of token ids as one of chats with as many tokens, that share as much.

    `make` builds it for so many prompt tokens and ids. What the template writes is part of every
    prompt and shared by all of them.
    """
    frame, words = Frame.of(tokenizer), tokenizer.words
    made = make(prompt_tokens - frame.tokens, FIRST_ID + len(words))
    requests = []
    for request in made.requests:
        text = BEGINNING + in_words(request.prompt_ids.tolist(), words)
        ids = tokenizer.chat(_said(text))
        if len(ids) != request.prompt_tokens + frame.tokens:
            raise ParameterError(
                f"a chat of {request.prompt_tokens + frame.tokens} tokens became {len(ids)}: the"
                " model's tokenizer joins words; take api completions"
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
    """The workload with the ideal reuse of each prompt worked out from its ids."""
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
    """A request of messages behind the salt, with the ids that the template makes of them.

    The salt is 16 words in front of the first message's text.
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
