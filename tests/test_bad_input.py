"""Every error of bad input says what was wrong, what is allowed, and gives a good example."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from math import nan
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import pytest

from tests.load.words import Words
from tests.whatif.known import known_profile
from workbench.commands import check_image_base
from workbench.compose.compose_file import compose_file
from workbench.control import tls_context
from workbench.errors import WorkbenchError
from workbench.experiment.plan.arms import plan
from workbench.explorer.opening import form
from workbench.explorer.sources import what_is
from workbench.hardware import kv, physics
from workbench.hardware.interpreter import Interpreter, interpreter
from workbench.load.catalogue import build
from workbench.load.drive.workers import drive_in_workers
from workbench.load.http.request import Endpoint
from workbench.load.workload import arrivals
from workbench.load.workload.tokenizer import model_tokenizer
from workbench.load.workload.workload import Workload, asked_again, short
from workbench.load.workload.written import word_ids, written
from workbench.monitoring.annotations import Grafana
from workbench.monitoring.history import Prometheus
from workbench.notebook_run import partial_page
from workbench.params.notebooks import NOTEBOOKS, check_params
from workbench.report.page import read_executed
from workbench.serve.checks.argument_check import check_store_arguments
from workbench.serve.checks.capacity import Capacity, check_capacity, check_store, check_tiers
from workbench.serve.connectors import connector
from workbench.serve.connectors.tiers import tiers_of
from workbench.serve.proxy.proxy import create_app
from workbench.serve.simulated.faults import applies
from workbench.serve.tiny_model import model_facts
from workbench.serve.vllm import EngineSettings
from workbench.topology import TensorParallel, Topology
from workbench.whatif.highest_rates import highest_rates
from workbench.whatif.prediction import predict
from workbench.whatif.profile_plan import profile_params, profile_plan
from workbench.whatif.profiles.profile_file import read_profile
from workbench.whatif.rate_curve import quick

SWEEP, PREFIX, HITS = "pd_sweep", "single_instance_prefix_cache", "lmcache_hit_analysis"
CLAIMS = "paper_claim_validation"
ATTACH = {"engine": "attach", "base_url": "http://127.0.0.1:8000"}
TURNS = {"workload": "multi_turn_conversation"}
NIXL = {"engine": "simulated", "connector": "nixl"}
BOX = {"place": "container"}
HOSTS = {"place": "ray"}
SIZES = {"topology": "1a", "connector": "offload", "working_sets": [2]}
PREDICT = {"topology": "1p2d", "predict": True, "measure": "1p2d"}
USERS = {"concurrencies": [1, 2]}
LIMIT = {"search": True, "ttft_limit_ms": 5}

PARAMETERS = [
    # notebook, parameters, what the message begins with, the value given, what else it says
    (SWEEP, {"promt_tokens": 5}, "pd_sweep has no parameter", "'promt_tokens'", "mean 'prompt_tok"),
    (SWEEP, {"zz": 5}, "pd_sweep has no parameter", "'zz'", "notebooks/pd_sweep.ipynb lists them"),
    ("pd_swep", {}, "unknown notebook", "'pd_swep'", "did you mean 'pd_sweep'?"),
    (SWEEP, {"topology": "p4d"}, "topology must be like 1p4d", "'p4d'", "5a (5 aggregated)"),
    (SWEEP, {"topology": "0p0d"}, "topology must be like 1p4d", "'0p0d'", "counts from 1"),
    (SWEEP, {"topology": 5}, "topology must be like 1p4d", "'5'", "topology 1p4d"),
    (
        SWEEP,
        {"models": "tiny"},
        "models must be at least two different",
        "'tiny'",
        "tiny,tiny-wide",
    ),
    (SWEEP, {"models": "tiny,tiny"}, "models must be at least two", "'tiny,tiny'", "different"),
    (SWEEP, {"models": "tiny,,a/b"}, "models must be at least two", "'tiny,,a/b'", ""),
    (SWEEP, {"models": "{tiny"}, "models must be a list of names, or a mapping", "'{tiny'", ""),
    (SWEEP, {"models": 2.5}, "models must be a list of names, or a mapping", "2.5", ""),
    (
        SWEEP,
        {"models": {"tiny": 3, "a/b": {}}},
        "models must be a mapping of parameters for tiny",
        "3",
        "prefill_tp",
    ),
    (
        SWEEP,
        {"models": {"tiny": {"prefil_tp": 2}, "a/b": None}},
        "models: tiny cannot have 'prefil_tp' of its own",
        "prefil_tp",
        "mean 'prefill_tp'?",
    ),
    (
        SWEEP,
        {"models": {"tiny": {"prefill_tp": 0}, "a/b": None}},
        "models, tiny: prefill_tp must be between 1 and 64",
        "0",
        "prefill_tp 1",
    ),
    (
        SWEEP,
        {"models": {"tiny": {"context_tokens": 4096}, "a/b": {}}},
        "models, tiny: context_tokens must be at least prompt_tokens",
        "4,096",
        "24576",
    ),
    (
        SWEEP,
        {"models": "tiny,tiny-wide", "model": "a/b"},
        "model=a/b and models=tiny,tiny-wide exclude each other",
        "a/b",
        "Leave out one",
    ),
    (
        SWEEP,
        {**ATTACH, "models": "tiny,tiny-wide"},
        "models=tiny,tiny-wide does not apply to",
        "tiny",
        "engine=attach",
    ),
    (
        SWEEP,
        {"models": "tiny,tiny-wide", "link_runs": "a"},
        "link_runs needs a sweep of one model",
        "'tiny,tiny-wide'",
        "",
    ),
    (
        SWEEP,
        {"models": "tiny,a/b", "engine": "simulated"},
        "models, a/b: model=a/b does not apply to engine=simulated",
        "a/b",
        "-p engine vllm",
    ),
    (SWEEP, {"topology": None}, "topology must be a", "None", "topology 1p4d"),
    (SWEEP, {"connector": "lmcash"}, "connector must be one of none, lmcache", "'lmcash'", ""),
    (SWEEP, {"mooncake_protocol": "ib"}, "mooncake_protocol must be one of tcp, rdma", "'ib'", ""),
    (SWEEP, {"engine": "sglang"}, "engine must be one of vllm, attach", "'sglang'", "engine vllm"),
    (SWEEP, {"prompt_tokens": 5}, "prompt_tokens must be at least 32, or 0", "5", ""),
    (SWEEP, {"prompt_tokens": "5k"}, "prompt_tokens must be an integer", "'5k'", "22660"),
    (SWEEP, {"requests": {"cold": 3}}, "requests must be an integer", "{'cold': 3}", ""),
    (SWEEP, {"requests": {}}, "requests must be an integer", "{}", "requests 3"),
    (SWEEP, {"rounds": "none"}, "rounds must be an integer", "'none'", "(example: -p rounds 3)"),
    (SWEEP, {"decode_tp": 0}, "decode_tp must be between 1 and 64", "0", "decode_tp 1"),
    (SWEEP, {"shared_share": 1.5}, "shared_share must be between 0 and 1,", "1.5", ""),
    (SWEEP, {"fork": "perhaps"}, "fork must be True or False", "'perhaps'", "fork True"),
    (SWEEP, {"text": "poetry"}, "text must be one of astrophysics", "'poetry'", ""),
    (SWEEP, {"fault": "smoke"}, "fault must be one of role_chunk_first", "'smoke'", "wrong_kv"),
    (
        SWEEP,
        {"targets": ["ttft fast"]},
        "targets must be [ARM] [PASS] METRIC",
        "'ttft fast'",
        "ttft cut",
    ),
    (PREFIX, {"targets": "throughput cut >= 5%"}, "targets must be [ARM]", "put cut", "gain"),
    (SWEEP, {"fault": "wrong_kv"}, "fault=wrong_kv does not", "wrong_kv", "simula"),
    (SWEEP, {"engine": "simulated", "model": "a/b"}, "model=a/b does not", "a/b", "vllm"),
    (SWEEP, {**ATTACH, "dtype": "float16"}, "dtype=float16 does not", "float16", ""),
    (
        SWEEP,
        {"store_tiers": "memory,tape"},
        "store_tiers must be memory, then any of disk, redis",
        "'memory,tape'",
        "store_tiers memory,redis)",
    ),
    (SWEEP, {"store_tiers": "redis"}, "store_tiers must be memory, then", "'redis'", "each once"),
    (SWEEP, {"store_tiers": "memory,disk,disk"}, "store_tiers must be memory,", "disk,disk'", ""),
    (
        SWEEP,
        {"store_tiers": "memory,redis,mooncake"},
        "store_tiers must be with redis or mooncake",
        "'memory,redis,mooncake'",
        "the second would never be read",
    ),
    (
        SWEEP,
        {"store_tiers": "memory,redis://h"},
        "store_tiers must be redis://HOST:PORT",
        "'redis://h'",
        "redis://127.0.0.1:6379",
    ),
    (
        SWEEP,
        {"store_tiers": "memory,redis://:pw@h:1"},
        "store_tiers must not contain a user or",
        "",
        "LMCACHE_RESP_PASSWORD in the environment",
    ),
    (
        SWEEP,
        {"store_tiers": "memory,redis", "connector": "nixl"},
        "store_tiers=memory,redis needs connector=lmcache",
        "'nixl'",
        "connector lmcache",
    ),
    (
        SWEEP,
        {"store_tiers": "memory,disk", "engine": "simulated"},
        "store_tiers=memory,disk does not",
        "disk",
        "-p engine vllm -p store_tiers memory,disk",
    ),
    (
        SWEEP,
        {"prometheus_url": "host:9090"},
        "prometheus_url must be an http://",
        "'host:9090'",
        "",
    ),
    (SWEEP, {"grafana_url": "http://u:p@h"}, "grafana_url must not contain a user", "", "show"),
    (SWEEP, {"tier_gb": 0.001}, "tier_gb must be between 0.02", "0.001", "tier_gb 1"),
    (
        HITS,
        ATTACH | {"store_tiers": "memory,redis"},
        "store_tiers=memory,redis does not apply to",
        "redis",
        "-p engine vllm -p store_tiers memory,redis",
    ),
    (HITS, {"store_tiers": "disk"}, "store_tiers must be memory, then any", "'disk'", ""),
    (SWEEP, {"tokenizer": "/m"}, "tokenizer=/m does not", "/m", "-p engine attach"),
    (SWEEP, {"prompt_tokens": 24_560}, "context_tokens must be at least", "24,576", "28672"),
    (SWEEP, {"target_reuse": 0.5}, "target_reuse=0.5 does not", "0.5", "batch_processing"),
    (SWEEP, {"workload": "trace"}, "workload=trace needs trace_file,", "''", ""),
    (SWEEP, {"workload": "prompts"}, "workload=prompts needs prompts_file,", "''", "prompts.jsonl"),
    (SWEEP, {"prompts_file": "a.csv"}, "prompts_file=a.csv does not", "reference", "a.csv"),
    (SWEEP, {"trace_block_tokens": 16}, "trace_block_tokens=16 does not", "16", "-p trace_file"),
    (SWEEP, {"trace_speed": 2.0}, "trace_speed=2 does not", "2", "to workload=reference"),
    (
        SWEEP,
        {**TURNS, "api": "chat"},
        "workload=multi_turn_conversation needs api=completions,",
        "'chat'",
        "token ids",
    ),
    (
        SWEEP,
        {**TURNS, "rate_per_s": 2},
        "workload=multi_turn_conversation needs arrivals=closed,",
        "'poisson'",
        "wait for",
    ),
    (
        SWEEP,
        {**TURNS, "rates_per_s": [1]},
        "a rate sweep",
        "'multi_t",
        "needs a single-turn workload",
    ),
    (SWEEP, {"arrivals": "constant"}, "arrivals=constant needs rate_per_s", "0", "rate_per_s 2"),
    (SWEEP, {"arrivals": "closed", "rate_per_s": 2}, "rate_per_s=2 does not", "2", ""),
    (
        SWEEP,
        {"arrivals": "trace"},
        "arrivals=trace needs workload=trace,",
        "'reference'",
        "trace.jsonl",
    ),
    (SWEEP, {"arrivals": "ramp", "rate_per_s": 1}, "arrivals=ramp needs end_rate_per_s", "0", ""),
    (SWEEP, {"end_rate_per_s": 4}, "end_rate_per_s=4 does not", "4", ""),
    (SWEEP, {"burstiness": 0.5}, "burstiness=0.5 does not", "0.5", "gamma"),
    (
        SWEEP,
        {"gpu_hour_price": "2.5"},
        "gpu_hour_price must be a number above 0, a space and a currency code",
        "2.5",
        "2.5 USD",
    ),
    (SWEEP, {"search": True}, "search=True needs ttft_limit_ms", "True", "-p ttft_limit_ms 500"),
    (SWEEP, {"rates_per_s": [1, 1]}, "rates_per_s must be different", "[1.0, 1.0]", "1,2,4"),
    (SWEEP, {"rates_per_s": [0, 1]}, "rates_per_s must be different", "[0.0, 1.0]", "above 0"),
    (
        SWEEP,
        {"topology": "5a", "prefill_args": "--seed 3"},
        "prefill_args='--seed 3' does not",
        "seed",
        "-p topology 1p4d",
    ),
    (
        SWEEP,
        {"topology": "1p1d", "opponents": False, "aggregated_args": "--seed 3"},
        "aggregated_args='--seed 3' does not",
        "seed",
        "-p topology 5a",
    ),
    (
        SWEEP,
        {"store_args": "-rpc_port 50051"},
        "store_args must not contain --rpc-port",
        "50051",
        "Leave it out",
    ),
    (
        SWEEP,
        {"decode_args": "--block-size 64"},
        "decode_args must not contain --block-size",
        "64",
        "Put it into engine_args",
    ),
    (SWEEP, {**SIZES, "working_sets": [0, 1]}, "working_sets must be", "[0.0, 1.0]", "0.5,2,8"),
    (SWEEP, {"working_sets": [2]}, "working_sets needs connector=offload", "'lmcache'", "offload"),
    (SWEEP, {**SIZES, "workload": "text"}, "working_sets needs workload=ref", "'text'", "short"),
    (SWEEP, {**SIZES, "rates_per_s": [1]}, "working_sets needs a closed", "'closed'", "rate sweep"),
    (SWEEP, {"measure": "1p2d"}, "measure=1p2d does not apply to predict=False", "1p2d", "-p pre"),
    (
        SWEEP,
        {"concurrency": 4, "rate_per_s": 3},
        "concurrency=4 does not apply to arrivals=poisson",
        "4",
        "-p arrivals closed -p concurrency 4",
    ),
    (
        SWEEP,
        {"concurrency": 4, "rates_per_s": [1]},
        "concurrency=4 does not apply to a rate sweep",
        "4",
        "-p arrivals closed -p concurrency 4",
    ),
    (SWEEP, {"predict": True}, "predict=True needs measure", "''", "-p measure 1p2d"),
    (SWEEP, {**PREDICT, "measure": "2p1d"}, "measure must be of topology (1p2d)", "2p1d", "1p2d"),
    (SWEEP, {**PREDICT, "measure": "2q"}, "measure must be of topology (1p2d)", "'2q'", "1p2d"),
    (SWEEP, {**PREDICT, "connector": "all"}, "connector must be a single one", "'all'", "nixl"),
    (SWEEP, {**PREDICT, "rates_per_s": [1]}, "rates_per_s=1 and predict=True", "1", "-p meas"),
    (SWEEP, {**PREDICT, **LIMIT}, "search=True and predict=True exclude", "True", "-p measure"),
    (
        SWEEP,
        {**PREDICT, "models": "tiny,tiny-wide"},
        "models=tiny,tiny-wide and",
        "tiny-wide",
        "-p",
    ),
    (SWEEP, {**PREDICT, **ATTACH}, "predict=True does not apply to", "True", "vllm"),
    (SWEEP, {**SIZES, "requests": 4}, "requests=4 does not", "4", "-p working_sets 0.5,2,8"),
    (SWEEP, {"time_budget_s": "an hour"}, "time_budget_s must be a number", "'an hour'", "3600"),
    (SWEEP, {"time_budget_s": -1}, "time_budget_s must be between 0 and", "-1", "3600"),
    (SWEEP, {"rates_per_s": ["x"]}, "rates_per_s must be a list of numbers", "['x']", "1,2,4"),
    (SWEEP, {**LIMIT, "rates_per_s": [1]}, "search=True and rates_per_s=1", "True", ""),
    (SWEEP, {"rates_per_s": [1], "rate_per_s": 2}, "rate_per_s=2.0 and rates_per_s=1", "2", ""),
    (
        SWEEP,
        {"rates_per_s": [1], "arrivals": "closed"},
        "a rate sweep",
        "'closed'",
        "needs arrivals=auto",
    ),
    (SWEEP, {"concurrencies": [2, 2]}, "concurrencies must be different", "[2, 2]", "1,2,4,8"),
    (SWEEP, {"concurrencies": [0, 1]}, "concurrencies must be different", "[0, 1]", "above 0"),
    (SWEEP, {"concurrencies": [1.5]}, "concurrencies must be a list of integers", "[1.5]", "1,2"),
    (SWEEP, {**LIMIT, "concurrencies": [1]}, "search=True and concurrencies=1", "True", ""),
    (SWEEP, {**USERS, "rates_per_s": [2.5]}, "rates_per_s=2.5 and concurrencies=1", "2.5", ""),
    (SWEEP, {**USERS, "rate_per_s": 1}, "rate_per_s=1.0 and concurrencies=1", "1.0", ""),
    (SWEEP, {**USERS, "concurrency": 4}, "concurrency=4 and concurrencies=1,2", "4", "1,2,4,8"),
    (SWEEP, {**USERS, "arrivals": "gamma"}, "concurrencies needs arrivals=cl", "'gamma'", "closed"),
    (SWEEP, {**USERS, "trace_speed": 1}, "concurrencies needs trace_speed=0", "1", "trace_speed 0"),
    (SWEEP, {**SIZES, **USERS}, "working_sets needs a closed", "'closed'", "concurrencies"),
    (SWEEP, {"place": "moon"}, "place must be one of local, container", "'moon'", "place local"),
    (SWEEP, BOX, "place=container needs image,", "''", "-p image vllm/vllm-openai:v0.32.0"),
    (SWEEP, {"image": "a/b:1"}, "image=a/b:1 does not", "a/b:1", "-p place container"),
    (SWEEP, {"container_args": "-v /a"}, "container_args=-v /a does not", "-v /a", "container"),
    (
        SWEEP,
        {**BOX, "image": "a", "container_args": "--gpus all"},
        "container_args must not contain --gpus",
        "'--gpus all'",
        "-p container_args '--volume /data:/data:ro'",
    ),
    (
        SWEEP,
        {**BOX, "image": "a", "container_args": "-d"},
        "container_args must not contain -d",
        "'-d'",
        "Leave it out",
    ),
    (
        SWEEP,
        {**BOX, "image": "a", "engine": "simulated"},
        "place=container does not",
        "container",
        "engine=simulated",
    ),
    (
        SWEEP,
        {"spread": "node"},
        "spread=node does not apply",
        "node",
        "-p place ray -p spread node",
    ),
    (SWEEP, {"ray_address": "h:1"}, "ray_address=h:1 does not apply", "h:1", "-p place ray"),
    (
        SWEEP,
        {**HOSTS, "ray_address": "ray://h"},
        "ray_address must be auto or HOST:PORT",
        "'ray://h'",
        "10.0.0.1:6379",
    ),
    (SWEEP, {**HOSTS, "spread": "far"}, "spread must be one of pack, spread, node", "'far'", ""),
    (SWEEP, {**HOSTS, "image": "a"}, "image=a does not", "a", "-p place container"),
    (
        SWEEP,
        {**HOSTS, "instances_per_gpu": 2},
        "instances_per_gpu must be 1 with place=ray",
        "2",
        "",
    ),
    (
        SWEEP,
        {**HOSTS, "store_tiers": ["memory", "disk"]},
        "store_tiers=memory,disk does not",
        "memory,disk",
        "-p place local",
    ),
    (
        SWEEP,
        {**HOSTS, "cores_per_instance": 1},
        "cores_per_instance=1 does not apply to place=ray",
        "1",
        "-p place local",
    ),
    (
        SWEEP,
        {**ATTACH, "cores_per_instance": 1},
        "cores_per_instance=1 does not apply to engine=attach",
        "1",
        "-p engine vllm",
    ),
    (SWEEP, {**HOSTS, "engine": "simulated"}, "place=ray does not", "ray", "engine=simulated"),
    ("environment_check", BOX, "place=container needs image,", "''", ""),
    (CLAIMS, BOX, "place must be local (claims", "'container'", "-p place local"),
    (SWEEP, {"engine": "attach"}, "engine=attach needs base_url,", "''", "http://127.0.0.1:8000"),
    (SWEEP, {**ATTACH, "base_url": "h:80"}, "base_url must be an", "'h:80'", "https://"),
    (SWEEP, {**ATTACH, "decode_urls": ["h:82"]}, "each entry of", "'h:82'", "decode_urls"),
    (SWEEP, {**ATTACH, "lmcache_url": "h:1"}, "lmcache_url must be an", "'h:1'", ""),
    (SWEEP, {**ATTACH, "prefill_urls": ["http://h"]}, "prefill_urls needs decode_urls,", "[]", ""),
    (SWEEP, {"extra_body": "top_k"}, "extra_body must be a JSON object", "'top_k'", '\'{"top_k"'),
    (SWEEP, {"extra_body": "[1]"}, "extra_body must be a JSON object", "'[1]'", ""),
    (SWEEP, {"extra_body": [1]}, "extra_body must be a JSON object", "[1]", ""),
    (SWEEP, {"extra_body": "{"}, "extra_body must be a JSON object", "'{'", ""),
    (
        SWEEP,
        {"extra_body": '{"max_tokens": 5}'},
        "extra_body must not",
        "5",
        "Use -p output_tokens",
    ),
    (SWEEP, {"extra_body": '{"model": "a"}'}, "extra_body must not", "'a'", "Use -p model"),
    (SWEEP, {"extra_body": {"n": 2}}, "extra_body must not", "2", "Leave it out"),
    (PREFIX, {"shares": [0.5, 1.0]}, "shares must be fractions above 0", "[0.5, 1.0]", "0.25,0.5"),
    (PREFIX, {"shares": [0.5, 0.501]}, "shares must be", "0.501", "both round to 50 %"),
    (PREFIX, {"prompt_tokens": 24_576}, "context_tokens must be at least", "24,576", ""),
    (
        PREFIX,
        {"engine": "attach"},
        "engine must be vllm or simulated",
        "'attach'",
        "its own servers",
    ),
    (HITS, {"tokenizer": "/m"}, "tokenizer=/m does not", "/m", ""),
    (HITS, {"engine": "simulated"}, "engine must be vllm or attach", "'simulated'", "tiers"),
    (HITS, {"engine": "attach"}, "engine=attach needs base_url,", "''", ""),
    (HITS, {**ATTACH, "log_file": "a"}, "log_file=a does not", "a", ""),
    (HITS, {"prompt_tokens": [8]}, "prompt_tokens must be one or more", "[8]", "at least 32"),
    (HITS, {"prompt_tokens": []}, "prompt_tokens must be one or more", "[]", "128,512"),
    (HITS, {"chunk_tokens": [64, 64]}, "chunk_tokens must be one or more", "[64, 64]", "64,256"),
    (HITS, {"shares": [1.0]}, "shares must be fractions above 0 and below 1", "[1.0]", ""),
    (HITS, {"prompt_tokens": [30_000]}, "context_tokens must be at least", "24,576", "30,008"),
    (CLAIMS, {"engine": "attach"}, "engine must be vllm", "'attach'", "its own servers"),
    (CLAIMS, {"claims": []}, "claims must be 'all',", "[]", "VLLM-APC"),
    (
        CLAIMS,
        {"tiers": ["guess"]},
        "tiers must be one",
        "['guess']",
        "one or more of source, kernel",
    ),
    (CLAIMS, {"tiers": []}, "tiers must be one", "[]", "source,kernel"),
]

PD, AGGREGATED = Topology.parse("1p4d"), Topology.parse("5a")
ONE_GPU = Capacity(devices=("0",), instances_per_gpu=2)


def needs(
    topology: str, platform: Any, capacity: Capacity = ONE_GPU, args: str = "", **tp: int
) -> None:
    settings = EngineSettings(
        model=Path("/none"), platform=platform, extra_args=tuple(args.split())
    )
    spans = settings.gpus(TensorParallel(**tp))
    check_capacity(Topology.parse(topology), spans, capacity, settings)


WHAT_IF = known_profile()


def foretold(**given: Any) -> None:
    params = WHAT_IF.params({"rate_per_s": 1, "topology": "1p2d", "prompt_tokens": 4_000} | given)
    predict(WHAT_IF, params, params.topologies[0])


def split(gpus: int, **given: Any) -> None:
    highest_rates(WHAT_IF, {"ttft_limit_ms": 500} | given, gpus)


def moved(link: float = 1.0, **given: Any) -> None:
    begun = {"rate_per_s": 1, "topology": "1p2d", "prompt_tokens": 4_000, "requests": 4}
    quick(WHAT_IF, begun | given, link=link)


def profile_file(change: dict[str, Any]) -> None:
    with TemporaryDirectory() as folder:
        read_profile(replace(WHAT_IF, **change).write(Path(folder)))


def spoiled_form() -> None:
    with mock.patch("workbench.explorer.opening.find_spec", lambda name: name != "plotly" or None):
        form("pd_sweep", interactive=True)


def made(name: str, **options: Any) -> Workload:
    return build(name, **{"salt": "s", **options})


class FewWords(Words):
    """A tokenizer with five words of one token."""

    def __init__(self) -> None:
        super().__init__()
        self.words = self.words[:5]


def tier(name: str) -> None:
    """Use that tier on a machine without Redis and Mooncake."""
    asyncio.run(
        tiers_of([name], count(1), interpreter=interpreter(), size_gb=1, folder=Path())[0].check()
    )


def store_arguments(*args: str) -> None:
    """A store whose help names two options, in the interpreter of these tests."""
    program = (sys.executable, "-c", "print('--max-workers N, -eviction_ratio R')")
    check_store_arguments(args, program, interpreter())


OTHERS: list[tuple[Callable[[], Any], str, str, str]] = [
    (lambda: what_is(["a.log", "."], None), "explore takes one or two", "'a.log'", "result)"),
    (spoiled_form, "wb.form needs ipywidgets", "plotly", "pip install"),
    # topology, GPUs, connectors, faults
    (lambda: Topology.parse("4"), "topology must be like 1p4d", "'4'", "5a (5 aggregated)"),
    (lambda: Topology(prefill=1), "topology must be like 1p4d", "'1p0d0a'", ""),
    (lambda: TensorParallel(decode=0), "decode_tp must be at least 1", "0", ""),
    (lambda: needs("100p100d", "cpu"), "topology must be one", "'100p100d'", "1p4d"),
    (lambda: needs("4p4d", "cuda"), "topology 4p4d needs 8 GPUs", "got 2", "1 visible"),
    (lambda: plan(check_params(SWEEP, {"topology": "9p9d", "connector": "nixl", "platform": "cpu",
                                       "cores_per_instance": 64})),
     "topology 9p9d needs 1152 cores (18 instances x 64 cores_per_instance)", "got ",
     "-p cores_per_instance 0"),
    (lambda: plan(check_params(SWEEP, {"platform": "cuda", "cores_per_instance": 1})),
     "cores_per_instance=1 does not apply to platform=cuda", "1", "-p platform cpu"),
    (lambda: needs("1a", "cuda", aggregated=2), "aggregated_tp must be at most", "2", "GPUs (1)"),
    (lambda: needs("1a", "cuda", Capacity()), "aggregated_tp must be at", "1", "-p platform cpu"),
    (lambda: needs("5a", "cpu", Capacity(free_memory_gb=3.0)), "topology 5a needs about 4.0 GB",
     "3.0 GB free", "5 instances x 0.8 GB"),
    (lambda: check_store(2.0, Capacity(free_shm_gb=1.0)), "store_gb must be at most", "2",
     "1.0 GB"),
    (lambda: check_tiers(["redis"], 9.0, Capacity(free_memory_gb=1.0)), "tier_gb must be at most",
     "9", "free memory (1.0 GB)"),
    (lambda: tier("redis"), "store_tiers=redis needs redis-server", "not found", "apt-get install"),
    (lambda: tier("mooncake"), "store_tiers=mooncake needs the package", "not found", "MOONCAKE=1"),
    (lambda: tier("redis://127.0.0.1:1"), "the Redis server at redis://127.0.0.1:1 does not",
     "Error 111", "LMCACHE_RESP_PASSWORD"),
    (lambda: needs("1a", "cuda", aggregated=2, args="-pp 2"),
     "aggregated_tp (2) x pipeline and data parallel size (2) must be at most", "got 4",
     "--pipeline-parallel-size 1"),
    (lambda: store_arguments("--max-wrkers", "4"), "store_args must be arguments of the store",
     "--max-wrkers", "did you mean"),
    (lambda: store_arguments("--zzz=4"), "store_args must be arguments of the store", "--zzz",
     "leave it out"),
    (lambda: plan(check_params(SWEEP, {"topology": "1a", "connector": "lmcache-inprocess",
                                       "platform": "cpu"})),
     "connector=lmcache-inprocess needs platform=cuda or rocm, because LMCache inside vLLM", "cpu",
     "-p connector lmcache"),
    (lambda: plan(check_params(SWEEP, {"topology": "1a", "connector": "none",
                                       "store_args": "--max-workers 4"})),
     "store_args='--max-workers 4' does not", "workers", "-p connector lmcache"),
    (lambda: connector("lmcash"), "unknown connector", "'lmcash'", "did you mean 'lmcache'?"),
    (lambda: connector("none").check(PD), "topology=1p4d needs connector=lmcache", "'none'",
     "both roles would prefill"),
    (lambda: connector("nixl").check(AGGREGATED), "topology=5a needs connector=none",
     "'nixl'", ""),
    (lambda: applies("wrong_vk", "lmcache", PD), "unknown fault", "'wrong_vk'", "mean 'wrong_kv'"),
    (lambda: plan(check_params(PREFIX, {"engine": "simulated", "fault": "store_dead"})),
     "fault=store_dead cannot happen", "store_dead", "-p connector lmcache"),
    (lambda: create_app(mode="none", prefill=["http://p"], decode=["http://d"]),
     "--prefill needs --mode", "'none'", "both roles would prefill"),
    (lambda: create_app(mode="lmcache", prefill=["http://p"], decode=[]), "--decode must be",
     "[]", "http://127.0.0.1:8200"),
    (lambda: create_app(mode="none", decode=["h:8100"]), "each entry of",
     "'h:8100'", "--decode http://127.0.0.1:8200"),
    # interpreters of other environments
    (lambda: interpreter("/nowhere/python"), "engine_python must be the path of a Python",
     "'/nowhere/python'", "/bin/python"),
    (lambda: interpreter("/etc/passwd"), "engine_python must be an interpreter that can be exec",
     "'/etc/passwd'", ""),
    (lambda: interpreter("/bin/ls"), "engine_python must be the path of a Python", "'/bin/ls'", ""),
    (lambda: check_params(SWEEP, {"engine": "simulated", "engine_python": "/opt/vllm/bin/python"}),
     "engine_python=/opt/vllm/bin/python does not apply", "/opt/vllm/bin/python", "engine vllm"),
    (lambda: create_app(mode="mooncake", prefill=["http://p"], decode=["http://d"]),
     "--bootstrap must be 1 URLs with mode mooncake", "[]", "--bootstrap http://127.0.0.1:8998"),
    (lambda: plan(check_params(SWEEP, {"engine": "simulated", "connector": "lmcache-inprocess"})),
     "engine=simulated needs connector=none, lmcache", "lmcache-inprocess", "-p connector lmcache"),
    (lambda: plan(check_params(SWEEP, {"mooncake_protocol": "rdma"})),
     "mooncake_protocol=rdma does not apply to connector=lmcache", "rdma",
     "-p connector mooncake -p mooncake_protocol rdma"),
    (lambda: plan(check_params(SWEEP, {"connector": "mooncake", "mooncake_protocol": "rdma"})),
     "mooncake_protocol must be tcp", "'rdma'", "without RDMA devices"),
    (lambda: plan(check_params(SWEEP, {"engine": "simulated", "concurrencies": [1, 8],
                                       "requests": 8})),
     "each value in concurrencies must be below 8,", "[1, 8]", "-p requests 80"),
    (lambda: plan(check_params(SWEEP, {"engine": "simulated", "concurrencies": [4], **TURNS})),
     "each value in concurrencies must be at most 1,", "[4]", "conversations in a pass"),
    (lambda: plan(check_params(SWEEP, {"engine": "simulated", "time_budget_s": 3})),
     "time_budget_s must be at least", "3", "for a round of 3 arms"),
    (lambda: partial_page(Path("/none/pd_sweep/a-run")), "/none/pd_sweep/a-run must be the folder",
     "a-run", "an unfinished run"),
    (lambda: partial_page(Path("/none/environment_check/here")),
     "/none/environment_check/here must be a run of pd_sweep or single_", "here",
     "--partial"),
    # what a compose file cannot have
    (lambda: compose_file({"engine": "simulated"}), "engine must be vllm, because a compose file",
     "'simulated'", "-p engine vllm"),
    (lambda: compose_file(ATTACH), "engine must be vllm, because a compose", "'attach'", ""),
    (lambda: compose_file({"place": "ray"}), "place must be container, because a compose", "'ray'",
     "-p place container"),
    (lambda: compose_file({"connector": "all", "image": "a:1"}), "connector must be one connector",
     "'all'", "-p connector lmcache"),
    (lambda: compose_file({"topology": "1p1d,1p4d", "image": "a:1"}), "topology must be one topol",
     "'1p1d,1p4d'", "-p topology 1p4d"),
    (lambda: compose_file({"platform": "cpu"}), "platform=cpu needs image", "''",
     "-p image my/vllm-cpu:0.32.0"),
    (lambda: compose_file({"container_args": "--cap-add IPC_LOCK"}), "container_args must be empty",
     "'--cap-add IPC_LOCK'", "-f compose.yaml -f mine.yaml"),
    (lambda: compose_file({"engine_env": "MY_API_KEY=x"}), "engine_env must not contain MY_API_KEY",
     "MY_API_KEY", "export HF_TOKEN=..."),
    # model folders and certificates
    (lambda: model_facts("/nowhere/llama"), "model must be an existing folder", "'/nowhere/llama'",
     "empty for the tiny model"),
    (lambda: plan(check_params(SWEEP, {"models": "/nowhere/llama,tiny", "platform": "cpu"})),
     "models, llama: model must be an existing folder", "'/nowhere/llama'", "for the tiny model"),
    (lambda: plan(check_params(SWEEP, {"model": "tiny", "context_tokens": 50_000,
                                       "platform": "cpu"})),
     "context_tokens must be at most 40,960, the context of tiny-llama", "50,000",
     "-p context_tokens 40960"),
    (lambda: model_tokenizer("/nowhere/llama"), "model (engine attach: tokenizer) must",
     "'/nowhere/llama'", "/models/"),
    (tls_context, "SSL_CERT_FILE in the environment must be an existing file", "'/none.pem'", ""),
    # monitoring
    (lambda: Grafana.with_token("http://h:3000"), "grafana_url needs a service account's token",
     "GRAFANA_TOKEN", "export"),
    (lambda: asyncio.run(Prometheus(url="http://127.0.0.1:9").instant("up")),
     "prometheus_url must be a running Prometheus", "http://127.0.0.1:9 did not respond", "curl"),
    # predictions
    (lambda: replace(WHAT_IF, machine={**WHAT_IF.machine, "cpu": "Z80"}).params({}),
     "this profile was measured on another machine", "cpu 'Z80'",
     "workbench profile -p connector nixl"),
    (lambda: foretold(kv_cache_mib=64), "kv_cache_mib must be the profile's 256", "64",
     "-p kv_cache_mib 256"),
    (lambda: foretold(concurrency=4), "concurrency=4 does not apply to arrivals=poisson", "4",
     "-p arrivals closed"),
    (lambda: moved(gpu_hour_price="4 USD"), "gpu_hour_price=4 USD does not apply to a prediction w",
     "4 USD", "--splits 8 -p ttft_limit_ms 500 -p gpu_hour_price '4 USD'"),
    (lambda: moved(rounds="3"), "rounds=3 does not apply to a prediction", "Leave out rounds (",
     "workbench predict profile.json"),
    (lambda: split(2, targets=["a", "b"]), "targets=a,b does not apply to a prediction", "a,b",
     "workbench predict profile.json"),
    (lambda: foretold(fault="wrong_kv"), "fault must be the profile's ''", "'wrong_kv'", ""),
    (lambda: foretold(prompt_tokens=9_000), "prompt_tokens must be within the profiled lengths",
     "9,000", "-p prompt_tokens 8000"),
    (lambda: foretold(ttft_limit_ms=5), "ttft_limit_ms must be at least 25", "5", ""),
    (lambda: foretold(tpot_limit_ms=0.1), "tpot_limit_ms must be at least 4.8", "0.1",
     "-p tpot_limit_ms 19"),
    (lambda: split(40), "--splits must be 2 to 16", "40", "--splits 8"),
    (lambda: split(2, ttft_limit_ms=0), "--splits needs ttft_limit_ms or tpot_limit_ms", "0",
     "-p ttft_limit_ms 500"),
    (lambda: split(2, topology="1p2d"), "topology=1p2d does not apply to --splits", "1p2d",
     "workbench predict profile.json --splits 8 -p ttft_limit_ms 500"),
    (lambda: split(2, arrivals="closed"), "arrivals must be auto, poisson, constant or gamma with",
     "'closed'", "-p arrivals poisson"),
    (lambda: moved(topology="1p2d,2a"), "topology must be one topology", "'1p2d,2a'",
     "-p topology 1p2d"),
    (lambda: moved(arrivals="closed"), "arrivals must be auto, poisson, constant or gamma because",
     "'closed'", "-p arrivals poisson"),
    (lambda: moved(link=0), "link must be above 0", "0", "link=1"),
    (lambda: profile_file({"schema": 9}), "/", "must be a profile of schema 1, got 9",
     "workbench profile -p connector nixl"),
    (lambda: profile_file({"parameters": {}}), "/", "damaged profile: parameters has no engine",
     "workbench profile -p connector nixl"),
    (lambda: foretold(workload="multi_turn_conversation", rate_per_s=0), "workload must be one who",
     "'multi_turn_conversation'", "batch_processing"),
    (lambda: foretold(output_tokens=400_000, context_tokens=500_000), "context_tokens must be the",
     "500,000", "24576"),
    (lambda: read_profile("/nowhere/profile.json"), "/nowhere/profile.json cannot be read",
     "No such file", "workbench predict profile.json"),
    (lambda: read_profile(__file__), f"{__file__} is not a profile: it is not valid JSON",
     "line 1 column 3",
     "workbench profile -p connector nixl"),
    (lambda: profile_params({"topology": "2p2d"}), "topology=2p2d does not apply to workbench prof",
     "Leave out topology (", "workbench profile -p connector nixl"),
    (lambda: profile_params({"concurrency": 4}), "concurrency must be at least 16", "4",
     "-p concurrency 16"),
    (lambda: profile_params({"engine": "attach"}), "engine must be vllm or simulated", "'attach'",
     "-p engine vllm"),
    (lambda: profile_plan(check_params(SWEEP, {**NIXL, **TURNS})),
     "workload must be one whose requests do not", "multi_turn", "-p workload batch_processing"),
    (lambda: profile_plan(check_params(SWEEP, {**NIXL, "connector": "all"})),
     "connector must be a single one", "'all'", "-p connector nixl"),
    (lambda: profile_plan(check_params(SWEEP, {"engine": "simulated", "connector": "mooncake"})),
     "connector must be one that moves KV after prefill", "'mooncake'", "-p connector nixl"),
    # workloads
    (lambda: made("shrot"), "unknown workload", "'shrot'", "did you mean 'short'?"),
    (lambda: made("short", prompt_token=9), "workload short has no option", "'prompt_token'",
     "did you mean"),
    (lambda: made("shared_prefix", requests=2), "workload shared_prefix needs a value for",
     "prompt_tokens, shared_tokens", ""),
    (lambda: made("short", prompt_tokens=16), "prompt_tokens must be at least 17", "16", ""),
    (lambda: made("short", requests=0), "requests must be at least 1", "0", ""),
    (lambda: made("short", output_tokens=0), "output_tokens must be at least 1", "0", ""),
    (lambda: made("short", requests=100, vocab_tokens=100), "requests must be at most 84", "100",
     "a vocabulary of 100 tokens"),
    (lambda: made("short", seed=-1), "seed must be at least 0", "-1", ""),
    (lambda: made("short", salt=""), "salt must be a string that no earlier run used", "''", ""),
    (lambda: made("shared_prefix", requests=2, prompt_tokens=20, shared_tokens=21),
     "shared_tokens must be between 16 and prompt_tokens (20)", "21", "-p shared_share"),
    (lambda: made("batch_processing", requests=3), "target_reuse must be at most", "0.95",
     "3 requests"),
    (lambda: made("code_generation", reuse=1.0), "target_reuse must be above 0 and below 1", "1",
     ""),
    (lambda: made("code_generation", projects=0), "projects must be at least 1", "0", ""),
    (lambda: made("multi_turn_conversation", requests=1), "requests must be at least 2", "1",
     "two turns per conv"),
    (lambda: made("multi_turn_conversation", conversations=1, prompt_tokens=300),
     "prompt_tokens must be at least 446 for 14 turns", "300", ""),
    (lambda: made("multi_turn_conversation", conversations=1, reuse=0.3),
     "target_reuse must be at least", "0.3", "such short prompts"),
    (lambda: made("text", text="fictions", tokenizer=Words()), "unknown text", "'fictions'",
     "did you mean 'fiction'?"),
    (lambda: word_ids(FewWords()), "text prompts need a tokenizer", "5", "at least 32 single"),
    (lambda: written(made("multi_turn_conversation"), Words()), "a server that",
     "'multi_turn_conversation'", "batch_processing"),
    (lambda: asked_again(short(salt="s"), share=0), "share must be above 0 and at most 1", "0", ""),
    (lambda: Workload(name="w", seed=0, salt="", requests=short(salt="s").requests[:1] * 2),
     "index must be different", "2 x 0", ""),
    # arrivals, the client and its processes
    (lambda: arrivals.closed(0), "concurrency must be at least 1", "0", "concurrency 4"),
    (lambda: arrivals.gamma(1.0, 1, 0, burstiness=0), "burstiness must be a number above 0", "0",
     ""),
    (lambda: arrivals.ramp(1.0, 0.0, 5), "rate_per_s must be a number above 0", "0", ""),
    (lambda: arrivals.poisson(nan, 1, seed=0), "rate_per_s must be a number above 0", "nan", ""),
    (lambda: arrivals.poisson(1.0, 0, seed=0), "n must be at least 1", "0", ""),
    (lambda: arrivals.poisson(1.0, 1, seed=-1), "seed must be at least 0", "-1", ""),
    (lambda: arrivals.at_times([]), "offsets_s must be one time per request", "()", ""),
    (lambda: arrivals.at_times([1.0, 0.5]), "offsets_s must be ascending times", "(1.0, 0.5)", ""),
    (lambda: Endpoint(base_url="ftp://x", model="m"), "base_url must be an http:// or https:// URL",
     "'ftp://x'", ""),
    (lambda: drive_in_workers(short(salt="s"), arrivals.closed(1), workers=9).send(None),
     "client_workers must be 1", "9", "one per request in flight"),
    (lambda: check_image_base("https://a", "html"), "--image-base=https://a does not", "", ""),
    (lambda: check_image_base("a", "md"), "--image-base must be an http address", "'a'", ""),
    (lambda: read_executed("/none.ipynb"), "/none.ipynb does not exist", "", "a run folder"),
    # arithmetic
    (lambda: kv.KvShape(layers=0, kv_heads=1, head_dim=1), "layers must be above 0", "0", ""),
    (lambda: kv.quantisation_ratio(bits=4, group=0), "group must be above 0", "0", ""),
    (lambda: physics.memory_share(parameters=-1, gpu=physics.ACCELERATORS[0]),
     "parameters must be above 0", "-1", ""),
    (lambda: physics.prefill_ceiling_tps(parameters=nan, gpu=physics.ACCELERATORS[0]),
     "parameters must be above 0", "nan", ""),
    (lambda: physics.decode_ceiling_tps(weight_bytes=1, gpu=physics.ACCELERATORS[0], gpus=0),
     "gpus must be above 0", "0", ""),
]  # fmt: skip

ROWS = [
    (lambda notebook=notebook, given=given: check_params(notebook, given), *said)
    for notebook, given, *said in PARAMETERS
] + OTHERS


@pytest.mark.parametrize(
    ("act", "begins", "got", "says"), ROWS, ids=[f"{row[1]}-{row[2]}"[:60] for row in ROWS]
)
def test_bad_input_is_one_sentence_with_the_allowed_values_or_an_example(
    act: Callable[[], Any], begins: str, got: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/none.pem")
    monkeypatch.setattr("shutil.which", lambda _: None)
    monkeypatch.setattr(Interpreter, "find", lambda *_: "")
    with pytest.raises(WorkbenchError) as refused:
        act()
    sentence = str(refused.value)
    assert sentence.startswith(begins)
    assert got in sentence[sentence.index(begins.split()[0].split("=")[0]) :] and says in sentence
    assert re.search(
        r"\(example: .+\)$|did you mean '.+'\?$|needs a value for| lists them$", sentence
    )
    assert len(sentence.split()) <= 45 and "\n" not in sentence


def test_the_examples_for_one_parameter_are_themselves_accepted() -> None:
    """`(example: -p rounds 3)` can be typed as it stands, next to what made the error."""
    tried = 0
    for notebook, given, begins, *_ in PARAMETERS:
        with pytest.raises(WorkbenchError) as refused:
            check_params(notebook, given)
        name = begins.split()[0]
        example = re.search(rf"\(example: -p {name} ([^' ]+)\)$", str(refused.value))
        if notebook in NOTEBOOKS and example and name in given and name != "fault":
            check_params(notebook, given | {name: example[1]})
            tried += 1
    assert tried > 15


def test_errors_cover_every_room_that_reads_input() -> None:
    assert len(ROWS) >= 60
    assert len({row[1] for row in ROWS}) > 60
