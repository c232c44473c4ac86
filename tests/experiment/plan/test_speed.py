"""The speed of a machine: two prompts give a curve, the curve gives the size of the tiny model."""

import json
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta

import pytest

from tests.environments import environment
from workbench.experiment.plan import arms, engine_setup, speed
from workbench.experiment.plan.speed import TYPICAL, Speed, layers_for, machine_speed
from workbench.hardware.interpreter import interpreter
from workbench.params.pd_sweep import PdSweep
from workbench.serve.tiny_model import LAYERS, model_facts

HERE = interpreter()


def slow(cold_s: float) -> Speed:
    """A machine on which the reference prompt takes so long."""
    return replace(TYPICAL, prefill_times=cold_s / TYPICAL.prefill_s(22_660))


def test_a_prefill_takes_what_was_measured_less_what_a_cache_has():
    assert TYPICAL.prefill_s(22_660) == pytest.approx(4.0, rel=0.15)  # both were measured
    assert TYPICAL.prefill_s(5_000) == pytest.approx(0.46, rel=0.2)
    assert slow(8.0).prefill_s(22_660) == pytest.approx(8.0)
    assert TYPICAL.prefill_s(5_000, reused_tokens=5_000) == 0
    rest_s = TYPICAL.prefill_s(5_000) - TYPICAL.prefill_s(4_000)
    assert TYPICAL.prefill_s(5_000, reused_tokens=4_000) == pytest.approx(rest_s)


@pytest.mark.parametrize(("cold_s", "layers"), [(2.5, 3), (6.0, 3), (8.9, 2), (12.9, 1), (60, 1)])
def test_a_slow_machine_gets_fewer_layers(cold_s, layers):
    assert layers_for(slow(cold_s)) == layers


def test_a_plan_for_a_slow_machine_says_what_it_chose(machine_has, model, tmp_path, monkeypatch):
    machine_has("cpu", fast_bf16=False)
    monkeypatch.setattr(engine_setup, "machine_speed", lambda *_: slow(12.9))
    config = json.loads((model / "config.json").read_text())

    def tiny(layers, **_):
        (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": layers}))
        return tmp_path

    monkeypatch.setattr(engine_setup, "tiny_model", tiny)
    plan = arms.plan(PdSweep(topology="1p1d"))
    settings = plan.arms[0].settings
    assert settings.dtype == "float32"
    facts = model_facts(settings.model)
    assert facts.layers == 1
    as_it_runs = facts.run_as(settings.dtype).kv_shape
    assert as_it_runs.bytes_per_token == 2 * facts.kv_shape.bytes_per_token
    assert all("--dtype float32" in line for line in _instances(plan))
    assert "no fast bf16 kernels" in str(plan)
    assert f"1 of {LAYERS} layers" in str(plan)


def test_the_estimate_follows_the_machine(machine_has, monkeypatch):
    machine_has("cpu")
    asked = PdSweep(topology="1p1d", requests=2)
    monkeypatch.setattr(engine_setup, "machine_speed", lambda *_: slow(3.0))
    quick_s = arms.plan(asked).estimate_s
    monkeypatch.setattr(engine_setup, "machine_speed", lambda *_: slow(6.0))
    assert arms.plan(asked).estimate_s > 1.3 * quick_s


def test_a_long_reference_run_sends_fewer_requests_unless_asked(machine_has, monkeypatch):
    machine_has("cpu")
    monkeypatch.setattr(engine_setup, "machine_speed", lambda *_: slow(5.9))
    plan = arms.plan(PdSweep(topology="1p4d"))
    assert len(plan.workload.sample.requests) == 2
    assert "2 requests instead of 3" in str(plan)
    assert len(arms.plan(PdSweep(topology="1p4d", requests=3)).workload.sample.requests) == 3
    assert len(arms.plan(PdSweep(topology="1p1d", opponents=False)).workload.sample.requests) == 3


@pytest.mark.parametrize(
    "asked",
    [{"rate_per_s": 0.1}, {"rates_per_s": [0.1, 0.2]}, {"engine": "simulated", "rounds": 200}],
)
def test_requests_with_a_time_or_that_take_none_are_all_sent(asked, machine_has, monkeypatch):
    machine_has("cpu")
    monkeypatch.setattr(engine_setup, "machine_speed", lambda *_: slow(5.9))
    plan = arms.plan(PdSweep(topology="1p4d", **asked))
    assert plan.estimate_s > arms.LONG_RUN_S
    assert len(plan.workload.sample.requests) == 3


def test_a_speed_is_measured_once_and_kept(tmp_path, monkeypatch, capsys):
    fresh = replace(TYPICAL, at=datetime.now(UTC).isoformat(timespec="seconds"))
    measured = []
    monkeypatch.setattr(speed, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(speed, "_key", lambda dtype, *_: dtype)
    monkeypatch.setattr(speed, "_measured", lambda dtype, *_: measured.append(dtype) or fresh)
    assert machine_speed("float32", HERE) == machine_speed("float32", HERE) == fresh
    assert measured == ["float32"]
    assert "once" in capsys.readouterr().out
    old = replace(fresh, at=(datetime.now(UTC) - timedelta(days=31)).isoformat())
    (tmp_path / "speed-float32.json").write_text(json.dumps(asdict(old)))
    assert machine_speed("float32", HERE) == fresh
    assert measured == ["float32"] * 2
    (tmp_path / "speed-float32.json").write_text("{")
    assert machine_speed("float32", HERE) == fresh


def test_a_machine_that_cannot_be_measured_is_taken_for_a_typical_one(tmp_path, monkeypatch):
    lacking = interpreter(str(environment(tmp_path / "env")))
    assert machine_speed("", lacking) is TYPICAL
    monkeypatch.setattr(speed, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(speed, "_key", lambda dtype, *_: dtype)
    tried = []
    monkeypatch.setattr(speed, "_not_measured", set())
    monkeypatch.setattr(speed, "_measured", lambda dtype, *_: tried.append(dtype))
    assert machine_speed("float32", HERE) is machine_speed("float32", HERE) is TYPICAL
    assert tried == ["float32"]  # the next plan does not wait for it again
    assert str(TYPICAL).startswith("based on another machine")


def _instances(plan):
    made = plan.arms[0].deployment(range(20_000, 20_100))
    return [process.command_line for process in made.instances]
