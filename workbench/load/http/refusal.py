"""The error message of a server that refuses or fails a request, as one sentence."""

from __future__ import annotations

import re
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

import orjson

_TELLING = {
    "retry-after": "the server asks to retry later: Retry-After {}",
    "location": "the server redirects: Location {}",
    "www-authenticate": "the server requires an API key: WWW-Authenticate {}",
}
"""Headers that say what to do next."""
_HEADER_LETTERS = 200
_MESSAGE_LETTERS = 500


def refusal(status: int, headers: Iterable[tuple[bytes, bytes]], reads: Iterable[bytes]) -> str:
    """The message of a response with a status other than 200, and what to do next.

    The body's message, else the status in words, then what the headers say. Nothing is retried: a
    request is one measurement.
    """
    named = {n.decode(errors="replace").lower(): v.decode(errors="replace") for n, v in headers}
    said = error_message(b"".join(reads)) or _phrase(status)
    told = [
        sentence.format(named[name][:_HEADER_LETTERS])
        for name, sentence in _TELLING.items()
        if name in named
    ]
    return "; ".join([said, *told])


def error_message(body: bytes) -> str:
    """The message of an error body in OpenAI's, vLLM's or FastAPI's format, or its first words."""
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        return first_words(body)
    return message_of(answer) if isinstance(answer, dict) else first_words(body)


def message_of(answer: dict[str, Any]) -> str:
    """The message of an error body in JSON."""
    error = answer.get("error") or answer
    message = error.get("message") or error.get("detail") if isinstance(error, dict) else error
    return str(message or answer)[:_MESSAGE_LETTERS]


def first_words(body: bytes) -> str:
    """The first words of a body, without HTML tags."""
    text = body[:4000].decode(errors="replace").strip()
    if text.startswith("<"):
        text = " ".join(re.sub(r"<(style|script).*?</\1>|<[^>]*>", " ", text, flags=re.S).split())
    return text[:_MESSAGE_LETTERS]


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return f"status {status} without a message"
