"""The units of a load: the arrival rate of an open loop, or the users of a closed one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from workbench.metrics.statistics import three_digits


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadUnit:
    """What a load counts, and how it is written in names and sentences."""

    kind: Literal["rate", "users"]
    column: Literal["rate_per_s", "concurrency"]
    """Its column in request rows, and the parameter that sets a single load."""
    name: str
    noun: str

    def said(self, load: float) -> str:
        """`52.3 req/s`, `8 users`, `1 user`."""
        one = self.kind == "users" and load == 1
        return f"{load_text(load)} {'user' if one else self.name}"

    def after_noun(self, load: float) -> str:
        """After the noun: `the highest rate is 52.3 req/s`, `the highest number of users is 8`."""
        return self.said(load) if self.kind == "rate" else load_text(load)

    def pass_name(self, load: float) -> str:
        """The name of the cold pass at this load: `cold at 2/s`, `cold at 8 users`."""
        return f"cold at {load:g}/s" if self.kind == "rate" else f"cold at {self.said(load)}"

    def rounded(self, load: float) -> float:
        """A load that can be requested: a rate of three digits, or a whole number of users."""
        return float(f"{load:.3g}") if self.kind == "rate" else float(round(load))


RATE = LoadUnit(kind="rate", column="rate_per_s", name="req/s", noun="rate")
USERS = LoadUnit(kind="users", column="concurrency", name="users", noun="number of users")


def load_text(load: float) -> str:
    """A rate or number of users in three digits, without trailing zeros: 4, 52.3, 1,234."""
    said = three_digits(load)
    return said.rstrip("0").rstrip(".") if "." in said else said
