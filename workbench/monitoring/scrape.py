"""What Prometheus scrapes of a deployment: its servers, with labels that they do not export."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import yaml

JOB = "workbench"
RULES_FILE = "rules.yml"
TARGETS_FOLDER = "prometheus"
"""Below the folder of outputs: a file for each run that uses a Prometheus."""
INTERVAL_S = 5
"""LMCache's /metrics may block under load; that only loses a scrape and delays no request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A server with metrics."""

    name: str
    """Its label `instance`, e.g. `prefill-0`."""
    role: str
    connector: str
    address: str
    """`host:port`."""
    path: str = "/metrics"

    @property
    def group(self) -> dict[str, Any]:
        """This server as a group of targets. No server knows its role or connector."""
        labels = {"instance": self.name, "role": self.role, "connector": self.connector}
        if self.path != "/metrics":
            labels["__metrics_path__"] = self.path
        return {"targets": [self.address], "labels": labels}


def prometheus_config(
    targets: Iterable[Target], *, interval_s: float = INTERVAL_S, target_files: str = ""
) -> str:
    """The configuration of a Prometheus for these servers, as YAML, with the rules beside it.

    `target_files` is a path with `*` of files that runs write (`target_file`).
    """
    every = f"{1000 * interval_s:.0f}ms"
    job: dict[str, Any] = {"job_name": JOB}
    if groups := [target.group for target in targets]:
        job["static_configs"] = groups
    if target_files:
        job["file_sd_configs"] = [{"files": [target_files], "refresh_interval": "5s"}]
    config = {
        "global": {"scrape_interval": every, "evaluation_interval": every},
        "rule_files": [RULES_FILE],
        "scrape_configs": [job],
    }
    return yaml.safe_dump(config, sort_keys=False, width=1000)


def target_file(targets: Iterable[Target], **labels: str) -> str:
    """The same servers for `file_sd_configs`, as JSON, each with these `labels` too."""
    groups = [target.group for target in targets]
    return json.dumps([group | {"labels": group["labels"] | labels} for group in groups], indent=1)
