"""Topologies: how many vLLM instances each role has, written as the field writes it.

`1p4d` is one prefill and four decode instances, `5a` is five aggregated ones. How many GPUs an
instance spans is a `TensorParallel`, not part of the name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, Self

from workbench.errors import ParameterError

Role = Literal["prefill", "decode", "aggregated"]

ALL_TOPOLOGIES = "1p1d,1p2d,1p4d,2p1d,2p2d,4p1d,4p2d,4p4d"
"""What `all` stands for: the sweep of the reference report."""

_GRAMMAR = re.compile(r"(?:(?P<p>[1-9][0-9]*)p(?P<d>[1-9][0-9]*)d|(?P<a>[1-9][0-9]*)a)")
_RULE = (
    "write prefill and decode counts from 1 up as in 1p4d (1 prefill, 4 decode),"
    " or aggregated instances as in 5a"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorParallel:
    """GPUs that one instance of each role spans."""

    prefill: int = 1
    decode: int = 1
    aggregated: int = 1

    def __post_init__(self) -> None:
        for role in ("prefill", "decode", "aggregated"):
            if getattr(self, role) < 1:
                raise ParameterError(
                    f"{role}_tp is {getattr(self, role)}: an instance spans at least 1 GPU,"
                    " e.g. 1 or 4"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """Instances per role. Either prefill and decode are both above zero, or aggregated is."""

    prefill: int = 0
    decode: int = 0
    aggregated: int = 0

    def __post_init__(self) -> None:
        pd = self.prefill > 0 and self.decode > 0 and self.aggregated == 0
        plain = self.prefill == 0 and self.decode == 0 and self.aggregated > 0
        if not (pd or plain):
            raise ParameterError(f"topology {self.prefill}p{self.decode}d: {_RULE}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `1p4d` or `5a`. Raises ParameterError with the rule and two good examples."""
        match = _GRAMMAR.fullmatch(str(text).strip().lower())
        if match is None:
            raise ParameterError(f"topology {text!r} cannot be read: {_RULE}")
        return cls(
            prefill=int(match["p"] or 0),
            decode=int(match["d"] or 0),
            aggregated=int(match["a"] or 0),
        )

    @classmethod
    def parse_list(cls, text: str) -> tuple[Self, ...]:
        """Read `1p1d,1p4d`, or `all`; doubles are kept once, order is kept."""
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
        """Each role that has instances, with their number, prefill first."""
        counts: tuple[tuple[Role, int], ...] = (
            ("prefill", self.prefill),
            ("decode", self.decode),
            ("aggregated", self.aggregated),
        )
        return tuple((role, n) for role, n in counts if n)

    def gpus(self, tp: TensorParallel) -> int:
        """GPUs that the topology takes when each instance has its own."""
        return sum(n * int(getattr(tp, role)) for role, n in self.roles)

    def describe(self, tp: TensorParallel | None = None) -> str:
        """`1p4d: 1 prefill x 2 GPU, 4 decode x 1 GPU`; without `tp` the GPUs are not named."""
        parts = [
            f"{n} {role}" + (f" x {getattr(tp, role)} GPU" if tp else "") for role, n in self.roles
        ]
        return f"{self}: {', '.join(parts)}"

    def __str__(self) -> str:
        if self.disaggregated:
            return f"{self.prefill}p{self.decode}d"
        return f"{self.aggregated}a"
