"""The rooflines of a plan's arms, where model and hardware are known."""

from __future__ import annotations

from workbench.experiment.plan.plan import Arm, ExperimentPlan
from workbench.hardware import machine
from workbench.hardware.physics import accelerator, decode_ceiling_tps, prefill_ceiling_tps
from workbench.metrics.gates.roofline_gate import Ceilings
from workbench.serve.tiny_model import model_facts

__all__ = ["ceilings"]


def ceilings(plan: ExperimentPlan) -> tuple[dict[str, Ceilings], str]:
    """Ceilings by arm, and why there are none.

    Only for dense models in a local folder that are not quantised: a ceiling is never guessed. The
    embedding table and the output head are left out, which makes the prefill ceiling too high
    rather than too low.
    """
    gpus = machine.facts().gpus
    known = accelerator(gpus[0].name) if gpus else None
    if known is None:
        return {}, f"no roofline is known of {gpus[0].name if gpus else 'this hardware'}"
    found = {}
    for arm in plan.arms:
        if arm.settings is None or not arm.settings.local:
            return {}, "the size of a model on a hub is not known"
        facts = model_facts(arm.settings.model).run_as(arm.settings.dtype)
        if not facts.plain:
            return {}, "the model is a mixture of experts or quantised"
        parameters = facts.parameters
        if not parameters:
            return {}, f"{arm.settings.model.name} has no weight files"
        prefill, answering = _spans(arm)
        found[arm.label] = Ceilings(
            prefill_tps=prefill_ceiling_tps(parameters=parameters, gpu=known, gpus=prefill),
            decode_tps=decode_ceiling_tps(
                weight_bytes=facts.element_bytes * parameters, gpu=known, gpus=answering
            ),
        )
    return found, ""


def _spans(arm: Arm) -> tuple[int, int]:
    """GPUs of the instance that prefills and of the one that answers."""
    if arm.disaggregated:
        return arm.tp.prefill, arm.tp.decode
    return arm.tp.aggregated, arm.tp.aggregated
