"""One request and its record: every outcome, failures included, is one RequestRecord."""

from __future__ import annotations

from dataclasses import replace
from math import nan
from time import monotonic
from typing import Any
from uuid import uuid4

from workbench.load.http.refusal import refusal
from workbench.load.http.request import Endpoint, Outgoing
from workbench.load.http.response import Response
from workbench.load.http.stream import parse_stream
from workbench.load.http.transport import Transport
from workbench.load.workload.workload import Request
from workbench.records import RequestRecord


async def ask(request: Request, endpoint: Endpoint, *, request_id: str = "") -> RequestRecord:
    """Send one request on its own connection and return its record, also of a failure."""
    outgoing = endpoint.outgoing(request, request_id or uuid4().hex)
    response, scheduled_s = Response(outgoing.limit_bytes), monotonic()
    async with Transport(endpoint.origin) as transport:
        await transport.send(outgoing, response)
    return record_of(outgoing, response, scheduled_s)


def record_of(outgoing: Outgoing, response: Response, scheduled_s: float) -> RequestRecord:
    """The record of a request whose response has ended; parsing takes about 1 us per token."""
    streaming = response.status == 200
    parsed = parse_stream(zip(response.stamps, response.reads, strict=True) if streaming else ())
    error, message = parsed.error, parsed.error_message
    if response.status and not streaming:
        error = f"http_{response.status}"
        message = refusal(response.status, response.headers, response.reads)
    elif response.error and error in ("", "truncated"):
        if response.error != "truncated" or not parsed.done or error:
            error, message = response.error, response.message
        # Otherwise the response was complete before the server closed the connection.
    record = RequestRecord(
        **request_facts(outgoing.request),
        request_id=outgoing.request_id,
        scheduled_s=scheduled_s,
        sent_s=response.sent_s,
        head_s=response.head_s,
        chunk_s=tuple(parsed.chunk_s),
        chunk_tokens=tuple(parsed.chunk_tokens),
        stream_end_s=response.stamps[-1] if response.stamps and not response.error else nan,
        http_status=response.status,
        finish_reason=parsed.finish_reason,
        usage_prompt_tokens=parsed.usage_prompt_tokens,
        output_tokens=parsed.output_tokens,
        cached_tokens=parsed.cached_tokens,
        text=parsed.text,
        answer_ids=tuple(parsed.answer_ids),
        engine_metrics=parsed.engine_metrics,
        error=error,
        error_message=_without_key(message, outgoing.endpoint),
    )
    if outgoing.endpoint.form.first_token_from_prefill:
        return _with_first_token(record)
    return record


def request_facts(request: Request) -> dict[str, Any]:
    """The fields of a record that do not depend on the outcome."""
    return {
        "index": request.index,
        "prompt_tokens": request.prompt_tokens,
        "ideal_reuse_tokens": request.ideal_reuse_tokens,
        "max_tokens": request.max_tokens,
    }


def _without_key(message: str, endpoint: Endpoint) -> str:
    """Remove the API key, since some servers quote the one they refuse."""
    key = endpoint.authorization.removeprefix("Bearer ") if message else ""
    return message.replace(key, "[key]") if key else message


def _with_first_token(record: RequestRecord) -> RequestRecord:
    """Correct the counts of a usage that has the first token as part of the prompt."""
    if record.usage_prompt_tokens != record.prompt_tokens + 1 or record.output_tokens < 0:
        return record
    return replace(
        record,
        usage_prompt_tokens=record.prompt_tokens,
        output_tokens=record.output_tokens + 1,
    )
