"""Several models in one sweep: their names, and which parameters each may have of its own."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from workbench.errors import ParameterError, must_be, nearest

OF_A_MODEL = (
    "prefill_tp", "decode_tp", "aggregated_tp", "engine_args", "engine_env",
    "prefill_args", "decode_args", "aggregated_args",
    "dtype", "context_tokens", "kv_cache_mib", "gpu_memory_share", "store_gb", "tier_gb",
)  # fmt: skip
"""Parameters that a model of a sweep may have of its own."""
EXAMPLE = "tiny,tiny-wide"


def read_models(text: str) -> dict[str, dict[str, Any]]:
    """The parameters that each model has of its own, by its name, in the order given.

    `text` is a list of names separated by commas, or a JSON object. Raises ParameterError for fewer
    than two models, one that is named twice, and a parameter that a model cannot have of its own.
    """
    try:
        read = json.loads(text) if text.startswith("{") else None
    except ValueError:
        allowed = "a list of names, or a mapping of them"
        raise ParameterError(must_be("models", allowed, text, EXAMPLE)) from None
    names = list(read) if read is not None else [name.strip() for name in text.split(",")]
    # A slash at the end makes no other model.
    twice = [name for name, n in Counter(name.rstrip("/") for name in names).items() if n > 1]
    if twice or len(names) < 2 or not all(names):
        raise ParameterError(must_be("models", "at least two different names", text, EXAMPLE))
    own = {}
    for name in names:
        given = (read or {}).get(name) or {}
        if not isinstance(given, Mapping):
            allowed = f"a mapping of parameters for {name}"
            example = json.dumps({name: {"prefill_tp": 2}})
            raise ParameterError(must_be("models", allowed, given, example))
        for key in given:
            if key not in OF_A_MODEL:
                raise ParameterError(
                    f"models: {name} cannot have {key!r} of its own; {nearest(key, OF_A_MODEL)}"
                    f" (example: -p models '{json.dumps({name: {'prefill_tp': 2}})}')"
                )
        own[name] = dict(given)
    short_names(own)
    return own


def short_names(names: Mapping[str, Any]) -> dict[str, str]:
    """Short names for labels of arms: the last part of each name, or more parts if two are equal.

    They are part of file names, so they have no slash or blank. Raises ParameterError if two models
    would have the same short name.
    """
    for parts in (1, 2, 99):
        short = {
            name: "-".join("-".join(name.strip("/").split("/")[-parts:]).split()) for name in names
        }
        # A target names a model in capital or small letters.
        alike = Counter(called.casefold() for called in short.values())
        if len(alike) == len(short):
            return short
    ((clash, _),) = alike.most_common(1)
    which = [name for name, called in short.items() if called.casefold() == clash]
    allowed = f"names of which no two make the same short name ({clash!r})"
    raise ParameterError(must_be("models", allowed, ", ".join(which), EXAMPLE))
