"""The text of a compose file: comments with the commands to use it, then its services.

Configuration files of services are inside, so that one file is enough.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from workbench.compose.observers import GRAFANA_PORT, PASSWORD, PROFILE, observers_of
from workbench.compose.profiles import Profile, compose_params, profiles_of
from workbench.compose.services import escaped, services_of
from workbench.control import curl_line
from workbench.params.notebooks import as_typed
from workbench.serve.vllm import SERVED_MODEL

_NAME = "workbench"


def compose_file(given: Mapping[str, Any]) -> str:
    """The file for these parameters of `pd_sweep`.

    Raises ParameterError and PlanError for what cannot be run in containers.
    """
    profiles = profiles_of(compose_params(given))
    services: dict[str, Any] = {}
    files: dict[str, str] = {}
    for own, read in (*map(services_of, profiles), observers_of(profiles)):
        services |= own
        files |= read
    mounts = [volume for service in services.values() for volume in service.get("volumes", ())]
    content: dict[str, Any] = {
        "name": _NAME,
        "services": services,
        "volumes": {mount["source"]: {} for mount in mounts if mount["type"] == "volume"},
        "configs": {name: {"content": escaped(text)} for name, text in files.items()},
    }
    # A value may have several lines, and each must stay a comment.
    said = ["# ".join(line.splitlines(keepends=True)) for line in _comments(profiles, given)]
    return "\n".join([*said, "", _yaml(content)])


def _comments(profiles: Sequence[Profile], given: Mapping[str, Any]) -> list[str]:
    """The comments at the top: commands that measure, start and stop the servers, in this order.

    Then those that render the page and send one request.
    """
    first, *others = profiles
    lines = [
        f"# {first.attach_line}",
        f"# docker compose --profile {first.name} up --build --detach --wait",
        f"# docker compose --profile {first.name} down --volumes",
        f"# workbench report {first.notebook}",
        f"# {curl_line(first.plan.url, SERVED_MODEL)}",
        "#",
        f"# Profile {first.name}: {first.plan.topology} over {first.plan.connector.name}.",
    ]
    for other in others:
        plan = other.plan
        lines += [
            f"# Profile {other.name}: {plan.topology}, connector {plan.connector.name}, on the same"
            " GPUs, so stop the others first.",
            f"# {other.attach_line}",
        ]
    return [
        *lines,
        f"# Profile {PROFILE}: Prometheus and Grafana (http://127.0.0.1:{GRAFANA_PORT}, user admin,"
        f" password from {PASSWORD}).",
        f"# {PASSWORD}=... docker compose --profile {PROFILE} up --detach",
        "# This command wrote the file; all paths are those of the machine on which it ran:",
        f"# workbench compose {shlex.join(as_typed(given))}",
    ]


class _Dumper(yaml.SafeDumper):
    """Writes lists of words on one line, and quotes texts that look like numbers."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else '"' if re.match(r"[-+.]?\d", text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


def _list(dumper: yaml.SafeDumper, values: list[Any]) -> yaml.SequenceNode:
    words = all(isinstance(value, str) for value in values)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=words)


_Dumper.add_representer(str, _text)
_Dumper.add_representer(list, _list)


def _yaml(content: dict[str, Any]) -> str:
    text: str = yaml.dump(
        content, Dumper=_Dumper, sort_keys=False, default_flow_style=False, width=100
    )
    # An empty line before each section and service.
    return re.sub(r"^(?=\w|  [\w.-]+:$)", "\n", text, flags=re.M).lstrip("\n")
