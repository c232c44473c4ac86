"""Text to token ids as the server will make them: exact counts before anything is sent."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any, Protocol

from workbench.errors import ParameterError

Messages = Sequence[Mapping[str, Any]]
"""What was said in a chat, in order: `{"role": "user", "content": "..."}`, perhaps with calls of
tools."""


class Tokenizer(Protocol):
    """What prompts of text are made with. A pretended engine brings its own."""

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without special ones around it."""
        ...

    def chat(self, messages: Messages) -> list[int]:
        """The ids of a chat as the server's template writes it, up to where the answer begins."""
        ...

    @property
    def words(self) -> Sequence[str]:
        """Texts that are one token each, whatever other word stands before them; all differ."""
        ...


class TextTokenizer(Tokenizer, Protocol):
    """A tokenizer that can write, too."""

    def completion(self, text: str) -> list[int]:
        """The ids that a server makes of a prompt of text, its special ones included."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of these ids."""
        ...


class ModelTokenizer:
    """The tokenizer in a model's folder, by the library that vLLM itself uses."""

    def __init__(self, tokenizer: Any, name: str) -> None:
        self._tokenizer, self._name = tokenizer, name

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids

    def completion(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))

    def chat(self, messages: Messages) -> list[int]:
        """Raises ParameterError where the model has no template, or one that refuses these."""
        try:
            text = self._tokenizer.apply_chat_template(
                [_for_template(message) for message in messages],
                add_generation_prompt=True,
                tokenize=False,
            )
        except Exception as error:  # templates raise what they like
            reason = " ".join(str(error).split())[:200]
            raise ParameterError(
                f"the chat template of {self._name} cannot write these messages: {reason}"
            ) from error
        return self.encode(text)

    @cached_property
    def words(self) -> tuple[str, ...]:
        known = self._tokenizer.get_vocab()
        found = []
        for piece, number in sorted(known.items(), key=lambda item: item[1]):
            # Byte-level models write the space in front of a word as Ġ, SentencePiece as ▁.
            if piece[:1] in "Ġ▁" and piece[1:].isascii() and piece[1:].isalpha():
                word = f" {piece[1:]}"
                if self.encode(f" x{word}")[-1:] == [number]:
                    found.append(word)
        return tuple(found)


def _for_template(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message as the server gives it to the template: the arguments of calls are no text then."""
    calls = message.get("tool_calls")
    if not isinstance(calls, list):
        return dict(message)
    return {**message, "tool_calls": [_parsed(call) for call in calls]}


def _parsed(call: Any) -> Any:
    try:
        arguments = json.loads(call["function"]["arguments"])
    except (KeyError, TypeError, ValueError):
        return call
    return {**call, "function": {**call["function"], "arguments": arguments}}


@lru_cache(maxsize=4)
def model_tokenizer(model: str) -> ModelTokenizer:
    """The tokenizer of a model folder or hub name; seconds at the first call.

    Raises ParameterError where there is none.
    """
    try:
        from transformers import AutoTokenizer

        return ModelTokenizer(AutoTokenizer.from_pretrained(model), model)
    except ImportError as error:
        raise ParameterError(
            f"prompts of text need {error.name or 'transformers'}, which comes with vLLM; install"
            " the engine, or take a workload of token ids such as reference"
        ) from error
    except Exception as error:  # transformers and the hub raise many kinds
        reason = " ".join(str(error).split())[:200]
        raise ParameterError(
            f"model {model!r} has no tokenizer that can be read ({reason}); prompts of text need"
            " one, e.g. -p model /models/Qwen2.5-7B-Instruct (engine attach: -p tokenizer)"
        ) from error
