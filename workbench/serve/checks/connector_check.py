"""Asks vLLM whether it can load a connector, before anything starts. Run in its interpreter.

    python -m workbench.serve.checks.connector_check '{"kv_connector": "LMCacheMPConnector"}'

prints one line of JSON: `error`, empty if vLLM has the connector and can import it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from workbench.errors import PlanError, needs
from workbench.hardware.interpreter import Interpreter
from workbench.serve import vllm
from workbench.serve.connectors import Connector, Wiring

_SHOWN_CHARACTERS = 160


def check_vllm(engine: Interpreter) -> None:
    """Refuse an interpreter without vLLM. Raises PlanError."""
    if not engine.find("vllm"):
        needed = "engine_python (this environment has no vLLM)"
        raise PlanError(needs("engine=vllm", needed, "", "/opt/vllm/bin/python"))


def check_connector(connector: Connector, engine: Interpreter) -> None:
    """Refuse a connector that does not run in this interpreter.

    Raises LaunchError for a missing package, PlanError without vLLM or if vLLM and the connector's
    package do not fit each other. The latter is asked, which takes 10 to 40 s, if the versions are
    not those that were measured.
    """
    check_vllm(engine)
    connector.check_installed(engine)
    measured = vllm.PACKAGES | dict(connector.packages)
    if not connector.loads or measured.items() <= dict(engine.versions).items():
        return
    config = connector.transfer_config(Wiring(role="decode", cpu=True))
    answer = engine.ask(__name__, json.dumps(config))
    if answer and (error := answer["error"]):
        found = " and ".join(f"{name} {engine.versions.get(name, '?')}" for name in measured)
        tested = " and ".join(f"{name} {version}" for name, version in measured.items())
        raise PlanError(
            f"connector {connector.name!r} needs {' and '.join(measured)} that fit each other,"
            f" got {found}: {error[:_SHOWN_CHARACTERS]}; install {tested}, or measure without it"
            " (example: -p connector none -p topology 2a)"
        )


def _answer(config: Mapping[str, Any]) -> dict[str, str]:
    from vllm.config.kv_transfer import KVTransferConfig
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

    find = KVConnectorFactory.get_connector_class
    try:
        find(KVTransferConfig(**config))
    except (ImportError, AttributeError, ValueError) as error:
        return {"error": str(error).strip().splitlines()[0]}
    return {"error": ""}


if __name__ == "__main__":
    print(json.dumps(_answer(json.loads(sys.argv[1]))))
