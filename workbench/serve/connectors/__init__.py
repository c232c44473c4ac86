"""Connectors: how KV moves between instances, with one module for each.

To add one: write a module with CONNECTOR here, and add its name to `params.pd_sweep.CONNECTORS`.
"""

from __future__ import annotations

from importlib import import_module

from workbench.errors import ParameterError, nearest
from workbench.params.pd_sweep import CONNECTORS as NAMES
from workbench.serve.connectors.connector import Connector, LegsAtOnce, Store, Wiring

__all__ = ["CONNECTORS", "Connector", "LegsAtOnce", "Store", "Wiring", "connector"]

CONNECTORS: dict[str, Connector] = {
    name: import_module(f"{__name__}.{name.replace('-', '_')}").CONNECTOR for name in NAMES
}


def connector(name: str) -> Connector:
    """The connector of that name. Raises ParameterError with the nearest name."""
    if name not in CONNECTORS:
        raise ParameterError(f"unknown connector {name!r}; {nearest(name, CONNECTORS)}")
    return CONNECTORS[name]
