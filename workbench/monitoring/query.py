"""PromQL of the panels, with open places for a choice of servers and for the time of a rate."""

from __future__ import annotations

from dataclasses import dataclass

RATE = "$__rate_interval"
"""Grafana's own name: a time with at least four samples in it."""
_ON = "$on"


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One PromQL expression, and the name of each line that it gives."""

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
    """A gauge, or a counter as it stands, added up over all labels but `by`."""
    return f"sum by ({by}) ({on(series, **labels)})"


def per_second(series: str, by: str, **labels: str) -> str:
    """How fast a counter grows, added up over all labels but `by`."""
    return f"sum by ({by}) (rate({on(series, **labels)}[{RATE}]))"


def quantile(histogram: str, of: float, by: str) -> str:
    """A quantile of a histogram, which is given without its suffix."""
    buckets = per_second(f"{histogram}_bucket", f"{by}, le")
    return f"histogram_quantile({of:g}, {buckets})"


def or_zero(counted: str, beside: str, by: str) -> str:
    """What a counter counted, or 0 where there is no such series, but one `beside` it.

    Some servers export a counter from its first addition on. Its absence is a zero only where the
    server exports others.
    """
    return f"{counted} or 0 * {total(beside, by)}"
