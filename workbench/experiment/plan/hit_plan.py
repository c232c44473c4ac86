"""The plan of `lmcache_hit_analysis`: which stores are compared, and prompts of several lengths."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import httpx

from workbench.control import control_context, server_address
from workbench.errors import PlanError
from workbench.experiment.plan.arm import Arm, Pass, pass_in
from workbench.experiment.plan.engine_setup import engine_of, one_instance
from workbench.experiment.plan.offered_load.traffic import UNKNOWN_VOCAB_TOKENS, WorkloadSpec
from workbench.experiment.plan.plan import ExperimentPlan
from workbench.load.workload.arrivals import closed
from workbench.params.notebooks import LMCacheHitAnalysis
from workbench.params.store_tiers import tier_kind
from workbench.serve.checks.capacity import check_store, check_tiers
from workbench.serve.tiny_model import ModelFacts
from workbench.topology import Topology

NO_STORE = "no store"
MAIN = "lmcache"
CACHE_OFF = "lmcache, engine cache off"
SMALL = "lmcache, small L1"
TIERS = {
    "disk": "lmcache, L2 on disk", "redis": "lmcache, L2 on Redis",
    "mooncake": "lmcache, L2 on Mooncake",
}  # fmt: skip
"""The arm of each tier below LMCache's memory: arms of one tier show what that tier costs."""

_COLD, _ENGINE, _STORE = map(pass_in, ("cold", "engine-warm", "store-warm"))
_AGAIN = Pass(name="asked again", state="store-warm")
"""As store-warm, but without a gate: the store is not expected to hold everything."""


def tier_of(arm: str) -> str:
    """`disk`, `Redis` or `Mooncake` of the arm of a tier; empty for other arms."""
    return arm.partition("L2 on ")[2]


def chunk_label(chunk_tokens: int) -> str:
    """`chunk 128`: the arm that differs from `lmcache` in its chunk alone."""
    return f"chunk {chunk_tokens}"


def plan_hits(params: LMCacheHitAnalysis) -> ExperimentPlan:
    """The arms of a live analysis. Raises PlanError for what this machine cannot have."""
    if params.log_file:
        raise PlanError(
            f"log_file is {params.log_file!r}, so an existing log is analysed and nothing is"
            " measured; leave log_file empty to plan a live run"
        )
    if params.engine == "attach":
        return _attached(params)
    settings, model, capacity = engine_of(params)
    check_store(params.store_gb, capacity)
    check_tiers(params.store_tiers, params.tier_gb, capacity)
    if params.block_tokens:
        block = ("--block-size", str(params.block_tokens))
        settings = replace(settings, extra_args=(*settings.extra_args, *block))
    doubts = []
    if model is not None and not settings.on_gpu:
        sent = params.requests * sum(n + params.output_tokens for n in params.prompt_tokens)
        kept_mb = sent * model.kv_shape.bytes_per_token / 2**20
        if params.small_store_mb > kept_mb:
            doubts.append(
                f"A pass has {kept_mb:.1f} MB of KV, which fits small_store_mb"
                f" {params.small_store_mb:g}: nothing will be evicted. Lower small_store_mb."
            )
    main = 256 if 256 in params.chunk_tokens else params.chunk_tokens[0]
    make = partial(
        one_instance(params, settings, capacity),
        connector="lmcache", chunk_tokens=main, store_gb=params.store_gb,
    )  # fmt: skip
    # Whether chunk and block go together is the engine's to say, as is a tier on the disk.
    perhaps = partial(make, may_fail=True)
    partly = tuple(
        Pass(name=f"{share:.0%} in LMCache", state="store-warm", share=share)
        for share in sorted(params.shares)
    )
    off, small_gb = replace(settings, prefix_caching=False), params.small_store_mb / 1024
    arms = [
        make(label=NO_STORE, connector="none", passes=(_COLD, _ENGINE)),
        make(label=MAIN, passes=(_COLD, _ENGINE, *partly, _STORE)),
        make(label=CACHE_OFF, settings=off, passes=(_COLD, _STORE)),
        *(
            perhaps(label=chunk_label(chunk), chunk_tokens=chunk, passes=(_COLD, _STORE))
            for chunk in params.chunk_tokens
            if chunk != main
        ),
        make(label=SMALL, store_gb=small_gb, passes=(_COLD, _AGAIN)),
    ]
    for tier in params.store_tiers[1:]:
        kind = tier_kind(tier)
        below = pass_in("disk-warm" if kind == "disk" else "remote-warm")
        arms.append(
            perhaps(
                label=TIERS[kind], tiers=(tier,), tier_gb=params.tier_gb,
                passes=(_COLD, _STORE, below),
            )
        )  # fmt: skip
    return _plan(params, tuple(arms), model, doubts)


def _plan(
    params: LMCacheHitAnalysis, arms: tuple[Arm, ...], model: ModelFacts | None, doubts: list[str]
) -> ExperimentPlan:
    options = {
        "requests": params.requests * len(params.prompt_tokens),
        "prompt_tokens": max(params.prompt_tokens),
        "output_tokens": params.output_tokens,
        "vocab_tokens": model.vocab_tokens if model else UNKNOWN_VOCAB_TOKENS,
        "seed": params.seed,
    }
    return ExperimentPlan(
        notebook="lmcache_hit_analysis",
        params=params,
        arms=arms,
        rounds=params.rounds,
        workload=WorkloadSpec(name="lengths", lengths=tuple(params.prompt_tokens), options=options),
        arrivals=closed(1),
        doubts=tuple(doubts),
    )


def _chunk_of(url: str) -> int:
    """The chunk size that a running LMCache server reports; 0 if it does not."""
    try:
        asked = httpx.get(
            f"{server_address(url)}/status", timeout=3.0, trust_env=False,
            verify=control_context(),
        )  # fmt: skip
        said = asked.json()
        return int(said["chunk_size"])
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError):
        return 0


def _attached(params: LMCacheHitAnalysis) -> ExperimentPlan:
    """One arm of attached servers; their counters before and after say who served what."""
    states = ["cold", "engine-warm"]
    if params.decode_urls and params.lmcache_url:
        states.append("store-warm")
    doubts = [
        "This run did not start the servers: rounds reuse one launch, and counters include other"
        " clients."
    ]
    if not (params.decode_urls and params.lmcache_url):
        doubts.append(
            "Without decode_urls and lmcache_url nothing is reset or counted, so who served a token"
            " is unknown. Set both."
        )
    chunk_tokens = _chunk_of(params.lmcache_url) if params.lmcache_url else 0
    if params.lmcache_url and not chunk_tokens:
        doubts.append(
            f"The LMCache server at {params.lmcache_url} does not report its chunk size, so"
            " expected hits are unknown."
        )
    arm = Arm(
        label="attached",
        role="attached",
        topology=Topology(aggregated=max(1, len(params.decode_urls))),
        connector="lmcache" if chunk_tokens else "unknown",
        chunk_tokens=chunk_tokens,
        passes=tuple(map(pass_in, states)),
    )
    return _plan(params, (arm,), None, doubts)
