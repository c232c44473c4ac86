from __future__ import annotations

from typing import Any

import pytest

from workbench.errors import ParameterError
from workbench.load.catalogue import build
from workbench.load.drive.conversations import fed_back
from workbench.load.drive.driver import drive
from workbench.load.workload.arrivals import closed, poisson
from workbench.load.workload.workload import Request, Workload, asked_again

FIRST = Request(index=0, prompt_ids=[20, 21], max_tokens=3)
TURN = Request(
    index=1, prompt_ids=[20, 21, 30, 30, 30, 40], max_tokens=3, after=0, question_tokens=1
)


def conversations() -> Workload:
    return build(
        "multi_turn_conversation",
        salt="s",
        requests=12,
        prompt_tokens=400,
        output_tokens=5,
        conversations=2,
        reuse=0.8,
    )


def test_the_answer_takes_the_place_of_the_made_up_one() -> None:
    turn = fed_back(TURN, FIRST, (7, 8, 9))
    assert turn.prompt_ids.tolist() == [20, 21, 7, 8, 9, 40]
    assert turn.ideal_reuse_tokens == 4  # nobody has computed the KV of the 9
    assert fed_back(TURN, FIRST, (7, 8)).prompt_ids.tolist() == [20, 21, 7, 8, 40]


def test_without_an_answer_the_made_up_one_stays() -> None:
    turn = fed_back(TURN, FIRST, ())
    assert turn.prompt_ids.tolist() == TURN.prompt_ids.tolist()
    assert turn.ideal_reuse_tokens == 2


def test_lengths_and_questions_are_those_of_the_list() -> None:
    turns = {r.index: r for r in conversations().requests}
    for turn in turns.values():
        if turn.after is not None:
            before = turns[turn.after]
            grown = before.prompt_tokens + before.max_tokens + turn.question_tokens
            assert turn.prompt_tokens == grown
    assert sum(turn.after is None for turn in turns.values()) == 2


@pytest.mark.parametrize("concurrency", [1, 2, 12])
async def test_every_turn_holds_what_was_answered_before(vllm: Any, concurrency: int) -> None:
    """The server makes up the ids of its answers: 100 x the number of the request, plus 0 to 4."""
    planned = conversations()
    run = await drive(planned, closed(concurrency), base_url=vllm.url, model="tiny")
    prompts = {int(a.headers["x-workbench-index"]): a.json["prompt"] for a in vllm.asked}
    answers = {record.index: list(record.answer_ids) for record in run.records}
    assert all(len(answer) == 5 for answer in answers.values())
    for request, sent, record in zip(planned.requests, run.sent, run.records, strict=True):
        assert sent.prompt_ids.tolist() == prompts[request.index]
        assert record.prompt_tokens == len(prompts[request.index]) == request.prompt_tokens
        if request.after is not None:
            history = prompts[request.after] + answers[request.after]
            assert prompts[request.index][: len(history)] == history
            assert record.ideal_reuse_tokens == len(history) - 1
            before = run.records[request.after]
            assert before.chunk_s[-1] <= record.scheduled_s <= record.sent_s


async def test_a_failed_turn_does_not_stop_the_conversation(vllm: Any) -> None:
    vllm.plays(ending="truncated")
    planned = conversations()
    run = await drive(planned, closed(2), base_url=vllm.url, model="tiny")
    assert {record.error for record in run.records} == {"truncated"}
    assert [asked.json["prompt"] for asked in vllm.asked] == [
        request.prompt_ids.tolist() for request in planned.requests
    ]


async def test_asked_again_a_conversation_is_what_was_sent(vllm: Any) -> None:
    planned = conversations()
    cold = await drive(planned, closed(1), base_url=vllm.url, model="tiny")
    asked = Workload(name="m", seed=0, salt="s", requests=cold.sent)
    warm = await drive(asked_again(asked), closed(4), base_url=vllm.url, model="tiny")
    assert [s.prompt_ids.tolist() for s in warm.sent] == [s.prompt_ids.tolist() for s in cold.sent]
    assert vllm.asked[-1].json["return_token_ids"]  # what this pass leaves in caches is known too


async def test_turns_cannot_wait_in_an_open_loop() -> None:
    with pytest.raises(ParameterError, match="arrivals must be closed for"):
        await drive(conversations(), poisson(5, 12, 0), base_url="http://x", model="tiny")
