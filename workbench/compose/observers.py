"""Monitoring of the deployments: Prometheus, and Grafana with the workbench's dashboard.

Both listen on loopback, as all servers do. Grafana has no anonymous viewers. Its own start command
checks that a password is set, because Compose would refuse every command on the file, also for
other profiles.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

from workbench.compose.profiles import Profile
from workbench.compose.services import OF_THE_MACHINE, Service, escaped
from workbench.monitoring import provisioning
from workbench.monitoring.dashboard import dashboard
from workbench.monitoring.rules import rules
from workbench.monitoring.scrape import RULES_FILE, Target, prometheus_config

PROFILE = "monitoring"
PROMETHEUS_IMAGE, GRAFANA_IMAGE = "prom/prometheus:v3.13.2", "grafana/grafana:13.1.3"
PROMETHEUS_PORT, GRAFANA_PORT = 9090, 3000
PASSWORD = "GRAFANA_PASSWORD"
_OWN = "GF_SECURITY_ADMIN_PASSWORD"
_START = f'test -n "${_OWN}" || {{ echo "set {PASSWORD}"; exit 1; }}; exec /run.sh'
_PROMETHEUS, _DASHBOARDS = "/etc/prometheus", "/var/lib/grafana/dashboards"
_PROVISIONING = "/etc/grafana/provisioning"


def targets_of(profiles: Sequence[Profile]) -> Iterator[Target]:
    """Every server with metrics, by service name. For Prometheus, stopped profiles are down."""
    for profile in profiles:
        for process in profile.plan.processes:
            if process.role == "proxy" or not process.ready_url.startswith("http"):
                continue
            # A store serves metrics on the port of its health check, not on its own.
            yield Target(
                name=profile.service(process.name),
                role=process.role,
                connector=profile.plan.connector.name,
                address=urlsplit(process.ready_url).netloc,
            )


def observers_of(profiles: Sequence[Profile]) -> tuple[dict[str, Service], dict[str, str]]:
    """The services of the profile `monitoring`, and the text of their files, by config name."""
    address = f"127.0.0.1:{PROMETHEUS_PORT}"
    read = {
        f"{_PROMETHEUS}/prometheus.yml": prometheus_config(targets_of(profiles)),
        f"{_PROMETHEUS}/{RULES_FILE}": rules(),
    }
    provided = provisioning.files(prometheus_url=f"http://{address}", dashboards=_DASHBOARDS)
    shown = {f"{_PROVISIONING}/{path}": text for path, text in provided.items()}
    shown[f"{_DASHBOARDS}/workbench.json"] = json.dumps(dashboard())
    prometheus: Service = {
        "image": PROMETHEUS_IMAGE,
        "command": [
            f"--config.file={_PROMETHEUS}/prometheus.yml",
            "--storage.tsdb.path=/prometheus",
            f"--web.listen-address={address}",
        ],
        "configs": _mounted("prometheus", read),
        "volumes": [{"type": "volume", "source": "prometheus", "target": "/prometheus"}],
    }
    grafana: Service = {
        "image": GRAFANA_IMAGE,
        "entrypoint": ["sh", "-c", escaped(_START)],
        "environment": {
            _OWN: f"${{{PASSWORD}:-}}",
            "GF_AUTH_ANONYMOUS_ENABLED": "false",
            "GF_ANALYTICS_REPORTING_ENABLED": "false",
            "GF_ANALYTICS_CHECK_FOR_UPDATES": "false",
            "GF_SERVER_HTTP_ADDR": "127.0.0.1",
            "GF_SERVER_HTTP_PORT": str(GRAFANA_PORT),
        },
        "configs": _mounted("grafana", shown),
        "depends_on": {"prometheus": {"condition": "service_started"}},
    }
    services = {
        name: {"profiles": [PROFILE], **service, **OF_THE_MACHINE}
        for name, service in (("prometheus", prometheus), ("grafana", grafana))
    }
    texts = {**read, **shown}
    configs = [*prometheus["configs"], *grafana["configs"]]
    return services, {config["source"]: texts[config["target"]] for config in configs}


def _mounted(service: str, files: dict[str, str]) -> list[dict[str, Any]]:
    """Each file as a config, named after the service and the last two parts of its path."""
    return [
        {"source": f"{service}-{'-'.join(path.split('/')[-2:])}", "target": path} for path in files
    ]
