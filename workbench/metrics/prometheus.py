"""The /metrics page of one instance: read, parsed, and subtracted from a later one.

The parser is our own because the workbench also runs on machines without prometheus_client.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import fsum, nan

import httpx

from workbench.control import connect_problem

Labels = tuple[tuple[str, str], ...]

_SAMPLE = re.compile(r"([a-zA-Z_:][\w:]*)(?:\{(.*)\})? +(\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_ESCAPE = re.compile(r"\\(.)")
_SUFFIX = re.compile(r"_(?:total|sum|count)$")
_CUMULATIVE = {"counter", "histogram", "summary"}
_BORN = "process_start_time_seconds"


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """One reading of an instance's /metrics, or the difference of two."""

    instance: str
    read_at_s: float
    """`time.monotonic()` when the text arrived."""
    values: Mapping[tuple[str, Labels], float]
    """(series name, labels sorted by name) -> value."""
    cumulative: frozenset[str] = frozenset()
    """Names of the series that only grow; all others are gauges."""
    helps: Mapping[str, str] = field(default_factory=dict)
    """HELP text of a series, which may name its unit, by its name without `_total`."""
    doubts: tuple[str, ...] = ()

    def sum(self, name: str, **labels: str) -> float:
        """Sum over the series with that name and those labels; NaN without one."""
        wanted = labels.items()
        found = [
            value
            for (series, own), value in self.values.items()
            if series == name and wanted <= dict(own).items()
        ]
        return fsum(found) if found else nan


def parse(text: str, instance: str, *, only: Iterable[str] = ()) -> Counters:
    """Read Prometheus text (exposition format 0.0.4); `only` keeps series of those names.

    Skips histogram buckets, `_created` stamps and lines that cannot be parsed. `read_at_s` is now.
    """
    starts = tuple(only)
    values: dict[tuple[str, Labels], float] = {}
    kinds: dict[str, str] = {}
    helps: dict[str, str] = {}
    for line in text.split("\n"):
        if line.startswith("# TYPE "):
            _, _, family, kind = (*line.split(), "", "")[:4]
            kinds[family] = kind
        elif line.startswith("# HELP "):
            family, _, said = line.removeprefix("# HELP ").partition(" ")
            helps[family.removesuffix("_total")] = said
        match = _SAMPLE.match(line) if line.startswith(starts or ("",)) else None
        if match is None or match[1].endswith(("_bucket", "_created")):
            continue
        labels = {
            key: _ESCAPE.sub(_unescape, value) for key, value in _LABEL.findall(match[2] or "")
        }
        try:
            values[match[1], tuple(sorted(labels.items()))] = float(match[3])
        except ValueError:
            continue
    # A histogram's TYPE line names the family, its samples have a suffix; OpenMetrics also
    # omits `_total` in a counter's TYPE line. A gateway may omit the line itself.
    grown = {
        name
        for name, _ in values
        if _CUMULATIVE & (told := {kinds.get(name), kinds.get(_SUFFIX.sub("", name))})
        or (told == {None} and name.endswith("_total"))
    }
    return Counters(
        instance=instance,
        read_at_s=time.monotonic(),
        values=values,
        cumulative=frozenset(grown),
        helps=helps,
    )


def difference(before: Counters, after: Counters) -> Counters:
    """What `after` counted since `before`; gauges as they are in `after`.

    A series that appeared in between counts from zero. If a counter decreased or vanished, or the
    process is another one, the server was restarted: every counter is NaN, with a doubt. Raises
    ValueError for two instances.
    """
    if before.instance != after.instance:
        raise ValueError(f"counters of {before.instance!r} and {after.instance!r} do not compare")
    doubts = (*before.doubts, *after.doubts)
    lost = next((key for key in before.values if _went_back(key, before, after)), None)
    if lost and not doubts:
        doubts = (
            f"{after.instance} restarted during the pass ({lost[0]} went from"
            f" {before.values[lost]:,.0f} to {after.values.get(lost, nan):,.0f}), so its counters"
            " are unknown",
        )
    values = dict(after.values)
    for key in values:
        if key[0] in after.cumulative:
            values[key] = nan if doubts else values[key] - before.values.get(key, 0.0)
    return replace(after, values=values, doubts=doubts)


async def read(
    client: httpx.AsyncClient, url: str, name: str, *, only: Iterable[str] = ()
) -> Counters:
    """GET {url}/metrics of the instance called `name`; `only` as for `parse`.

    A server that does not respond, or has no /metrics, gives no values and a doubt: attached
    servers may hide theirs, and their counters are then unknown.
    """
    try:
        response = await client.get(f"{url.rstrip('/')}/metrics")
        response.raise_for_status()
    except httpx.HTTPStatusError as error:
        reason = f"returned HTTP {error.response.status_code}"
    except httpx.HTTPError as error:
        problem = connect_problem(error).partition(";")[0] or type(error).__name__
        reason = f"did not respond ({problem})"
    else:
        return parse(response.text, name, only=only)
    doubt = f"{name}: {url.rstrip('/')}/metrics {reason}, so its counters are unknown"
    return Counters(instance=name, read_at_s=time.monotonic(), values={}, doubts=(doubt,))


def _went_back(key: tuple[str, Labels], before: Counters, after: Counters) -> bool:
    if key[0] == _BORN:
        return before.values[key] != after.values.get(key)
    return key[0] in before.cumulative and not after.values.get(key, nan) >= before.values[key]


def _unescape(match: re.Match[str]) -> str:
    return "\n" if match[1] == "n" else match[1]
