"""A request as it goes over the wire: a greedy, streamed completion of exact length."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import quote, unquote, urlsplit

import orjson

from workbench.errors import ParameterError
from workbench.load.workload.workload import Request

RETURN_IDS = "return_token_ids"
"""Asked for by turns of a conversation alone (`Request.return_ids`)."""

OPTIONAL_FIELDS: Mapping[str, Mapping[str, Any]] = {
    "temperature": {"temperature": 0},
    "stream_options": {"stream_options": {"include_usage": True}},
    "continuous_usage_stats": {
        "stream_options": {"include_usage": True, "continuous_usage_stats": True}
    },
    "ignore_eos": {"ignore_eos": True},
}
"""What we ask for beyond the OpenAI API's first version, by name; the later of one field holds."""

SPARE_BYTES, BYTES_PER_TOKEN, BYTES_PER_PROMPT_TOKEN = 2**20, 4096, 16
"""Bytes kept of a response, whatever its length, for each token that it may have (vLLM sends about
300), and for each of the prompt's, whose ids it may repeat (about 7). A server that sends more
ends as a record with the error `too_large`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestForm:
    """How a server wants the requests of a run, asked once before it (`run.probe`)."""

    left_out: frozenset[str] = frozenset()
    """Optional fields that the server refuses."""
    prompts_as_text: bool = False
    """The server takes no token ids."""
    first_token_from_prefill: bool = False
    """The proxy takes the first token from the prefill instance and puts it behind the prompt: the
    decode instance, whose usage we get, counts one prompt token more and one output token less."""
    extra_body: str = ""
    """Fields of the user's own as the text of a JSON object, merged into each body."""

    @property
    def fields(self) -> dict[str, Any]:
        """What each body has beside model, prompt and length."""
        body: dict[str, Any] = {}
        for name, asked in OPTIONAL_FIELDS.items():
            if name not in self.left_out:
                body |= asked
        return body | (json.loads(self.extra_body) if self.extra_body else {})


USUAL_FORM = RequestForm()
"""What vLLM takes: all that we ask for."""


class Origin(NamedTuple):
    """What a connection is made to."""

    tls: bool
    host: str
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where the requests of a drive go, and what they have in common.

    `decode_shift` asks the proxy for another decode instance than the index would choose;
    `timeout_s` is for each whole request. Raises ParameterError for a base_url that is none.
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
        except ValueError:  # a port that is no number, half a bracket
            known = False
        if not known:
            raise ParameterError(
                f"base_url is {self.base_url!r}: write it like http://127.0.0.1:8000"
            )

    @property
    def origin(self) -> Origin:
        split = urlsplit(self.base_url)
        tls = split.scheme == "https"
        return Origin(tls, split.hostname or "", split.port or (443 if tls else 80))

    @property
    def authorization(self) -> str:
        """The value of the header: the one given, else made of the user in base_url."""
        split = urlsplit(self.base_url)
        if split.username is None:
            return next((v for n, v in self.headers.items() if n.lower() == "authorization"), "")
        user = f"{unquote(split.username)}:{unquote(split.password or '')}"
        return f"Basic {b64encode(user.encode()).decode()}"

    def outgoing(self, request: Request, request_id: str) -> Outgoing:
        """The request as it is sent, ready before its time has come.

        The prompt goes to /v1/completions as token ids (as text where the form says so), or its
        messages to /v1/chat/completions.
        """
        split = urlsplit(self.base_url)
        path = f"{split.path.rstrip('/')}/v1/{'chat/' if request.messages else ''}completions"
        body = request_body(request, model=self.model, form=self.form)
        headers = {
            "Host": split.netloc.rpartition("@")[2],
            "User-Agent": "workbench",
            "Accept": "*/*",
            "Accept-Encoding": "identity",  # a compressed event has no arrival of its own
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
        """Most bytes of its response."""
        asked = self.request
        answer_bytes = BYTES_PER_TOKEN * asked.max_tokens
        return SPARE_BYTES + answer_bytes + BYTES_PER_PROMPT_TOKEN * asked.prompt_tokens


def request_body(request: Request, *, model: str, form: RequestForm = USUAL_FORM) -> bytes:
    """The JSON of a greedy, streamed completion of exactly `max_tokens`, usage in each chunk.

    Less of that where the server refuses it, see `RequestForm`.
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
