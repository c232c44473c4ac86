"""A run that others watch: what Prometheus recorded of it, and its passes marked in Grafana.

Neither is part of the measurement: once it has begun, what fails here is a doubt. Panels are shown,
and nothing is computed from them: a scrape is never at the border of a pass.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from workbench.errors import DeploymentError
from workbench.experiment.plan.plan import Arm, ExperimentPlan
from workbench.experiment.result.run_folder import RunFolder, output_root
from workbench.experiment.run.run_log import Log
from workbench.monitoring.annotations import Grafana
from workbench.monitoring.history import Prometheus, one_of
from workbench.monitoring.panels import PANELS, Panel
from workbench.monitoring.scrape import TARGETS_FOLDER, Target, target_file
from workbench.params.shared import LoadParams
from workbench.serve.deployment import Deployment

SCRAPE_TIMEOUT_S = 30.0
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
    until_s: float = 0.0
    """Unix time until which the servers of the last launch were there to be read."""

    @classmethod
    async def begun(cls, plan: ExperimentPlan, folder: RunFolder) -> Self:
        """Before any server starts. Raises ParameterError or DeploymentError for what cannot be."""
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
        """Prometheus reads these servers, from before the first pass until after the last one.

        Raises DeploymentError if it does not read one of them.
        """
        if self.prometheus is None:
            yield
            return
        told: Path | None = None
        try:
            if deployment.plan is None:
                addresses = {instance.name: instance.url for instance in deployment.instances}
                if deployment.store_url:
                    addresses["store"] = deployment.store_url
                model = deployment.model
                self.servers = await self.prometheus.find(addresses, model=model)
                names: Collection[str] = ()
            else:
                targets = targets_of(arm, deployment)
                names = {target.name for target in targets}
                told = self._tell(targets)
                self.servers = one_of("run", [self.folder.attempt.name])
                if missing := await self._not_scraped(self.prometheus, names):
                    raise DeploymentError(
                        f"prometheus_url must scrape every server, but {self.prometheus.url} has"
                        f" not read {', '.join(sorted(missing))} within {SCRAPE_TIMEOUT_S:.0f} s."
                        f" Let it read {told.parent}/*.json (example: workbench monitoring"
                        " prometheus)"
                    )
            yield
            await self._last_scrape(names, log)
        finally:
            self.until_s = time.time()
            if told is not None:
                told.unlink(missing_ok=True)

    def _tell(self, targets: Collection[Target]) -> Path:
        """Write the file that tells Prometheus where these servers are."""
        run = self.folder.attempt.name
        file = output_root(self.plan.params.output_dir) / TARGETS_FOLDER / f"{run}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        partial.write_text(target_file(targets, run=run))
        partial.replace(file)
        return file.absolute()

    async def _not_scraped(self, prometheus: Prometheus, names: Collection[str]) -> set[str]:
        """Servers that it has not read since now, after a time."""
        since_s = time.time()
        while True:
            missing = {*names} - await prometheus.scraped_since(self.servers, since_s)
            if not missing or time.time() > since_s + SCRAPE_TIMEOUT_S:
                return missing
            await asyncio.sleep(_POLL_S)

    async def _last_scrape(self, names: Collection[str], log: Log) -> None:
        """Wait for a scrape after the last pass: with the servers their last counts would go."""
        assert self.prometheus is not None
        try:
            found = names or await self.prometheus.scraped_since(self.servers, 0.0)
            await self._not_scraped(self.prometheus, found)
        except DeploymentError as error:
            self._lost(error, log)

    def _lost(self, error: Exception, log: Log) -> None:
        why = str(error).partition(" (example")[0].partition(". ")[0]  # the rest is advice
        log.doubt(f"Panels are missing: {why}.")

    async def pass_ended(self, log: Log) -> None:
        """Mark the last pass in Grafana; the first failure is a doubt, and the last try."""
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
        """Those that the arms have; all for attached servers, whose connector is not known."""
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
