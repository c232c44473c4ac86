import pandas as pd
import pytest

from workbench.claims.engines import blocks
from workbench.claims.recipes.rows import Rows


@pytest.fixture
def counted(cpu):
    """`counted(tokens, held)` is the outcome of sequences that hold so many tokens and blocks."""

    def make(tokens, held, fp8=2000.0):
        named = [("KV tokens", "auto", "all", 1000.0), ("KV tokens", "fp8", "all", fp8),
                 ("block", "auto", "all", 16.0)]  # fmt: skip
        for place, (length, count) in enumerate(zip(tokens, held, strict=True)):
            cell = f"s{place}"
            named += [("tokens", "auto", cell, length), ("blocks", "auto", cell, count)]
        table = pd.DataFrame(named, columns=["quantity", "arm", "cell", "value"]).assign(run=0)
        return blocks.read(Rows(table=table, results=({"threads": 1},), doubts=()), cpu)

    return make


def test_counts_confirm_on_a_cpu_what_they_count(counted, judged):
    outcome = counted([16, 17, 33], [1, 2, 3])
    assert judged(outcome, "VLLM-FP8KV").verdict == "confirmed"
    assert judged(outcome, "OWN-BLOCKS").verdict == "confirmed"
    (waste,) = outcome.measurements["VLLM-WASTE"].effects["paged waste"]
    assert waste.estimate == pytest.approx(100 * (1 - 66 / 96))


def test_one_block_too_many_contradicts(counted, judged):
    assert judged(counted([16, 17], [1, 3]), "OWN-BLOCKS").code == "contradicted"
    assert judged(counted([16], [1], fp8=1100.0), "VLLM-FP8KV").code == "contradicted"


def test_blocks_without_their_tokens_fail_the_check_of_lengths(counted):
    name = "same_token_lengths_ignore_eos"
    assert counted([16, 17], [1, 2]).checks[name] == "pass"
    assert counted([16, 0], [1, 2]).checks[name] == "fail"
