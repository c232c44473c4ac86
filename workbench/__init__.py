"""The KV-cache serving workbench: does this set-up help, by how much, can the number be trusted?

The names that notebooks use. They load when first touched, so that `import workbench` is instant.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "Result": "workbench.experiment.result.result",
    "Topology": "workbench.topology",
    "cache_size": "workbench.experiment.plan.cache_size",
    "check_environment": "workbench.experiment.environment",
    "check_params": "workbench.params.notebooks",
    "claim_panels": "workbench.report.claims",
    "claim_table": "workbench.report.claims",
    "compare_results": "workbench.report.comparing.comparison",
    "deploy": "workbench.experiment.run.servers",
    "explore": "workbench.explorer.opening",
    "figures": "workbench.report.figures",
    "form": "workbench.explorer.opening",
    "hit_analysis": "workbench.experiment.hits.hit_analysis",
    "load_result": "workbench.experiment.result.result",
    "machine": "workbench.hardware.machine",
    "plan": "workbench.experiment.plan.arms",
    "profile_plan": "workbench.whatif.profiled_run",
    "read_peer": "workbench.metrics.peers.read_peer",
    "run": "workbench.experiment.run.run",
    "run_and_predict": "workbench.whatif.profiled_run",
    "table": "workbench.report.tables",
    "validate": "workbench.claims.validation.validation",
    "what_if": "workbench.explorer.opening",
}
_MODULES = {"figures", "machine"}

__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'workbench' has no attribute {name!r}")
    module = import_module(_HOMES[name])
    return module if name in _MODULES else getattr(module, name)


def __dir__() -> list[str]:
    return __all__
