import pytest

from tests.load.words import Words
from workbench.errors import ParameterError
from workbench.load.catalogue import build
from workbench.load.files.prompts import read_prompts
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
    assert made.doubts == ("Unused fields in prompts_file: temperature.",)


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (
            {"prompt": "a " * 2_000},
            r"line 2: 2,017 prompt tokens .* exceed context_tokens .1,000.\. Shorten",
        ),
        (
            {"prompt": "a", "max_tokens": 999},
            "line 2: 17 prompt tokens .* 999 output tokens exceed",
        ),
    ],
)
def test_a_prompt_that_does_not_fit_is_told_with_its_line(file, row, sentence):
    with pytest.raises(ParameterError, match=sentence) as refused:
        own(file({"prompt": "fine"}, row))
    assert "prompts_file" in str(refused.value) and "own.jsonl" in str(refused.value)


def test_empty_lines_are_skipped_and_the_first_so_many_taken(file):
    path = file({"prompt": "a"}, b"", {"prompt": "b"}, b"{oops")
    assert [row.line for row in read_prompts(path, first=2).prompts] == [1, 3]


@pytest.mark.parametrize(
    "name",
    [
        "max_tokens", "max_completion_tokens", "max_new_tokens", "output_tokens", "output_length",
        "output_len",
    ],
)  # fmt: skip
def test_the_length_of_an_answer_is_used_under_each_of_its_names(name, file):
    own = read_prompts(file({"prompt": "Tell me", name: 12}, {"prompt": "b", name: 3.0}))
    assert [row.max_tokens for row in own.prompts] == [12, 3]
    assert own.doubts == ()
    with pytest.raises(ParameterError, match=f"line 1: {name} must be an integer .*, got '12'"):
        read_prompts(file({"prompt": "Tell me", name: "12"}))


def test_lengths_that_contradict_one_another_are_refused(file):
    assert read_prompts(file({"prompt": "a", "max_tokens": 5, "output_len": 5})).prompts
    with pytest.raises(
        ParameterError, match="one output length, got max_tokens 5 and output_len 6"
    ):
        read_prompts(file({"prompt": "a", "max_tokens": 5, "output_len": 6}))


def test_rows_without_a_length_beside_others_with_one_are_counted(file):
    own = read_prompts(file({"prompt": "a", "output_len": 5}, {"prompt": "b"}, {"prompt": "c"}))
    assert own.doubts == (
        "2 of 3 prompts in prompts_file have no output length, so they use output_tokens.",
    )


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "Hello", "messages": None}, "Hello"),
        ({"text_input": "Hello"}, "Hello"),
        ({"text": "Hello"}, "Hello"),
        ({"messages": CHAT}, CHAT),
        ({"prompt": CHAT}, CHAT),
        ({"body": {"messages": CHAT}}, CHAT),
        ({"body": {"prompt": "Hello"}}, "Hello"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hello"}, "you"]}]},
            [{"role": "user", "content": "Hello\nyou"}],
        ),
        (
            {"messages": [{"role": "system", "content": ""}, {"role": "user", "content": "Hello"}]},
            [{"role": "system", "content": ""}, {"role": "user", "content": "Hello"}],
        ),
        ({"conversations": [{"from": "human", "value": "Hello"}]}, "Hello"),
        (
            {
                "conversations": [
                    {"from": "system", "value": "Be brief."},
                    {"from": "human", "value": "Why is it?"},
                ]
            },
            CHAT,
        ),
    ],
)
def test_the_forms_of_other_tools_are_read(row, said, file):
    (own,) = read_prompts(file(row)).prompts
    assert (own.prompt or list(own.messages)) == said


def test_a_batch_asks_for_what_its_body_says(file):
    body = {"model": "m", "messages": CHAT, "max_completion_tokens": 8, "tools": [{}]}
    own = read_prompts(file({"custom_id": "r1", "url": "/v1/chat/completions", "body": body}))
    assert own.prompts[0].max_tokens == 8
    assert own.doubts == (
        "Tools in prompts_file are not sent, so the prompts are shorter than with them.",
        "Unused fields in prompts_file: custom_id, model, url.",
    )


def test_of_a_long_conversation_the_first_question_is_sent_and_that_is_told(file):
    names = ("human", "gpt", "human", "gpt")
    turns = [{"from": name, "value": str(n)} for n, name in enumerate(names)]
    own = read_prompts(file({"id": "a", "conversations": turns}))
    assert (own.prompts[0].prompt, own.prompts[0].answer) == ("0", "1")
    assert own.doubts[0].startswith("Only the first question")


def test_of_turns_without_names_the_first_is_the_question(file):
    """As in the files of SGLang's benchmark."""
    turns = [{"content": "Hello"}, {"content": "Hi there"}]
    (own,) = read_prompts(file({"conversations": turns})).prompts
    assert (own.prompt, own.answer) == ("Hello", "Hi there")


def test_a_recorded_answer_among_the_messages_is_part_of_the_prompt_and_told(file):
    own = read_prompts(file({"messages": [*CHAT, {"role": "assistant", "content": "Because."}]}))
    assert len(own.prompts[0].messages) == 3
    assert "1 of 1 prompts in prompts_file end with an assistant message" in own.doubts[0]


def test_an_array_and_a_table_are_read_too(file):
    whole = read_prompts(file([{"prompt": "Hello"}, {"prompt": "there", "output_len": 4}]))
    assert [(row.prompt, row.max_tokens) for row in whole.prompts] == [("Hello", 0), ("there", 4)]
    table = read_prompts(file(b'prompt,output_tokens\n"5, or so",12\nsix,\n'))
    assert [(row.prompt, row.max_tokens) for row in table.prompts] == [("5, or so", 12), ("six", 0)]


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (b"{oops", "line 2 is not valid JSON: '{oops' .example: "),
        ([1], r"line 2 must be a JSON object, got \[1\]"),
        ({}, "line 2: the row must have prompt or messages, got {}"),
        ({"turns": ["a"], "id": 5}, "must have prompt or messages, got 'turns, id'"),
        ({"input_length": 9}, "got 'input_length'. For a trace use -p workload trace"),
        ({"prompt": "a", "messages": CHAT}, "must have one of prompt and messages, got both"),
        ({"prompt": ""}, "line 2: prompt must be non-empty text, got ''"),
        ({"prompt": 5}, "line 2: prompt must be non-empty text, got 5"),
        ({"prompt": ["a", "b"]}, "line 2: prompt must be non-empty text, got .'a'"),
        (b'{"prompt": "\\ud800"}', "line 2: prompt must be valid Unicode"),
        ({"messages": []}, "line 2: messages must be a list of at least one message"),
        ({"messages": "hi"}, "line 2: messages must be a list"),
        ({"messages": ["hi"]}, "line 2: role of message 1 must be one of system, .*, got None"),
        (
            {"messages": [*CHAT, {"role": "wizard", "content": "a"}]},
            "role of message 3 .*, got 'wiz",
        ),
        ({"messages": [{"role": "user"}]}, "line 2: content of message 1 is missing"),
        (
            {"messages": [{"role": "user", "content": ""}]},
            "line 2: at least one message must have text",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "content of message 1 must be text, got a part of type 'image_url'",
        ),
        ({"conversations": [{"from": "gpt", "value": "a"}]}, "conversations must have a question"),
        ({"conversations": [{"from": "cat", "value": "a"}]}, "turn 1 .* human, .*, got 'cat"),
        ({"body": 5}, "line 2: body must be a JSON object, got 5"),
        ({"body": {"body": {}}}, "line 2: body must not hold another body"),
        (
            {"prompt": "a", "max_tokens": 0},
            "line 2: max_tokens must be an integer of at least 1, got 0",
        ),
        ({"prompt": "a", "max_tokens": True}, "line 2: max_tokens must be an integer .*, got True"),
    ],
)
def test_a_line_that_is_no_prompt_is_told_with_its_number(file, row, sentence):
    with pytest.raises(ParameterError, match=sentence) as refused:
        read_prompts(file({"prompt": "fine"}, row))
    assert "prompts_file" in str(refused.value) and "own.jsonl" in str(refused.value)
    assert len(str(refused.value)) < 400 and len(str(refused.value).split()) <= 45


def test_what_is_wrong_with_the_file_itself(file, tmp_path):
    with pytest.raises(ParameterError, match="cannot be read: No such file"):
        read_prompts(tmp_path / "none.jsonl")
    with pytest.raises(ParameterError, match=r"has no prompts .example of a line"):
        read_prompts(file(b""))
    with pytest.raises(ParameterError, match=r"requests must be at most 1 .the prompts .* got 2"):
        read_prompts(file({"prompt": "a"}), first=2)
