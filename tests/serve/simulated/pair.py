"""A simulated deployment inside the test's own event loop, behind the real proxy."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from math import isnan
from pathlib import Path
from typing import Any

import httpx
from aiohttp import web

from workbench.experiment.run.launch.isolation import CounterReading, read_counters
from workbench.load.http.client import ask
from workbench.load.http.request import Endpoint
from workbench.load.workload.workload import asked_again, reference
from workbench.metrics.prometheus import difference
from workbench.records import RequestRecord
from workbench.serve import simulated
from workbench.serve.connectors import connector, lmcache
from workbench.serve.deployed import Deployment, Instance
from workbench.serve.deployment import plan_deployment
from workbench.serve.processes.ports import unused_ports
from workbench.serve.proxy.proxy import create_app
from workbench.serve.simulated.__main__ import apps, serving
from workbench.serve.vllm import EngineSettings
from workbench.topology import Topology

SERIES = {
    "computed": "vllm:prompt_tokens_by_source local_compute",
    "hit": "vllm:prompt_tokens_by_source local_cache_hit",
    "fetched": "vllm:prompt_tokens_by_source external_kv_transfer",
    "external hits": "vllm:external_prefix_cache_hits",
    "cache hits": "vllm:prefix_cache_hits",
    "preempted": "vllm:num_preemptions",
    "failed": "vllm:nixl_num_failed_transfers",
    "expired": "vllm:nixl_num_kv_expired_reqs",
    "told late": "vllm:nixl_num_notifications_after_expiry",
    "lookups": "lmcache_mp_lookups_requests",
    "found": "lmcache_mp_lookup_hit_tokens",
    "written": "lmcache_mp_l1_write_chunks",
    "evicted": "lmcache_mp_l1_evicted_chunks",
    "blocks put": "master_batch_put_end_items",
    "failed puts": "vllm:mooncake_store_operation_failed_keys",
}
"""What processes count, by the names of these tests: a series, and its source."""

SETTINGS: dict[str, Any] = {"model": Path(simulated.__file__).parent, "platform": "simulated"}


@asynccontextmanager
async def simulated_deployment(topology: str, name: str, **settings: Any) -> AsyncIterator["Pair"]:
    """Everything that `plan_deployment` lists, from its own command lines."""
    known = Topology.parse(topology)
    plan = plan_deployment(
        known,
        connector(name),
        EngineSettings(**SETTINGS | settings),
        ports=unused_ports(),
    )
    made = [
        one
        for spec in plan.processes
        for one in (apps(spec.argv[3:]) if spec.role != "proxy" else [_proxy(spec.args)])
    ]
    async with serving(made):
        instances = tuple(Instance(name=p.name, role=p.role, url=p.url) for p in plan.instances)
        yield Pair(
            Deployment(
                url=plan.url,
                instances=instances,
                store_url=plan.store_http_url,
                store=plan.connector.store or lmcache.STORE,
                plan=plan,
            )
        )


def _proxy(args: tuple[str, ...]) -> tuple[web.Application, int]:
    said: dict[str, list[str]] = {"--prefill": [], "--bootstrap": [], "--fault": [""]}
    for option, value in zip(args[::2], args[1::2], strict=True):
        said[option] = [*filter(None, said.get(option, [])), value]
    (mode,), (port,), (fault,) = said["--mode"], said["--port"], said["--fault"]
    urls = {role: said[f"--{role}"] for role in ("prefill", "decode", "bootstrap")}
    about = json.loads(said["--about"][0])
    return create_app(mode=mode, fault=fault, about=about, **urls), int(port)


class Pair:
    """A deployment with what tests ask of it."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment

    async def ask(
        self, requests: int = 4, *, again: bool = False, timeout_s: float = 5.0, **sizes: Any
    ) -> list[RequestRecord]:
        """Requests one after the other, as the workbench's own client sees them."""
        usual = {"prompt_tokens": 600, "output_tokens": 8, "salt": "a"}
        workload = reference(requests=requests, **usual | sizes)
        if again:
            workload = asked_again(workload)
        endpoint = Endpoint(base_url=self.deployment.url, model="workbench", timeout_s=timeout_s)
        return [await ask(request, endpoint) for request in workload.requests]

    async def counters(self) -> CounterReading:
        return await read_counters(self.deployment)

    async def counted(self, before: CounterReading, what: str) -> float:
        """What one process has counted since, e.g. "decode-0 fetched"; 0 where it does not say."""
        process, _, name = what.partition(" ")
        series, _, source = SERIES[name].partition(" ")
        after = await self.counters()
        pages = [
            {**reading.engines, "store": reading.store}[process] for reading in (before, after)
        ]
        labels = {"source": source} if source else {}
        value = difference(*pages).sum(f"{series}_total", **labels)
        return 0.0 if isnan(value) else value

    async def post(self, path: str, *, url: str = "", **options: Any) -> httpx.Response:
        async with httpx.AsyncClient(timeout=5, trust_env=False) as client:
            return await client.post(f"{url or self.deployment.url}{path}", **options)
