"""Which of CHECKS a run answers, from its gates, rows and command lines.

Two hold by construction: one client times all arms by one formula (same_metric_definition), and
its rows are kept (provenance_raw_log). A check without an answer counts as unknown.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from workbench.claims.registry.claim import BUILT_IN
from workbench.claims.verdict.decision import MIN_RUNS
from workbench.claims.verdict.verdict import state
from workbench.metrics.gates.client_gate import CLIENT_BUSY_SHARE
from workbench.metrics.gates.gate_effects import spoil
from workbench.topology import Topology

if TYPE_CHECKING:
    import pandas as pd

_BY_GATES = {
    # check of a claim: the gates of the run that answer it together
    "cache_state_controlled": (
        "cold was cold", "caches were emptied", "engine-warm was engine-warm",
        "store-warm was store-warm", "cached as planned", "the ledger closes",
    ),
    "output_quality_checked": ("same text",),
    "same_token_lengths_ignore_eos": ("output counts equal",),
    "below_physical_ceiling": ("below the ceilings",),
    "subject_is_measured": (
        "engine-warm was engine-warm", "store-warm was store-warm", "KV moved",
    ),
}  # fmt: skip
_CLIENT = "client kept up"
_PLACES = {"--port", "--http-port", "--shm-name", "--served-model-name"}
"""Options that say where an engine is, not how it works."""
_DTYPES = {"--dtype", "--kv-cache-dtype", "--quantization"}
_CACHING = {"--enable-prefix-caching", "--no-enable-prefix-caching"}
_STORE = {"--kv-transfer-config"}


def proofs(
    facts: Mapping[str, Any], requests: pd.DataFrame, *, value: str, baseline: str
) -> dict[str, str]:
    """Check -> pass, fail, unknown or BUILT_IN, for a comparison of two arms of one run.

    `facts` is the run's result.json, `requests` its rows.
    """
    outcome = {gate["name"]: gate["outcome"] for gate in facts["gates"]}
    found = {}
    for name, gates in _BY_GATES.items():
        asked = [outcome[gate] for gate in gates if gate in outcome]
        if asked:
            found[name] = (
                "fail" if "FAIL" in asked else "unknown" if "INCONCLUSIVE" in asked else "pass"
            )
    both = requests[requests["arm"].isin([value, baseline]) & (requests["pass"] == "cold")]
    found |= _of_rows(both, value, baseline)
    arms = {arm["label"]: arm for arm in facts["arms"]}
    if value in arms and baseline in arms:
        found |= _of_lines(arms[value], arms[baseline])
    return found


def faults(facts: Mapping[str, Any], *, timed: bool) -> tuple[str, ...]:
    """A sentence for each failed gate that invalidates counts, or ratios of times if `timed`.

    A client that was sometimes late is noise, which intervals and the A/A arm include. A client
    without spare CPU slows all arms and hides differences, so it invalidates times.
    """
    used = (facts.get("client") or {}).get("thread_cpu_share") or 0.0
    # The first part of a gate's sentence; the run's own result has the rest.
    return tuple(
        f"Gate {gate['name']!r} failed: {gate['sentence'].partition(';')[0].rstrip('.')}."
        for gate in facts["gates"]
        if gate["outcome"] == "FAIL"
        and (
            spoil([gate["name"]], "ratios" if timed else "counts").struck
            or (timed and gate["name"] == _CLIENT and used > CLIENT_BUSY_SHARE)
        )
    )


def _of_rows(rows: pd.DataFrame, value: str, baseline: str) -> dict[str, str]:
    """Equal prompts, enough rounds, alternating sides; and what holds by construction."""
    if rows.empty or rows["arm"].nunique() < 2:
        return {}
    runs = int(rows.groupby("arm")["round"].nunique().min())
    lengths = rows.pivot_table(index=["round", "index"], columns="arm", values="prompt_tokens")
    equal = bool((lengths[value] == lengths[baseline]).all())
    began = rows.groupby(["round", "arm"])["sent_s"].min().unstack()
    first = began[value] < began[baseline]
    return {
        "replicated_runs_with_ci": state(runs >= MIN_RUNS),
        "same_batch_and_concurrency": state(equal),
        "same_metric_definition": BUILT_IN,
        "provenance_raw_log": BUILT_IN,
        "interleaved_run_order": state(bool(first.any() and not first.all())),
    }


def _of_lines(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, str]:
    """From the command lines: same model, formats, settings and number of instances."""
    equal = one["instances"] == other["instances"] and one["gpus"] == other["gpus"]
    found = {"same_gpu_count_or_per_gpu": state(equal)}
    sides = [_options(arm["command_lines"]) for arm in (one, other)]
    if not all(sides):
        return found
    differ = {
        key for key in set(sides[0]) | set(sides[1]) if sides[0].get(key) != sides[1].get(key)
    }
    roles = {Topology.parse(arm["topology"]).disaggregated for arm in (one, other)}
    # PD needs a connector, so the two together are one factor.
    factors = bool(differ & _CACHING) + (bool(differ & _STORE) or len(roles) > 1)
    alike = not differ - _CACHING - _STORE
    return found | {
        "same_model_and_weights": state("--model" not in differ),
        "same_dtype": state(not differ & _DTYPES),
        "same_engine_knobs": state(alike),
        "one_factor_changed": state(alike and factors == 1),
    }


def _options(lines: Sequence[str]) -> dict[str, str]:
    """The options of the first engine, without those that say where it listens."""
    engines = [line for line in lines if "--served-model-name" in line]
    if not engines:
        return {}
    words = shlex.split(engines[0])
    found: dict[str, str] = {}
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word.startswith("--") and word not in _PLACES:
            found[word] = "" if following.startswith("--") else following
    return found
