import pytest

from tests.load.words import Words
from workbench.errors import ParameterError
from workbench.load.catalogue import build
from workbench.load.workload.chat import Frame, chat_request, spoken
from workbench.load.workload.token_ids import SALT_TOKENS


def shared(tokenizer, salt="a"):
    def make(prompt_tokens, vocab_tokens):
        return build(
            "shared_prefix", salt=salt, requests=4, prompt_tokens=prompt_tokens, shared_tokens=60,
            vocab_tokens=vocab_tokens,
        )  # fmt: skip

    return spoken(make, prompt_tokens=120, tokenizer=tokenizer)


@pytest.mark.parametrize("trims", [False, True])
def test_a_chat_has_the_tokens_that_were_asked_for_and_shares_as_much(trims):
    tokenizer = Words(trims=trims)
    frame = Frame.of(tokenizer)
    made = shared(tokenizer)
    for request in made.requests:
        assert request.prompt_tokens == 120
        assert request.prompt_ids.tolist() == tokenizer.chat(request.messages)
        assert [m["role"] for m in request.messages] == ["user"]
    assert [r.ideal_reuse_tokens for r in made.requests] == [0] + [frame.before + 60] * 3


def test_two_runs_of_a_chat_are_alike_but_for_their_salt():
    tokenizer = Words()
    one, other = shared(tokenizer, "a"), shared(tokenizer, "b")
    assert one.hash == other.hash
    start = one.requests[0].salt_start
    first, second = (w.requests[0].prompt_ids for w in (one, other))
    assert first[:start].tolist() == second[:start].tolist()
    assert (
        first[start : start + SALT_TOKENS].tolist() != second[start : start + SALT_TOKENS].tolist()
    )


def test_own_messages_carry_the_salt_in_front_of_the_first():
    tokenizer = Words()
    messages = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"})
    request, other = (
        chat_request(0, messages, max_tokens=5, tokenizer=tokenizer, salt=salt) for salt in "ab"
    )
    assert request.messages[0]["content"].endswith("Be brief.")
    assert request.messages[1:] == messages[1:]
    end = request.salt_start + SALT_TOKENS
    assert request.prompt_ids[end:].tolist() == other.prompt_ids[end:].tolist()


def test_a_template_or_tokenizer_that_spoils_the_count_is_refused():
    class Shouts(Words):
        def chat(self, messages):
            return super().chat(({"role": "user", "content": messages[0]["content"] * 2},))

    with pytest.raises(ParameterError, match="keeps the text of messages"):
        Frame.of(Shouts())
    with pytest.raises(ParameterError, match="tokenizer that keeps words apart"):
        shared(Words(joins=True))
    few = Words()
    few.words = few.words[:5]
    with pytest.raises(ParameterError, match="at least 32 single-token words, got 5"):
        Frame.of(few)
