"""Reads what an existing Prometheus recorded of some servers, by its HTTP API, as a frame."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import floor, isfinite, nan
from statistics import median
from typing import Any, Self

import httpx
import pandas as pd

from workbench.control import connect_problem, control_client
from workbench.errors import DeploymentError
from workbench.monitoring.panels import Panel

COLUMNS = ("subject", "title", "unit", "line", "unix_s", "value", "rate_s")
"""Columns of a frame of panels. `rate_s` is the time window of rates."""
POINTS = 200
"""The most points of one line; more would not be visible in a small diagram."""
_SAMPLES_OF_A_RATE = 4
_LISTED = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """A series with its samples: (Unix time, value)."""

    labels: Mapping[str, str]
    points: Sequence[tuple[float, float]]

    @property
    def instance(self) -> str:
        """The server that it is of; empty, as in PromQL, if it does not say."""
        return self.labels.get("instance", "")

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> Self:
        """Raises LookupError, TypeError, ValueError or AttributeError for what is no such row."""
        samples = row["values"] if "values" in row else [row["value"]]
        return cls(
            labels={str(name): str(value) for name, value in row["metric"].items()},
            points=[(float(at), float(value)) for at, value in samples],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Prometheus:
    """A running Prometheus. Methods raise DeploymentError if no Prometheus answers."""

    url: str

    async def instant(self, expression: str) -> list[Series]:
        """The current rows of an expression."""
        return await self._asked("query", query=expression)

    async def over_time(
        self, expression: str, *, from_s: float, to_s: float, step_s: float
    ) -> list[Series]:
        """The lines of an expression between two times (Unix time)."""
        return await self._asked("query_range", query=expression, start=f"{from_s:.3f}",
                                 end=f"{to_s:.3f}", step=f"{step_s:.3f}")  # fmt: skip

    async def _asked(self, what: str, **parameters: str) -> list[Series]:
        path = f"{self.url.rstrip('/')}/api/v1/{what}"
        try:
            async with control_client() as client:
                answer = await client.get(path, params=parameters)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            why = connect_problem(error) or str(error) or type(error).__name__
            raise DeploymentError(
                f"prometheus_url must be a running Prometheus, but {self.url} did not respond"
                f" ({why}). Start it, or leave out prometheus_url (example: curl {path}?query=up)"
            ) from error
        try:
            return [Series.of_row(row) for row in answer.json()["data"]["result"]]
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            said = " ".join(answer.text.split())[:80]
            raise DeploymentError(
                f"prometheus_url must be a running Prometheus, but {self.url} responded"
                f" {answer.status_code} {said!r} (example: -p prometheus_url"
                " http://127.0.0.1:9090)"
            ) from error

    async def find(self, addresses: Mapping[str, str], *, model: str) -> str:
        """Label matchers of these servers (name -> URL), or of all vLLM servers of the model.

        A server's label `instance` is its address, or its name as `scrape.Target` gives it. The
        other targets of those vLLM servers' jobs count too: their KV store.
        """
        targets = await self.instant("up")
        known = sorted({target.instance for target in targets} - {""})
        if not addresses:
            return await self._serving(model, targets)
        found, missing = [], []
        for name, url in addresses.items():
            place = httpx.URL(url).netloc.decode()
            match = next((label for label in (place, name) if label in known), None)
            if match is None:
                missing.append(f"{name} ({place})")
            else:
                found.append(match)
        if missing:
            raise DeploymentError(
                f"prometheus_url must scrape every server, but {self.url} has no series of"
                f" {', '.join(missing)} (it has: {_listed(known)}). Add them to its scrape_configs"
                " (example: targets: ['127.0.0.1:8100'])"
            )
        return one_of("instance", found)

    async def _serving(self, model: str, targets: Sequence[Series]) -> str:
        engines = await self.instant(
            "count by (instance, job, model_name) (vllm:prompt_tokens_total)"
        )
        mine = [engine for engine in engines if engine.labels.get("model_name") == model]
        if not mine:
            models = sorted({engine.labels.get("model_name", "") for engine in engines})
            raise DeploymentError(
                f"prometheus_url must scrape the vLLM servers of {model!r}, but {self.url} has"
                f" series of models {_listed(models)}. Add the servers to its scrape_configs"
                " (example: targets: ['127.0.0.1:8100'])"
            )
        others = {engine.instance for engine in engines} - {one.instance for one in mine}
        jobs = {engine.labels.get("job") for engine in mine}
        beside = {target.instance for target in targets if target.labels.get("job") in jobs}
        return one_of("instance", {one.instance for one in mine} | beside - others)

    async def scraped_since(self, servers: str, since_s: float) -> set[str]:
        """Instances that answered a scrape after that Unix time."""
        rows = await self.instant(f"timestamp(up{{{servers}}}) and up{{{servers}}} == 1")
        return {row.instance for row in rows if any(value > since_s for _, value in row.points)}

    async def interval_s(self, servers: str, window_s: float) -> float:
        """How often these servers are scraped; NaN if they were scraped less than twice."""
        rows = await self.instant(f"up{{{servers}}}[{max(1, round(window_s))}s]")
        times = [[at for at, _ in row.points] for row in rows]
        gaps = [b - a for line in times for a, b in pairwise(line)]
        return median(gaps) if gaps else nan

    async def lines(
        self, panels: Iterable[Panel], servers: str, *, from_s: float, to_s: float
    ) -> pd.DataFrame:
        """The panels between two times, a row for each point that is a number: COLUMNS."""
        every_s = await self.interval_s(servers, time.time() - from_s)
        if not isfinite(every_s):
            return pd.DataFrame(columns=list(COLUMNS))
        step_s = max(every_s, (to_s - from_s) / POINTS)
        rate_s = max(_SAMPLES_OF_A_RATE * every_s, step_s + every_s)
        # The last point is at the end, after the last scrape: before it a short run has no rate.
        first_s = to_s - step_s * floor((to_s - from_s) / step_s)
        rows: list[tuple[Any, ...]] = []
        for panel in panels:
            for query in panel.queries:
                expression = query.filled(servers, f"{1000 * rate_s:.0f}ms")
                for line in await self.over_time(
                    expression, from_s=first_s, to_s=to_s, step_s=step_s
                ):
                    name = _named(query.legend, line.labels)
                    place = panel.subject, panel.title, panel.unit, name
                    rows += [
                        (*place, at, float(f"{value:.6g}"), rate_s)
                        for at, value in line.points
                        if isfinite(value)
                    ]
        return pd.DataFrame(rows, columns=list(COLUMNS))


def one_of(label: str, values: Iterable[str]) -> str:
    """A matcher for these values of a label."""
    words = "|".join(sorted(re.escape(value) for value in values))
    quoted = words.replace("\\", "\\\\").replace('"', '\\"')
    return f'{label}=~"{quoted}"'


def _named(legend: str, labels: Mapping[str, str]) -> str:
    """The name of a line, as Grafana fills `{{role}}`."""
    filled = re.sub(r"\{\{(\w+)\}\}", lambda match: labels.get(match[1], ""), legend)
    return " ".join(filled.split())


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return (", ".join(names[:_LISTED]) or "none") + more
