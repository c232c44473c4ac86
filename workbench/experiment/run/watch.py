"""A run with monitoring: what Prometheus recorded of it, and its passes marked in Grafana.

Neither is part of the measurement: after its start, a failure here is a doubt. Panels are only
shown. Nothing is computed from them, because no scrape is exactly at the start or end of a pass.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Self

from workbench.errors import DeploymentError
from workbench.experiment.plan.arm import Arm
from workbench.experiment.plan.plan import ExperimentPlan
from workbench.experiment.result.run_folder import RunFolder, output_root
from workbench.experiment.run.run_log import Log
from workbench.monitoring.annotations import Grafana
from workbench.monitoring.history import Prometheus, one_of
from workbench.monitoring.panels import PANELS, Panel
from workbench.monitoring.scrape import TARGETS_FOLDER, Target, target_file
from workbench.params.shared import LoadParams
from workbench.serve.deployed import Deployment

SCRAPE_TIMEOUT_S = 30.0
RECENT_S = 300.0
"""Long enough for two scrapes of any usual Prometheus."""
_LAST_SCRAPE_S = 5.0
"""Shortest wait for the last scrape."""
_POLL_S = 0.2


@dataclass(slots=True, kw_only=True)
class Watch:
    """Prometheus and Grafana of one run; None for what it does not use."""

    plan: ExperimentPlan
    folder: RunFolder
    prometheus: Prometheus | None = None
    grafana: Grafana | None = None
    servers: str = ""
    """Label matchers of all servers of the run."""
    seen: bool = False
    """Prometheus has read the servers of a launch."""
    until_s: float = 0.0
    """Unix time until which Prometheus could read the servers of the last launch."""

    @classmethod
    async def begun(cls, plan: ExperimentPlan, folder: RunFolder) -> Self:
        """Checks before any server starts. Raises ParameterError or DeploymentError."""
        params = plan.params
        watch = cls(plan=plan, folder=folder)
        if not isinstance(params, LoadParams):
            return watch
        if params.grafana_url:
            watch.grafana = Grafana.with_token(params.grafana_url)
        if params.prometheus_url:
            watch.prometheus = Prometheus(url=params.prometheus_url)
            await watch.prometheus.instant("vector(1)")
        return watch

    @asynccontextmanager
    async def launch(self, arm: Arm, deployment: Deployment, log: Log) -> AsyncIterator[None]:
        """Let Prometheus read these servers from before the first pass until after the last one.

        Raises DeploymentError if it does not read one of them.
        """
        if self.prometheus is None:
            yield
            return
        names: Collection[str] = ()
        try:
            names = await self._found(self.prometheus, arm, deployment)
            self.seen = True
        except DeploymentError as error:
            self._forget()
            if not self.seen:
                raise
            self._lost(error, log)
        try:
            yield
            await self._last_scrape(self.prometheus, names, log)
        finally:
            self.until_s = time.time()
            self._forget()

    async def _found(
        self, prometheus: Prometheus, arm: Arm, deployment: Deployment
    ) -> Collection[str]:
        """The instances that it reads. Raises DeploymentError if it misses one."""
        if deployment.plan is None:
            addresses = {instance.name: instance.url for instance in deployment.instances}
            if deployment.store_url:
                addresses["store"] = deployment.store_url
            self.servers = await prometheus.find(addresses, model=deployment.model)
            return await prometheus.scraped_since(self.servers, 0.0)
        targets = targets_of(arm, deployment)
        names = {target.name for target in targets}
        self._tell(targets)
        self.servers = one_of("run", [self.folder.attempt.name])
        if missing := await self._not_scraped(prometheus, names, timeout_s=SCRAPE_TIMEOUT_S):
            raise DeploymentError(
                f"prometheus_url must scrape every server, but {prometheus.url} has not read"
                f" {', '.join(sorted(missing))} within {SCRAPE_TIMEOUT_S:.0f} s. Add"
                f" {self._target_file.parent}/*.json to its file_sd_configs (example: workbench"
                " monitoring prometheus)"
            )
        return names

    @property
    def _target_file(self) -> Path:
        outputs = output_root(self.plan.params.output_dir).absolute()
        return outputs / TARGETS_FOLDER / f"{self.folder.attempt.name}.json"

    def _tell(self, targets: Collection[Target]) -> None:
        """Write the file that tells Prometheus where these servers are."""
        self._target_file.parent.mkdir(parents=True, exist_ok=True)
        self._forget_killed()
        partial = self._target_file.with_suffix(".partial")
        partial.write_text(target_file(targets, run=self.folder.attempt.name))
        partial.replace(self._target_file)

    def _forget(self) -> None:
        """Prometheus need not look for these servers any more."""
        self._target_file.unlink(missing_ok=True)

    def _forget_killed(self) -> None:
        """A killed run cannot remove its file, and Prometheus reads its ports for ever."""
        for file in self._target_file.parent.glob("attempt-*"):
            with suppress(OSError):  # another run may do the same
                if not RunFolder.is_under_way(self.plan.params.output_dir, file.stem):
                    file.unlink()

    async def _not_scraped(
        self, prometheus: Prometheus, names: Collection[str], *, timeout_s: float
    ) -> set[str]:
        """Wait until it has read all these servers; returns those still missing at the timeout."""
        since_s = time.time()
        while True:
            missing = {*names} - await prometheus.scraped_since(self.servers, since_s)
            if not missing or time.time() > since_s + timeout_s:
                return missing
            await asyncio.sleep(_POLL_S)

    async def _last_scrape(self, prometheus: Prometheus, names: Collection[str], log: Log) -> None:
        """Wait for a scrape after the last pass, because the last counts end with the servers."""
        try:
            every_s = await prometheus.interval_s(self.servers, RECENT_S)
            # A short run may have been scraped once, and on a busy machine a scrape fails. With a
            # timeout, because a server that ended is never scraped again.
            timeout_s = max(2 * every_s, _LAST_SCRAPE_S) if isfinite(every_s) else _LAST_SCRAPE_S
            await self._not_scraped(prometheus, names, timeout_s=min(timeout_s, RECENT_S))
        except DeploymentError as error:
            self._lost(error, log)

    def _lost(self, error: Exception, log: Log) -> None:
        why = str(error).partition(" (example")[0].partition(". ")[0]  # the rest is advice
        log.doubt(f"Panels are missing: {why}.")

    async def pass_ended(self, log: Log) -> None:
        """Mark the last pass in Grafana. The first failure is a doubt and ends the marking."""
        if self.grafana is None:
            return
        ended = log.pass_times[-1]
        why = await self.grafana.mark(
            f"{ended.arm}, round {ended.round + 1}: {ended.pass_name}",
            from_s=ended.from_s,
            to_s=ended.to_s,
            tags=(self.plan.notebook, self.plan.run_id, ended.pass_name),
        )
        if why:
            self.grafana = None
            log.doubt(f"Passes are not marked in Grafana: {why}.")

    async def ended(self, log: Log) -> None:
        """Read all panels back, of the time from the first pass to the last, as panels.parquet."""
        if self.prometheus is None or not log.pass_times or not self.until_s:
            return
        from_s = min(one.from_s for one in log.pass_times)
        try:
            lines = await self.prometheus.lines(
                self._panels(), self.servers, from_s=from_s, to_s=self.until_s
            )
            self.folder.write("panels", lines)
        except Exception as error:  # what was measured must be kept
            self._lost(error, log)

    def _panels(self) -> list[Panel]:
        """The panels of the arms' connectors; all for attached servers, with theirs unknown."""
        arms = self.plan.arms
        return [
            panel
            for panel in PANELS
            if any(
                arm.settings is None
                or panel.applies(
                    arm.connector, tiers=bool(arm.tiers), prefill=arm.disaggregated
                )
                for arm in arms
            )
        ]  # fmt: skip


def targets_of(arm: Arm, deployment: Deployment) -> list[Target]:
    """The servers of an arm that have metrics: instances, and the store that is a server."""
    found = [(one.name, str(one.role), one.url) for one in deployment.instances]
    if deployment.store_url:
        found.append(("store", "store", deployment.store_url))
    return [
        Target(name=name, role=role, connector=arm.connector, address=url.partition("://")[2])
        for name, role, url in found
    ]
