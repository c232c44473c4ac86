"""The name of a run: equal parameters have the same one, so a finished run is found again."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict
from pathlib import Path

from workbench.hardware.machine import repository_root
from workbench.params.notebooks import PaperClaimValidation
from workbench.params.pd_sweep import PdSweep
from workbench.params.shared import EngineParams, LoadParams


def run_id(params: EngineParams) -> str:
    """Slug and hash of the resolved parameters, equal before and after a run."""
    values = asdict(params)
    values.pop("output_dir")
    models = list(params.each_model) if isinstance(params, PdSweep) else []
    if not models:
        values.pop("models", None)  # so that a run of one model keeps its name
    # and one without any of these
    for name in ("targets", "cores_per_instance", "predict", "measure", "concurrencies"):
        if not values.get(name):
            values.pop(name, None)
    if isinstance(params, PdSweep) and params.engine != "attach":
        values["topology"] = ",".join(map(str, params.topologies))
        if params.predict:
            values["measure"] = ",".join(map(str, params.measured))
    # A file that has grown, or a registry with another claim, makes another run.
    logs = [Path(name) for name in getattr(params, "log_files", [])]
    if seen := [_seen(log) for log in logs if log.is_file()]:
        values["log_seen"] = seen
    for name in ("trace", "prompts"):
        file = Path(values.get(f"{name}_file") or "")
        if file.is_file():
            values[f"{name}_seen"] = _seen(file)
    if isinstance(params, PaperClaimValidation):
        files = sorted((repository_root() / params.registry).glob("*.yaml"))
        values["claims_seen"] = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:6]
    simulated = [params.engine, params.fault] if params.engine == "simulated" else []
    if isinstance(params, PaperClaimValidation):
        named = params.claims if len(params.claims) < 4 else [f"{len(params.claims)} claims"]
        words = [*named, f"{params.time_budget_s:g}s", *simulated[:1]]
    elif logs:
        words = ["log", *(log.stem for log in logs[:3])]
    else:
        prompt_tokens, requests, workload = values["prompt_tokens"], values["requests"], ""
        if isinstance(params, LoadParams):
            prompt_tokens, requests = params.lengths
            workload = "" if params.workload == "reference" else params.workload
        counted = workload not in ("prompts", "trace") or values["requests"]
        words = [
            *models,
            *str(values.get("topology") or "").split(","),
            "attach" if params.engine == "attach" else values.get("connector", ""),
            workload,
            f"{prompt_tokens}t" if workload != "prompts" else "",
            f"n{requests}" if counted else "",
            f"r{values['rounds']}",
            *simulated,
        ]
    # A label of an attached deployment may be any text, and this is the name of a folder.
    plain = (re.sub(r"[^\w.]+", "-", word).strip("-.") for word in (*words, digest))
    return "-".join(filter(None, plain))


def _seen(file: Path) -> tuple[int, int]:
    return file.stat().st_size, file.stat().st_mtime_ns
