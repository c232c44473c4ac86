import pytest

from tests.load.words import Words
from workbench.load.catalogue import build
from workbench.load.workload.texts import NAMES, extended, paragraphs
from workbench.load.workload.token_ids import SALT_TOKENS


@pytest.mark.parametrize("name", NAMES)
def test_each_text_is_a_few_hundred_words_in_paragraphs(name):
    known = paragraphs(name)
    assert len(known) >= 5
    assert 300 < sum(len(part.split()) for part in known) < 1000


def test_a_text_goes_on_in_a_circle_and_no_paragraph_comes_twice_alike():
    known = paragraphs("fiction")
    text = extended("fiction", 3 * sum(map(len, known)), start=2)
    parts = [part for part in text.split("\n\n") if part]
    assert parts[0] == f"[1] {known[2]}"
    assert parts[len(known)] == f"[{len(known) + 1}] {known[2]}"
    assert len(set(parts)) == len(parts)


@pytest.mark.parametrize("tokens", [100, 5_000, 22_660])
def test_prompts_have_exactly_the_tokens_that_are_asked_for_and_share_nothing(tokens):
    made = build("text", salt="s", requests=3, prompt_tokens=tokens, tokenizer=Words())
    assert [r.prompt_tokens for r in made.requests] == [tokens] * 3
    assert [r.ideal_reuse_tokens for r in made.requests] == [0, 0, 0]


def test_behind_the_salt_stands_the_text():
    tokenizer = Words()
    made = build("text", text="astrophysics", salt="s", prompt_tokens=200, tokenizer=tokenizer)
    whole = tokenizer.encode(extended("astrophysics", 2_000))
    assert made.requests[0].prompt_ids[SALT_TOKENS:].tolist() == whole[: 200 - SALT_TOKENS]


@pytest.mark.parametrize("tokens", [100, 731])
def test_as_chat_the_template_counts_too(tokens):
    tokenizer = Words()
    made, again = (
        build("text", salt=s, requests=2, prompt_tokens=tokens, tokenizer=tokenizer, chat=True)
        for s in "ab"
    )
    for request in made.requests:
        assert request.prompt_tokens == tokens == len(tokenizer.chat(request.messages))
    assert made.hash == again.hash
