"""The hit rate that a cache of each size could reach on a workload, before anything is run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from workbench.experiment.plan.plan import ExperimentPlan
from workbench.load.files.trace_file import read_trace
from workbench.load.files.traces import fitted, lru_hit_rates, trace_of
from workbench.params.shared import LoadParams

if TYPE_CHECKING:
    import pandas as pd

_SIZES = 24


def cache_size(plan: ExperimentPlan) -> pd.DataFrame:
    """Hit rate of one LRU cache of each size: columns `cache_tokens` and `hit_rate`.

    Requests come one after the other, so a real LRU cache cannot do better, and does worse if
    requests overlap. `attrs` has `ideal_reuse` (an infinite cache of single tokens), `block_tokens`
    and, if known, `kv_space_tokens` and `host_tokens` of an instance. Empty if prompts share
    nothing.
    """
    import pandas as pd

    workload, params = plan.workload.sample, plan.params
    if isinstance(params, LoadParams) and params.workload == "trace" and not plan.workload.chat:
        options = plan.workload.options
        rows = read_trace(
            params.trace_file,
            first=options["requests"],
            block_tokens=params.trace_block_tokens,
            output_tokens=options["output_tokens"],
        )
        trace = fitted(
            rows, prompt_tokens=options["prompt_tokens"], output_tokens=options["output_tokens"]
        )
    else:
        on_gpu = plan.settings is not None and plan.settings.on_gpu
        trace = trace_of(workload, block_tokens=16 if on_gpu else 128)  # vLLM's KV block
    blocks = len({hash_id for row in trace.rows for hash_id in row.hash_ids})
    held = np.unique(np.geomspace(1, max(2, blocks), _SIZES).astype(int))
    sizes = np.ceil(held * trace.block_tokens).astype(int)  # a scaled block may be a fraction
    rates = lru_hit_rates(trace, sizes.tolist())
    frame = pd.DataFrame({"cache_tokens": sizes, "hit_rate": rates})
    if not workload.ideal_reuse > 0:
        frame = frame.iloc[:0]
    frame.attrs |= {
        "workload": plan.workload.name,
        "requests": len(workload.requests),
        "ideal_reuse": workload.ideal_reuse,
        "block_tokens": round(trace.block_tokens, 1),
        "kv_space_tokens": plan.kv_space_tokens,
        "host_tokens": plan.host_tokens,
    }
    return frame
