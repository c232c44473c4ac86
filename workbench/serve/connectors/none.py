"""No connector: each instance has its own prefix cache, and no KV moves."""

from __future__ import annotations

from workbench.serve.connectors.connector import Connector

CONNECTOR = Connector(name="none")
