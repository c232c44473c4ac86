"""Where two greedy responses diverge, were the two tokens a tie?

Engines compute in 16 bits, and a prefix that is loaded instead of computed is summed in another
order. If the model's two best tokens are nearly equal, the last bit decides, and the responses
diverge although no KV was damaged. So a request whose responses differ is sent once more with
log-probabilities: two tokens that are both among the best and nearly equal are a tie. The KV of
another prompt gives no such pair.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import nan
from typing import Any

import httpx
import orjson
import pandas as pd

from workbench.control import control_client
from workbench.errors import DeploymentError
from workbench.experiment.plan.arm import Pass
from workbench.experiment.plan.plan import ExperimentPlan
from workbench.experiment.run.launch.isolation import make_state
from workbench.load.http.request import request_body
from workbench.load.workload.workload import Workload
from workbench.metrics.latency import succeeded
from workbench.serve.deployed import Deployment

ASKED_PER_LAUNCH = 8
"""Each costs about as much as a cold request; differences that are not checked stay open."""
CANDIDATES = 5


async def ask_where_answers_part(
    plan: ExperimentPlan,
    arm: str,
    number: int,
    prompts: Workload,
    deployment: Deployment,
    frames: Sequence[pd.DataFrame],
) -> int:
    """Fill `parting_nat` of the rows of this round whose response differs from the reference's.

    Called after an arm's passes, while its servers still run: for its own rows, and if it is the
    reference, for those of the arms before it. `frames` are the passes measured so far; their rows
    are changed in place. Without log-probabilities the value stays NaN. Returns the number of
    differing responses.
    """
    apart = _apart(plan, arm, [f for f in frames if len(f) and (f["round"] == number).all()])
    if not apart:
        return 0
    try:
        await make_state(deployment, Pass(name="text", state="cold"))
    except DeploymentError:
        pass  # a tie shows on warm caches too
    requests = {request.index: request for request in prompts.requests}
    answers: dict[int, Mapping[str, Any]] = {}
    async with control_client(plan.params.timeout_s, headers=deployment.headers) as client:
        for answer in apart:
            if answer.index not in answers:
                if len(answers) == ASKED_PER_LAUNCH:
                    continue
                # A chat is sent as token ids too: only completions return candidates.
                request = replace(requests[answer.index], messages=())
                body = orjson.loads(request_body(request, model=deployment.model, form=plan.form))
                answers[answer.index] = await _with_candidates(client, deployment.url, body)
            nat = parting_nat(answer.text, answer.other, answers[answer.index])
            answer.frame.loc[answer.row, "parting_nat"] = nat
    return len(apart)


@dataclass(frozen=True, slots=True)
class _Apart:
    """A response that differs: its frame and row, the request's index, its and the other text."""

    frame: pd.DataFrame
    row: int
    index: int
    text: str
    other: str


def _apart(plan: ExperimentPlan, arm: str, frames: Sequence[pd.DataFrame]) -> list[_Apart]:
    """The responses of one round that differ from the reference's and were not checked yet."""
    partly = {p.name for a in plan.arms for p in a.passes if p.share < 1}
    reference = plan.text_reference
    cold = next((f for f in frames if _is(f, reference, "cold")), None)
    if cold is None:
        return []
    told = cold[succeeded(cold)]
    texts = dict(zip(told["index"].tolist(), told["text"].tolist(), strict=True))
    found = []
    for frame in frames:
        # The reference also checks the arms before it, which had no reference then.
        if frame is cold or frame["pass"].iat[0] in partly:
            continue
        if arm not in (reference, frame["arm"].iat[0]):
            continue
        rows = frame[succeeded(frame) & frame["parting_nat"].isna()]
        for row, index, text in zip(
            rows.index.tolist(), rows["index"].tolist(), rows["text"].tolist(), strict=True
        ):
            if texts.get(index, text) != text:
                found.append(_Apart(frame, row, index, text, texts[index]))
    return found


def parting_nat(text: str, other: str, logprobs: Mapping[str, Any]) -> float:
    """How far below the best token the lesser of the two is where two texts diverge, in nats.

    `logprobs` is that object of the completions API: `tokens`, and for each of them `top_logprobs`,
    the best candidates. NaN if these do not include both tokens.
    """
    start, shared = 0, _shared(text, other)
    for token, best in zip(
        logprobs.get("tokens") or (), logprobs.get("top_logprobs") or (), strict=False
    ):
        if not text.startswith(token, start):
            # A token of half a character is reported as empty, but is in the text.
            start += len(text[start:shared]) - len(text[start:shared].lstrip("\ufffd"))
        if not text.startswith(token, start) or start + len(token) > shared:
            if not isinstance(best, Mapping) or not best:
                return nan
            one, two = _candidate(text, start, best), _candidate(other, start, best)
            return max(best.values()) - min(best[one], best[two]) if one and two else nan
        start += len(token)
    return nan


def _shared(text: str, other: str) -> int:
    """The number of leading characters that both share."""
    pairs = enumerate(zip(text, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(text), len(other)))


def _candidate(text: str, start: int, best: Mapping[str, float]) -> str:
    """The longest candidate that continues the text; empty if none does."""
    return max((t for t in best if t and text.startswith(t, start)), key=len, default="")


async def _with_candidates(
    client: httpx.AsyncClient, url: str, body: dict[str, Any]
) -> Mapping[str, Any]:
    """The logprobs of the response; empty if the server gives none."""
    if "prompt" not in body:
        return {}
    body.pop("stream_options", None)
    body |= {"stream": False, "logprobs": CANDIDATES}
    try:
        answer = await client.post(f"{url}/v1/completions", json=body)
        found = answer.json()["choices"][0]["logprobs"]
    except (httpx.HTTPError, ValueError, LookupError, TypeError):
        return {}
    return found if isinstance(found, Mapping) else {}


def _is(frame: pd.DataFrame, arm: str, name: str) -> bool:
    return bool(frame["arm"].iat[0] == arm and frame["pass"].iat[0] == name)
