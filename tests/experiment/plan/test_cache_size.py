import json
from math import isnan

import pytest

from workbench.experiment.plan.cache_size import cache_size
from workbench.experiment.run.run import run
from workbench.load.files.trace_file import read_trace


def test_the_curve_rises_to_what_whole_blocks_can_serve(sweep):
    plan = sweep(workload="batch_processing", prompt_tokens=2_000)
    curve = cache_size(plan)
    rates = curve["hit_rate"].tolist()
    assert rates == sorted(rates)
    blocks = [
        min(r.ideal_reuse_tokens // 128 * 128, r.prompt_tokens - 1)
        for r in plan.workload.sample.requests
    ]
    assert rates[-1] == pytest.approx(sum(blocks) / plan.workload.sample.prompt_tokens)
    assert curve.attrs["ideal_reuse"] == plan.workload.sample.ideal_reuse >= rates[-1]
    assert curve.attrs["kv_space_tokens"] == 256 * 1024  # 1 KiB a token


def test_a_trace_has_the_curve_of_its_own_blocks(sweep, tmp_path):
    rows = (
        {"timestamp": n, "input_length": 1024, "output_length": 9, "hash_ids": [0, n % 2 + 1]}
        for n in range(4)
    )
    file = tmp_path / "t.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    asked = {"workload": "trace", "trace_file": str(file), "requests": 4, "prompt_tokens": 512}
    curve = cache_size(sweep(**asked))
    assert curve.attrs["block_tokens"] == 256  # 1,024 tokens made 512
    by_size = dict(zip(curve["cache_tokens"], curve["hit_rate"], strict=True))
    # One block: of four requests three find block 0. Three: the last two find all but a token.
    assert by_size[256] == pytest.approx(3 * 256 / 2048)
    assert by_size[768] == pytest.approx((256 + 511 + 511) / 2048)


def test_what_shares_nothing_has_no_curve(sweep, machine_has):
    assert cache_size(sweep()).empty
    machine_has("cuda", gpus=8)
    assert isnan(cache_size(sweep(workload="code_generation")).attrs["kv_space_tokens"])


async def test_a_run_leaves_its_cold_pass_as_a_trace(attached, tmp_path):
    plan = attached(workload="shared_prefix", prompt_tokens=1_200, shared_share=0.9, requests=3)
    result = await run(plan, echo=lambda _: None)
    trace = read_trace(result.folder / "traces" / "attached.jsonl")
    assert [row.prompt_tokens for row in trace.rows] == [1_200] * 3
    first, second, third = (row.hash_ids for row in trace.rows)
    assert first[:2] == second[:2] == third[:2]  # 1,080 tokens: two whole blocks of 512
    assert len({first[2], second[2], third[2]}) == 3
