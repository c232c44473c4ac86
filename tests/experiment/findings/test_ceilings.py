from dataclasses import replace

import pytest

from workbench.experiment.findings import ceilings as subject
from workbench.experiment.findings.ceilings import ceilings
from workbench.hardware import machine
from workbench.hardware.gpus import Gpu
from workbench.serve.tiny_model import model_facts, tiny_model


def known_as(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    gpus = (Gpu(index=0, name=name), Gpu(index=1, name=name))
    found = replace(machine.facts(), platform="cuda", gpus=gpus)
    monkeypatch.setattr(machine, "facts", lambda: found)


def test_a_ceiling_is_never_guessed(sweep, monkeypatch):
    plan = sweep(topology="1a", connector="none", model=str(tiny_model()))
    known_as(monkeypatch, "a GPU")
    assert ceilings(plan) == ({}, "no roofline is known of a GPU")
    known_as(monkeypatch, "NVIDIA H200")
    mixed = replace(model_facts(tiny_model()), plain=False)
    monkeypatch.setattr(subject, "model_facts", lambda _: mixed)
    assert ceilings(plan) == ({}, "the model is a mixture of experts or quantised")


def test_ceilings_follow_weights_and_gpus(sweep, monkeypatch):
    plan = sweep(topology="1p1d", connector="nixl", opponents=False, model=str(tiny_model()))
    known_as(monkeypatch, "NVIDIA H200")
    found, unknown = ceilings(plan)
    assert unknown == ""
    (one,) = found.values()
    (arm,) = plan.arms
    twice = replace(plan, arms=(replace(arm, tp=replace(arm.tp, prefill=2)),))
    (wide,) = ceilings(twice)[0].values()
    assert wide.prefill_tps == pytest.approx(2 * one.prefill_tps)
    assert wide.decode_tps == one.decode_tps
    # 2 bytes a weight: FLOP/s / (2 P) beside bytes/s / (2 P).
    assert one.prefill_tps / one.decode_tps == pytest.approx(989e12 / 4.8e12, rel=0.01)
