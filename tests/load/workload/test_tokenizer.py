from __future__ import annotations

from typing import Any

from workbench.load.workload.tokenizer import ModelTokenizer


class Template:
    """A model's tokenizer that keeps what its template was given."""

    given: list[dict[str, Any]]

    def apply_chat_template(self, messages: list[dict[str, Any]], **_: Any) -> str:
        self.given = messages
        return "text"

    def encode(self, text: str, **_: Any) -> list[int]:
        return [len(text)]


def called(arguments: str) -> dict[str, Any]:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    return {"role": "assistant", "content": "", "tool_calls": [call]}


def test_a_template_gets_the_arguments_of_calls_as_the_server_would_give_them() -> None:
    template = Template()
    user = {"role": "user", "content": "weather?"}
    message = called('{"city": "Bern"}')
    assert ModelTokenizer(template, "model").chat((user, message)) == [4]
    assert template.given[0] == user
    assert template.given[1]["tool_calls"][0]["function"]["arguments"] == {"city": "Bern"}
    assert message["tool_calls"][0]["function"]["arguments"] == '{"city": "Bern"}'


def test_arguments_that_are_no_json_stay_as_they_are() -> None:
    template = Template()
    ModelTokenizer(template, "model").chat((called("{oops"),))
    assert template.given[0]["tool_calls"][0]["function"]["arguments"] == "{oops"
