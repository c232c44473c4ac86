"""Which values a parameter may have, and how a shell and YAML write them."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, get_args, get_origin

from workbench.errors import ParameterError, must_be, needs, taken

_TYPES = {
    str: "a string",
    int: "an integer",
    float: "a number",
    bool: "True or False",
    list[str]: "a list of strings",
    list[int]: "a list of integers",
    list[float]: "a list of numbers",
}


@dataclass(frozen=True, slots=True)
class Rule:
    """Which values are allowed; `papermill --help-notebook` shows `help`."""

    help: str
    example: Any
    """A good value, for error messages."""
    choices: tuple[str, ...] = ()
    low: float = -math.inf
    high: float = math.inf
    mapping: bool = False
    """The text is a JSON object; YAML and a mapping are converted to one."""
    listed: bool = False
    """With `mapping`: comma-separated names, or a list, are allowed too; their order counts."""
    words: bool = False
    """The text is as in a shell; a list of words, or a mapping of variables, is written so."""

    def read(self, name: str, value: Any, wanted: Any) -> Any:
        """`value` as the type `wanted`, within the rule. Raises ParameterError."""
        if self.words:
            value = _as_words(value)
        if self.mapping:
            value = _as_json(value, listed=self.listed)
        read = _typed(value, wanted)
        allowed, got = "", read
        if read is None:
            allowed, got = "a JSON object" if self.mapping else _TYPES[wanted], value
            allowed = "a list of names, or a mapping of them" if self.listed else allowed
        elif self.choices and read not in self.choices:
            allowed = f"one of {', '.join(filter(None, self.choices))}"
        elif wanted in (int, float) and not self.low <= read <= self.high:
            allowed = f"between {self.low:,.9g} and {self.high:,.9g}"
        if allowed:
            raise ParameterError(must_be(name, allowed, got, self.example))
        return read


def param(default: Any, help: str, **rule: Any) -> Any:
    """A dataclass field with its default and its rule; the example is the default unless given."""
    metadata = {"rule": Rule(help, **{"example": default, **rule})}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def share_mistakes(shares: Sequence[float]) -> Iterator[str]:
    """Fractions are between 0 and 1, and no two round to the same percentage."""
    if not all(0 < share < 1 for share in shares):
        yield must_be("shares", "fractions above 0 and below 1", shares, [0.25, 0.5])
    for share, other in combinations(shares, 2):
        if f"{share:.0%}" == f"{other:.0%}":
            allowed = f"different percentages ({share} and {other} both round to {share:.0%})"
            yield must_be("shares", allowed.replace("%", " %"), shares, [0.25, 0.5])


def address_mistakes(**given: str | Sequence[str]) -> Iterator[str]:
    """URLs of running servers, by parameter."""
    for name, urls in given.items():
        each = name if isinstance(urls, str) else f"each entry of {name}"
        for url in [urls] if isinstance(urls, str) else urls:
            if not url:
                yield needs("engine=attach", name, url, "http://127.0.0.1:8000")
            elif not url.startswith(("http://", "https://")):
                allowed = "an http:// or https:// URL"
                yield must_be(each, allowed, url, f"-p {name} http://127.0.0.1:8000")
            elif "@" in url:
                yield (
                    f"{each} must not contain a user or password, which results would show"
                    f" (example: -p {name} http://127.0.0.1:8000)"
                )


OURS = {
    "model": "model",
    "prompt": "workload",
    "messages": "api chat",
    **dict.fromkeys(("max_tokens", "max_completion_tokens"), "output_tokens"),
    **dict.fromkeys(("stream", "stream_options", "ignore_eos", "return_token_ids"), ""),
    **dict.fromkeys(("temperature", "n", "best_of", "use_beam_search", "echo"), ""),
}
"""Body fields that the workbench sets or relies on, and the parameter to use instead, if any."""


def body_mistakes(text: str) -> Iterator[str]:
    """Extra body fields: a JSON object without the fields that the workbench sets."""
    example = '{"top_k": 1}'
    try:
        body = json.loads(text or "{}")
    except ValueError:
        body = None
    if not isinstance(body, dict):
        yield must_be("extra_body", "a JSON object", text, example)
    for name in body:
        if name in OURS:
            yield taken("extra_body", repr(name), body, instead=OURS[name], example=example)


def _as_words(value: Any) -> Any:
    """A list of words or a mapping of variables as a shell would write it."""
    if isinstance(value, dict):
        value = [f"{name}={item}" for name, item in value.items()]
    return shlex.join(map(str, value)) if isinstance(value, list) else value


def _as_json(value: Any, *, listed: bool) -> Any:
    """A mapping, or its text in JSON or YAML, as JSON text; anything else unchanged.

    Keys are sorted unless their order counts (`listed`); a list of names is then one too.
    """
    if listed and isinstance(value, list):
        return ",".join(map(str, value))
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
        return json.dumps(value, sort_keys=not listed) if isinstance(value, dict) else value
    except (TypeError, ValueError):  # YAML has dates, JSON has none
        return str(value)


def _typed(value: Any, wanted: Any) -> Any:
    """`value` as `wanted`, also from `1e3`, `true`, `a,b` or `[0.5]`; None if it is not one."""
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
