"""Every recipe that there is, for the servers that are asked for."""

from __future__ import annotations

from workbench.claims.engines.recipes import RECIPES as ENGINES
from workbench.claims.kernels.recipes import RECIPES as KERNELS
from workbench.claims.recipe import Recipe
from workbench.claims.serving import serving_recipes
from workbench.params.notebooks import EngineParams

__all__ = ["recipes"]


def recipes(params: EngineParams) -> tuple[Recipe, ...]:
    """The recipes of all levels; a simulated engine has those of the serving level only."""
    if params.engine == "simulated":
        return serving_recipes(params)
    return (*KERNELS, *ENGINES, *serving_recipes(params))
