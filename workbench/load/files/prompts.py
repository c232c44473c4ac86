"""A workload of a user's own prompts: each row of a file has a text or a chat, maybe a length.

Files of other tools are read too: vLLM's custom data sets, AIPerf's texts, OpenAI's batches
(`body`), ShareGPT (`conversations`: the first question, with the recorded answer's length).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from workbench.errors import ParameterError
from workbench.load.files.request_file import FileRow, cut, file_rows, unused
from workbench.load.workload.chat import chat_request, with_reuse
from workbench.load.workload.token_ids import SALT_TOKENS, salt_ids
from workbench.load.workload.tokenizer import Tokenizer
from workbench.load.workload.workload import Request, Workload, check_numbers

MAX_LINE_BYTES = 64 * 2**20
"""Limit of a line: no model reads 16 million tokens."""

_ROLES = ("system", "developer", "user", "assistant", "tool")
_SHAREGPT_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant",
                   "chatgpt": "assistant", "bing": "assistant", "system": "system"}  # fmt: skip
_TEXTS = ("prompt", "text_input", "text")
_FORMS = (*_TEXTS, "messages", "conversations", "body")
_LENGTHS = (
    "max_tokens", "max_completion_tokens", "max_new_tokens", "max_output_tokens", "output_tokens",
    "output_length", "output_len", "expected_output_len", "output_tokens_count",
)  # fmt: skip
"""Names that tools give to the output length."""
_IN_A_MESSAGE = ("role", "content", "name", "tool_calls", "tool_call_id")
_GOOD = '{"prompt": "Hello"} or {"messages": [{"role": "user", "content": "Hello"}]}'


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnPrompt:
    """One row of the file: a text, or the messages of a chat."""

    where: str
    """Parameter, file and line, for error messages."""
    line: int
    prompt: str = ""
    messages: tuple[Mapping[str, Any], ...] = ()
    max_tokens: int = 0
    """0 if the row gives none."""
    answer: str = ""
    """A recorded answer, which gives the output length if `max_tokens` is 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptFile:
    """The prompts of a file, and what a reader must know about how they were read."""

    prompts: tuple[OwnPrompt, ...]
    doubts: tuple[str, ...] = ()


@dataclass(slots=True)
class _Seen:
    """What rows hold in addition to prompts and lengths."""

    unused: set[str] = field(default_factory=set)
    doubts: dict[str, None] = field(default_factory=dict)

    def doubt(self, sentence: str) -> None:
        """Once, for any number of rows."""
        self.doubts[sentence] = None


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
    """The prompts of a file in their order, each after the same salt, so shared prefixes stay.

    Without `chat` they are sent as token ids (messages by the model's template), with `chat` as
    messages (a text as one user message). `requests` 0 takes all; a row without an output length
    asks for `output_tokens`. Raises ParameterError for one that exceeds `context_tokens`.
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
                f"{row.where}: {request.prompt_tokens:,} prompt tokens ({SALT_TOKENS} of them salt)"
                f" and {most:,} output tokens exceed context_tokens ({context_tokens:,}). Shorten"
                " the prompt or raise context_tokens"
            )
        made.append(request)
    sent = with_reuse(Workload(name="prompts", seed=seed, salt=salt, requests=tuple(made)))
    return replace(sent, doubts=own.doubts)


def read_prompts(path: Path | str, *, first: int = 0) -> PromptFile:
    """The prompts of a file, or its `first` prompts.

    Raises ParameterError, with parameter, file and line, for a row that is not a prompt.
    """
    path = Path(path)
    rows = file_rows(path, parameter="prompts_file", most_bytes=MAX_LINE_BYTES, example=_GOOD)
    seen = _Seen()
    found = tuple(_prompt(row, seen) for row in islice(rows, first or None))
    if not found:
        raise ParameterError(f"prompts_file {path} has no prompts (example of a line: {_GOOD})")
    if len(found) < first:
        raise ParameterError(
            f"requests must be at most {len(found):,} (the prompts in prompts_file {path}), got"
            f" {first:,} (example: -p requests 0 sends all)"
        )
    ended = sum(bool(row.messages) and row.messages[-1]["role"] == "assistant" for row in found)
    if ended:
        seen.doubt(
            f"{ended} of {len(found)} prompts in prompts_file end with an assistant message. It is"
            " sent as part of the prompt."
        )
    silent = sum(not (row.max_tokens or row.answer) for row in found)
    if 0 < silent < len(found):
        seen.doubt(
            f"{silent} of {len(found)} prompts in prompts_file have no output length, so they use"
            " output_tokens."
        )
    return PromptFile(prompts=found, doubts=(*seen.doubts, *unused(seen.unused, "prompts_file")))


def _prompt(row: FileRow, seen: _Seen) -> OwnPrompt:
    form = _form(row)
    if form == "body":
        body = row.fields["body"]
        if not isinstance(body, dict):
            raise row.error(f"body must be a JSON object, got {cut(body)} (example: {_GOOD})")
        seen.unused |= _given(row).keys() - {"body"}
        row = replace(row, fields=body)
        form = _form(row)
        if form == "body":
            raise row.error(f"body must not hold another body (example: {_GOOD})")
    fields = _given(row)
    if fields.pop("tools", None):
        seen.doubt("Tools in prompts_file are not sent, so the prompts are shorter than with them.")
    seen.unused |= fields.keys() - {form, *_LENGTHS}
    given, max_tokens = fields[form], _max_tokens(row)
    if form == "conversations":
        return _conversation(row, given, max_tokens, seen)
    own = OwnPrompt(where=row.where, line=row.line, max_tokens=max_tokens)
    is_chat = isinstance(given, list) and all(isinstance(each, dict) for each in given)
    if form == "messages" or (form == "prompt" and given and is_chat):
        return replace(own, messages=_messages(row, given, form, seen))
    return replace(own, prompt=_text(row, given, form))


def _given(row: FileRow) -> dict[str, Any]:
    return {name: value for name, value in row.fields.items() if value is not None}


def _form(row: FileRow) -> str:
    fields = _given(row)
    forms = [name for name in _FORMS if name in fields]
    if len(forms) == 1:
        return forms[0]
    if forms:
        raise row.error(
            f"the row must have one of {' and '.join(forms)}, got both (example: {_GOOD})"
        )
    trace = ". For a trace use -p workload trace" * ("input_length" in fields)
    only = cut(", ".join(fields) or {})
    raise row.error(f"the row must have prompt or messages, got {only}{trace} (example: {_GOOD})")


def _max_tokens(row: FileRow) -> int:
    """The output length under any of its names; 0 if there is none."""
    known = {name: row.tokens(name, least=1) for name in _LENGTHS}
    found = {name: tokens for name, tokens in known.items() if tokens is not None}
    if len(set(found.values())) > 1:
        both = " and ".join(f"{name} {value}" for name, value in found.items())
        raise row.error(f"the row must have one output length, got {both}")
    return max(found.values(), default=0)


def _messages(row: FileRow, given: object, name: str, seen: _Seen) -> tuple[Mapping[str, Any], ...]:
    if not isinstance(given, list) or not given:
        raise row.error(f"{name} must be a list of at least one message (example: {_GOOD})")
    said = []
    for number, message in enumerate(given, 1):
        role = message.get("role") if isinstance(message, dict) else None
        if role not in _ROLES:
            raise row.error(
                f"role of message {number} must be one of {', '.join(_ROLES)}, got {cut(role)}"
            )
        kept = {key: message[key] for key in _IN_A_MESSAGE if message.get(key) is not None}
        seen.unused |= {f"messages.{key}" for key in message.keys() - set(_IN_A_MESSAGE)}
        if "content" not in kept and not kept.get("tool_calls"):
            raise row.error(f"content of message {number} is missing (example: {_GOOD})")
        content = _content(row, kept.get("content", ""), number)
        said.append({**kept, "content": content})
    if not any(message["content"] for message in said):
        raise row.error("at least one message must have text, got only empty ones")
    return tuple(said)


def _content(row: FileRow, content: object, number: int) -> str:
    """A message's text; text parts are joined by line breaks, as in vLLM."""
    name = f"content of message {number}"
    if not isinstance(content, list):
        return _text(row, content, name, may_be_empty=True)
    texts = []
    for part in content:
        kind = part.get("type", "text") if isinstance(part, dict) else "text"
        if kind not in ("text", "input_text"):
            raise row.error(
                f"{name} must be text, got a part of type {cut(kind)}"
                ' (example: {"type": "text", "text": "Hello"})'
            )
        text = part.get("text") if isinstance(part, dict) else part
        texts.append(_text(row, text, name, may_be_empty=True))
    return "\n".join(texts)


def _conversation(row: FileRow, given: object, max_tokens: int, seen: _Seen) -> OwnPrompt:
    """ShareGPT: the first question with the system message before it, and the answer to it."""
    turns: Sequence[Any] = given if isinstance(given, list) else ()
    said: list[tuple[str, str]] = []
    for number, turn in enumerate(turns, 1):
        speaker = None
        if isinstance(turn, dict):  # SGLang's files have no names: question and answer alternate
            speaker = turn.get("from") or turn.get("role") or ("assistant", "user")[number % 2]
        role = _SHAREGPT_ROLES.get(speaker) if isinstance(speaker, str) else None
        if role is None:
            raise row.error(
                f"turn {number} of conversations must be from one of {', '.join(_SHAREGPT_ROLES)},"
                f" got {cut(speaker)}"
            )
        value = turn.get("value", turn.get("content"))
        said.append((role, _text(row, value, f"value of turn {number}", may_be_empty=True)))
    start = next((n for n, (role, text) in enumerate(said) if role == "user" and text), None)
    if start is None:
        raise row.error(
            "conversations must have a question (example:"
            ' {"conversations": [{"from": "human", "value": "Hello"}]})'
        )
    system = next((text for role, text in said[:start] if role == "system" and text), "")
    answer = said[start + 1][1] if said[start + 1 : start + 2] else ""
    if len(said) > start + 2 or any(role == "assistant" for role, _ in said[:start]):
        seen.doubt("Only the first question of each conversation is sent, as in vLLM's benchmark.")
    question = said[start][1]
    own = OwnPrompt(
        where=row.where,
        line=row.line,
        prompt=question,
        max_tokens=max_tokens,
        answer="" if max_tokens else answer,
    )
    if not system:
        return own
    messages = ({"role": "system", "content": system}, {"role": "user", "content": question})
    return replace(own, prompt="", messages=messages)


def _text(row: FileRow, value: object, name: str, *, may_be_empty: bool = False) -> str:
    if not isinstance(value, str) or not (value or may_be_empty):
        kind = "text" if may_be_empty else "non-empty text"
        raise row.error(f'{name} must be {kind}, got {cut(value)} (example: "Hello")')
    try:
        value.encode()
    except UnicodeEncodeError as error:  # "\ud800" is valid JSON, but not text
        raise row.error(f"{name} must be valid Unicode: {error.reason}") from error
    return value
