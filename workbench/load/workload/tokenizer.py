"""Text to token ids as the server makes them: exact counts before anything is sent."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any, Protocol

from workbench.errors import ParameterError

Messages = Sequence[Mapping[str, Any]]
"""Chat messages in order: `{"role": "user", "content": "..."}`, possibly with tool calls."""


class Tokenizer(Protocol):
    """What text prompts are made with. The simulated engine has its own."""

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without special tokens."""
        ...

    def chat(self, messages: Messages) -> list[int]:
        """The ids of a chat after templating, with the generation prompt."""
        ...

    @property
    def words(self) -> Sequence[str]:
        """Different words that are one token each after any other word."""
        ...


class TextTokenizer(Tokenizer, Protocol):
    """A tokenizer that can also decode."""

    def completion(self, text: str) -> list[int]:
        """The ids that a server makes of a text prompt, special tokens included."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of these ids."""
        ...


class ModelTokenizer:
    """A model's tokenizer, read by the library that vLLM uses."""

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
        """Raises ParameterError if the model has no chat template, or one that fails."""
        try:
            text = self._tokenizer.apply_chat_template(
                [_for_template(message) for message in messages],
                add_generation_prompt=True,
                tokenize=False,
            )
        except Exception as error:  # templates raise what they like
            reason = " ".join(str(error).split())[:200]
            raise ParameterError(
                f"api chat needs a chat template that accepts these messages, got {reason!r} from"
                f" {self._name} (example: -p api completions)"
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
    """A message as the server passes it to the template: with parsed tool-call arguments."""
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
    """The tokenizer of a model folder or hub name; takes seconds at the first call.

    Raises ParameterError if it cannot be read.
    """
    try:
        from transformers import AutoTokenizer

        return ModelTokenizer(AutoTokenizer.from_pretrained(model), model)
    except ImportError as error:
        raise ParameterError(
            f"text prompts need the package {error.name or 'transformers'}; run pip install"
            " transformers, or use token ids (example: -p workload reference)"
        ) from error
    except Exception as error:  # transformers and the hub raise many kinds
        reason = " ".join(str(error).split())[:200]
        raise ParameterError(
            f"model (engine attach: tokenizer) must have a readable tokenizer, got {model!r}:"
            f" {reason} (example: -p model /models/Qwen2.5-7B-Instruct)"
        ) from error
