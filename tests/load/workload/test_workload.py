from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.load.workload.token_ids import SALT_TOKENS
from workbench.load.workload.workload import (
    Workload,
    ideal_reuse,
    reference,
    shared_prefix,
    short,
)


def common(a: np.ndarray, b: np.ndarray) -> int:
    length = min(len(a), len(b))
    return next((n for n in range(length) if a[n] != b[n]), length)


def test_reference_is_three_long_prompts_that_share_nothing() -> None:
    workload = reference(salt="run 1")
    assert [r.prompt_tokens for r in workload.requests] == [22_660] * 3
    assert [r.index for r in workload.requests] == [0, 1, 2]
    assert {r.max_tokens for r in workload.requests} == {32}
    assert workload.prompt_tokens == 3 * 22_660
    assert workload.ideal_reuse == 0.0


def test_prompts_stay_off_the_special_ids_and_inside_the_vocabulary() -> None:
    ids = np.concatenate(
        [r.prompt_ids for r in short(requests=40, vocab_tokens=99, salt="s").requests]
    )
    assert ids.min() >= 16
    assert ids.max() == 98


def test_the_salt_changes_the_first_tokens_and_nothing_else() -> None:
    one, two = (short(salt=salt).requests[1].prompt_ids for salt in ("run 1", "run 2"))
    assert (one[:SALT_TOKENS] != two[:SALT_TOKENS]).any()
    assert (one[SALT_TOKENS:] == two[SALT_TOKENS:]).all()


def test_the_seed_changes_everything_behind_the_salt() -> None:
    one, two = (short(seed=seed, salt="s").requests[0].prompt_ids for seed in (0, 1))
    assert (one[:SALT_TOKENS] == two[:SALT_TOKENS]).all()
    assert (one[SALT_TOKENS:] != two[SALT_TOKENS:]).mean() > 0.99


def test_five_hundred_prompts_of_a_small_vocabulary_share_no_first_token_by_chance() -> None:
    workload = short(requests=500, prompt_tokens=64, vocab_tokens=600, salt="s")
    assert len({int(r.prompt_ids[0]) for r in workload.requests}) == 500
    assert workload.ideal_reuse == 0.0


def test_a_group_shares_exactly_its_prefix() -> None:
    workload = shared_prefix(
        requests=6, prompt_tokens=100, shared_tokens=40, groups=2, output_tokens=1, salt="s"
    )
    prompts = [r.prompt_ids for r in workload.requests]
    assert common(prompts[0], prompts[2]) == common(prompts[1], prompts[5]) == 40
    assert common(prompts[0], prompts[1]) == 0
    assert [r.ideal_reuse_tokens for r in workload.requests] == [0, 0, 40, 40, 40, 40]
    assert workload.ideal_reuse == 160 / 600


def test_no_two_of_a_group_share_more_by_chance() -> None:
    workload = shared_prefix(
        requests=400, prompt_tokens=64, shared_tokens=20, vocab_tokens=416, salt="s"
    )
    assert {r.ideal_reuse_tokens for r in workload.requests[1:]} == {20}


def test_identical_prompts_reuse_all_but_the_last_token() -> None:
    workload = shared_prefix(requests=2, prompt_tokens=50, shared_tokens=50, salt="s")
    assert [r.ideal_reuse_tokens for r in workload.requests] == [0, 49]


@pytest.mark.parametrize(
    ("prompts", "reuse"),
    [
        ([], ()),
        ([[1, 2, 3]], (0,)),
        ([[1, 2, 3], [1, 2, 3]], (0, 2)),
        ([[1, 2, 3], [1, 2]], (0, 1)),
        ([[1, 2], [1, 2, 3]], (0, 2)),
        ([[1, 2, 3], [4, 5], [1, 2, 9], [4, 5, 6]], (0, 0, 2, 2)),
        ([[255, 1], [256, 1], [255, 2]], (0, 0, 1)),
        ([[], [7]], (0, 0)),
    ],
)
def test_ideal_reuse(prompts: list[list[int]], reuse: tuple[int, ...]) -> None:
    assert ideal_reuse(prompts) == reuse


@given(st.lists(st.lists(st.integers(0, 2), max_size=6), max_size=8))
def test_ideal_reuse_is_the_longest_prefix_shared_with_any_earlier_prompt(
    prompts: list[list[int]],
) -> None:
    for n, (prompt, reuse) in enumerate(zip(prompts, ideal_reuse(prompts), strict=True)):
        shared = [common(np.array(prompt), np.array(earlier)) for earlier in prompts[:n]]
        assert reuse == max(0, min(max(shared, default=0), len(prompt) - 1))


def test_the_hash_is_the_same_in_every_process_and_for_every_salt() -> None:
    code = "from workbench.load.workload.workload import short; print(short(salt='other').hash)"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert child.stdout.strip() == short(salt="one").hash
    assert len(short(salt="one").hash) == 12


def test_the_hash_tells_seed_length_and_output_apart() -> None:
    variants = [
        short(salt="s"),
        short(salt="s", seed=1),
        short(salt="s", prompt_tokens=1_023),
        short(salt="s", output_tokens=31),
        short(salt="s", requests=2),
    ]
    assert len({workload.hash for workload in variants}) == len(variants)


def test_a_prompt_cannot_be_changed_afterwards() -> None:
    with pytest.raises(ValueError, match="read-only"):
        short(salt="s").requests[0].prompt_ids[0] = 1


def test_an_empty_workload_has_no_share_of_reuse() -> None:
    empty = Workload(name="none", seed=0, salt="", requests=())
    assert empty.ideal_reuse != empty.ideal_reuse
