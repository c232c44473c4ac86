"""Every recipe that there is, for the servers that are asked for: a new one takes a line here."""

from __future__ import annotations

from workbench.claims.engines import blocks, generation, published
from workbench.claims.kernels import allocation, attention, copying, paging, quantisation
from workbench.claims.recipes.recipe import Recipe
from workbench.claims.serving import disaggregation, kv_store, prefix_cache
from workbench.params.notebooks import EngineParams

KERNELS = (attention.RECIPE, paging.RECIPE, allocation.RECIPE, quantisation.RECIPE, copying.RECIPE)
ENGINES = (generation.RECIPE, blocks.RECIPE, published.RECIPE)


def recipes(params: EngineParams) -> tuple[Recipe, ...]:
    """The recipes of all levels; a simulated engine has those of the serving level only."""
    serving = (
        prefix_cache.recipe(params), kv_store.recipe(params), *disaggregation.recipes(params),
    )  # fmt: skip
    return serving if params.engine == "simulated" else (*KERNELS, *ENGINES, *serving)
