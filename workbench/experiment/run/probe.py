"""Sends short requests before a run to find out which fields an attached server accepts.

vLLM accepts all. Proxies and other servers may reject a field, need prompts as text, or count
tokens in another way. Whatever is left out or corrected becomes a doubt.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import isnan

from workbench.errors import ParameterError
from workbench.experiment.plan.offered_load.traffic import UNKNOWN_VOCAB_TOKENS, attached_tokenizer
from workbench.experiment.plan.plan import ExperimentPlan
from workbench.load.http.client import ask
from workbench.load.http.request import OPTIONAL_FIELDS, RETURN_IDS, Endpoint, RequestForm
from workbench.load.workload.chat import chat_request
from workbench.load.workload.tokenizer import TextTokenizer
from workbench.load.workload.workload import Request, reference
from workbench.load.workload.written import word_ids, written
from workbench.records import ProxyFacts, RequestRecord
from workbench.serve.deployed import Deployment
from workbench.topology import TensorParallel, Topology

PROMPT_TOKENS, OUTPUT_TOKENS = 64, 4
"""Lengths of a probe: short, with at least one token from the decode instance."""
TIMEOUT_S = 120.0
_NO_REFUSAL = frozenset(
    {"connect", "timeout", "reset", "http_401", "http_403", "http_404", "http_429", "http_503"}
)
"""Failures that do not come from the form of a request."""
_REFUSED = {
    "temperature": "The server rejects temperature 0, so output is sampled and texts of two passes"
    " may differ.",
    "ignore_eos": "The server rejects ignore_eos, so output lengths may differ. If it supports"
    " min_tokens, set that in extra_body.",
    "continuous_usage_stats": "The server rejects continuous_usage_stats, so tokens per chunk are"
    " known only if each chunk is one token.",
    "stream_options": "The server rejects stream_options and reports no usage, so token counts are"
    " unknown and TPOT is missing.",
    RETURN_IDS: "The server rejects return_token_ids, so conversation turns contain made-up"
    " responses instead of the model's.",
}


async def fitted(
    plan: ExperimentPlan, deployment: Deployment, doubt: Callable[[str], None]
) -> ExperimentPlan:
    """The plan with requests as this deployment accepts them; `doubt` gets what that costs.

    Servers that we started accept all. One that rejects even the plainest request is measured as it
    is, and its errors are in the records. Raises ParameterError if prompts must be text and no
    tokenizer is known.
    """
    for sentence in deployment.doubts:
        doubt(sentence)
    if deployment.proxy is not None:
        plan = _as_told(plan, deployment.proxy, deployment.topology, doubt)
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
            "The server rejects token ids, so prompts were sent as text. Their lengths come from"
            " the tokenizer, checked against usage."
        )
        if answer.usage_prompt_tokens < 0:
            doubt("The server reports no usage, so lengths of text prompts could not be checked.")
        elif answer.usage_prompt_tokens != answer.prompt_tokens and not shifted:
            doubt(
                f"The server counts {answer.usage_prompt_tokens} tokens in a short prompt but the"
                f" tokenizer counts {answer.prompt_tokens}. Set tokenizer to the server's own."
            )
        if told := plan.workload.writing_doubt:
            doubt(told)
    if shifted:
        doubt(
            "The proxy takes the first token from prefill, so decode counts it as a prompt token."
            " Both counts are corrected."
        )
        doubt(
            "The first token comes from the prefill instance. KV transfer and the wait for decode"
            " are in the gap after it, not in TTFT."
        )
        form = replace(form, first_token_from_prefill=True)
    return replace(plan, form=form)


def _as_told(
    plan: ExperimentPlan,
    proxy: ProxyFacts,
    topology: Topology | None,
    doubt: Callable[[str], None],
) -> ExperimentPlan:
    """The plan with what our proxy knows about the servers behind it."""
    (arm,) = plan.arms
    if arm.topology not in (None, topology):
        doubt(f"The proxy has {topology} behind it, not topology {arm.topology}.")
    told = replace(
        arm,
        topology=topology,
        connector=proxy.connector or arm.connector,
        chunk_tokens=proxy.chunk_tokens or arm.chunk_tokens,
        store_gb=arm.store_gb if isnan(proxy.store_gb) else proxy.store_gb,
        tp=TensorParallel(**proxy.ranks),
    )
    return replace(plan, arms=(told,))


def _unknown(record: RequestRecord) -> str:
    return f"A short test request before the run failed ({_said(record)})."


def _said(record: RequestRecord) -> str:
    return f"{record.error}: {' '.join(record.error_message.split())[:80]}"


def _with_text(
    plan: ExperimentPlan, deployment: Deployment, refused: RequestRecord
) -> ExperimentPlan:
    try:
        writer = attached_tokenizer(plan.params, deployment.model)
        return replace(plan, workload=plan.workload.as_text(writer))
    except ParameterError as error:
        raise ParameterError(
            f"the server at {deployment.url} accepts only text prompts, no token ids"
            f" ({_said(refused)}); {error}"
        ) from error


def _first_token_from_prefill(record: RequestRecord) -> bool:
    """Whether usage counts the first token as part of the prompt, though it came as a chunk.

    Each chunk with text is one token that the client got.
    """
    return (
        record.ok
        and record.usage_prompt_tokens == record.prompt_tokens + 1
        and record.output_tokens == len(record.chunk_s) - 1
        and record.output_tokens == record.max_tokens - 1
    )


@dataclass(slots=True)
class _Probe:
    """Sends short requests to a deployment, each with a unique prompt."""

    plan: ExperimentPlan
    deployment: Deployment
    writer: TextTokenizer | None = None

    async def ask(self, form: RequestForm) -> RequestRecord:
        """The record of a request of this form."""
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
        """The form without optional fields, with text if token ids are rejected."""
        bare = replace(form, left_out=frozenset({*OPTIONAL_FIELDS, RETURN_IDS}))
        answer = await self.ask(bare)
        if answer.ok or self._sample.messages:
            return bare, answer
        bare = replace(bare, prompts_as_text=True)
        return bare, await self.ask(bare)

    async def with_most(
        self, form: RequestForm, answer: RequestRecord
    ) -> tuple[RequestForm, RequestRecord]:
        """The form with each optional field that is accepted, and the last successful record."""
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
