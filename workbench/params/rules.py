"""What the value of a parameter may be, and how a shell and YAML spell it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args, get_origin

from workbench.errors import ParameterError

_TYPES = {str: "text", int: "a whole number", float: "a number", bool: "True or False"}


@dataclass(frozen=True, slots=True)
class Rule:
    """What a value may be; `help` is what `papermill --help-notebook` shows."""

    help: str
    example: Any
    """A good value, for the messages."""
    choices: tuple[str, ...] = ()
    low: float = -math.inf
    high: float = math.inf
    mapping: bool = False
    """The text is a JSON object; YAML and a mapping are read as one."""

    def read(self, name: str, value: Any, wanted: Any) -> Any:
        """`value` as the type `wanted`, within the rule. Raises ParameterError."""
        read = _typed(_as_json(value) if self.mapping else value, wanted)
        if read is None:
            what = "a JSON object" if self.mapping else _TYPES.get(wanted, "a list")
            raise ParameterError(f"{name} is {value!r}: it takes {what}, e.g. {self.example}")
        if self.choices and read not in self.choices:
            allowed = ", ".join(filter(None, self.choices))
            raise ParameterError(f"{name} is {read!r}: write one of {allowed}")
        if wanted in (int, float) and not self.low <= read <= self.high:
            raise ParameterError(
                f"{name} is {read!r}: it is at least {self.low:,} and at most {self.high:,},"
                f" e.g. {self.example}"
            )
        return read


def param(default: Any, help: str, **rule: Any) -> Any:
    """A dataclass field with its default and its rule; the example is the default unless given."""
    metadata = {"rule": Rule(help, **{"example": default, **rule})}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def share_mistakes(shares: Sequence[float]) -> Iterator[str]:
    """Shares are inside 0 and 1, and none reads like another."""
    if any(not 0 < share < 1 for share in shares):
        yield f"shares is {shares}: each is between 0 and 1, e.g. [0.5]"
    if len({f"{share:.0%}" for share in shares}) < len(shares):
        yield f"shares is {shares}: two of them are the same percentage, e.g. [0.25, 0.5]"


def address_mistakes(**given: str | Sequence[str]) -> Iterator[str]:
    """Addresses of servers, by parameter."""
    for name, urls in given.items():
        for url in [urls] if isinstance(urls, str) else urls:
            if not url.startswith(("http://", "https://")):
                yield (
                    f"{name} is {url!r}: engine attach needs the address of a running server, e.g."
                    " http://127.0.0.1:8000"
                )


OURS = {
    "model": "model",
    "prompt": "workload",
    "messages": "api chat",
    **dict.fromkeys(("max_tokens", "max_completion_tokens"), "output_tokens"),
    **dict.fromkeys(("stream", "stream_options", "ignore_eos", "return_token_ids"), ""),
    **dict.fromkeys(("temperature", "n", "best_of", "use_beam_search", "echo"), ""),
}
"""Fields of a body that the workbench sets or relies on, and the parameter that changes them."""


def body_mistakes(text: str) -> Iterator[str]:
    """Further fields of a body: a mapping, without those that we set ourselves."""
    good = """e.g. -p extra_body '{"top_k": 1}'"""
    try:
        body = json.loads(text or "{}")
    except ValueError:
        body = None
    if not isinstance(body, dict):
        yield f"extra_body is {text!r:.80}: it takes a JSON object, {good}"
    for name in body:
        instead = OURS.get(name)
        use = f"use -p {instead}" if instead else "leave it out, it is the same in all requests"
        if instead is not None:
            yield (
                f"extra_body has {name!r}, which the workbench sets itself: {use}; other fields are"
                f" allowed, {good}"
            )


def _as_json(value: Any) -> Any:
    """A mapping, or its text in JSON or YAML, as the text of a JSON object; else as it is."""
    if isinstance(value, str) and value.strip():
        import yaml

        # JSON first: to YAML 1e-3 is a text.
        for reader, wrong in ((json.loads, ValueError), (yaml.safe_load, yaml.YAMLError)):
            try:
                read = reader(value)
            except wrong:
                continue
            if isinstance(read, dict):
                value = read
                break
    try:
        return json.dumps(value, sort_keys=True) if isinstance(value, dict) else value
    except (TypeError, ValueError):  # YAML has dates, JSON has none
        return str(value)


def _typed(value: Any, wanted: Any) -> Any:
    """`value` as `wanted`, also from `1e3`, `true`, `a,b` or `[0.5]`; None where it is none."""
    if get_origin(wanted) is list:
        (kind,) = get_args(wanted)
        items = _items(value)
        typed = None if items is None else [_typed(item, kind) for item in items]
        return None if typed is None or None in typed else typed
    if wanted is bool:
        if isinstance(value, str):
            return {"true": True, "false": False}.get(value.strip().lower())
        return value if isinstance(value, bool) else None
    if wanted in (int, float):
        number = _number(value)
        return wanted(number) if number is not None and wanted(number) == number else None
    # Papermill reads a text of digits as that number.
    return str(value) if type(value) in (str, int) else None


def _items(value: Any) -> list[Any] | None:
    if isinstance(value, str):
        # `a,b`, and what str() makes of a list
        parts = (part.strip(" '\"") for part in value.strip("[] ").split(","))
        return [part for part in parts if part]
    if isinstance(value, list | tuple):
        return list(value)
    # Papermill reads a list of one number as that number.
    return None if _number(value) is None else [value]


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
