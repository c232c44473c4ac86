"""The loads of a sweep or search, and how many requests met the limits at each so far.

Loads are arrival rates of an open loop, or users of a closed one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from workbench.errors import ParameterError, must_be
from workbench.experiment.load_unit import RATE, USERS, LoadUnit
from workbench.experiment.plan.offered_load.search import Limits, Point, Search
from workbench.load.workload.workload import Workload
from workbench.params.pd_sweep import PdSweep

if TYPE_CHECKING:
    import pandas as pd

_LONGEST_S = 300.0
"""A search stops going down at the rate at which a pass takes this long."""
_SEARCHED = 7
"""How many loads a search tries, roughly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loads:
    """The loads of a run: given ones, or a search for the highest that meets the limits."""

    given: tuple[float, ...] = ()
    unit: LoadUnit = RATE
    limits: Limits
    search: Search | None = None

    def __str__(self) -> str:
        if self.search is None:
            return ", ".join(map(self.unit.pass_name, self.given))
        return (
            f"a search for the highest {self.unit.noun} with {100 * self.limits.share:.0f} % of"
            f" requests within {self.limits}"
        )

    @property
    def top(self) -> float:
        """The highest load that can be sent, for which open files are reserved."""
        return self.search.top if self.search else max(self.given)

    @property
    def expected(self) -> tuple[float, ...]:
        """The loads that the estimated duration is based on: those given, or a doubling search."""
        if (search := self.search) is None:
            return self.given
        doubled = (search.first * 2**n for n in range(_SEARCHED))
        return tuple(min(search.top, max(search.bottom, load)) for load in doubled)

    def of_round(self, number: int, arm: str, rows: Callable[[], pd.DataFrame]) -> Iterator[float]:
        """The loads of an arm in one round; `rows` has the requests measured so far.

        In the first round a search chooses each load from the results so far. Later rounds repeat
        its loads.
        """
        if self.search is None:
            yield from self.given
            return
        if number:
            yield from [point.load for point in self.points(rows(), arm)]
            return
        tried: set[float] = set()
        while (load := self.search.next_load(self.points(rows(), arm))) is not None:
            if load in tried:
                return  # it could not be measured
            tried.add(load)
            yield load

    def points(self, rows: pd.DataFrame, arm: str) -> list[Point]:
        """An arm's loads so far, in the order of their first use."""
        if self.unit.column not in rows:
            return []
        mine = rows[(rows["arm"] == arm) & rows[self.unit.column].gt(0)]
        met = self.limits.met(mine["ttft_s"], mine["tpot_s"])
        loads = mine[self.unit.column]
        by_round = met.groupby([loads, mine["round"]], sort=False).agg(["size", "sum"])
        return [
            Point(
                load=float(load),  # type: ignore[arg-type]
                sent=tuple(counts["size"].tolist()),
                met=tuple(counts["sum"].tolist()),
            )
            for load, counts in by_round.groupby(level=0, sort=False)
        ]


def latency_limits(params: PdSweep) -> Limits:
    """The TTFT and TPOT limits of the parameters; infinite where none is given."""
    return Limits(
        ttft_s=params.ttft_limit_ms / 1000 or np.inf,
        tpot_s=params.tpot_limit_ms / 1000 or np.inf,
        share=params.limits_share,
    )


def loads_of(params: PdSweep, workload: Workload) -> Loads | None:
    """The loads of the parameters for this workload; None without a sweep or search.

    Raises ParameterError for more users than a pass can have in flight.
    """
    limits, requests = latency_limits(params), len(workload.requests)
    if params.concurrencies:
        _check_users(params.concurrencies, workload)
        return Loads(given=tuple(map(float, params.concurrencies)), unit=USERS, limits=limits)
    if params.search and params.sweeps_rates:
        search = Search(
            limits=limits,
            first=params.rate_per_s or 1.0,
            bottom=requests / _LONGEST_S,
            top=requests / (limits.ttft_s if limits.ttft_s < np.inf else 1.0),
        )
        return Loads(limits=limits, search=search)
    if params.search:
        conversations, by_limits = _conversations(workload), users_by_limits(limits, requests)
        if conversations == 1:
            allowed = "one with several conversations for a search over users"
            raise ParameterError(must_be("workload", allowed, params.workload, "batch_processing"))
        at_top = "too many requests are sent at once; use more requests"
        if conversations < by_limits:
            at_top = f"all {conversations} conversations have a request in flight; use more of them"
        search = Search(
            limits=limits, first=float(params.concurrency), bottom=1.0,
            top=float(min(conversations, by_limits)), at_top=at_top, unit=USERS,
        )  # fmt: skip
        return Loads(unit=USERS, limits=limits, search=search)
    return Loads(given=tuple(params.rates_per_s), limits=limits) if params.rates_per_s else None


def users_by_limits(limits: Limits, requests: int) -> int:
    """The most users whose first requests, sent at once, may all miss the limits.

    Sent at once, they queue, so TTFT is what they miss. Without a TTFT limit only the number of
    requests bounds the users.
    """
    if limits.ttft_s == np.inf:
        return max(1, requests - 1)
    return max(1, int(requests * (1 - limits.share) + 1e-9))


def _conversations(workload: Workload) -> int:
    """How many requests can be in flight at once: one of each conversation."""
    return sum(request.after is None for request in workload.requests)


def _check_users(users: list[int], workload: Workload) -> None:
    requests, most = len(workload.requests), _conversations(workload)
    allowed, example = "", ""
    if max(users) >= requests:
        allowed = f"below {requests}, the number of requests in a pass"
        example = f"-p requests {10 * max(users)}"
    elif max(users) > most:
        allowed = f"at most {most}, the number of conversations in a pass"
        example = f"-p concurrencies {most}"
    if allowed:
        raise ParameterError(must_be("each value in concurrencies", allowed, users, example))
