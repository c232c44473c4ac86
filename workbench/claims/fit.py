"""Whether hardware and model of a measurement are those that a claim is about."""

from __future__ import annotations

from workbench.claims.claim import Claim, Effect

__all__ = ["NEEDS_MODEL", "hardware_fits", "names", "other_model"]

NEEDS_MODEL = {"model", "server", "cluster"}
"""Levels at which a number depends on the model."""
_SHAPES = {"higher", "lower", "unchanged"}
_COUNTS = {"tokens", "count", "bool", "fraction"}


def hardware_fits(effect: Effect, claim: Claim, *, platform: str, hardware: str) -> bool:
    """Whether a measurement on `hardware` may judge that effect.

    Counts hold anywhere; a CPU judges directions, and bounds at 1 x, which are directions too;
    another GPU judges what has a comparator.
    """
    if effect.unit in _COUNTS and effect.quantifier == "exact":
        return True
    if platform == "cpu":
        bound = effect.quantifier in ("at_most", "at_least") and effect.unit == "x"
        return effect.quantifier in _SHAPES or (bound and effect.value == 1)
    return names(claim, hardware) or effect.type in ("ratio", "percent_change")


def names(claim: Claim, hardware: str) -> bool:
    """Whether the claim is about this hardware, or any."""
    same = (claim.hardware or "").casefold()
    return hardware.casefold() in same or same == "any"


def other_model(claim: Claim, model: str) -> str:
    """A sentence where the claim names models and ours is none of them."""
    named = (claim.model or "any").casefold()
    if not model or named == "any" or claim.level not in NEEDS_MODEL:
        return ""
    if model.casefold() in named:
        return ""
    return f"The claim is about {claim.model}, and ours was measured with {model}."
