import json

import pytest

from tests.load.words import Words
from workbench.errors import ParameterError
from workbench.load.catalogue import build
from workbench.load.prompts import read_prompts
from workbench.load.token_ids import SALT_TOKENS

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why is it?"}]


@pytest.fixture
def file(tmp_path):
    def write(*rows):
        path = tmp_path / "own.jsonl"
        lines = (row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows)
        path.write_bytes(b"\n".join(lines))
        return str(path)

    return write


def own(path, tokenizer=None, **options):
    options = {"salt": "s", "context_tokens": 1_000, "output_tokens": 7} | options
    return build("prompts", file=path, tokenizer=tokenizer or Words(), **options)


def test_prompts_and_messages_are_sent_as_they_stand_behind_one_salt(file):
    tokenizer = Words()
    made = own(file({"prompt": "Why is it?"}, {"messages": CHAT, "max_tokens": 3}), tokenizer)
    first, second = made.requests
    assert first.prompt_ids[SALT_TOKENS:].tolist() == tokenizer.encode("Why is it?")
    assert second.prompt_ids[SALT_TOKENS:].tolist() == tokenizer.chat(CHAT)
    assert (first.max_tokens, second.max_tokens) == (7, 3)
    assert first.prompt_ids[:SALT_TOKENS].tolist() == second.prompt_ids[:SALT_TOKENS].tolist()


def test_what_prompts_share_is_known_and_equal_files_are_alike(file):
    path = file({"prompt": "one two three"}, {"prompt": "one two four"})
    made = own(path)
    assert [r.ideal_reuse_tokens for r in made.requests] == [0, SALT_TOKENS + 2]
    assert made.hash == own(path, salt="t").hash


def test_as_chat_a_text_is_a_message_of_a_user(file):
    tokenizer = Words()
    path = file({"prompt": "Why?"}, {"messages": CHAT})
    made = own(path, tokenizer, chat=True)
    assert [len(r.messages) for r in made.requests] == [1, 2]
    assert [r.prompt_tokens for r in made.requests] == [
        len(tokenizer.chat(r.messages)) for r in made.requests
    ]
    assert made.hash == own(path, tokenizer, chat=True, salt="t").hash


def test_empty_lines_are_skipped_and_the_first_so_many_taken(file):
    path = file({"prompt": "a"}, b"", {"prompt": "b"}, b"{oops")
    assert [row.line for row in read_prompts(path, first=2)] == [1, 3]


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (b"{oops", "line 2 is not JSON: '{oops'; write "),
        (b"\xff\xfe", "line 2 is not JSON"),
        (b"[" * 100_000, "line 2 is not JSON"),
        ([1], "line 2: it has either prompt or messages"),
        ({}, "line 2: it has either prompt or messages"),
        ({"prompt": "a", "messages": CHAT}, "line 2: it has either prompt or messages"),
        ({"prompt": ""}, "line 2: prompt is '': it is a text that is not empty"),
        ({"prompt": 5}, "line 2: prompt is 5"),
        ({"prompt": ["a", "b"]}, "line 2: prompt is "),
        (b'{"prompt": "\\ud800"}', "line 2: prompt has half a character"),
        ({"messages": []}, "line 2: messages is no list with one message or more"),
        ({"messages": "hi"}, "line 2: messages is no list"),
        ({"messages": ["hi"]}, "line 2: a message has the role None"),
        ({"messages": [{"role": "wizard", "content": "a"}]}, "the role 'wizard'; write one of"),
        ({"messages": [{"role": "user"}]}, "line 2: content is None"),
        ({"prompt": "a", "max_tokens": 0}, "line 2: max_tokens is 0: a whole number from 1"),
        ({"prompt": "a", "max_tokens": "9"}, "line 2: max_tokens is '9'"),
        ({"prompt": "a", "max_tokens": True}, "line 2: max_tokens is True"),
        ({"prompt": "a " * 2_000}, "line 2: .* do not fit context_tokens 1000; shorten it"),
        ({"prompt": "a", "max_tokens": 999}, "line 2: 17 prompt tokens .* do not fit"),
    ],
)
def test_a_line_that_is_no_prompt_is_told_with_its_number(file, row, sentence):
    with pytest.raises(ParameterError, match=sentence) as refused:
        own(file({"prompt": "fine"}, row))
    assert "own.jsonl" in str(refused.value) and len(str(refused.value)) < 400


def test_what_is_wrong_with_the_file_itself(file, tmp_path):
    with pytest.raises(ParameterError, match="cannot be read: No such file"):
        own(str(tmp_path / "none.jsonl"))
    with pytest.raises(ParameterError, match="is empty: each line is one prompt"):
        own(file(b""))
    with pytest.raises(ParameterError, match="has 1 prompts and requests is 2"):
        own(file({"prompt": "a"}), requests=2)


def test_a_line_without_end_is_not_read_whole(file, monkeypatch):
    monkeypatch.setattr("workbench.load.prompts.MAX_LINE_BYTES", 100)
    with pytest.raises(ParameterError, match="line 1 is longer than 100 bytes"):
        own(file({"prompt": "a" * 200}))
