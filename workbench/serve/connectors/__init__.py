"""Connectors: how KV moves between instances, one module for each; all that is known of one.

To add one: write a module here that has CONNECTOR, and its name into `params.notebooks.CONNECTORS`.
"""

from __future__ import annotations

from importlib import import_module

from workbench.errors import ParameterError, nearest
from workbench.params.notebooks import CONNECTORS as NAMES
from workbench.serve.connectors.connector import Connector, Store, Wiring

__all__ = ["CONNECTORS", "Connector", "Store", "Wiring", "connector"]

CONNECTORS: dict[str, Connector] = {
    name: import_module(f"{__name__}.{name.replace('-', '_')}").CONNECTOR for name in NAMES
}


def connector(name: str) -> Connector:
    """The connector of that name. Raises ParameterError naming the nearest one."""
    if name not in CONNECTORS:
        raise ParameterError(f"connector {name!r} is not known: {nearest(name, CONNECTORS)}")
    return CONNECTORS[name]
