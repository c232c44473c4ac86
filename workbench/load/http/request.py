"""A request as it goes over the wire: a greedy, streamed completion of exact length."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import quote, unquote, urlsplit

import orjson

from workbench.errors import ParameterError, must_be
from workbench.load.workload.workload import Request

RETURN_IDS = "return_token_ids"
"""Requested by turns of a conversation only (`Request.return_ids`)."""

OPTIONAL_FIELDS: Mapping[str, Mapping[str, Any]] = {
    "temperature": {"temperature": 0},
    "stream_options": {"stream_options": {"include_usage": True}},
    "continuous_usage_stats": {
        "stream_options": {"include_usage": True, "continuous_usage_stats": True}
    },
    "ignore_eos": {"ignore_eos": True},
}
"""Fields beyond the first version of the OpenAI API, by name; the last of a field wins."""

SPARE_BYTES, BYTES_PER_TOKEN, BYTES_PER_PROMPT_TOKEN = 2**20, 4096, 16
"""Largest response: fixed bytes, bytes per output token (vLLM sends about 300) and bytes per prompt
token, whose ids may be repeated (about 7). A larger response fails with `too_large`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestForm:
    """Which requests a server accepts, found out once before a run (`run.probe`)."""

    left_out: frozenset[str] = frozenset()
    """Optional fields that the server refuses."""
    prompts_as_text: bool = False
    """The server accepts text prompts only."""
    first_token_from_prefill: bool = False
    """The proxy appends the prefill instance's token to the prompt: the usage, which comes from the
    decode instance, has one prompt token more and one output token less."""
    extra_body: str = ""
    """The user's additional fields as the text of a JSON object, merged into each body."""

    @property
    def fields(self) -> dict[str, Any]:
        """The fields of each body besides model, prompt and length."""
        body: dict[str, Any] = {}
        for name, asked in OPTIONAL_FIELDS.items():
            if name not in self.left_out:
                body |= asked
        return body | (json.loads(self.extra_body) if self.extra_body else {})


USUAL_FORM = RequestForm()
"""All optional fields, as vLLM accepts them."""


class Origin(NamedTuple):
    """What a connection is made to."""

    tls: bool
    host: str
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where the requests of a drive go, and what they have in common.

    `decode_shift` asks the proxy for a different decode instance; `timeout_s` is for each whole
    request. Raises ParameterError for an invalid base_url.
    """

    base_url: str
    model: str
    timeout_s: float = 600.0
    headers: Mapping[str, str] = field(default_factory=dict)
    decode_shift: int = 0
    form: RequestForm = USUAL_FORM

    def __post_init__(self) -> None:
        try:
            split = urlsplit(self.base_url)
            known = split.scheme in ("http", "https") and split.hostname and split.port != 0
        except ValueError:  # a port that is not a number, half a bracket
            known = False
        if not known:
            allowed = "an http:// or https:// URL"
            raise ParameterError(
                must_be("base_url", allowed, self.base_url, "http://127.0.0.1:8000")
            )

    @property
    def origin(self) -> Origin:
        split = urlsplit(self.base_url)
        tls = split.scheme == "https"
        return Origin(tls, split.hostname or "", split.port or (443 if tls else 80))

    @property
    def authorization(self) -> str:
        """The Authorization header: from the user in base_url, else the one given."""
        split = urlsplit(self.base_url)
        if split.username is None:
            return next((v for n, v in self.headers.items() if n.lower() == "authorization"), "")
        user = f"{unquote(split.username)}:{unquote(split.password or '')}"
        return f"Basic {b64encode(user.encode()).decode()}"

    def outgoing(self, request: Request, request_id: str) -> Outgoing:
        """The request as bytes, prepared before it is due.

        The prompt goes to /v1/completions as token ids (or as text, see `form`), or its messages
        to /v1/chat/completions.
        """
        split = urlsplit(self.base_url)
        path = f"{split.path.rstrip('/')}/v1/{'chat/' if request.messages else ''}completions"
        body = request_body(request, model=self.model, form=self.form)
        headers = {
            "Host": split.netloc.rpartition("@")[2],
            "User-Agent": "workbench",
            "Accept": "*/*",
            "Accept-Encoding": "identity",  # a compressed event has no arrival time of its own
            "Connection": "keep-alive",
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            "X-Request-Id": request_id,
            "X-Workbench-Index": str(request.index),
            **({"X-Workbench-Decode-Shift": str(self.decode_shift)} if self.decode_shift else {}),
            **self.headers,
            **({"Authorization": self.authorization} if split.username is not None else {}),
        }
        lines = [f"POST {quote(path, safe='/%')} HTTP/1.1", *map(": ".join, headers.items())]
        return Outgoing(
            request=request,
            request_id=request_id,
            endpoint=self,
            message=b"%b\r\n\r\n%b" % ("\r\n".join(lines).encode(), body),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """One request, ready to be sent."""

    request: Request
    request_id: str
    endpoint: Endpoint
    message: bytes
    """Head and body in one piece."""

    @property
    def limit_bytes(self) -> int:
        """Largest response, in bytes."""
        asked = self.request
        answer_bytes = BYTES_PER_TOKEN * asked.max_tokens
        return SPARE_BYTES + answer_bytes + BYTES_PER_PROMPT_TOKEN * asked.prompt_tokens


def request_body(request: Request, *, model: str, form: RequestForm = USUAL_FORM) -> bytes:
    """The JSON of a greedy, streamed completion of exactly `max_tokens`, with usage in each chunk.

    Without the fields that the server refuses, see `RequestForm`.
    """
    prompt = request.prompt_text if form.prompts_as_text else request.prompt_ids
    body = {
        "model": model,
        **({"messages": request.messages} if request.messages else {"prompt": prompt}),
        **({RETURN_IDS: True} if request.return_ids and RETURN_IDS not in form.left_out else {}),
        "max_tokens": request.max_tokens,
        "stream": True,
        **form.fields,
    }
    return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
