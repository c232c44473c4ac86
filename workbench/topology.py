"""Topologies: how many vLLM instances each role has.

`1p4d` is one prefill and four decode instances, `5a` is five aggregated ones. The number of GPUs
per instance is a `TensorParallel`, not part of the name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from workbench.errors import ParameterError, must_be

if TYPE_CHECKING:
    from typing import Self  # Python 3.11; engines may run on 3.10

Role = Literal["prefill", "decode", "aggregated"]
ROLES: tuple[Role, ...] = ("prefill", "decode", "aggregated")

ALL_TOPOLOGIES = "1p1d,1p2d,1p4d,2p1d,2p2d,4p1d,4p2d,4p4d"
"""What `all` stands for: the sweep of the reference report."""

_GRAMMAR = re.compile(r"(?:(?P<p>[1-9][0-9]*)p(?P<d>[1-9][0-9]*)d|(?P<a>[1-9][0-9]*)a)")
_RULE = "like 1p4d (1 prefill, 4 decode instances) or 5a (5 aggregated), with counts from 1"


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorParallel:
    """GPUs per instance, by role."""

    prefill: int = 1
    decode: int = 1
    aggregated: int = 1

    def __post_init__(self) -> None:
        for role in ("prefill", "decode", "aggregated"):
            if getattr(self, role) < 1:
                raise ParameterError(must_be(f"{role}_tp", "at least 1", getattr(self, role), 4))


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """Instances per role: either prefill and decode instances, or aggregated ones."""

    prefill: int = 0
    decode: int = 0
    aggregated: int = 0

    def __post_init__(self) -> None:
        pd = self.prefill > 0 and self.decode > 0 and self.aggregated == 0
        plain = self.prefill == 0 and self.decode == 0 and self.aggregated > 0
        if not (pd or plain):
            counts = f"{self.prefill}p{self.decode}d{self.aggregated}a"
            raise ParameterError(must_be("topology", _RULE, counts, "1p4d"))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `1p4d` or `5a`. Raises ParameterError."""
        match = _GRAMMAR.fullmatch(str(text).strip().lower())
        if match is None:
            raise ParameterError(must_be("topology", _RULE, text, "1p4d"))
        return cls(
            prefill=int(match["p"] or 0),
            decode=int(match["d"] or 0),
            aggregated=int(match["a"] or 0),
        )

    @classmethod
    def parse_list(cls, text: str) -> tuple[Self, ...]:
        """Read `1p1d,1p4d` or `all`, in order and without duplicates."""
        listed = ALL_TOPOLOGIES if str(text).strip().lower() == "all" else str(text)
        return tuple(dict.fromkeys(cls.parse(part) for part in listed.split(",")))

    @property
    def disaggregated(self) -> bool:
        """True when prefill and decode run on instances of their own."""
        return self.prefill > 0

    @property
    def instances(self) -> int:
        return self.prefill + self.decode + self.aggregated

    @property
    def roles(self) -> tuple[tuple[Role, int], ...]:
        """Each role that has instances, and how many, prefill first."""
        counts: tuple[tuple[Role, int], ...] = (
            ("prefill", self.prefill),
            ("decode", self.decode),
            ("aggregated", self.aggregated),
        )
        return tuple((role, n) for role, n in counts if n)

    def gpus(self, tp: TensorParallel) -> int:
        """GPUs needed when no GPU is shared."""
        return sum(n * int(getattr(tp, role)) for role, n in self.roles)

    def describe(self, tp: TensorParallel | None = None) -> str:
        """`1p4d: 1 prefill x 2 GPU, 4 decode x 1 GPU`; without `tp` only the instances."""
        parts = [
            f"{n} {role}" + (f" x {getattr(tp, role)} GPU" if tp else "") for role, n in self.roles
        ]
        return f"{self}: {', '.join(parts)}"

    def __str__(self) -> str:
        if self.disaggregated:
            return f"{self.prefill}p{self.decode}d"
        return f"{self.aggregated}a"
