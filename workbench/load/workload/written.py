"""Prompts as text with known token ids, for servers that do not accept token ids.

Random ids become words of one token each; ids of a text become that text again. The stored ids are
those that the tokenizer makes of the text, even if their number differs from the wanted one.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from workbench.errors import ParameterError, needs
from workbench.load.workload.chat import BEGINNING, with_reuse
from workbench.load.workload.token_ids import FIRST_ID, SALT_TOKENS, first_difference, in_words
from workbench.load.workload.tokenizer import TextTokenizer
from workbench.load.workload.workload import Request, Workload

_BREAK = "\n"
"""Between salt and text: a space would merge with the text's first word."""


def word_ids(tokenizer: TextTokenizer) -> int:
    """Vocabulary size for random prompts in which each id is a word.

    Raises ParameterError for a tokenizer with too few single-token words.
    """
    found = len(tokenizer.words)
    if found < 2 * FIRST_ID:
        raise ParameterError(
            f"text prompts need a tokenizer with at least {2 * FIRST_ID} single-token words, got"
            f" {found}; name the served model's (example: -p tokenizer Qwen/Qwen2.5-7B-Instruct)"
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

    `of_text`: the ids after the salt are those of a text; otherwise all are below `word_ids`.
    `keep_length`: tokens around the salt replace other tokens and do not add to the length. Raises
    ParameterError for a conversation, whose turns are made of the ids of responses.
    """
    if any(request.after is not None for request in workload.requests):
        server, needed = "a server that takes only text prompts", "a single-turn workload"
        raise ParameterError(needs(server, needed, workload.name, "-p workload batch_processing"))
    word_ids(tokenizer)
    one, other = (tokenizer.completion(BEGINNING + word) for word in tokenizer.words[:2])
    salt_start = first_difference(one, other)
    write = _with_text if of_text else _of_words
    frame_tokens = _frame_tokens(tokenizer, of_text=of_text) if keep_length else 0
    made = []
    for request in workload.requests:
        text = write(request, tokenizer, frame_tokens)
        ids = np.asarray(tokenizer.completion(text))
        made.append(replace(request, prompt_text=text, prompt_ids=ids, salt_start=salt_start))
    return with_reuse(replace(workload, requests=tuple(made)))


def lengths_missed(wanted: Workload, made: Workload) -> int:
    """Number of text prompts whose length differs from the wanted one."""
    pairs = zip(wanted.requests, made.requests, strict=True)
    return sum(one.prompt_tokens != other.prompt_tokens for one, other in pairs)


def _of_words(request: Request, tokenizer: TextTokenizer, frame_tokens: int) -> str:
    """Words for ids; some after the salt are dropped to keep the length."""
    ids = request.prompt_ids.tolist()
    kept = [*ids[:SALT_TOKENS], *ids[SALT_TOKENS + frame_tokens :]]
    return BEGINNING + in_words(kept, tokenizer.words)


def _with_text(request: Request, tokenizer: TextTokenizer, frame_tokens: int) -> str:
    """The text after a salt of words; its end is dropped to keep the length."""
    ids = request.prompt_ids.tolist()
    salt = in_words(ids[:SALT_TOKENS], tokenizer.words)
    kept = ids[SALT_TOKENS : len(ids) - frame_tokens]
    return f"{BEGINNING}{salt}{_BREAK}{tokenizer.decode(kept)}"


def _frame_tokens(tokenizer: TextTokenizer, *, of_text: bool) -> int:
    """Tokens of a prompt besides salt and text: special ones, the beginning and the break."""
    behind = _BREAK if of_text else ""
    return len(tokenizer.completion(BEGINNING + tokenizer.words[0] + behind)) - 1
