import pytest

from tests.load.words import Words
from workbench.errors import ParameterError
from workbench.load.catalogue import build
from workbench.load.workload.token_ids import SALT_TOKENS

CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
TOOL_CHAT = [
    {"role": "user", "content": "weather?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
]
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why is it?"}]


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


def test_a_recorded_answer_gives_its_length(file):
    turns = [{"from": "human", "value": "Hi you"}, {"from": "gpt", "value": "Hello to you too"}]
    path = file({"conversations": turns}, {"conversations": turns, "max_tokens": 2})
    assert [r.max_tokens for r in own(path).requests] == [4, 2]


def test_a_chat_with_calls_of_tools_goes_out_as_it_stands(file):
    tokenizer = Words()
    made = own(file({"messages": TOOL_CHAT, "tools": []}), tokenizer, chat=True)
    call = made.requests[0].messages[1]
    assert (call["content"], call["tool_calls"]) == ("", TOOL_CHAT[1]["tool_calls"])
    assert made.requests[0].messages[2]["tool_call_id"] == "c1"


def test_what_is_not_used_is_a_doubt_of_the_workload(file):
    made = own(file({"prompt": "a", "temperature": 0.5}, {"prompt": "b", "temperature": 0.7}))
    assert made.doubts == ("Fields of prompts_file that are not used: temperature.",)


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"prompt": "a " * 2_000}, "line 2: .* do not fit context_tokens 1000; shorten it"),
        ({"prompt": "a", "max_tokens": 999}, "line 2: 17 prompt tokens .* do not fit"),
    ],
)
def test_a_prompt_that_does_not_fit_is_told_with_its_line(file, row, sentence):
    with pytest.raises(ParameterError, match=sentence) as refused:
        own(file({"prompt": "fine"}, row))
    assert "prompts_file" in str(refused.value) and "own.jsonl" in str(refused.value)
