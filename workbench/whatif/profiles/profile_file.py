"""Reads profile.json; an error says why a file is not a profile, or how it is damaged."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.errors import ParameterError, ResultError
from workbench.experiment.result.result_file import mistake_of
from workbench.params.engine_args import value_of
from workbench.params.notebooks import check_params
from workbench.params.shared import ROLE_ARGS
from workbench.serve.connectors import CONNECTORS
from workbench.whatif.profiles.fits import Fit
from workbench.whatif.profiles.profile import LOAD, SCHEMA, Profile

if TYPE_CHECKING:
    from pydantic import TypeAdapter

_AGAIN = "(example: workbench profile -p connector nixl)"
_ABSURD = 100
"""A term that alone takes this many times the longest fitted time was not fitted."""


def read_profile(path: Path | str) -> Profile:
    """Read profile.json. Raises ResultError for what is missing, not a profile, or damaged."""
    from pydantic import ValidationError

    path = Path(path)
    plain = _plain(path)
    schema = plain.get("schema")
    if schema != SCHEMA and schema is not None:
        raise ResultError(
            f"{path} must be a profile of schema {SCHEMA}, got {schema!r}; profile again {_AGAIN}"
        )
    try:
        # As JSON: a list is read as a tuple, but a number in quotes is an error.
        found = _adapter().validate_json(json.dumps(plain), strict=True)
    except ValidationError as error:
        raise _no_profile(path, mistake_of(error)) from error
    if why := next(_damage(found), ""):
        raise ResultError(f"{path} is a damaged profile: {why}; profile again {_AGAIN}")
    return found


def _plain(path: Path) -> dict[str, Any]:
    """The object in a file of JSON."""
    try:
        text = path.read_text("utf-8-sig")
    except OSError as error:
        raise ResultError(
            f"{path} cannot be read: {error.strerror}; give the file of workbench profile (example:"
            " workbench predict profile.json)"
        ) from error
    except UnicodeDecodeError as error:
        raise _no_profile(path, f"it is not text in UTF-8 (byte {error.start:,})") from error
    if not text.strip():
        raise _no_profile(path, "it is empty")
    try:
        plain = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _no_profile(path, f"it is not valid JSON ({error})") from error
    if not isinstance(plain, dict):
        raise _no_profile(path, f"it must hold a JSON object, got {text.strip()[:20]!r}")
    return plain


def _no_profile(path: Path, cause: str) -> ResultError:
    return ResultError(f"{path} is not a profile: {cause}; workbench profile writes one {_AGAIN}")


@cache
def _adapter() -> TypeAdapter[Profile]:
    from pydantic import TypeAdapter

    return TypeAdapter(Profile)


def _damage(profile: Profile) -> Iterator[str]:
    """What a prediction needs that is missing or wrong here. Only the first is reported."""
    roles = ("prefill", "decode", "aggregated")
    for what, has, wants in (
        ("parameters", profile.parameters, ("engine", "connector", *LOAD)),
        ("machine", profile.machine, ("cpu", "cores", "gpus", "platform")),
        ("kv_tokens", profile.kv_tokens, roles),
    ):
        if absent := [name for name in wants if name not in has]:
            yield f"{what} has no {absent[0]}"
            return
    try:
        check_params("pd_sweep", profile.parameters)
    except ParameterError as error:
        yield f"its parameters are wrong ({error})"
    if unknown := profile.machine.keys() - {"cpu", "cores", "gpus", "platform"}:
        yield f"machine has an unknown field {min(unknown)}"
    yield from _contradictions(profile)
    yield from _against_commands(profile)
    (longest, batch) = (profile.prefill.ranges.get("tokens"), profile.decode.ranges)
    largest = {
        "tokens": longest and longest[1], "pairs": longest and longest[1] ** 2 / 2,
        "sequences": batch.get("batch", (0, 0))[1], "kv_tokens": batch.get("kv_tokens", (0, 0))[1],
        "bytes": profile.transfer.ranges.get("bytes", (0, 0))[1],
    }  # fmt: skip
    for what, one, terms, inputs in (
        ("prefill", profile.prefill, ("steps", "tokens", "pairs"), ("tokens",)),
        ("decode", profile.decode, ("steps", "sequences", "kv_tokens"), ("batch", "kv_tokens")),
        ("transfer", profile.transfer, ("transfers", "bytes", "others"), ("bytes", "others")),
    ):
        sizes = {len(one.terms), len(one.coefficients), *map(len, one.resamples)}
        points = {len(one.measured_s), len(one.fitted_s)}
        if not {*terms} <= {*one.terms} or not {*inputs} <= one.ranges.keys():
            yield f"its fit of {what} lacks a term or a range"
        elif len(sizes) > 1 or not one.resamples or len(points) > 1 or 0 in points:
            yield f"its fit of {what} lacks coefficients or points"
        else:
            yield from (f"its fit of {what} {why}" for why in _of_fit(one, largest))
    if not profile.overheads_s:
        yield "overheads_s is empty"
    for name in ("step_tokens", "step_sequences", "block_tokens", "kv_bytes_per_token"):
        if (value := getattr(profile, name)) <= 0:
            yield f"{name} must be above 0, got {value:g}"
    for role in roles:
        if (tokens := profile.kv_tokens[role]) < 1:
            yield f"kv_tokens of {role} must be at least 1, got {tokens:,}"
    if min(profile.lone_ttft_s) <= 0:
        yield f"lone_ttft_s must be above 0, got {min(profile.lone_ttft_s):g}"


def _contradictions(profile: Profile) -> Iterator[str]:
    """Fields that contradict the parameters or the machine of the run."""
    engine, given = profile.parameters["engine"], profile.parameters["connector"]
    platform = profile.machine["platform"]
    for whose, has in (("parameters have engine", engine), ("machine has platform", platform)):
        if profile.simulated != (has == "simulated"):
            yield f"simulated is {str(profile.simulated).lower()}, but its {whose}={has}"
    if profile.connector != given:
        yield f"connector is {profile.connector}, but its parameters have connector={given}"
    elif profile.connector not in CONNECTORS:
        yield f"connector must be one of {', '.join(CONNECTORS)}, got {profile.connector!r}"


def _against_commands(profile: Profile) -> Iterator[str]:
    """Parameters that the command lines of vLLM do not have."""
    lines = [tuple(shlex.split(line)) for line in profile.command_lines]
    lines = [words for words in lines if "--max-model-len" in words]
    given = profile.parameters
    wanted = [("context_tokens", "--max-model-len"), ("dtype", "--dtype")]
    for name, flag in wanted if lines else ():
        has, value = value_of(lines[0], flag), str(given.get(name, "auto"))
        if value not in ("auto", has):
            said = f"{flag} {has}" if has else f"no {flag}"
            yield f"its parameters have {name}={value}, but its command lines have {said}"
    for name in ("engine_args", *ROLE_ARGS) if lines else ():
        words = shlex.split(str(given.get(name, "")))
        if lost := [word for word in words if not any(word in line for line in lines)]:
            yield f"its parameters have {name} {lost[0]}, but its command lines do not"


def _of_fit(one: Fit, largest: Mapping[str, float | None]) -> Iterator[str]:
    """Coefficients and ranges that no fit could have: each term is a part of the fitted times."""
    for name, (low, high) in one.ranges.items():
        if not 0 <= low <= high:
            yield f"has the range {low:g} to {high:g} of {name}"
    longest_s = max(one.fitted_s)
    every = np.array([one.coefficients, *one.resamples])
    for term, values in zip(one.terms, every.T, strict=True):
        if values.min() < 0:
            yield f"has a negative coefficient of {term} ({values.min():g})"
        elif term in ("waits", "others"):  # of which the profile has no largest value
            if values.max() > _ABSURD:
                yield f"has an absurd coefficient of {term} ({values.max():g})"
        elif values.max() * (largest.get(term) or 1.0) > _ABSURD * longest_s:
            yield f"has an absurd coefficient of {term} ({values.max():g})"
    if min(*one.measured_s, *one.fitted_s) < 0:
        yield "has a negative time"
