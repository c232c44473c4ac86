"""A request as it goes out: a greedy, streamed completion of exact length."""

from __future__ import annotations

from collections.abc import Mapping

import httpx
import orjson

from workbench.load.http.request_form import RETURN_IDS, USUAL_FORM, RequestForm
from workbench.load.workload.workload import Request

__all__ = ["outgoing_request", "request_body"]

ANSWER_BYTES, BYTES_PER_TOKEN, BYTES_PER_PROMPT_TOKEN = 2**20, 4096, 16
"""Bytes kept of an answer, whatever its length, for each token that it may have (vLLM sends about
300), and for each of the prompt's, whose ids it may repeat (about 7). A server that sends more
ends as a record with the error `too_large`."""


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


def outgoing_request(
    client: httpx.AsyncClient,
    request: Request,
    *,
    base_url: str,
    model: str,
    headers: Mapping[str, str] | None = None,
    request_id: str,
    decode_shift: int = 0,
    form: RequestForm = USUAL_FORM,
    body: bytes | None = None,
) -> httpx.Request:
    """The request as httpx sends it, ready before its time has come.

    The prompt goes to /v1/completions as token ids (as text where `form` says so), or its messages
    to /v1/chat/completions. `body`
    saves building it now (see `request_body`). `decode_shift` asks the proxy for another decode
    instance than the index would choose.
    """
    outgoing = client.build_request(
        "POST",
        f"{base_url.rstrip('/')}/v1/{'chat/' if request.messages else ''}completions",
        content=body or request_body(request, model=model, form=form),
        headers={
            "Content-Type": "application/json",
            "Accept-Encoding": "identity",  # a compressed event has no arrival of its own
            "X-Request-Id": request_id,
            "X-Workbench-Index": str(request.index),
            **({"X-Workbench-Decode-Shift": str(decode_shift)} if decode_shift else {}),
            **(headers or {}),
        },
    )
    outgoing.extensions["limit_bytes"] = (
        ANSWER_BYTES
        + BYTES_PER_TOKEN * request.max_tokens
        + BYTES_PER_PROMPT_TOKEN * request.prompt_tokens
    )
    outgoing.extensions["first_token_from_prefill"] = form.first_token_from_prefill
    return outgoing
