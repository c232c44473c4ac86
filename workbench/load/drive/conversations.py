"""Conversations: a turn's prompt has the model's real response to the previous turn."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from workbench.load.workload.workload import Request
from workbench.records import RequestRecord


def fed_back(request: Request, before: Request, answer: tuple[int, ...]) -> Request:
    """The turn as it is sent: previous prompt, ids of its response, new question.

    Without a response (a failed turn, or a server without ids) the placeholder stays.
    `ideal_reuse_tokens` becomes what a cache can hold: the previous prompt and its response without
    the last token, whose KV was never computed.
    """
    question = request.question_tokens
    end = len(request.prompt_ids) - question
    kept = len(answer) - 1
    if not answer:
        answer = tuple(request.prompt_ids[end - before.max_tokens : end].tolist())
        kept = 0
    ids = [before.prompt_ids, np.asarray(answer, dtype=np.int32), request.prompt_ids[end:]]
    prompt_ids = np.concatenate(ids)
    return replace(request, prompt_ids=prompt_ids, ideal_reuse_tokens=before.prompt_tokens + kept)


class Conversations:
    """Holds a turn back until the previous one has ended; knows what was sent.

    Requests without a previous turn pass unchanged.
    """

    def __init__(self, requests: Iterable[Request]) -> None:
        self.sent = {request.index: request for request in requests}
        """Each request as it was sent, or as planned."""
        awaited = {r.after for r in self.sent.values() if r.after is not None}
        self._ended = {index: asyncio.Event() for index in awaited}
        self._answers: dict[int, tuple[int, ...]] = {}

    async def next(self, request: Request) -> Request:
        """The request with the real history; waits for the previous turn."""
        if request.after is None:
            return request
        await self._ended[request.after].wait()
        answer = self._answers.get(request.after, ())
        turn = fed_back(request, self.sent[request.after], answer)
        self.sent[request.index] = turn
        return turn

    def answered(self, record: RequestRecord) -> None:
        """Note that a request has ended, successfully or not."""
        if record.ok:
            self._answers[record.index] = record.answer_ids
        if record.index in self._ended:
            self._ended[record.index].set()
