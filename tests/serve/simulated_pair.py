"""A simulated deployment inside the test's own event loop, behind the real proxy."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from aiohttp import web

from workbench.experiment.run.isolation import CounterReading, read_counters
from workbench.load.http.client import ask
from workbench.load.http.request import Endpoint
from workbench.load.workload.workload import asked_again, reference
from workbench.metrics.prometheus import difference
from workbench.records import RequestRecord
from workbench.serve import simulated
from workbench.serve.connectors import connector
from workbench.serve.deployment import Deployment, Instance
from workbench.serve.plan import plan_deployment, ports_needed
from workbench.serve.processes.ports import free_ports
from workbench.serve.proxy.proxy import create_app
from workbench.serve.simulated.__main__ import apps
from workbench.serve.vllm import EngineSettings
from workbench.topology import Topology

SETTINGS: dict[str, Any] = {"model": Path(simulated.__file__).parent, "platform": "simulated"}


@asynccontextmanager
async def pretend(topology: str, name: str, **settings: Any) -> AsyncIterator["Pair"]:
    """Everything that `plan_deployment` lists, from its own command lines."""
    known = Topology.parse(topology)
    plan = plan_deployment(
        known,
        connector(name),
        EngineSettings(**SETTINGS | settings),
        ports=free_ports(ports_needed(known)),
    )
    async with AsyncExitStack() as stack:
        for spec in plan.processes:
            serving = apps(spec.argv[3:]) if spec.role != "proxy" else [_proxy(spec.args)]
            for app, port in serving:
                runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
                await runner.setup()
                stack.push_async_callback(runner.cleanup)
                await web.TCPSite(runner, "127.0.0.1", port).start()
        instances = tuple(Instance(name=p.name, role=p.role, url=p.url) for p in plan.instances)
        yield Pair(
            Deployment(url=plan.url, instances=instances, store_url=plan.store_http_url, plan=plan)
        )


def _proxy(args: tuple[str, ...]) -> tuple[web.Application, int]:
    said: dict[str, list[str]] = {}
    for option, value in zip(args[::2], args[1::2], strict=True):
        said.setdefault(option, []).append(value)
    app = create_app(
        mode=said["--mode"][0],
        prefill=said.get("--prefill", []),
        decode=said["--decode"],
        fault=said.get("--fault", [""])[0],
    )
    return app, int(said["--port"][0])


class Pair:
    """A deployment with what tests ask of it."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment

    async def ask(
        self,
        requests: int = 4,
        *,
        again: bool = False,
        prompt_tokens: int = 600,
        output_tokens: int = 8,
        salt: str = "a",
        timeout_s: float = 5.0,
    ) -> list[RequestRecord]:
        """Requests one after the other, as the workbench's own client sees them."""
        workload = reference(
            requests=requests,
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            salt=salt,
        )
        if again:
            workload = asked_again(workload)
        endpoint = Endpoint(base_url=self.deployment.url, model="workbench", timeout_s=timeout_s)
        return [await ask(request, endpoint) for request in workload.requests]

    async def counters(self) -> CounterReading:
        return await read_counters(self.deployment)

    async def counted(self, before: CounterReading, name: str, series: str, **labels: str) -> float:
        """What one process counted since `before`; 0 for a series that it does not show."""
        after = await self.counters()
        if name == "store":
            assert before.store is not None and after.store is not None
            change = difference(before.store, after.store)
        else:
            change = difference(before.engines[name], after.engines[name])
        value = change.sum(series, **labels)
        return 0.0 if value != value else value

    async def post(self, url: str, path: str, **options: Any) -> httpx.Response:
        async with httpx.AsyncClient(timeout=5, trust_env=False) as client:
            return await client.post(f"{url}{path}", **options)
