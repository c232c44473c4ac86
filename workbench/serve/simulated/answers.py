"""Response bodies of vLLM 0.32: completions and chat, whole and streamed, and errors.

The format was copied from a real server; the values are those of the simulated engine.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import isnan
from typing import Any
from zlib import crc32

import orjson

from workbench.serve.simulated.scheduler import Sequence
from workbench.serve.vllm import SERVED_MODEL

FINGERPRINT = "vllm-0.32.0-simulated"
VOCAB_TOKENS = 12_288

DONE = b"data: [DONE]\n\n"


def _failure(message: str) -> dict[str, Any]:
    error = {"message": message, "type": "InternalServerError", "param": None, "code": 500}
    return {"error": error}


ENGINE_DIED = _failure(
    "EngineCore encountered an issue. See stack trace (above) for the root cause."
)
LOAD_FAILED = _failure("Internal server error")
"""What vLLM says of a request whose KV could not be loaded."""

_SYLLABLES = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]
_WORD = re.compile(r"\w+|[^\w\s]")


class BadRequest(Exception):
    """A request that vLLM refuses: HTTP status and error body."""

    def __init__(self, status: int, message: str, kind: str, parameter: str) -> None:
        super().__init__(message)
        self.status = status
        error = {"message": message, "type": kind, "param": parameter, "code": status}
        self.body = {"error": error}


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request's body, checked."""

    chat: bool
    prompt: list[int]
    max_tokens: int
    stream: bool
    usage: bool
    usage_always: bool
    """Usage in each chunk, not only in the last event."""
    return_ids: bool
    transfer: Mapping[str, Any]
    """kv_transfer_params, empty without."""


class SimulatedTokenizer:
    """The simulated tokenizer: one id per word and per other character."""

    def encode(self, text: str) -> list[int]:
        return [16 + crc32(word.encode()) % (VOCAB_TOKENS - 16) for word in _WORD.findall(text)]

    def chat(self, messages: Iterable[Mapping[str, str]]) -> list[int]:
        said = [f"{m['role']}: {m['content']}\n" for m in messages]
        return self.encode("".join([*said, "assistant: "]))

    @cached_property
    def words(self) -> tuple[str, ...]:
        """Words of three syllables with different ids."""
        by_id: dict[int, str] = {}
        for parts in product(_SYLLABLES, _SYLLABLES[::4], _SYLLABLES):
            word = "".join(parts)
            by_id.setdefault(self.encode(word)[0], f" {word}")
        return tuple(by_id.values())


_TOKENIZER = SimulatedTokenizer()


def read_request(data: bytes, *, chat: bool, context_tokens: int) -> Asked:
    """Parse a request body. Raises BadRequest for what vLLM would refuse."""
    try:
        return _asked(orjson.loads(data), chat=chat, context_tokens=context_tokens)
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise BadRequest(400, f"invalid request: {error!r}", "BadRequestError", "body") from error


def _asked(body: Mapping[str, Any], *, chat: bool, context_tokens: int) -> Asked:
    if body.get("model", SERVED_MODEL) != SERVED_MODEL:
        message = f"The model `{body['model']}` does not exist. Valid aliases: {SERVED_MODEL}."
        raise BadRequest(404, message, "NotFoundError", "model")
    given = body["messages"] if chat else body["prompt"]
    if chat:
        prompt = _TOKENIZER.chat(given)
    elif isinstance(given, str):
        prompt = _TOKENIZER.encode(given)
    else:
        prompt = [int(token) for token in given]
    room = context_tokens - len(prompt)
    if room < 1 or not prompt:
        message = (
            f"This model's maximum context length is {context_tokens} tokens. However, your prompt"
            f" contains {len(prompt)} input tokens, which exceeds this limit even without any"
            " output tokens. Please reduce the length of the input prompt."
        )
        raise BadRequest(400, message, "BadRequestError", "input_tokens")
    wanted = body.get("max_completion_tokens") or body.get("max_tokens") or 16
    options = body.get("stream_options") or {}
    transfer = body.get("kv_transfer_params")
    with_usage = bool(options.get("include_usage"))
    return Asked(
        chat=chat,
        prompt=prompt,
        max_tokens=max(1, min(int(wanted), room)),
        stream=bool(body.get("stream")),
        usage=with_usage,
        usage_always=with_usage and bool(options.get("continuous_usage_stats")),
        return_ids=bool(body.get("return_token_ids")),
        transfer=transfer if isinstance(transfer, dict) else {},
    )


def chunk(
    sequence: Sequence, asked: Asked, tokens: list[int], made: int, *, finished: bool
) -> bytes:
    """An event with tokens (none: a chunk without text); `made` is the total so far."""
    text = words(tokens)
    choice: dict[str, Any] = {"index": 0, "logprobs": None}
    choice["finish_reason"] = "length" if finished else None
    if asked.chat:
        choice["delta"] = {"content": text} if made else {"role": "assistant", "content": ""}
    else:
        choice |= {"text": text, "stop_reason": None}
    if asked.return_ids:
        choice["token_ids"] = tokens
    body = _head(sequence, asked) | {"choices": [choice]}
    if asked.usage_always:
        body["usage"] = usage(sequence, made)
    return _event(body)


def usage_chunk(sequence: Sequence, asked: Asked) -> bytes:
    """The last event before [DONE]: usage with cached tokens, and engine metrics."""
    return _event(_head(sequence, asked) | {"choices": []} | _tail(sequence))


def whole(
    sequence: Sequence, asked: Asked, transfer: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The body of a response that is not streamed, with a prefill's transfer parameters."""
    choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": "length"}
    text = words(sequence.outputs)
    if asked.chat:
        choice["message"] = {"role": "assistant", "content": text}
    else:
        choice |= {"text": text, "stop_reason": None}
    body = _head(sequence, asked) | {"choices": [choice], "kv_transfer_params": transfer}
    return body | _tail(sequence)


def error_event(body: Mapping[str, Any]) -> bytes:
    """The event of a stream that cannot go on."""
    return _event(body)


def words(tokens: list[int]) -> str:
    """Text of token ids: one word of two syllables each."""
    count = len(_SYLLABLES)
    return "".join(f" {_SYLLABLES[t % count]}{_SYLLABLES[t // count % count]}" for t in tokens)


def _head(sequence: Sequence, asked: Asked) -> dict[str, Any]:
    kind = "text_completion"
    if asked.chat:
        kind = "chat.completion.chunk" if asked.stream else "chat.completion"
    return {"id": sequence.id, "object": kind, "created": 0, "model": SERVED_MODEL}


def _tail(sequence: Sequence) -> dict[str, Any]:
    """Usage, and the metrics of --enable-per-request-metrics; TTFT starts at scheduling."""
    ttft_s = sequence.first_s - sequence.scheduled_s
    generation_s = sequence.last_s - sequence.first_s
    made = len(sequence.outputs)
    took_s = ttft_s + generation_s
    details = {"prompt_tokens_details": {"cached_tokens": sequence.cached}}
    return {
        "system_fingerprint": FINGERPRINT,
        "usage": usage(sequence, made) | details,
        "metrics": {
            "time_to_first_token_ms": None if isnan(ttft_s) else 1000 * ttft_s,
            "generation_time_ms": 1000 * generation_s,
            "queue_time_ms": 1000 * (sequence.scheduled_s - sequence.arrived_s),
            "mean_itl_ms": 1000 * generation_s / (made - 1) if made > 1 else None,
            "tokens_per_second": made / took_s if took_s > 0 else None,
        },
    }


def usage(sequence: Sequence, made: int) -> dict[str, Any]:
    """Tokens of the prompt, and of the output so far."""
    prompt = len(sequence.prompt)
    return {"prompt_tokens": prompt, "total_tokens": prompt + made, "completion_tokens": made}


def _event(body: Mapping[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(body) + b"\n\n"
