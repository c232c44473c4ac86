"""PromQL of the panels, with placeholders for the servers and for the time window of a rate."""

from __future__ import annotations

from dataclasses import dataclass

RATE = "$__rate_interval"
"""Grafana's variable: a time window with at least four samples."""
_ON = "$on"


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One PromQL expression, and the names of its lines."""

    expression: str
    legend: str
    """In Grafana's form: `{{role}} computed`."""

    def filled(self, servers: str = "", rate: str = RATE) -> str:
        """The expression for the servers that these label matchers choose, e.g. `role="decode"`."""
        text = self.expression.replace(RATE, rate)
        if not servers:
            text = text.replace(f"{{{_ON}}}", "").replace(f",{_ON}", "")
        return text.replace(_ON, servers)


def on(series: str, **labels: str) -> str:
    """A series with these labels, on the chosen servers."""
    wanted = [f'{name}="{value}"' for name, value in labels.items()]
    return f"{series}{{{','.join([*wanted, _ON])}}}"


def total(series: str, by: str, **labels: str) -> str:
    """The sum of a gauge, or of a counter's total, over all labels except `by`."""
    return f"sum by ({by}) ({on(series, **labels)})"


def per_second(series: str, by: str, **labels: str) -> str:
    """The rate of a counter, summed over all labels except `by`."""
    return f"sum by ({by}) (rate({on(series, **labels)}[{RATE}]))"


def quantile(histogram: str, of: float, by: str) -> str:
    """A quantile of a histogram, which is given without its suffix."""
    buckets = per_second(f"{histogram}_bucket", f"{by}, le")
    return f"histogram_quantile({of:g}, {buckets})"


def or_zero(counted: str, beside: str, by: str) -> str:
    """The query `counted`, or 0 where its series is missing but the series `beside` exists.

    Some servers export a counter only after its first event. A missing series means 0 only if the
    server exports others.
    """
    return f"{counted} or 0 * {total(beside, by)}"
