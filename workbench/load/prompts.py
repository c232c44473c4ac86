"""Prompts of a user's own: a JSON Lines file, each line with `prompt` or `messages`.

{"prompt": "Once upon a time"}
{"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 64}
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from workbench.errors import ParameterError
from workbench.load.chat import chat_request, with_reuse
from workbench.load.token_ids import SALT_TOKENS, salt_ids
from workbench.load.tokenizer import Tokenizer
from workbench.load.workload import Request, Workload, check_numbers

__all__ = ["OwnPrompt", "prompts", "read_prompts"]

MAX_LINE_BYTES = 64 * 2**20
"""A longer line is no prompt: no model reads 16 million tokens."""

_ROLES = ("system", "developer", "user", "assistant", "tool")
_GOOD = '{"prompt": "Hello"} or {"messages": [{"role": "user", "content": "Hello"}]}'


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnPrompt:
    """One line of the file: a text, or what was said in a chat."""

    line: int
    prompt: str = ""
    messages: tuple[Mapping[str, str], ...] = ()
    max_tokens: int = 0
    """0 where the line does not say."""


def read_prompts(path: Path | str, *, first: int = 0) -> tuple[OwnPrompt, ...]:
    """The prompts of a file, or its first so many; empty lines are skipped.

    Raises ParameterError, with file and line, for a line that is no prompt.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            found = tuple(islice(_rows(file, path), first or None))
    except OSError as error:
        raise ParameterError(f"prompts_file {path} cannot be read: {error.strerror}") from error
    if not found:
        raise ParameterError(f"prompts_file {path} is empty: each line is one prompt, e.g. {_GOOD}")
    if len(found) < first:
        raise ParameterError(
            f"{path} has {len(found)} prompts and requests is {first}: take no more than these,"
            " or 0 for all"
        )
    return found


def _rows(file: Any, path: Path) -> Iterator[OwnPrompt]:
    for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""), 1):
        if line.strip():
            yield _row(line, f"{path}, line {number}", number)


def _row(line: bytes, where: str, number: int) -> OwnPrompt:
    if len(line) > MAX_LINE_BYTES:
        raise ParameterError(f"{where} is longer than {MAX_LINE_BYTES:,} bytes: it is no prompt")
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        start = line[:60].decode(errors="replace").strip()
        raise ParameterError(f"{where} is not JSON: {start!r}; write {_GOOD}") from error
    if not isinstance(found, dict) or ("prompt" in found) == ("messages" in found):
        raise ParameterError(f"{where}: it has either prompt or messages, e.g. {_GOOD}")
    most = found.get("max_tokens", 0)
    if type(most) is not int or ("max_tokens" in found and most < 1):
        raise ParameterError(f"{where}: max_tokens is {most!r:.60}: a whole number from 1")
    if "prompt" in found:
        text = _text(found["prompt"], "prompt", where)
        return OwnPrompt(line=number, prompt=text, max_tokens=most)
    messages = found["messages"]
    if not isinstance(messages, list) or not messages:
        raise ParameterError(f"{where}: messages is no list with one message or more, e.g. {_GOOD}")
    said = []
    for message in messages:
        role = message.get("role") if isinstance(message, dict) else None
        if role not in _ROLES:
            raise ParameterError(
                f"{where}: a message has the role {role!r:.60}; write one of {', '.join(_ROLES)}"
            )
        said.append({"role": role, "content": _text(message.get("content"), "content", where)})
    return OwnPrompt(line=number, messages=tuple(said), max_tokens=most)


def _text(value: object, name: str, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise ParameterError(f"{where}: {name} is {value!r:.60}: it is a text that is not empty")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # "\ud800" is JSON, but no text
        raise ParameterError(f"{where}: {name} has half a character: {error.reason}") from error
    return value


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
    `chat` as messages (a text as one of a user). `requests` 0 takes all; a line without max_tokens
    asks for `output_tokens`. Raises ParameterError for one that does not fit `context_tokens`.
    """
    check_numbers(salt, output_tokens=(output_tokens, 1), requests=(requests, 0), seed=(seed, 0))
    made: list[Request] = []
    rows = read_prompts(file, first=requests)
    for index, row in enumerate(rows):
        most = row.max_tokens or output_tokens
        messages = row.messages or ({"role": "user", "content": row.prompt},)
        if chat:
            request = chat_request(index, messages, max_tokens=most, tokenizer=tokenizer, salt=salt)
        else:
            ids = tokenizer.chat(messages) if row.messages else tokenizer.encode(row.prompt)
            salted_ids = [*salt_ids(salt, 0, vocab_tokens).tolist(), *ids]
            request = Request(index=index, prompt_ids=np.asarray(salted_ids), max_tokens=most)
        if request.prompt_tokens + most > context_tokens:
            raise ParameterError(
                f"{file}, line {row.line}: {request.prompt_tokens} prompt tokens ({SALT_TOKENS} of"
                f" them the salt) and {most} of the answer do not fit context_tokens"
                f" {context_tokens}; shorten it, or raise context_tokens"
            )
        made.append(request)
    return with_reuse(Workload(name="prompts", seed=seed, salt=salt, requests=tuple(made)))
