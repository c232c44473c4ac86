"""What is sent and when, from a notebook's parameters: the workload's spec and its arrivals."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import cycle
from pathlib import Path
from typing import Any

from workbench.errors import ParameterError
from workbench.load.catalogue import build
from workbench.load.files.trace_file import read_trace, trace_requests
from workbench.load.workload.arrivals import (
    Arrivals,
    at_times,
    closed,
    constant,
    gamma,
    poisson,
    ramp,
)
from workbench.load.workload.chat import Frame, spoken
from workbench.load.workload.token_ids import SALT_TOKENS
from workbench.load.workload.tokenizer import (
    ModelTokenizer,
    TextTokenizer,
    Tokenizer,
    model_tokenizer,
)
from workbench.load.workload.workload import Workload
from workbench.load.workload.written import lengths_missed, word_ids, written
from workbench.params.shared import EngineParams, LoadParams
from workbench.serve.simulated.answers import SimulatedTokenizer
from workbench.serve.tiny_model import ModelFacts
from workbench.serve.vllm import EngineSettings

OF_A_FILE = ("trace", "prompts")
"""Workloads whose requests a file has."""
LEAST_ARRIVALS = 20
"""Requests of an open-loop pass below which their few arrival times decide its throughput."""
LEAST_CLOSED = 10
"""Requests of a pass below which it checks no prediction, in a closed loop."""
UNKNOWN_VOCAB_TOKENS = 5_000
"""Token ids below it exist in every model in use; used where the vocabulary is unknown."""
_OF_TEXT = ("prompts", "text")
_ON_A_CPU = {"long_context_high_reuse": 16_384}
"""Longest prompts on a CPU, where a workload's own would take minutes each or too much memory."""


@dataclass(frozen=True, kw_only=True)
class WorkloadSpec:
    """A workload without its salt: the same spec gives every round and arm the same requests."""

    name: str
    options: dict[str, Any]
    lengths: tuple[int, ...] = ()
    """Of a workload of several lengths: unique prompts are cut to these in turn."""
    tokenizer: Tokenizer | None = field(default=None, repr=False, compare=False)
    """For prompts of text, and for chat."""
    chat: bool = False
    writer: TextTokenizer | None = field(default=None, repr=False, compare=False)
    """Writes the prompts as text, for a server that refuses token ids."""

    def build(self, salt: str) -> Workload:
        """The workload behind this salt. Raises ParameterError for one that cannot be built."""
        made = self._of_ids(salt)
        if self.writer is None:
            return made
        own = self.name == "prompts"  # a user's own stay whole
        return written(made, self.writer, of_text=self.name in _OF_TEXT, keep_length=not own)

    def _of_ids(self, salt: str) -> Workload:
        make = partial(build, "reference" if self.lengths else self.name, salt=salt)
        if self.name in _OF_TEXT:
            return make(**self.options, tokenizer=self.tokenizer, chat=self.chat)
        if not self.chat:
            whole = make(**self.options)
            if not self.lengths:
                return whole
            turns = zip(whole.requests, cycle(self.lengths), strict=False)
            cut = (replace(request, prompt_ids=request.prompt_ids[:n]) for request, n in turns)
            return replace(whole, name=self.name, requests=tuple(cut))
        assert self.tokenizer is not None
        template_tokens = Frame.of(self.tokenizer).tokens

        def inside(prompt_tokens: int, vocab_tokens: int) -> Workload:
            options = self.options | {"prompt_tokens": prompt_tokens, "vocab_tokens": vocab_tokens}
            if "shared_tokens" in options:
                shared = options["shared_tokens"] - template_tokens
                options["shared_tokens"] = max(SALT_TOKENS, shared)
            return make(**options)

        return spoken(inside, prompt_tokens=self.options["prompt_tokens"], tokenizer=self.tokenizer)

    @cached_property
    def sample(self) -> Workload:
        """The workload with some salt, for what does not depend on it."""
        return self.build("plan")

    @property
    def longest_prompt_tokens(self) -> int:
        return max(request.prompt_tokens for request in self.sample.requests)

    def as_text(self, writer: TextTokenizer) -> WorkloadSpec:
        """The workload with its prompts written as text.

        Raises ParameterError for a tokenizer that cannot, or a workload made of answers.
        """
        options = dict(self.options)
        if self.name not in _OF_TEXT:
            options["vocab_tokens"] = min(options["vocab_tokens"], word_ids(writer))
        made = replace(self, options=options, writer=writer)
        _ = made.sample
        return made

    @property
    def writing_doubt(self) -> str:
        """How many prompts have another length as text than requested; empty if none has."""
        wanted = self._of_ids("plan")
        if self.name == "prompts" or not (missed := lengths_missed(wanted, self.sample)):
            return ""
        return (
            f"As text, {missed} of {len(wanted.requests)} prompts differ from the requested length."
            " The lengths shown are those sent."
        )

    def __str__(self) -> str:
        shown = ", ".join(f"{name} {value}" for name, value in self.options.items())
        as_chat, as_text = " as chat" * self.chat, "; prompts as text" * (self.writer is not None)
        return f"{self.name}{as_chat}: {shown}{as_text}"


def workload_of(
    params: LoadParams, settings: EngineSettings | None, model: ModelFacts | None
) -> WorkloadSpec:
    """The spec of what these parameters ask for; `settings` is None for attached servers.

    Raises ParameterError for lengths that the servers do not take, and text without a tokenizer.
    """
    prompt_tokens, requests = params.lengths
    if _is_shortened(params, settings):
        prompt_tokens = _ON_A_CPU[params.workload]
    options: dict[str, Any] = {
        "requests": requests,
        "prompt_tokens": prompt_tokens,
        "output_tokens": params.output_tokens,
        "vocab_tokens": model.vocab_tokens if model else UNKNOWN_VOCAB_TOKENS,
        "seed": params.seed,
    }
    match params.workload:
        case "shared_prefix":
            options["shared_tokens"] = int(params.shared_share * prompt_tokens)
        case "trace":
            options["file"] = params.trace_file
            if params.trace_block_tokens:
                options["block_tokens"] = params.trace_block_tokens
            # A file with fewer requests than are usual is sent whole.
            options["requests"] = params.requests or trace_requests(params.trace_file, requests)
        case "text":
            options["text"] = params.text
        case "prompts":
            del options["prompt_tokens"]
            options |= {"requests": params.requests, "file": params.prompts_file}
            options["context_tokens"] = params.context_tokens
    if params.workload != "prompts":
        params.check_lengths(prompt_tokens, params.output_tokens)
    if params.target_reuse:
        options["reuse"] = params.target_reuse
    chat = params.api == "chat"
    tokenizer: Tokenizer | None = None
    if chat or params.workload in _OF_TEXT:
        if settings is None:
            tokenizer = attached_tokenizer(params)
        elif settings.platform == "simulated":
            tokenizer = SimulatedTokenizer()
        else:
            tokenizer = model_tokenizer(str(settings.model))
    return WorkloadSpec(name=params.workload, options=options, tokenizer=tokenizer, chat=chat)


def attached_tokenizer(params: EngineParams, served: str = "") -> ModelTokenizer:
    """The tokenizer of servers that somebody else started: `tokenizer`, `model`, or a local folder
    under whose path the model is served. Raises ParameterError where there is none."""
    given = str(getattr(params, "tokenizer", ""))
    name = given or params.model or (served if Path(served).is_dir() else "")
    if not name:
        raise ParameterError(
            "attached servers do not give their tokenizer, which is needed to count the tokens of"
            " text prompts; set it (example: -p tokenizer /models/Qwen2.5-7B-Instruct)"
        )
    return model_tokenizer(name)


def _is_shortened(params: LoadParams, settings: EngineSettings | None) -> bool:
    own = not params.prompt_tokens and params.workload in _ON_A_CPU
    return own and settings is not None and not settings.on_gpu


def length_doubts(params: LoadParams, settings: EngineSettings) -> list[str]:
    """What was made smaller for a CPU."""
    if not _is_shortened(params, settings):
        return []
    longest, usual = _ON_A_CPU[params.workload], params.lengths[0]
    return [
        f"On a CPU {params.workload} uses prompts of {longest // 2:,} to {longest:,} tokens, on a"
        f" GPU {usual // 2:,} to {usual:,}. Override with prompt_tokens."
    ]


def arrival_doubts(params: LoadParams, requests: int) -> list[str]:
    """What an open loop of few requests cannot show."""
    closed = params.arrival_kind == "closed" and not params.sweeps_rates
    if closed or requests >= LEAST_ARRIVALS:
        return []
    return [
        f"Only {requests} requests per pass of an open loop: their arrival times decide the"
        f" throughput. Use at least {LEAST_ARRIVALS} (-p requests {LEAST_ARRIVALS})."
    ]


def check_doubts(params: LoadParams, requests: int) -> list[str]:
    """Why the passes of a run with predictions will check none of them."""
    least = LEAST_CLOSED if params.arrival_kind == "closed" else LEAST_ARRIVALS
    if requests >= least:
        return []
    return [
        f"{requests} requests per pass are too few to check a prediction (at least {least}: -p"
        f" requests {least})."
    ]


def arrivals_of(params: LoadParams, requests: int, *, rate_per_s: float = 0.0) -> Arrivals:
    """When the requests are sent; `rate_per_s` replaces the one of the parameters."""
    rate_per_s = rate_per_s or params.rate_per_s
    kind = params.arrival_kind
    if kind == "closed" and rate_per_s:
        kind = "poisson"  # of a sweep over rates
    match kind:
        case "closed":
            return closed(params.concurrency)
        case "constant":
            return constant(rate_per_s, requests)
        case "poisson":
            return poisson(rate_per_s, requests, params.seed)
        case "gamma":
            return gamma(rate_per_s, requests, params.seed, burstiness=params.burstiness)
        case "ramp":
            return ramp(rate_per_s, params.end_rate_per_s, requests)
        case "trace":
            trace = read_trace(
                params.trace_file, first=requests, block_tokens=params.trace_block_tokens
            )
            if trace.untimed:
                raise ParameterError(
                    f"arrivals is 'trace', but {trace.untimed} of {len(trace.rows)} lines of"
                    f" trace_file {params.trace_file} have no timestamp; set trace_speed to 0, or"
                    " send the requests at a rate (example: -p rate_per_s 2)"
                )
            return at_times(row.arrival_s / (params.trace_speed or 1.0) for row in trace.rows)
