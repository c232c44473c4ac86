"""The dashboard for Grafana: a row for each subject, with variables for role and instance."""

from __future__ import annotations

from itertools import groupby
from string import ascii_uppercase
from typing import Any

from workbench.monitoring.panels import PANELS, Panel, Unit

UID = "workbench"
TAG = "workbench"
"""The tag of the annotations that mark the passes of a run."""

_COLUMNS, _PER_ROW, _HEIGHT = 24, 3, 8
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_GRAFANA = {"type": "grafana", "uid": "-- Grafana --"}
_SERVERS = 'role=~"$role",instance=~"$instance"'
_UNITS: dict[Unit, str] = {
    "fraction": "percentunit",
    "s": "s",
    "B": "bytes",
    "B/s": "Bps",
    "requests": "short",
    "chunks": "short",
    "servers": "short",
}
"""Grafana's names of our units; every other unit is shown as a suffix."""


def dashboard(connector: str = "") -> dict[str, Any]:
    """The dashboard as Grafana imports it, with the panels of one connector or of all."""
    shown = [panel for panel in PANELS if not connector or panel.applies(connector, tiers=True)]
    return {
        "uid": UID,
        "title": "KV cache and PD workbench",
        "tags": [TAG],
        "schemaVersion": 41,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-15m", "to": "now"},
        "annotations": {"list": [_passes()]},
        "templating": {"list": _variables()},
        "panels": _laid_out(shown),
    }


def _laid_out(shown: list[Panel]) -> list[dict[str, Any]]:
    """A row for each subject, with its panels below it, three in a line."""
    made: list[dict[str, Any]] = []
    y, width = 0, _COLUMNS // _PER_ROW
    for subject, group in groupby(shown, lambda panel: panel.subject):
        place = {"x": 0, "y": y, "w": _COLUMNS, "h": 1}
        made.append(
            {"type": "row", "id": len(made) + 1, "title": subject, "collapsed": False,
             "gridPos": place, "panels": []}
        )  # fmt: skip
        y += 1
        for number, panel in enumerate(group):
            column, line = number % _PER_ROW, number // _PER_ROW
            place = {"x": column * width, "y": y + line * _HEIGHT, "w": width, "h": _HEIGHT}
            made.append(_panel(panel, len(made) + 1, place))
        y += (number // _PER_ROW + 1) * _HEIGHT
    return made


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    return {
        "type": "timeseries",
        "id": number,
        "title": panel.title,
        "description": panel.description,
        "datasource": _SOURCE,
        "gridPos": place,
        "targets": [
            {
                "refId": letter,
                "datasource": _SOURCE,
                "expr": query.filled(_SERVERS),
                "legendFormat": query.legend,
                "range": True,
            }
            for letter, query in zip(ascii_uppercase, panel.queries, strict=False)
        ],
        "fieldConfig": {
            "defaults": {
                "unit": _UNITS.get(panel.unit, f"suffix: {panel.unit}"),
                "min": 0,
                "custom": {"lineWidth": 1, "fillOpacity": 10, "showPoints": "auto"},
            },
            "overrides": [],
        },
        "options": {
            "legend": {
                "displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": [],
            },
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
    }  # fmt: skip


def _variables() -> list[dict[str, Any]]:
    source = {"name": "datasource", "label": "Data source", "type": "datasource",
              "query": "prometheus"}  # fmt: skip
    asked = {"role": "label_values(up, role)",
             "instance": 'label_values(up{role=~"$role"}, instance)'}  # fmt: skip
    return [
        source,
        *(
            {
                "name": name,
                "label": name.capitalize(),
                "type": "query",
                "datasource": _SOURCE,
                "query": {"query": query, "refId": name},
                "refresh": 2,
                "includeAll": True,
                # Include servers without that label, as in the user's own Prometheus.
                "allValue": ".*",
                "multi": True,
                "current": {"text": ["All"], "value": ["$__all"]},
            }
            for name, query in asked.items()
        ),
    ]


def _passes() -> dict[str, Any]:
    """The annotations that a run writes (`monitoring.annotations`)."""
    return {
        "name": "Passes",
        "datasource": _GRAFANA,
        "enable": True,
        "iconColor": "blue",
        "target": {
            "refId": "Passes",
            "type": "tags",
            "tags": [TAG],
            "limit": 100,
            "matchAny": False,
        },
    }
