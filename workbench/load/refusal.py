"""What an answer with a status other than 200 says, as one sentence for the record."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from http import HTTPStatus

from workbench.load.stream import error_message

__all__ = ["refusal"]

_TELLING = {
    "retry-after": "the server asks to wait: Retry-After {}",
    "location": "the server is elsewhere: Location {}",
    "www-authenticate": "the server wants a key: WWW-Authenticate {}",
}
"""Headers that say what to do next."""
_HEADER_LETTERS = 200


def refusal(status: int, headers: Mapping[str, str], reads: Iterable[bytes]) -> str:
    """The body's message, else the status in words, and what the headers say to do next.

    `headers` finds names in lower case. Nothing is asked again: a request is one measurement.
    """
    said = error_message(b"".join(reads)) or _phrase(status)
    told = [
        sentence.format(headers[name][:_HEADER_LETTERS])
        for name, sentence in _TELLING.items()
        if name in headers
    ]
    return "; ".join([said, *told])


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return f"status {status} without a word"
