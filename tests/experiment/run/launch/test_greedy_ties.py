from math import isnan

import pandas as pd
import pytest

from tests.odd_server import odd_server
from workbench.experiment.run.launch.greedy_ties import ask_where_answers_part, parting_nat
from workbench.serve.deployed import Deployment

COLD = {
    "tokens": [" a", " red", " fox"],
    "top_logprobs": [
        {" a": -0.1, " the": -3.0},
        {" red": -1.0, " re": -1.06, " blue": -1.125, " green": -4.0},
        {" fox": -0.5, " cat": -0.75},
    ],
}


def test_two_tokens_that_are_nearly_as_good_are_a_tie():
    assert parting_nat(" a blue cat", " a red fox", COLD) == pytest.approx(0.125)
    assert parting_nat(" a red fox", " a blue cat", COLD) == pytest.approx(0.125)


def test_the_lesser_of_the_two_tokens_counts():
    assert parting_nat(" a green cat", " a red fox", COLD) == pytest.approx(3.0)


def test_the_longest_token_is_the_one_that_was_taken():
    assert parting_nat(" a red cat", " a red fox", COLD) == pytest.approx(0.25)
    assert parting_nat(" a reed", " a red fox", COLD) == pytest.approx(0.06)


def test_half_a_character_in_the_text_hides_no_tie():
    """vLLM tells such a token as an empty text, and the answer has a sign for it."""
    half = {
        "tokens": [" a", "", " red", " fox"],
        "top_logprobs": [COLD["top_logprobs"][0], {"": -0.2}, *COLD["top_logprobs"][1:]],
    }
    assert parting_nat(" a\ufffd blue cat", " a\ufffd red fox", half) == pytest.approx(0.125)
    assert isnan(parting_nat(" a\ufffd blue", " a red fox", half))


@pytest.mark.parametrize(
    "text, logprobs",
    [
        ("the text of another prompt", COLD),
        (" a yellow cat", COLD),  # a token that is not among the best
        (" a red fox jumps", COLD),  # longer than what was asked
        (" a blue cat", {}),
        (" a blue cat", {"tokens": [" a"], "top_logprobs": None}),
        (" a blue cat", COLD | {"top_logprobs": [COLD["top_logprobs"][0], None, None]}),
        (" a blue cat", COLD | {"top_logprobs": [None, {}, {}]}),
        (" a blue cat", COLD | {"top_logprobs": [None, [" red"], []]}),
    ],
)
def test_what_is_no_choice_between_two_candidates_is_not_known(text, logprobs):
    assert isnan(parting_nat(text, " a red fox", logprobs))


def pass_rows(arm, name, *texts):
    return pd.DataFrame(
        {"arm": arm, "pass": name, "round": 0, "index": range(len(texts)), "text": texts}
    ).assign(error="", parting_nat=float("nan"))


def telling(candidates):
    """The answer of a server that gives these log-probabilities."""
    return {"/v1/completions": {"choices": [{"text": " a red fox", "logprobs": candidates}]}}


@pytest.fixture
async def server():
    async with odd_server(telling(COLD)) as running:
        yield running


@pytest.fixture
def made(sweep):
    return sweep(topology="1p1d", prompt_tokens=500, requests=2)


async def look(made, arm, url, *frames):
    prompts = made.workload.build("salt")
    await ask_where_answers_part(made, arm, 0, prompts, Deployment(url=url), frames)


async def test_only_answers_that_differ_are_asked_again(made, server):
    cold = pass_rows(made.text_reference, "cold", " a red fox", " a red fox")
    warm = pass_rows("1p1d lmcache", "store-warm", " a red fox", " a blue cat")
    await look(made, "1p1d lmcache", server.url, cold, warm)
    assert warm["parting_nat"].tolist() == [pytest.approx(float("nan"), nan_ok=True), 0.125]
    body = server.asked[0].json
    assert len(server.asked) == 1
    assert body["prompt"] == made.workload.build("salt").requests[1].prompt_ids.tolist()
    assert (body["stream"], body["temperature"], body["logprobs"]) == (False, 0, 5)


async def test_arms_before_the_reference_are_looked_at_in_its_launch(made, server):
    before = pass_rows("1p1d lmcache", "cold", " a blue cat")
    await look(made, "1p1d lmcache", server.url, before)
    assert server.asked == []  # nothing to hold it to
    cold = pass_rows(made.text_reference, "cold", " a red fox")
    await look(made, made.text_reference, server.url, before, cold)
    assert before["parting_nat"].tolist() == [pytest.approx(0.125)]
    await look(made, "another arm", server.url, before, cold)
    assert len(server.asked) == 1


async def test_candidates_of_another_shape_leave_it_open(made, server):
    server.answer = telling(["no mapping"])
    cold = pass_rows(made.text_reference, "cold", " a red fox")
    warm = pass_rows("1p1d lmcache", "store-warm", " a blue cat")
    await look(made, "1p1d lmcache", server.url, cold, warm)
    assert len(server.asked) == 1
    assert warm["parting_nat"].isna().all()


async def test_a_server_that_gives_no_candidates_leaves_it_open(made):
    cold = pass_rows(made.text_reference, "cold", " a red fox")
    warm = pass_rows("1p1d lmcache", "store-warm", " a blue cat")
    await look(made, "1p1d lmcache", "http://127.0.0.1:1", cold, warm)
    assert warm["parting_nat"].isna().all()
