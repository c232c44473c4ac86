"""Prompts as text have the ids that the server will make of them, and the wanted length."""

from tests.load.words import Words
from workbench.load.catalogue import build
from workbench.load.workload.written import lengths_missed, word_ids, written


def drawn(tokenizer, name="shared_prefix", **options):
    given = {"requests": 4, "prompt_tokens": 120, "vocab_tokens": word_ids(tokenizer)}
    if name == "shared_prefix":
        given["shared_tokens"] = 60
    return build(name, salt="a", **given | options)


def test_made_up_prompts_keep_their_length_and_what_they_share():
    tokenizer = Words()
    wanted = drawn(tokenizer)
    made = written(wanted, tokenizer)
    assert lengths_missed(wanted, made) == 0
    for request in made.requests:
        assert request.prompt_tokens == 120
        assert request.prompt_ids.tolist() == tokenizer.completion(request.prompt_text)
    assert [r.ideal_reuse_tokens for r in made.requests] == [0, 60, 60, 60]


def test_two_runs_are_alike_but_for_their_salt():
    tokenizer = Words()
    one, other = (
        written(build("short", salt=salt, requests=2, prompt_tokens=64, output_tokens=3,
                      vocab_tokens=word_ids(tokenizer)), tokenizer)
        for salt in "ab"
    )  # fmt: skip
    assert one.hash == other.hash
    assert one.requests[0].prompt_text != other.requests[0].prompt_text


def test_a_tokenizer_that_joins_words_gives_other_lengths_and_they_are_known():
    tokenizer = Words(joins=True)
    wanted = drawn(tokenizer)
    made = written(wanted, tokenizer)
    assert lengths_missed(wanted, made) == 4
    for request in made.requests:
        assert request.prompt_tokens == len(tokenizer.completion(request.prompt_text)) < 120


def test_a_text_stays_the_text_that_it_was(tmp_path):
    tokenizer = Words()
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "Once upon a time"}\n{"prompt": "Once more"}\n')
    wanted = build(
        "prompts", salt="a", file=str(file), context_tokens=500, tokenizer=tokenizer,
        vocab_tokens=word_ids(tokenizer),
    )  # fmt: skip
    first, second = written(wanted, tokenizer, of_text=True, keep_length=False).requests
    assert first.prompt_text.endswith("\nOnce upon a time")
    assert first.prompt_ids.tolist() == tokenizer.completion(first.prompt_text)
    # One begin, "Read", ":", 16 words of salt and the line break stand before what differs.
    assert second.ideal_reuse_tokens >= 19


def test_a_text_of_given_length_makes_room_for_what_stands_around_its_salt():
    tokenizer = Words()
    wanted = build(
        "text", salt="a", requests=2, prompt_tokens=200, tokenizer=tokenizer,
        vocab_tokens=word_ids(tokenizer),
    )  # fmt: skip
    made = written(wanted, tokenizer, of_text=True)
    assert [request.prompt_tokens for request in made.requests] == [200, 200]
    _, kept = made.requests[0].prompt_text.split("\n", 1)
    assert tokenizer.decode(wanted.requests[0].prompt_ids[16:]).startswith(kept)
