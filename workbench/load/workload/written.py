"""Prompts as text, for servers that refuse token ids: the ids that the server will make are known.

Made-up ids become words that are one token each, so that a prompt keeps its length; ids of a text
become that text again. The ids kept are those that the tokenizer makes of what is sent, and the
count of a prompt is theirs, whether the wanted length was met or not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from workbench.errors import ParameterError
from workbench.load.workload.chat import BEGINNING, with_reuse
from workbench.load.workload.token_ids import FIRST_ID, SALT_TOKENS
from workbench.load.workload.workload import Request, Workload

_BREAK = "\n"
"""Between salt and text: a space would make one token with the text's first word."""


class TextTokenizer(Protocol):
    """A tokenizer that can write, too."""

    @property
    def words(self) -> Sequence[str]:
        """Texts that are one token each, whatever other word stands before them; all differ."""
        ...

    def completion(self, text: str) -> list[int]:
        """The ids that a server makes of a prompt of text, its special ones included."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of these ids."""
        ...


def word_ids(tokenizer: TextTokenizer) -> int:
    """The vocabulary of which a made-up workload may draw so that each id is a word.

    Raises ParameterError for a tokenizer with too few words of one token.
    """
    found = len(tokenizer.words)
    if found < 2 * FIRST_ID:
        raise ParameterError(
            f"the tokenizer has {found} plain words of one token, too few to write prompts of exact"
            f" length (at least {2 * FIRST_ID} are needed); name that of the served model, e.g."
            " -p tokenizer Qwen/Qwen2.5-7B-Instruct"
        )
    return FIRST_ID + found


def written(
    workload: Workload,
    tokenizer: TextTokenizer,
    *,
    of_text: bool = False,
    keep_length: bool = True,
) -> Workload:
    """The workload with `prompt_text` for each prompt, and the ids that a server makes of it.

    `of_text` says that the ids behind the salt are those of a text; otherwise all are below
    `word_ids`. `keep_length` lets what stands around the salt take the place of other tokens, not
    come on top. Raises ParameterError for a conversation, whose turns are made of answers' ids.
    """
    if any(request.after is not None for request in workload.requests):
        raise ParameterError(
            f"{workload.name!r} feeds back the token ids of answers, and this server takes prompts"
            " of text only: take another workload, e.g. -p workload batch_processing"
        )
    word_ids(tokenizer)
    salt_start = _salt_start(tokenizer)
    write = _with_text if of_text else _of_words
    frame_tokens = _frame_tokens(tokenizer, of_text=of_text) if keep_length else 0
    made = tuple(
        _request(request, write(request, tokenizer, frame_tokens), tokenizer, salt_start)
        for request in workload.requests
    )
    return with_reuse(replace(workload, requests=made))


def lengths_missed(wanted: Workload, made: Workload) -> int:
    """Prompts of text that are not as long as the workload wanted them."""
    pairs = zip(wanted.requests, made.requests, strict=True)
    return sum(one.prompt_tokens != other.prompt_tokens for one, other in pairs)


def _request(request: Request, text: str, tokenizer: TextTokenizer, salt_start: int) -> Request:
    ids = np.asarray(tokenizer.completion(text))
    return replace(request, prompt_text=text, prompt_ids=ids, salt_start=salt_start)


def _of_words(request: Request, tokenizer: TextTokenizer, frame_tokens: int) -> str:
    """Words for ids; those behind the salt make room for what stands around the words."""
    ids = request.prompt_ids.tolist()
    kept = [*ids[:SALT_TOKENS], *ids[SALT_TOKENS + frame_tokens :]]
    return BEGINNING + _words(kept, tokenizer)


def _with_text(request: Request, tokenizer: TextTokenizer, frame_tokens: int) -> str:
    """The text behind a salt of words; its end makes room."""
    ids = request.prompt_ids.tolist()
    salt = _words(ids[:SALT_TOKENS], tokenizer)
    kept = ids[SALT_TOKENS : len(ids) - frame_tokens]
    return f"{BEGINNING}{salt}{_BREAK}{tokenizer.decode(kept)}"


def _words(ids: Sequence[int], tokenizer: TextTokenizer) -> str:
    words = tokenizer.words
    return "".join(words[(token - FIRST_ID) % len(words)] for token in ids)


def _frame_tokens(tokenizer: TextTokenizer, *, of_text: bool) -> int:
    """Tokens of a prompt beside salt and text: special ones, the beginning, and the break."""
    behind = _BREAK if of_text else ""
    return len(tokenizer.completion(BEGINNING + tokenizer.words[0] + behind)) - 1


def _salt_start(tokenizer: TextTokenizer) -> int:
    one, other = (tokenizer.completion(BEGINNING + word) for word in tokenizer.words[:2])
    pairs = enumerate(zip(one, other, strict=False))
    return next((n for n, (a, b) in pairs if a != b), 0)
