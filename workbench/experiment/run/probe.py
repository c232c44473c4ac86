"""Short requests before a run that find out which fields an attached server takes.

vLLM takes all. Proxies and other servers may refuse a field, want prompts as text, or count tokens
another way. Whatever is left out or corrected is told as a doubt.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace

from workbench.errors import ParameterError
from workbench.experiment.plan.plan import ExperimentPlan
from workbench.experiment.plan.traffic import UNKNOWN_VOCAB_TOKENS, attached_tokenizer
from workbench.load.http.client import ask
from workbench.load.http.request import OPTIONAL_FIELDS, RETURN_IDS, Endpoint, RequestForm
from workbench.load.workload.chat import chat_request
from workbench.load.workload.tokenizer import TextTokenizer
from workbench.load.workload.workload import Request, reference
from workbench.load.workload.written import word_ids, written
from workbench.records import RequestRecord
from workbench.serve.deployment import Deployment

PROMPT_TOKENS, OUTPUT_TOKENS = 64, 4
"""Of a probe: short, and with a token for the decode instance beside that of the prefill."""
TIMEOUT_S = 120.0
_NO_REFUSAL = frozenset(
    {"connect", "timeout", "reset", "http_401", "http_403", "http_404", "http_429", "http_503"}
)
"""Failures in which the form of a request has no part."""
_REFUSED = {
    "temperature": "The server refuses temperature 0: answers are drawn, so texts of two passes may"
    " differ.",
    "ignore_eos": "The server refuses ignore_eos: answers may end early, so their lengths may"
    " differ. Where it knows min_tokens, give that as extra_body.",
    "continuous_usage_stats": "The server refuses continuous_usage_stats: tokens per chunk are"
    " known only where each chunk is one token.",
    "stream_options": "The server refuses stream_options, so it gives no usage: token counts are"
    " not known, and TPOT is missing.",
    RETURN_IDS: "The server refuses return_token_ids: turns of a conversation hold made-up"
    " answers, not those of the model.",
}


async def fitted(
    plan: ExperimentPlan, deployment: Deployment, doubt: Callable[[str], None]
) -> ExperimentPlan:
    """The plan with requests as this deployment takes them; `doubt` is told what that costs.

    Servers that we started take all. One that refuses even the plainest request is measured as it
    is: its words are in the records. Raises ParameterError where prompts have to be text and no
    tokenizer is known.
    """
    for sentence in deployment.doubts:
        doubt(sentence)
    form = replace(plan.form, extra_body=getattr(plan.params, "extra_body", ""))
    if deployment.plan is not None:
        return replace(plan, form=form)
    probe = _Probe(plan, deployment)
    answer = await probe.ask(form)
    if not answer.ok and answer.error not in _NO_REFUSAL:
        refused = answer
        form, answer = await probe.plainest(form)
        if not answer.ok:
            doubt(_unknown(refused))
            return replace(plan, form=replace(form, left_out=frozenset(), prompts_as_text=False))
        if form.prompts_as_text:
            plan = _with_text(plan, deployment, refused)
            probe.writer = plan.workload.writer
            answer = await probe.ask(form)  # now with a prompt whose length is known
        form, answer = await probe.with_most(form, answer)
    elif not answer.ok:
        doubt(_unknown(answer))
    shifted = _first_token_from_prefill(answer)
    for name in sorted(form.left_out):
        if name != "continuous_usage_stats" or "stream_options" not in form.left_out:
            doubt(_REFUSED[name])
    if form.prompts_as_text:
        doubt(
            "The server refuses token ids: prompts were sent as text. Their lengths come from the"
            " tokenizer and are checked against usage."
        )
        if answer.usage_prompt_tokens < 0:
            doubt("The server gives no usage, so the lengths of text prompts could not be checked.")
        elif answer.usage_prompt_tokens != answer.prompt_tokens and not shifted:
            doubt(
                f"The server counts {answer.usage_prompt_tokens} tokens where the tokenizer counts"
                f" {answer.prompt_tokens} of a short prompt: name the server's own tokenizer."
            )
        if told := plan.workload.writing_doubt:
            doubt(told)
    if shifted:
        doubt(
            "The proxy takes the first token from prefill, so decode counts prompt + 1 and"
            " completion - 1. Both are corrected."
        )
        doubt(
            "So TTFT ends with prefill: KV transfer and the wait for a decode instance are in the"
            " gap behind the first token."
        )
        form = replace(form, first_token_from_prefill=True)
    return replace(plan, form=form)


def _unknown(record: RequestRecord) -> str:
    return f"A short request before the run failed ({_said(record)})."


def _said(record: RequestRecord) -> str:
    return f"{record.error}: {' '.join(record.error_message.split())[:120]}"


def _with_text(
    plan: ExperimentPlan, deployment: Deployment, refused: RequestRecord
) -> ExperimentPlan:
    try:
        writer = attached_tokenizer(plan.params, deployment.model)
        return replace(plan, workload=plan.workload.as_text(writer))
    except ParameterError as error:
        raise ParameterError(
            f"the server at {deployment.url} takes prompts as text, and no token ids"
            f" ({_said(refused)}); {error}"
        ) from error


def _first_token_from_prefill(record: RequestRecord) -> bool:
    """Usage counts the first token as part of the prompt, though it came as a chunk.

    The chunks that had text tell the tokens that the client got, one each.
    """
    return (
        record.ok
        and record.usage_prompt_tokens == record.prompt_tokens + 1
        and record.output_tokens == len(record.chunk_s) - 1
        and record.output_tokens == record.max_tokens - 1
    )


@dataclass(slots=True)
class _Probe:
    """Asks a deployment short requests, each with a prompt of its own."""

    plan: ExperimentPlan
    deployment: Deployment
    writer: TextTokenizer | None = None

    async def ask(self, form: RequestForm) -> RequestRecord:
        """What becomes of a request of this form."""
        endpoint = Endpoint(
            base_url=self.deployment.url,
            model=self.deployment.model,
            timeout_s=min(TIMEOUT_S, self.plan.params.timeout_s),
            headers=self.deployment.headers,
            form=form,
        )
        request_id = f"probe-{secrets.token_hex(4)}"
        return await ask(self._request(form), endpoint, request_id=request_id)

    async def plainest(self, form: RequestForm) -> tuple[RequestForm, RequestRecord]:
        """The form without anything optional, with text where token ids are refused."""
        bare = replace(form, left_out=frozenset({*OPTIONAL_FIELDS, RETURN_IDS}))
        answer = await self.ask(bare)
        if answer.ok or self._sample.messages:
            return bare, answer
        bare = replace(bare, prompts_as_text=True)
        return bare, await self.ask(bare)

    async def with_most(
        self, form: RequestForm, answer: RequestRecord
    ) -> tuple[RequestForm, RequestRecord]:
        """Each optional field tried once with; those stay that are taken. And the last success."""
        for name in (*OPTIONAL_FIELDS, RETURN_IDS):
            if name == "continuous_usage_stats" and "stream_options" in form.left_out:
                continue
            if name == RETURN_IDS and not self._sample.return_ids:
                form = replace(form, left_out=form.left_out - {name})
                continue
            more = replace(form, left_out=form.left_out - {name})
            tried = await self.ask(more)
            if tried.ok:
                form, answer = more, tried
        return form, answer

    @property
    def _sample(self) -> Request:
        return self.plan.workload.sample.requests[0]

    def _request(self, form: RequestForm) -> Request:
        salt = f"probe-{secrets.token_hex(8)}"
        if self._sample.messages:
            tokenizer = self.plan.workload.tokenizer
            assert tokenizer is not None
            said = ({"role": "user", "content": "Count to ten."},)
            return chat_request(0, said, max_tokens=OUTPUT_TOKENS, tokenizer=tokenizer, salt=salt)
        vocab_tokens = UNKNOWN_VOCAB_TOKENS
        if self.writer is not None:
            vocab_tokens = min(vocab_tokens, word_ids(self.writer))
        made = reference(
            requests=1,
            prompt_tokens=PROMPT_TOKENS,
            output_tokens=OUTPUT_TOKENS,
            vocab_tokens=vocab_tokens,
            salt=salt,
        )
        if self.writer is not None:
            made = written(made, self.writer)
        request = replace(made.requests[0], return_ids=self._sample.return_ids)
        if form.prompts_as_text and self.writer is None:
            return replace(request, prompt_text=f"Read {salt} and count to ten.")
        return request
