from dataclasses import replace

import pandas as pd
import pytest

from workbench.experiment.findings.checks import ceilings, with_same_history
from workbench.hardware import machine
from workbench.hardware.gpus import Gpu
from workbench.load.workload.workload import Request, Workload, short
from workbench.serve import vllm
from workbench.serve.tiny_model import model_facts, tiny_model


def known_as(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    gpus = (Gpu(index=0, name=name), Gpu(index=1, name=name))
    found = replace(machine.facts(), platform="cuda", gpus=gpus)
    monkeypatch.setattr(machine, "facts", lambda: found)


def test_a_ceiling_is_never_guessed(sweep, monkeypatch):
    plan = sweep(topology="1a", connector="none", model=str(tiny_model()))
    known_as(monkeypatch, "a GPU")
    assert ceilings(plan) == ({}, "No hardware limit is known for a GPU")
    known_as(monkeypatch, "NVIDIA H200")
    mixed = replace(model_facts(tiny_model()), plain=False)
    monkeypatch.setattr(vllm, "model_facts", lambda _: mixed)
    assert ceilings(plan) == (
        {},
        "A mixture of experts or a quantised model has no simple hardware limit",
    )


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
    drafting = replace(arm.settings, drafting={"decode": vllm.Drafting(tokens=3)})
    (drafted,) = ceilings(replace(plan, arms=(replace(arm, settings=drafting),)))[0].values()
    assert drafted.decode_tps == 4 * one.decode_tps and drafted.prefill_tps == one.prefill_tps
    passed_on = replace(arm.settings, extra_args=("-pp", "2", "--kv-cache-dtype", "fp8"))
    (staged,) = ceilings(replace(plan, arms=(replace(arm, settings=passed_on),)))[0].values()
    assert staged.prefill_tps == pytest.approx(2 * one.prefill_tps)
    assert staged.decode_tps == one.decode_tps  # a token passes the stages in turn
    quantised = replace(arm.settings, role_args={"decode": ("--quantization", "fp8")})
    assert ceilings(replace(plan, arms=(replace(arm, settings=quantised),)))[0] == {}
    # 2 bytes a weight: FLOP/s / (2 P) beside bytes/s / (2 P).
    assert one.prefill_tps / one.decode_tps == pytest.approx(989e12 / 4.8e12, rel=0.01)


TURNS = Workload(
    name="m",
    seed=0,
    salt="",
    requests=tuple(
        Request(index=n, prompt_ids=[20], max_tokens=1, after=n - 2 if n > 1 else None)
        for n in range(6)
    ),
)


def answers(arm, texts, name="cold"):
    return pd.DataFrame(
        {"arm": arm, "round": 0, "pass": name, "index": range(6), "text": list(texts)}
    )


def test_turns_after_an_answer_that_parted_are_left_out_in_every_pass():
    frame = pd.concat(
        [
            answers("2a", "abcdef"),
            answers("1p1d", "abXdef"),
            answers("1p1d", "abXdef", "engine-warm"),
        ],
        ignore_index=True,
    )
    kept = with_same_history(frame, TURNS, "2a")
    assert kept[kept["arm"] == "2a"]["index"].tolist() == [0, 1, 2, 3, 4, 5]
    for name in ("cold", "engine-warm"):
        mine = kept[(kept["arm"] == "1p1d") & (kept["pass"] == name)]
        # The answer that parted is compared, what came behind it in its conversation is not.
        assert mine["index"].tolist() == [0, 1, 2, 3, 5]


def test_prompts_that_hold_no_answers_are_all_kept():
    frame = pd.concat([answers("2a", "abcdef"), answers("1p1d", "XXXXXX")], ignore_index=True)
    assert len(with_same_history(frame, short(requests=6, salt="s"), "2a")) == 12
