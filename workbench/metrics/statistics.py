"""Numbers with their uncertainty: quantiles of requests, ratios of arms.

Two units of replication, never mixed: a quantile counts requests of one kind. A ratio counts
rounds, since each round launches fresh servers and requests within one are not independent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, exp, floor, inf, isnan, log, log10, nan
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import ArrayLike, NDArray

_TAIL = 0.025
"""Probability left outside each end of an interval, unless another confidence is asked."""
ROUNDS_FOR_INTERVAL = 3
_ROUNDS_ENOUGH = 5
MOST_ROUNDS = 1000
"""As many as the parameter `rounds` may have."""

Verdict = Literal["faster", "slower", "undecided", "no_interval"]
"""A ratio is better or worse than its baseline, its interval contains 1, or it has no interval."""


class _NullIsNan:
    """How pydantic reads NaN, which JSON stores as null; integers stay integers."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic import WrapValidator

        def known(value: Any, read: Any) -> Any:
            return nan if value is None else value if type(value) is int else read(value)

        return WrapValidator(known).__get_pydantic_core_schema__(source, handler)

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        return {"type": ["number", "null"]}


Number = Annotated[float, _NullIsNan()]
"""A number of a result; unknown is null in its file and NaN here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A quantile with its 95 % interval; `low` and `high` are NaN if `note` gives a reason."""

    value: Number
    low: Number
    high: Number
    n: int = -1
    """Number of values; -1 where a file does not have it."""
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """How many times better than the baseline: above 1 is better. NaN bounds: no interval."""

    value: Number
    low: Number
    high: Number
    rounds: int
    pairs: int
    """Pairs used, over all rounds."""
    dropped: int = 0
    """Pairs left out: a side failed, is missing or is not above zero."""
    note: str = ""

    @property
    def verdict(self) -> Verdict:
        """What its interval supports."""
        return verdict_of(self.value, self.low, self.high)

    @property
    def sample(self) -> str:
        """Its sample: `5 rounds, 30 request pairs`; only the rounds where each has one pair."""
        rounds = f"{self.rounds} round{'s' * (self.rounds != 1)}"
        return rounds if self.pairs == self.rounds else f"{rounds}, {self.pairs} request pairs"


def verdict_of(value: float, low: float, high: float) -> Verdict:
    """The verdict of a ratio with this interval; NaN bounds are no interval."""
    if isnan(low) or isnan(high):
        return "no_interval"
    if low <= 1 <= high:
        return "undecided"
    return "faster" if value > 1 else "slower"


def needed_n(q: float) -> int:
    """Fewest values for which `quantile` has an interval: 6 for p50, 36 p90, 72 p95, 368 p99.

    The smallest n with max(q, 1 - q)^n <= 2.5 %: only then does an order statistic lie beyond
    the quantile with that confidence on each side. Raises ValueError unless 0 < q < 1.
    """
    if not 0 < q < 1:
        raise ValueError(f"q is {q}: a quantile lies between 0 and 1, e.g. 0.5 or 0.99")
    return ceil(log(_TAIL) / log(max(q, 1 - q)))


def quantile(values: ArrayLike, q: float) -> Estimate:
    """The q-quantile of `values` with a 95 % interval that assumes no distribution.

    NaN values (failed or undefined) are left out and not counted in `n`. The interval's ends are
    order statistics with at most 2.5 % binomial probability beyond each (Conover, Practical
    Nonparametric Statistics, 3rd ed., section 3.2), so it covers at least 95 % for independent
    values. Fewer than `needed_n(q)` values: no interval, and the note says so.
    """
    given = np.asarray(values, dtype=float).ravel()
    return quantile_of_sorted(np.sort(given[~np.isnan(given)]), q)


def quantile_of_sorted(sample: NDArray[np.float64], q: float) -> Estimate:
    """`quantile` of values that are sorted already, none of them NaN."""
    needed, n = needed_n(q), len(sample)
    if n == 0:
        return Estimate(value=nan, low=nan, high=nan, n=0, note="no values")
    value = float(np.quantile(sample, q))
    ranks = interval_ranks(n, q)
    if ranks is None:
        return Estimate(value=value, low=nan, high=nan, n=n, note=f"needs {needed}, has {n}")
    low, high = (float(sample[rank - 1]) for rank in ranks)
    return Estimate(value=value, low=low, high=high, n=n)


def interval_ranks(n: int, q: float) -> tuple[int, int] | None:
    """Ranks, from 1, of the order statistics that bound the q-quantile of n values at 95 %.

    None under `needed_n(q)` values. See `quantile`.
    """
    if n < needed_n(q):
        return None
    # How many of n values fall below the quantile is binomial(n, q).
    return _binomial_rank(_TAIL, n, q), _binomial_rank(1 - _TAIL, n, q) + 1


def _binomial_rank(probability: float, n: int, q: float) -> int:
    """The least k with P(binomial(n, q) <= k) >= probability.

    As scipy.stats.binom.ppf, whose import takes a second.
    """
    from scipy.special import bdtr, bdtrik

    k = ceil(float(bdtrik(probability, n, q)))
    return k - 1 if k > 0 and float(bdtr(k - 1, n, q)) >= probability else k


def pair(baseline: pd.DataFrame, value: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Pair the requests of two passes by (round, index): columns round, baseline_s, value_s.

    Both are `requests` frames of one arm and one pass, over all rounds. A request without a
    counterpart stays as a pair with NaN. Raises ValueError when a (round, index) occurs twice.
    """
    keys = ["round", "index"]
    sides = [
        frame[[*keys, metric]].rename(columns={metric: f"{side}_s"})
        for side, frame in (("baseline", baseline), ("value", value))
    ]
    return sides[0].merge(sides[1], on=keys, how="outer", validate="one_to_one")


def paired_ratio(pairs: pd.DataFrame, *, confidence: float = 0.95) -> Ratio:
    """Speed-up baseline_s / value_s from the columns round, baseline_s, value_s (see `pair`).

    The geometric mean: per round the mean log-ratio of its pairs, over rounds their mean, with a
    t interval on those (n = rounds). Pairs with a side that is NaN or not above zero are dropped
    and counted.
    """
    import pandas as pd

    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(pairs["baseline_s"].to_numpy(float)) - np.log(
            pairs["value_s"].to_numpy(float)
        )
    usable = np.isfinite(logs)
    per_round = pd.Series(logs[usable]).groupby(pairs["round"].to_numpy()[usable]).mean()
    return _ratio(per_round.to_numpy(), int(usable.sum()), int((~usable).sum()), confidence)


def ratio_of_rounds(
    a_per_round: Mapping[int, float] | pd.Series[Any],
    b_per_round: Mapping[int, float] | pd.Series[Any],
    *,
    confidence: float = 0.95,
) -> Ratio:
    """a / b of one number per round (round -> system TPS, say), with the same t interval.

    For a metric where more is better, give the baseline as b. Rounds where a side is missing, NaN
    or not above zero are dropped and counted.
    """
    a, b = dict(a_per_round), dict(b_per_round)
    both = [(a.get(r, nan), b.get(r, nan)) for r in sorted({*a, *b})]
    logs = [log(x) - log(y) for x, y in both if 0 < x < np.inf and 0 < y < np.inf]
    return _ratio(np.array(logs), len(logs), len(both) - len(logs), confidence)


@dataclass(frozen=True, slots=True, kw_only=True)
class UnpairedRatio:
    """How many times better than a baseline whose launches are not paired with these.

    Above 1 is better. NaN bounds: no interval.
    """

    value: Number
    low: Number
    high: Number
    rounds: int
    baseline_rounds: int
    error: Number = nan
    """Standard error of the log-ratio."""
    freedom: Number = nan
    """Degrees of freedom of `error`."""
    spread: Number = nan
    """Root of the sum of both variances of a launch's log: the error with one round each."""

    @property
    def verdict(self) -> Verdict:
        """What its interval supports."""
        return verdict_of(self.value, self.low, self.high)

    def p_worse_than(self, limit: float) -> float:
        """One-sided p value of the hypothesis that the true ratio is at least `limit`.

        NaN without an interval.
        """
        from scipy.special import stdtr

        if isnan(self.error):
            return nan
        distance = log(self.value) - log(limit)
        if self.error == 0:
            return 0.0 if distance < 0 else 1.0
        return float(stdtr(self.freedom, distance / self.error))


def unpaired_ratio(
    value: ArrayLike, baseline: ArrayLike, *, confidence: float = 0.95
) -> UnpairedRatio:
    """The ratio value / baseline of launches that did not alternate, with Welch's interval.

    One positive number per launch on each side, for a metric where more is better; give a latency
    the other way round. The unit of replication is the launch: the mean of a side is that of its
    logs, and the interval is Welch's t interval on their difference (Welch, Biometrika 34 (1947)
    28-35, with Satterthwaite's degrees of freedom). Values that are NaN or not above zero are left
    out. A side with fewer than ROUNDS_FOR_INTERVAL launches gives no interval.
    """
    from scipy.special import stdtrit

    with np.errstate(divide="ignore", invalid="ignore"):
        sides = [np.log(np.asarray(side, dtype=float)) for side in (value, baseline)]
    ours, theirs = (side[np.isfinite(side)] for side in sides)
    rounds = {"rounds": len(ours), "baseline_rounds": len(theirs)}
    if not len(ours) or not len(theirs):
        return UnpairedRatio(value=nan, low=nan, high=nan, **rounds)
    middle = float(ours.mean() - theirs.mean())
    if min(len(ours), len(theirs)) < 2:
        return UnpairedRatio(value=exp(middle), low=nan, high=nan, **rounds)
    variances = [float(side.var(ddof=1)) for side in (ours, theirs)]
    spread = sum(variances) ** 0.5
    if min(len(ours), len(theirs)) < ROUNDS_FOR_INTERVAL:
        return UnpairedRatio(value=exp(middle), low=nan, high=nan, spread=spread, **rounds)
    parts = [v / len(side) for v, side in zip(variances, (ours, theirs), strict=True)]
    error = sum(parts) ** 0.5
    apart = sum(p**2 / (len(side) - 1) for p, side in zip(parts, (ours, theirs), strict=True))
    freedom = error**4 / apart if apart else float(len(ours) + len(theirs) - 2)
    reach = float(stdtrit(freedom, (1 + confidence) / 2)) * error
    return UnpairedRatio(
        value=exp(middle), low=exp(middle - reach), high=exp(middle + reach), **rounds,
        error=error, freedom=freedom, spread=spread,
    )  # fmt: skip


def rounds_to_decide(
    spread: float, distance: float, *, alpha: float = _TAIL, power: float = 0.8
) -> float:
    """Fewest rounds on each side that tell a log-ratio from a limit `distance` away.

    The smallest n with n >= (t(1 - alpha) + t(power))^2 spread^2 / distance^2, t with 2 (n - 1)
    degrees of freedom (NIST/SEMATECH e-Handbook of Statistical Methods, section 7.2.2.2, for two
    samples). `spread` is that of an `UnpairedRatio`. At least ROUNDS_FOR_INTERVAL; infinite above
    MOST_ROUNDS or for no distance, NaN if the spread is not known.
    """
    from scipy.special import stdtrit

    if isnan(spread) or isnan(distance):
        return nan
    if distance <= 0:
        return inf
    n: NDArray[np.int64] = np.arange(ROUNDS_FOR_INTERVAL, MOST_ROUNDS + 1)
    reach = stdtrit(2 * (n - 1), 1 - alpha) + stdtrit(2 * (n - 1), power)
    enough = n >= (reach * spread / distance) ** 2
    return float(n[enough.argmax()]) if enough.any() else inf


def holm(p_values: ArrayLike, alpha: float = _TAIL) -> NDArray[np.bool_]:
    """Which hypotheses are rejected with at most `alpha` probability of any false rejection.

    Holm, Scandinavian Journal of Statistics 6 (1979) 65-70: the k-th smallest of m p values must
    be at most alpha / (m - k + 1), and so must all smaller ones. NaN was not tested: it is never
    rejected, and does not count in m.
    """
    given = np.asarray(p_values, dtype=float)
    order = np.argsort(given)[: np.count_nonzero(~np.isnan(given))]  # NaN last
    within = given[order] <= alpha / np.arange(len(order), 0, -1)
    rejected = np.zeros(len(given), dtype=bool)
    rejected[order] = np.logical_and.accumulate(within)
    return rejected


def t_interval(values: ArrayLike, confidence: float = 0.95) -> tuple[float, float, float]:
    """The mean and the ends of its t interval; NaN ends under two values, all NaN without one."""
    # As scipy.stats.t.ppf, whose import takes half a second.
    from scipy.special import stdtrit

    given = np.asarray(values, dtype=float)
    n = len(given)
    mean = float(given.mean()) if n else nan
    if n < 2:
        return mean, nan, nan
    reach = float(stdtrit(n - 1, (1 + confidence) / 2) * given.std(ddof=1)) / n**0.5
    return mean, mean - reach, mean + reach


def mean_of_rounds(values: ArrayLike, *, geometric: bool = True) -> Estimate:
    """The mean of one number per round with its t interval; no interval under 3 rounds.

    Geometric for what is compared by factors, such as throughput: the mean of 1 / value is then 1 /
    the mean, ends of the interval included. Rounds that are NaN (or not above zero where it is
    geometric) are left out, and the note says how many.
    """
    given = np.asarray(values, dtype=float)
    usable = np.isfinite(given) & ((given > 0) if geometric else True)
    known, lost = given[usable], int((~usable).sum())
    notes = [f"{lost} of {len(given)} rounds unknown"] if lost else []
    mean, low, high = t_interval(np.log(known) if geometric else known)
    if geometric:
        mean, low, high = map(exp, (mean, low, high))
    if len(known) < ROUNDS_FOR_INTERVAL:
        low = high = nan
        notes.append(f"no interval: needs {ROUNDS_FOR_INTERVAL} rounds")
    return Estimate(value=mean, low=low, high=high, n=len(known), note="; ".join(notes))


def noise_floor(ratios: ArrayLike) -> float:
    """How far ratios of equal arms are from 1 in 95 % of cases, as ratio - 1; NaN without ratios.

    0.25 is a factor of 1.25 in either direction.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.abs(np.log(np.asarray(ratios, dtype=float)))
    logs = logs[np.isfinite(logs)]
    return float(np.expm1(np.quantile(logs, 0.95))) if len(logs) else nan


def describe(ratio: Ratio) -> str:
    """One sentence: `18.1x [16.9, 19.4], 5 rounds, 30 request pairs`.

    An interval that includes 1 reads `no significant difference`, with the numbers.
    """
    if isnan(ratio.value):
        return f"not known: {ratio.note}"
    note = f" ({ratio.note})" if ratio.note else ""
    ends = f" [{three_digits(ratio.low)}, {three_digits(ratio.high)}]"
    if ratio.verdict == "no_interval":
        ends = ""
    text = f"{three_digits(ratio.value)}x{ends}, {ratio.sample}{note}"
    return f"no significant difference: {text}" if ratio.verdict == "undecided" else text


def _ratio(log_means: NDArray[np.float64], pairs: int, dropped: int, confidence: float) -> Ratio:
    """exp of the mean of per-round log-ratios, with a t interval from 3 rounds up."""
    rounds = len(log_means)
    notes = [f"{dropped} of {pairs + dropped} pairs left out"] if dropped else []
    value, low, high = map(exp, t_interval(log_means, confidence))
    if rounds == 0:
        notes.insert(0, "no complete pair")
    elif rounds < ROUNDS_FOR_INTERVAL:
        low = high = nan
        notes.insert(0, f"no interval: needs {ROUNDS_FOR_INTERVAL} rounds")
    elif rounds < _ROUNDS_ENOUGH:
        notes.insert(0, "few rounds")
    return Ratio(
        value=value,
        low=low,
        high=high,
        rounds=rounds,
        pairs=pairs,
        dropped=dropped,
        note="; ".join(notes),
    )


def three_digits(value: float) -> str:
    """Three significant digits: 0.0123, 1.02, 18.1, 1,234; `not known` for NaN."""
    if isnan(value):
        return "not known"
    decimals = 2 - floor(log10(abs(value))) if value else 0
    return f"{value:,.{max(0, decimals)}f}"
