"""A workload of prompts of a user's own, from a file that `prompt_file` reads."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from workbench.errors import ParameterError
from workbench.load.files.prompt_file import read_prompts
from workbench.load.workload.chat import chat_request, with_reuse
from workbench.load.workload.token_ids import SALT_TOKENS, salt_ids
from workbench.load.workload.tokenizer import Tokenizer
from workbench.load.workload.workload import Request, Workload, check_numbers

__all__ = ["prompts"]


def prompts(
    *,
    file: str,
    requests: int = 0,
    output_tokens: int = 32,
    context_tokens: int,
    tokenizer: Tokenizer,
    chat: bool = False,
    vocab_tokens: int = 12_288,
    seed: int = 0,
    salt: str,
) -> Workload:
    """The prompts of a file in their order, each behind the same salt, so they share what they do.

    Without `chat` they are sent as token ids (messages as the model's template writes them), with
    `chat` as messages (a text as one of a user). `requests` 0 takes all; one that gives no length
    of its answer asks for `output_tokens`. Raises ParameterError for one that does not fit
    `context_tokens`.
    """
    check_numbers(salt, output_tokens=(output_tokens, 1), requests=(requests, 0), seed=(seed, 0))
    made: list[Request] = []
    own = read_prompts(file, first=requests)
    for index, row in enumerate(own.prompts):
        recorded = len(tokenizer.encode(row.answer)) if row.answer else 0
        most = row.max_tokens or recorded or output_tokens
        messages = row.messages or ({"role": "user", "content": row.prompt},)
        if chat:
            request = chat_request(index, messages, max_tokens=most, tokenizer=tokenizer, salt=salt)
        else:
            ids = tokenizer.chat(messages) if row.messages else tokenizer.encode(row.prompt)
            salted_ids = [*salt_ids(salt, 0, vocab_tokens).tolist(), *ids]
            request = Request(index=index, prompt_ids=np.asarray(salted_ids), max_tokens=most)
        if request.prompt_tokens + most > context_tokens:
            raise ParameterError(
                f"{row.where}: {request.prompt_tokens} prompt tokens ({SALT_TOKENS} of"
                f" them the salt) and {most} of the answer do not fit context_tokens"
                f" {context_tokens}; shorten it, or raise context_tokens"
            )
        made.append(request)
    sent = with_reuse(Workload(name="prompts", seed=seed, salt=salt, requests=tuple(made)))
    return replace(sent, doubts=own.doubts)
