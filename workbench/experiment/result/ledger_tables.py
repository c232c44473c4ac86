"""Tables of where prompt tokens came from: the ledger, the KV store and its tiers, requests."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import isnan, nan
from typing import TYPE_CHECKING

from workbench.experiment.result.facts import ArmFacts
from workbench.experiment.result.finding_rows import (
    TierRow,
)
from workbench.metrics.ledger.ledger import COMPARED, Account
from workbench.metrics.statistics import three_digits
from workbench.serve.connectors import CONNECTORS

if TYPE_CHECKING:
    import pandas as pd


def store_table(arms: Iterable[ArmFacts], counters: pd.DataFrame) -> pd.DataFrame:
    """The store's own counters, a row per arm and pass: medians over rounds.

    Counters are cells such as `39 (210/s)`, the change in a pass and its rate; the time includes
    the reading of counters.
    """
    import pandas as pd

    shown = []
    # Servers without /metrics leave a frame without these columns.
    for arm in arms if "instance" in counters else ():
        store = CONNECTORS[arm.connector].store if arm.connector in CONNECTORS else None
        told = store.told if store else {}
        here = counters[counters["arm"].eq(arm.label) & counters["instance"].eq("store")]
        for name, group in here.groupby("pass", sort=False) if told else ():
            found = {
                key: _told(group[group["series"].eq(series)], gauge=key.endswith("held"))
                for key, series in told.items()
            }
            unit = "blocks" if store and store.keeps_blocks else "chunks"
            shown.append({"arm": arm.label, "pass": name, "unit": unit} | found)
    known = ("arm", "pass", "unit", "held", "bytes held", "put", "read", "evicted", "rejected")
    columns = [name for name in known if any(name in cells for cells in shown)]
    return pd.DataFrame(shown, columns=columns).fillna("")


def _told(rows: pd.DataFrame, *, gauge: bool) -> str:
    """One series of a pass over its rounds; a counter is exported from its first addition on."""
    wide = rows.groupby(["round", "when"]).agg({"value": "sum", "read_at_s": "first"}).unstack()
    if wide.empty:
        return "0"
    after = wide["value"]["after"]
    if gauge:
        return f"{after.median():,.0f}"
    at_s = wide["read_at_s"]
    if "before" not in at_s:
        return f"{after.median():,.0f}"
    change, took_s = after - wide["value"]["before"].fillna(0), at_s["after"] - at_s["before"]
    count, rate = change.median(), (change / took_s).median()
    return f"{count:,.0f} ({three_digits(rate)}/s)" if count else "0"


def ledger_table(accounts: Sequence[Account]) -> pd.DataFrame:
    """One row for each arm, cache state, role and account, over all rounds, in prompt tokens.

    `unexplained` adds absolute values, so that rounds do not cancel out; `closes` holds if every
    round closes.
    """
    import pandas as pd

    names = ["arm", "pass", "role", "account", "expected", "observed", "causes", "unexplained"]
    of_key: dict[tuple[str, ...], list[Account]] = {}
    for each in accounts:
        key = (each.arm, each.pass_name, each.role, COMPARED[each.name])
        of_key.setdefault(key, []).append(each)
    lines = [
        [
            *key,
            sum(each.expected for each in rounds),
            sum(each.observed for each in rounds),
            _causes(rounds),
            sum(nan if each.unknown else abs(each.unexplained) for each in rounds),
            all(each.closes for each in rounds),
        ]
        for key, rounds in of_key.items()
    ]
    return pd.DataFrame(lines, columns=[*names, "closes"])


def tier_table(rows: Sequence[TierRow]) -> pd.DataFrame:
    """Chunks of each tier below the store's memory, after each pass, for a reader."""
    import pandas as pd

    counts = {
        "loads": "loads in the pass", "sent": "chunks sent by LMCache",
        "written": "written, by LMCache's count", "held": "held, by the tier's count",
        "evicted": "evicted by the tier",
    }  # fmt: skip
    lines = [
        [f"{row.arm}, {row.pass_name}", row.round + 1, row.tier]
        + [f"{getattr(row, name):,.0f}".replace("nan", "unknown") for name in counts]
        for row in rows
    ]
    return pd.DataFrame(lines, columns=["arm, pass", "round", "tier", *counts.values()])


def _causes(accounts: Sequence[Account]) -> str:
    tokens: dict[str, float] = {}
    for account in accounts:
        for entry in account.entries:
            tokens[entry.cause] = tokens.get(entry.cause, 0.0) + entry.tokens
        if account.unknown:
            tokens[account.unknown] = nan
    said = [cause if isnan(n) else f"{cause} {n:+,.0f}" for cause, n in tokens.items()]
    return "; ".join(said) or "-"


def by_request(requests: pd.DataFrame) -> pd.DataFrame:
    """The ledger of each response in prompt tokens, if both of its sides are known.

    `cached` is what the server's usage reports, `expected` what ideal caches would have held for
    the responding instance. Where KV is pulled (NIXL) usage counts what the prefill instance had
    cached, so these rows are left out.
    """
    pulling = [name for name, known in CONNECTORS.items() if known.pulls]
    known = requests[
        requests["cached_tokens"].ge(0)
        & requests["expected_cached_tokens"].ge(0)
        & ~requests["connector"].isin(pulling)
    ]
    table = known[["arm", "round", "pass", "index", "prompt_tokens"]].assign(
        ideal=known["ideal_reuse_tokens"],
        expected=known["expected_cached_tokens"],
        cached=known["cached_tokens"],
        computed=known["prompt_tokens"] - known["cached_tokens"],
    )
    return table.assign(difference=table["cached"] - table["expected"]).reset_index(drop=True)
