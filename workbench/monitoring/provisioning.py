"""Files that Grafana reads at its start: where Prometheus is, and where dashboards lie."""

from __future__ import annotations

from typing import Any

import yaml

from workbench.monitoring.scrape import INTERVAL_S


def files(
    *,
    prometheus_url: str = "http://prometheus:9090",
    dashboards: str = "/var/lib/grafana/dashboards",
) -> dict[str, str]:
    """Files by their path below Grafana's provisioning folder.

    Grafana asks Prometheus at `prometheus_url`, and loads each JSON file in the folder
    `dashboards`.
    """
    source: dict[str, Any] = {
        "name": "Prometheus",
        "type": "prometheus",
        "access": "proxy",
        "url": prometheus_url,
        "isDefault": True,
        # Grafana makes $__rate_interval from it.
        "jsonData": {"timeInterval": f"{INTERVAL_S}s", "httpMethod": "POST"},
    }
    provider = {"name": "workbench", "type": "file", "options": {"path": dashboards}}
    return {
        "datasources/prometheus.yaml": _yaml({"apiVersion": 1, "datasources": [source]}),
        "dashboards/workbench.yaml": _yaml({"apiVersion": 1, "providers": [provider]}),
    }


def _yaml(content: dict[str, Any]) -> str:
    return yaml.safe_dump(content, sort_keys=False)
