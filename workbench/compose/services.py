"""The services of a deployment: one for each process of its plan, with the same command line.

They use the host's network, and servers listen on its loopback. Engines tell each other the
addresses of the side channels of KV transfers, which published ports would not reach. Services
share memory in the IPC namespace of a service that does nothing else, as a notebook's containers
do.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import workbench
from workbench.compose.profiles import DISK, Profile
from workbench.serve.deployment import GPU_START_TIMEOUT_S
from workbench.serve.processes.containers import MEMORY, PASSED_ON, WAITS, gpu_access
from workbench.serve.processes.launcher import ProcessSpec

Service = dict[str, Any]

PROXY_IMAGE, REDIS_IMAGE = "workbench-proxy", "redis:8"
PROXY_FILE = "compose/proxy.Dockerfile"
CONFIGS = "/run/workbench"
"""The folder of the configuration files that instances read."""
OF_THE_MACHINE = {"network_mode": "host", "security_opt": ["label=disable"]}
_ANSWERS = "__import__('urllib.request').request.urlopen('{url}',timeout=4)"
"""Python, since an image may lack curl; without a space, at which podman's API would split it."""


def services_of(profile: Profile) -> tuple[dict[str, Service], dict[str, str]]:
    """The services of a profile by name, and the text of files that they read, by config name."""
    services: dict[str, Service] = {profile.service(MEMORY): _memory(profile)}
    files: dict[str, str] = {}
    ready: list[str] = []
    for stage in (("tier",), ("store",), ("prefill", "decode", "aggregated"), ("proxy",)):
        started = [process for process in profile.plan.processes if process.role in stage]
        for process in started:
            name = profile.service(process.name)
            services[name] = _service(process, profile, ready)
            files |= {f"{name}.{v.lower()}": text for v, text in process.env_files.items()}
        ready = [profile.service(process.name) for process in started] or ready
    return services, files


def _memory(profile: Profile) -> Service:
    return {
        "profiles": [profile.name],
        "image": profile.image,
        "ipc": "shareable",
        "shm_size": f"{profile.memory_gb}g",
        "network_mode": "none",
        "entrypoint": [profile.plan.settings.interpreter.path],
        "command": [*WAITS],
        "stop_signal": "SIGKILL",
    }


def _service(process: ProcessSpec, profile: Profile, ready: list[str]) -> Service:
    """The service of a process; `ready` are those that must be healthy before."""
    settings, name = profile.plan.settings, profile.service(process.name)
    access = gpu_access(process, settings.platform)
    service: Service = {"profiles": [profile.name], **_program(process, profile)}
    service["command"] = [*process.args]
    service |= OF_THE_MACHINE
    configs = {variable: f"{name}.{variable.lower()}" for variable in process.env_files}
    env = access.env | {variable: f"{CONFIGS}/{file}" for variable, file in configs.items()}
    if env:
        service["environment"] = env
    if configs:
        service["configs"] = [
            {"source": file, "target": f"{CONFIGS}/{file}"} for file in configs.values()
        ]
    volumes = [_read(path) for path in process.reads]
    volumes += [_written(path, profile) for path in process.writes]
    if volumes:
        service["volumes"] = volumes
    if access.devices:
        service["devices"] = [*access.devices]
        service["group_add"] = [*access.groups]
        service["cap_add"] = [*access.capabilities]
        service["security_opt"] = [*service["security_opt"], *access.security]
    if access.nvidia:
        device = {"driver": "nvidia", "device_ids": [*access.nvidia], "capabilities": ["gpu"]}
        service["deploy"] = {"resources": {"reservations": {"devices": [device]}}}
    service["healthcheck"] = _healthcheck(process, settings.interpreter.path)
    # Compose would read a dollar as a variable.
    service = escaped(service)
    waits = {other: {"condition": "service_healthy"} for other in ready}
    if not process.here:
        memory = profile.service(MEMORY)
        service["ipc"] = f"service:{memory}"
        waits |= {memory: {"condition": "service_started"}}
        if not settings.local:
            passed = {variable: f"${{{variable}:-}}" for variable in PASSED_ON}
            service["environment"] = service["environment"] | passed
    if waits:
        service["depends_on"] = waits
    return service


def _read(path: str) -> dict[str, Any]:
    """A mount in the long form, since a path may have a colon.

    What is read must be there. With `create_host_path`, Compose would join the parts by colons.
    """
    mount = {"type": "bind", "source": path, "target": path, "read_only": True}
    return {**mount, "bind": {"create_host_path": False}}


def _written(path: str, profile: Profile) -> dict[str, Any]:
    """A mount of a folder of this machine, or of the profile's own volume for a disk tier."""
    if path == str(DISK):
        return {"type": "volume", "source": f"{profile.name}-disk", "target": path}
    return {"type": "bind", "source": path, "target": path}


def _program(process: ProcessSpec, profile: Profile) -> Service:
    """The image of a process, and the program that it runs there."""
    if process.role == "proxy":
        package = str(Path(workbench.__file__).parent)
        return {
            "image": PROXY_IMAGE,
            "build": {"context": package, "dockerfile": PROXY_FILE},
            "entrypoint": ["python", *process.program[1:]],
        }
    if process.here:
        return {"image": REDIS_IMAGE, "entrypoint": ["redis-server"]}
    return {"image": profile.image, "entrypoint": [*process.program]}


def _healthcheck(process: ProcessSpec, python: str) -> Service:
    """Asks the address that the plan waits for. A start may take minutes, above all on a GPU."""
    if process.ready_url.startswith("tcp://"):
        test = ["CMD", "redis-cli", "-p", str(process.port), "ping"]
    else:
        test = [
            "CMD",
            "python" if process.here else python,
            "-c",
            _ANSWERS.format(url=process.ready_url),
        ]
    return {
        "test": test,
        "interval": "10s",
        "timeout": "5s",
        "start_period": f"{GPU_START_TIMEOUT_S:.0f}s",
    }


def escaped(value: Any) -> Any:
    """The same with each dollar doubled."""
    match value:
        case str():
            return value.replace("$", "$$")
        case dict():
            return {name: escaped(part) for name, part in value.items()}
        case list():
            return [escaped(part) for part in value]
    return value
