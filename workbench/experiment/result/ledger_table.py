"""The ledger as a table: one row per arm, cache state, role and account, over all rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from workbench.serve.connectors import CONNECTORS

if TYPE_CHECKING:
    import pandas as pd
    from pandas.io.formats.style import Styler

__all__ = ["by_request", "ledger_table", "styled"]

_ACCOUNTS = {
    "counted": "sent, counted",
    "reused": "reusable, served",
    "moved": "fetched, moved",
    "store": "loaded, store hits",
}
"""What is expected and what is observed in each account."""
_KEY = ["arm", "pass", "role", "account"]


def ledger_table(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """`result.json`'s accounts, added up over rounds, in prompt tokens.

    `unexplained` adds absolute values, so that rounds cannot make up for one another; `closes`
    holds when every round does.
    """
    import pandas as pd

    table: dict[tuple[str, ...], dict[str, Any]] = {}
    for row in rows:
        key = (row["arm"], row["pass_name"], row["role"], _ACCOUNTS[row["name"]])
        known = not row["unknown"]
        into = table.setdefault(
            key,
            {"expected": 0.0, "observed": 0.0, "causes": {}, "unexplained": 0.0, "closes": True},
        )
        into["expected"] += _tokens(row["expected"])
        into["observed"] += _tokens(row["observed"])
        into["unexplained"] += abs(_tokens(row["unexplained"])) if known else float("nan")
        into["closes"] &= bool(row["closes"])
        for entry in row["entries"]:
            causes = into["causes"]
            causes[entry["cause"]] = causes.get(entry["cause"], 0.0) + entry["tokens"]
        if not known:
            into["causes"][row["unknown"]] = float("nan")
    lines = [dict(zip(_KEY, key, strict=True)) | into for key, into in table.items()]
    frame = pd.DataFrame(
        lines, columns=[*_KEY, "expected", "observed", "causes", "unexplained", "closes"]
    )
    frame["causes"] = [_said(causes) for causes in frame["causes"]]
    return frame


def by_request(requests: pd.DataFrame) -> pd.DataFrame:
    """The ledger of each answer, in prompt tokens, where server and yardstick both say.

    `cached` is the server's own word in its usage, `expected` what perfect caches would have given
    the answering instance; where KV is pulled (NIXL) that word counts what the prefill instance had
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


def styled(table: pd.DataFrame) -> Styler:
    """The table for a page: accounts in which anything differs, in red those that do not close."""
    import pandas as pd

    even = table["closes"] & table["expected"].eq(table["observed"])
    open_ = ~table["closes"]
    shown = table[~even]
    names = shown[["arm", "pass", "role"]].itertuples(index=False)
    where = [", ".join(name).removesuffix(", all") for name in names]
    shown = shown.drop(columns=["arm", "pass", "role", "closes"]).assign(
        **{"arm, state, role": where}
    )
    shown = shown[["arm, state, role", "account", "expected", "observed", "causes", "unexplained"]]

    colours = pd.DataFrame("", index=shown.index, columns=shown.columns)
    colours.loc[open_[shown.index]] = "color: #b3261e; font-weight: bold"
    return (
        shown.style.hide(axis="index")
        .apply(lambda _: colours, axis=None)
        .set_properties(subset=["account", "causes"], **{"text-align": "left"})
        .format(precision=0, thousands=",", na_rep="not known")
        .set_caption(
            f"Prompt tokens, all rounds together. {int(even.sum())} more accounts are even to the"
            " token and not listed."
        )
    )


def _said(causes: Mapping[str, float]) -> str:
    said = [
        f"{cause} {tokens:+,.0f}" if tokens == tokens else cause for cause, tokens in causes.items()
    ]
    return "; ".join(said) or "-"


def _tokens(value: float | None) -> float:
    return float("nan") if value is None else float(value)
