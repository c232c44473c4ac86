from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from workbench.errors import ParameterError
from workbench.load.catalogue import build
from workbench.load.workload.scenarios import SCENARIOS
from workbench.load.workload.token_ids import SALT_TOKENS

SMALL = {"prompt_tokens": 1_000, "requests": 24}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("name", "reuse"),
    [
        ("long_context_high_reuse", 0.9),
        ("code_generation", 0.8),
        ("multi_turn_conversation", 0.85),
        ("batch_processing", 0.95),
        ("cold_start", 0.0),
    ],
)
def test_each_scenario_meets_its_own_reuse(name: str, reuse: float, seed: int) -> None:
    workload = build(name, salt="s", seed=seed)
    assert workload.ideal_reuse == pytest.approx(reuse, rel=0.01)


@pytest.mark.parametrize("name", sorted(SCENARIOS))
def test_the_longest_prompt_is_as_long_as_asked(name: str) -> None:
    workload = build(name, salt="s", **SMALL)
    assert max(r.prompt_tokens for r in workload.requests) == 1_000
    assert len(workload.requests) == 24


@pytest.mark.parametrize("name", sorted(SCENARIOS))
def test_only_the_salt_tells_two_runs_apart(name: str) -> None:
    one, two = (build(name, salt=salt, **SMALL) for salt in ("run 1", "run 2"))
    assert one.hash == two.hash
    assert build(name, salt="run 1", seed=5, **SMALL).hash != one.hash
    ours = {tuple(r.prompt_ids[:SALT_TOKENS]) for r in one.requests}
    theirs = {tuple(r.prompt_ids[:SALT_TOKENS]) for r in two.requests}
    assert not ours & theirs


def test_a_turn_starts_with_the_whole_turn_before_and_grows_by_an_answer_and_a_question() -> None:
    requests = build(
        "multi_turn_conversation", salt="s", requests=10, prompt_tokens=1_000, output_tokens=20
    ).requests
    for before, after in pairwise(requests):
        assert after.prompt_tokens - before.prompt_tokens > 20
        assert (after.prompt_ids[: before.prompt_tokens] == before.prompt_ids).all()
        assert after.ideal_reuse_tokens == before.prompt_tokens


def test_two_conversations_take_turns_and_share_nothing() -> None:
    requests = build(
        "multi_turn_conversation",
        salt="s",
        requests=16,
        prompt_tokens=1_000,
        conversations=2,
        reuse=0.8,
    ).requests
    assert requests[0].prompt_ids[0] != requests[1].prompt_ids[0]
    assert requests[15].ideal_reuse_tokens == requests[13].prompt_tokens


def test_batch_items_share_the_instructions_and_no_more() -> None:
    requests = build("batch_processing", salt="s", **SMALL).requests
    shared = {r.ideal_reuse_tokens for r in requests[1:]}
    assert len(shared) == 1
    assert len({r.prompt_tokens for r in requests}) > 5


def test_cold_starts_share_no_first_token() -> None:
    requests = build("cold_start", salt="s", requests=300, prompt_tokens=64).requests
    assert len({int(r.prompt_ids[0]) for r in requests}) == 300


def test_ids_stay_inside_a_small_vocabulary() -> None:
    for name in SCENARIOS:
        ids = np.concatenate(
            [r.prompt_ids for r in build(name, salt="s", vocab_tokens=64, **SMALL).requests]
        )
        assert (ids.min() >= 16, ids.max() < 64) == (True, True)


@pytest.mark.parametrize("reuse", [0.3, 0.5, 0.77])
@pytest.mark.parametrize("name", sorted(set(SCENARIOS) - {"cold_start"}))
def test_the_reuse_that_is_asked_is_met(name: str, reuse: float) -> None:
    workload = build(name, salt="s", reuse=reuse, prompt_tokens=1_000, requests=24)
    assert workload.ideal_reuse == pytest.approx(reuse, rel=0.01)


def test_the_number_of_requests_in_the_sentence_is_enough() -> None:
    for name in ("batch_processing", "code_generation", "long_context_high_reuse"):
        with pytest.raises(ParameterError) as refused:
            build(name, salt="s", prompt_tokens=1_000, requests=4)
        enough = int(str(refused.value).split("-p requests ")[1].rstrip(")"))
        build(name, salt="s", prompt_tokens=1_000, requests=enough)
