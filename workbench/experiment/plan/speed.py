"""How fast this machine runs a tiny model: measured once on a real instance, then kept.

    python -m workbench.experiment.plan.speed tiny float32     measures, and prints one JSON line

Used for a plan's estimated duration and for the size of the tiny model, never for a result. Valid
for one model, CPU, number format and vLLM version.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from workbench.hardware import machine
from workbench.hardware.cache import cache_folder
from workbench.hardware.interpreter import Interpreter, interpreter
from workbench.serve.tiny_model import LAYERS, all_layers, tiny_model

REFERENCE_TOKENS = 22_660
SLOW_PREFILL_S = 6.0
"""The tiny model gets fewer layers if a cold prompt of REFERENCE_TOKENS takes longer than this."""
TOKEN_S, PAIR_S = 6.9e-5, 4.8e-9
"""Prefill of a token, and of a token squared (attention), where this was written: 2 cores with
AVX-512, bf16, a fit of 5,000 and 22,660 tokens. Their ratio is the same in float32 with AVX2."""
MEASURED_TOKENS, STEPS = 12_000, 32
HOLDS_S = 30 * 86_400.0
TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """CPU seconds of this machine's work, of a tiny model with all its layers on one core.

    CPU seconds do not include other programs; on an idle machine they equal elapsed seconds.
    """

    dtype: str
    prefill_times: float
    """Prefill time relative to what TOKEN_S and PAIR_S give."""
    step_s: float
    """One decode step."""
    fork_server_s: float
    """Until the fork server has loaded vLLM."""
    at: str
    """When it was measured, ISO 8601; empty for another machine's figures."""
    all_layers: int = LAYERS
    """Layers of the model that was measured."""

    def prefill_s(self, tokens: int, *, reused_tokens: int = 0, layers: int = 0) -> float:
        """Seconds of a single prefill of `tokens`, the first `reused_tokens` being cached.

        `layers` are those of the model that runs; 0 for all.
        """
        typical_s = _typical_prefill_s(tokens) - _typical_prefill_s(reused_tokens)
        return (layers or self.all_layers) / self.all_layers * self.prefill_times * typical_s

    def __str__(self) -> str:
        if not self.at:
            return "based on another machine's speed"
        cold_s = self.prefill_s(REFERENCE_TOKENS)
        return (
            f"TTFT of a cold {REFERENCE_TOKENS:,}-token prompt: {cold_s:.1f} s, measured"
            f" {self.at[:10]}"
        )


def _typical_prefill_s(tokens: int) -> float:
    return TOKEN_S * tokens + PAIR_S * tokens**2


TYPICAL = Speed(dtype="bfloat16", prefill_times=1.0, step_s=0.004, fork_server_s=11.0, at="")
"""Of the machine that this was written on; used where nothing was measured."""


def layers_for(speed: Speed) -> int:
    """Layers of a tiny model: the most that keep a cold reference prompt under SLOW_PREFILL_S."""
    fits = (n for n in range(speed.all_layers, 0, -1) if speed.prefill_s(REFERENCE_TOKENS, layers=n)
            <= SLOW_PREFILL_S)  # fmt: skip
    return next(fits, 1)


_not_measured: set[tuple[str, str, str]] = set()


def machine_speed(dtype: str, engine: Interpreter, model: str = "tiny") -> Speed:
    """The speed of this machine with a built-in model, measured once (15 s), kept for 30 days.

    For an image it is that of our own interpreter, since a container computes as fast as a process.
    TYPICAL if `engine` has no vLLM or it does not run here; the run itself will say why. A process
    that could not measure does not try again, so that all its plans use the same model.
    """
    engine = interpreter() if engine.image else engine
    if not engine.find("vllm") or (dtype, engine.path, model) in _not_measured:
        return TYPICAL
    file = cache_folder() / f"speed-{_key(dtype, engine, model)}.json"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with (file.parent / "speed.lock").open("w") as lock:
            # Two that measure at once would slow each other.
            fcntl.flock(lock, fcntl.LOCK_EX)
            if (known := _read(file)) is not None:
                return known
            other = "" if model == "tiny" else f" with {model}"
            print(f"measuring the speed of this CPU{other} once (about 15 s)", flush=True)
            if (speed := _measured(dtype, engine, model)) is None:
                _not_measured.add((dtype, engine.path, model))
                return TYPICAL
            file.write_text(json.dumps(asdict(speed)))
            return speed
    except OSError:
        return TYPICAL


def _read(file: Path) -> Speed | None:
    try:
        speed = Speed(**json.loads(file.read_text()))
        age_s = time.time() - datetime.fromisoformat(speed.at).timestamp()
    except (OSError, ValueError, TypeError):
        return None
    return speed if 0 <= age_s < HOLDS_S else None


def _key(dtype: str, engine: Interpreter, model: str) -> str:
    here = machine.facts().with_engine(engine)
    versions = {name: here.versions.get(name) for name in ("vllm", "torch", "workbench")}
    made = tiny_model(name=model, engine=engine).name
    text = json.dumps([here.cpu, here.cores, dtype, versions, made], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def _measured(dtype: str, engine: Interpreter, model: str) -> Speed | None:
    """Measure in a separate process, since a notebook's event loop is already running."""
    python = "" if engine.own else engine.path
    command = [sys.executable, "-m", "workbench.experiment.plan.speed", model, dtype, python]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_S, check=True,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        return Speed(**json.loads(done.stdout.splitlines()[-1]))
    except (subprocess.SubprocessError, OSError, ValueError, TypeError, IndexError):
        return None


async def _measure(model: str, dtype: str, python: str) -> Speed:
    from workbench.load.drive.driver import drive_in_thread
    from workbench.load.workload.arrivals import closed
    from workbench.load.workload.workload import reference
    from workbench.serve.checks.argument_check import abilities
    from workbench.serve.connectors import connector
    from workbench.serve.deployment import deploy, launcher_for, plan_deployment
    from workbench.serve.processes.local import LocalLauncher
    from workbench.serve.vllm import EngineSettings
    from workbench.topology import Topology

    alone = Topology(aggregated=1)
    engine = interpreter(python)
    settings = EngineSettings(
        model=tiny_model(name=model, engine=engine), platform="cpu", python=python,
        abilities=abilities(engine), dtype=dtype, kv_cache_mib=128,
    )  # fmt: skip
    seen_s = machine.ProcessorLoad.now().own_s

    def spent() -> float:
        """CPU seconds of everything started here since the last call."""
        nonlocal seen_s
        before_s, seen_s = seen_s, machine.ProcessorLoad.now().own_s
        return seen_s - before_s

    with tempfile.TemporaryDirectory(prefix="workbench-speed-") as logs:
        async with launcher_for(settings, Path(logs)) as launcher:
            assert isinstance(launcher, LocalLauncher)
            await launcher.loaded()
            fork_server_s = spent()
            async with deploy(
                launcher,
                lambda ports: plan_deployment(alone, connector("none"), settings, ports=ports),
                log_dir=Path(logs),
            ) as deployment:
                spent()
                each_s = []
                for prompt, answer, salt in (
                    (256, 1, "first"), (MEASURED_TOKENS, 1, "one"), (MEASURED_TOKENS, 1, "two"),
                    (256, 1, "first"), (256, 1 + STEPS, "first"),
                ):  # fmt: skip
                    workload = reference(
                        requests=1, prompt_tokens=prompt, output_tokens=answer, salt=salt
                    )
                    await drive_in_thread(
                        workload, closed(1), base_url=deployment.url, model=deployment.model
                    )
                    each_s.append(spent())
    _, *prefills_s, answer_s, answers_s = each_s
    return Speed(
        dtype=dtype,
        prefill_times=min(prefills_s) / _typical_prefill_s(MEASURED_TOKENS),
        step_s=max(0.001, (answers_s - answer_s) / STEPS),
        fork_server_s=fork_server_s,
        all_layers=all_layers(model),
        at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


if __name__ == "__main__":
    from workbench.serve.processes.parent import die_with_parent

    die_with_parent()
    print(json.dumps(asdict(asyncio.run(_measure(*sys.argv[1:])))))
