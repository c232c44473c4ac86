"""Counters of a pretend server, and their page in Prometheus's text format."""

from __future__ import annotations

import time
from collections.abc import Mapping

__all__ = ["CONTENT_TYPE", "Series"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_Labels = tuple[tuple[str, str], ...]
_STARTED_S = time.time()


class Series:
    """Counters and histograms (their sum and count) by name and labels.

    `constant` labels stand on every series. One exists from its first addition on, or from
    `born`, with zero.
    """

    def __init__(self, **constant: str) -> None:
        self._constant = constant
        self._values: dict[tuple[str, _Labels], float] = {}
        self._histograms: set[str] = set()

    def born(self, name: str, **labels: str) -> None:
        """Show a counter before anything has been counted."""
        self.add(name, 0, **labels)

    def add(self, name: str, value: float, **labels: str) -> None:
        key = (name, self._labels(labels))
        self._values[key] = self._values.get(key, 0.0) + value

    def observe(self, name: str, *values: float) -> None:
        """Add to a histogram; without a value it is only shown."""
        self._histograms.add(name)
        self.add(f"{name}_count", len(values))
        self.add(f"{name}_sum", sum(values))

    def page(self, gauges: Mapping[str, float], info: Mapping[str, Mapping[str, str]]) -> str:
        """The whole page; `gauges` as they are now, `info` as gauges of value 1 with labels."""
        lines = [
            "# TYPE process_start_time_seconds gauge",
            f"process_start_time_seconds {_STARTED_S!r}",
            "# TYPE process_cpu_seconds_total counter",
            f"process_cpu_seconds_total {time.process_time()!r}",
        ]
        for name, value in gauges.items():
            lines += [f"# TYPE {name} gauge", _line(name, self._labels({}), value)]
        for name, labels in info.items():
            lines += [f"# TYPE {name} gauge", _line(name, self._labels(labels), 1.0)]
        families: dict[str, list[str]] = {}
        for (name, own), value in self._values.items():
            base = name.removesuffix("_count").removesuffix("_sum")
            family = base if base in self._histograms else name
            families.setdefault(family, []).append(_line(name, own, value))
        for family, samples in families.items():
            kind = "histogram" if family in self._histograms else "counter"
            lines += [f"# TYPE {family} {kind}", *samples]
        return "\n".join([*lines, ""])

    def _labels(self, labels: Mapping[str, str]) -> _Labels:
        return tuple(sorted({**self._constant, **labels}.items()))


def _line(name: str, labels: _Labels, value: float) -> str:
    inside = ",".join(f'{key}="{text}"' for key, text in labels)
    return f"{name}{{{inside}}} {float(value)!r}"
