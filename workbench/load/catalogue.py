"""Every workload by its name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from workbench.errors import ParameterError, nearest
from workbench.load.files.prompts import prompts
from workbench.load.files.trace_file import trace
from workbench.load.workload.scenarios import SCENARIOS
from workbench.load.workload.texts import text
from workbench.load.workload.workload import Workload, reference, shared_prefix, short

WORKLOADS: dict[str, Callable[..., Workload]] = {
    "reference": reference,
    "shared_prefix": shared_prefix,
    "short": short,
    **SCENARIOS,
    "trace": trace,
    "prompts": prompts,
    "text": text,
}
"""The builders by name."""


def build(name: str, *, salt: str, **options: Any) -> Workload:
    """The named workload.

    Raises ParameterError for an unknown name or option, or a bad value.
    """
    if name not in WORKLOADS:
        raise ParameterError(f"unknown workload {name!r}; {nearest(name, WORKLOADS)}")
    parameters = inspect.signature(WORKLOADS[name]).parameters
    for key in options:
        if key not in parameters:
            raise ParameterError(
                f"workload {name} has no option {key!r}; {nearest(key, parameters)}"
            )
    required = {key for key, option in parameters.items() if option.default is option.empty}
    missing = sorted(required - {"salt", *options})
    if missing:
        raise ParameterError(f"workload {name} needs a value for {', '.join(missing)}")
    return WORKLOADS[name](salt=salt, **options)
