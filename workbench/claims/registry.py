"""Reads the claims of params/claims/*.yaml and says what is wrong with them, one sentence each."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.claims.claim import (
    CHECKS,
    CONFIRMATIONS,
    EVIDENCE,
    LEVELS,
    LIMITS,
    PHASES,
    QUANTIFIERS,
    STATES,
    UNITS,
    VERDICTS,
    Bound,
    Check,
    Claim,
    Effect,
    Evidence,
    Source,
)
from workbench.claims.sums import KINDS, unreadable
from workbench.errors import ParameterError, nearest

__all__ = ["Registry", "read_registry"]

_FIELDS: dict[str, type] = {
    "id": str, "statement": str, "metric": str, "effects": list, "subject": str,
    "comparator": str, "level": str, "phase": str, "hardware": str, "model": str,
    "workload": dict, "software": object, "evidence": dict, "checks": dict, "source": dict,
    "bounds": list, "figures": object, "note": str, "test": dict, "expected_verdict": str,
    "arithmetic": list,
}  # fmt: skip
_WORDS: dict[type, str] = {str: "text", list: "a list", dict: "named values"}
_OPTIONAL = {"arithmetic", "bounds", "figures", "note", "software", "expected_verdict", "test"}
_NULLABLE = {"comparator", "hardware", "model", "workload", "software", "figures"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Registry:
    """The claims that could be read, and a sentence for each mistake in the others."""

    claims: dict[str, Claim]
    mistakes: tuple[str, ...] = ()

    def claim(self, claim_id: str) -> Claim:
        """That claim; ParameterError with the nearest id if there is none."""
        if claim_id not in self.claims:
            raise ParameterError(
                f"claim {claim_id!r} is not known: {nearest(claim_id, self.claims)}"
            )
        return self.claims[claim_id]

    @property
    def published(self) -> tuple[Claim, ...]:
        """The claims that somebody has published, without our own."""
        return tuple(claim for claim in self.claims.values() if not claim.source.own)

    def group(self, name: str) -> tuple[Claim, ...]:
        """The claims of one source, in the order of its file."""
        return tuple(claim for claim in self.claims.values() if claim.source.group == name)

    @property
    def groups(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(claim.source.group for claim in self.claims.values()))


class _MistakeError(Exception):
    """A field and the rule that it breaks."""


def read_registry(folder: Path) -> Registry:
    """Every claim of the YAML files in `folder`; a claim with a mistake is left out and named."""
    import yaml

    claims: dict[str, Claim] = {}
    found_in: dict[str, str] = {}
    mistakes: list[str] = []
    paths = sorted(folder.glob("*.yaml"))
    if not paths:
        mistakes.append(
            f"{folder}: no YAML file is in it; a claim is written as docs/claims.md says"
        )
    for path in paths:
        try:
            content = yaml.safe_load(path.read_text("utf-8"))
            group, entries = _group(path.stem, content)
        except (OSError, ValueError, yaml.YAMLError) as error:
            mistakes.append(f"{path.name}: cannot be read as YAML: {' '.join(str(error).split())}")
            continue
        except _MistakeError as error:
            mistakes.append(f"{path.name}: {error}")
            continue
        for number, entry in enumerate(entries, 1):
            name = entry.get("id") if isinstance(entry, dict) else None
            where = f"{path.name}: {name or f'claim number {number}'}"
            try:
                claim = _claim(group, entry)
                if claim.id in claims:
                    raise _MistakeError(
                        f"id is also that of a claim in {found_in[claim.id]}; an id is used once"
                    )
            except _MistakeError as error:
                mistakes.append(f"{where}: {error}")
                continue
            claims[claim.id], found_in[claim.id] = claim, path.name
    return Registry(claims=claims, mistakes=tuple(mistakes))


def _group(name: str, content: Any) -> tuple[dict[str, Any], list[Any]]:
    if not isinstance(content, dict) or not isinstance(content.get("claims"), list):
        raise _MistakeError("claims is missing; a file has `source:` and a list `claims:`")
    source = content.get("source")
    if not isinstance(source, dict):
        raise _MistakeError("source is missing; it has title, ref and, if so, withdrawn")
    _known("source", source, {"title", "ref", "withdrawn", "own"}, needed={"title", "ref"})
    for key, value in source.items():
        if key == "own":
            if not isinstance(value, bool):
                raise _MistakeError(f"source.own is {value!r}; it takes true or false")
        else:
            _text(f"source.{key}", value)
    return {"group": name, **source}, content["claims"]


def _claim(group: dict[str, Any], entry: Any) -> Claim:
    if not isinstance(entry, dict):
        raise _MistakeError("it is not a list of fields; write lines such as `id: MY-CLAIM`")
    _known("", entry, set(_FIELDS), needed=set(_FIELDS) - _OPTIONAL)
    for name, value in entry.items():
        kind = _FIELDS[name]
        if value is None and name in _NULLABLE:
            continue
        if not isinstance(value, kind) or value == "":
            raise _MistakeError(f"{name} is {value!r}; it takes {_WORDS.get(kind, 'a value')}")
    for name, words in (("level", LEVELS), ("phase", PHASES), ("expected_verdict", VERDICTS)):
        if name in entry:
            _one_of(name, entry[name], words)
    for name, value in (entry["workload"] or {}).items():
        if value is None:
            raise _MistakeError(f"workload.{name} has no value; quote a text that holds a comma")
    effects = tuple(_effect(i, effect) for i, effect in enumerate(entry["effects"], 1))
    _effects_fit(effects, entry["comparator"])
    return Claim(
        **{
            **entry,
            "workload": entry["workload"] or {},
            "software": entry.get("software"),
            "effects": effects,
            "evidence": _evidence(entry["evidence"]),
            "checks": {name: _check(name, check) for name, check in entry["checks"].items()},
            "bounds": tuple(_bound(i, bound) for i, bound in enumerate(entry.get("bounds", []), 1)),
            "arithmetic": tuple(
                _sum(i, each) for i, each in enumerate(entry.get("arithmetic", []), 1)
            ),
            "source": _source(group, entry["source"]),
            "test": {key: str(value) for key, value in entry.get("test", {}).items()},
        }
    )


def _effect(number: int, effect: Any) -> Effect:
    where = f"effects[{number}]"
    fields = {"name", "quantifier", "type", "unit", "value", "high", "margin"}
    _known(where, effect, fields, needed=fields - {"high", "margin"})
    _one_of(f"{where}.quantifier", effect["quantifier"], QUANTIFIERS)
    _one_of(f"{where}.type", effect["type"], tuple(UNITS))
    if effect["unit"] not in UNITS[effect["type"]]:
        units = ", ".join(UNITS[effect["type"]])
        raise _MistakeError(
            f"{where}.unit is {effect['unit']!r}; an effect of type {effect['type']}"
            f" is written in one of {units}"
        )
    if effect["type"] == "boolean":
        if not isinstance(effect["value"], bool) or effect["quantifier"] != "exact":
            raise _MistakeError(
                f"{where}.value is {effect['value']!r}; a boolean is exact, and true or false"
            )
    else:
        _number(f"{where}.value", effect["value"])
    _text(f"{where}.name", effect["name"])
    for name in ("high", "margin"):
        if effect.get(name) is not None:
            _number(f"{where}.{name}", effect[name])
    if effect["quantifier"] == "range":
        _number(f"{where}.high", effect.get("high"))
        if effect["high"] < effect["value"]:
            raise _MistakeError(f"{where}.high is {effect['high']}; it is at least value")
    if effect["quantifier"] == "unchanged":
        _number(f"{where}.margin", effect.get("margin"))
        if not 0 < effect["margin"] < 1:
            raise _MistakeError(f"{where}.margin is {effect['margin']}; it is between 0 and 1")
    return Effect(**effect)


def _effects_fit(effects: tuple[Effect, ...], comparator: str | None) -> None:
    if not effects:
        raise _MistakeError("effects is empty; a claim says at least one number, or yes or no")
    names = [effect.name for effect in effects]
    if len(set(names)) < len(names):
        raise _MistakeError("effects have one name twice; each part has a name of its own")
    for effect in effects:
        if effect.type in ("ratio", "percent_change") and comparator is None:
            raise _MistakeError(
                f"comparator is missing: effect {effect.name!r} is a {effect.type}; name what it"
                " is compared with, or write unstated if the source does not say"
            )


def _evidence(evidence: dict[str, Any]) -> Evidence:
    _known("evidence", evidence, {"kind", "contradicted_by"}, needed={"kind"})
    _one_of("evidence.kind", evidence["kind"], EVIDENCE)
    _text("evidence.contradicted_by", evidence.get("contradicted_by", "-"))
    return Evidence(**evidence)


def _check(name: str, check: Any) -> Check:
    if name not in CHECKS:
        raise _MistakeError(f"checks.{name} is not known: {nearest(str(name), CHECKS)}")
    _known(f"checks.{name}", check, {"state", "why"}, needed={"state", "why"})
    _one_of(f"checks.{name}.state", check["state"], STATES)
    _text(f"checks.{name}.why", check["why"])
    return Check(**check)


def _bound(number: int, bound: Any) -> Bound:
    where = f"bounds[{number}]"
    _known(where, bound, {"limit", "gpu", "gpus", "model", "value"}, needed={"limit", "gpu"})
    _one_of(f"{where}.limit", bound["limit"], LIMITS)
    if bound["limit"] != "memory_fit":
        _number(f"{where}.value", bound.get("value"))
    for name in {"gpu", "model"} & set(bound):
        _text(f"{where}.{name}", bound[name])
    gpus = bound.get("gpus", 1)
    if type(gpus) is not int or gpus < 1:
        raise _MistakeError(f"{where}.gpus is {gpus!r}; it takes a whole number of at least 1")
    return Bound(**bound)


def _sum(number: int, entry: Any) -> dict[str, Any]:
    where = f"arithmetic[{number}]"
    kind = entry.get("kind") if isinstance(entry, dict) else entry
    if not isinstance(entry, dict) or not isinstance(kind, str) or kind not in KINDS:
        raise _MistakeError(f"{where}.kind is {kind!r}; write one of {', '.join(KINDS)}")
    fields = {"kind", "unit", "factor", *KINDS[entry["kind"]]}
    _known(where, entry, fields, needed=fields - {"unit", "factor"})
    for name, value in unreadable(entry):
        raise _MistakeError(f"{where}.{name} is {value!r}; it takes a number as published, quoted")
    return entry


def _source(group: dict[str, Any], source: dict[str, Any]) -> Source:
    fields = {"location", "confirmation", "how", "ref"}
    _known("source", source, fields, needed=fields - {"ref"})
    _one_of("source.confirmation", source["confirmation"], CONFIRMATIONS)
    for name, value in source.items():
        _text(f"source.{name}", value)
    return Source(**{**group, **source})


def _known(where: str, value: Any, fields: set[str], *, needed: set[str]) -> None:
    """Raises unless `value` has all `needed` fields and none that is not in `fields`."""
    if not isinstance(value, dict):
        raise _MistakeError(f"{where} is {value!r}; it takes {', '.join(sorted(needed))}")
    dot = f"{where}." if where else ""
    if missing := sorted(needed - set(value)):
        names = ", ".join(f"{dot}{name}" for name in missing)
        verb, them = ("is", "it") if len(missing) == 1 else ("are", "them")
        raise _MistakeError(f"{names} {verb} missing; every claim has {them}")
    for name in value:
        if name not in fields:
            raise _MistakeError(f"{dot}{name} is not known: {nearest(str(name), fields)}")


def _one_of(name: str, value: Any, words: tuple[str, ...]) -> None:
    if value not in words:
        raise _MistakeError(f"{name} is {value!r}; write one of {', '.join(words)}")


def _text(name: str, value: Any) -> None:
    if not isinstance(value, str) or not value.strip():
        raise _MistakeError(f"{name} is {value!r}; it takes text")


def _number(name: str, value: Any) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value):
        raise _MistakeError(f"{name} is {value!r}; it takes a number")
