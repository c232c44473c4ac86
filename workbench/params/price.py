"""The price of an hour of a GPU, with its currency: `2.5 USD`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import nan

from workbench.errors import ParameterError, must_be

_FORM = re.compile(r"(\d+(?:\.\d+)?) ([A-Z]{3})")
EXAMPLE = "2.5 USD"


@dataclass(frozen=True, slots=True)
class Price:
    """An amount above 0 in a currency with an ISO 4217 code."""

    amount: float
    currency: str

    def per_million(self, tokens_per_s: float, gpus: int) -> float:
        """Cost of a million tokens at a throughput of so many GPUs; NaN without a rate or GPUs."""
        if not tokens_per_s > 0 or not gpus:
            return nan
        return self.amount * gpus / 3600 / tokens_per_s * 1e6

    @classmethod
    def parse(cls, text: str, name: str = "gpu_hour_price") -> Price | None:
        """The price; None for an empty text. Raises ParameterError for any other form."""
        if not text:
            return None
        found = _FORM.fullmatch(text)
        if found is None or not float(found[1]):
            allowed = "a number above 0, a space and a currency code"
            raise ParameterError(must_be(name, allowed, text, EXAMPLE))
        return cls(float(found[1]), found[2])
