"""Reads the claims of params/claims/*.yaml, and reports each mistake in one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from workbench.claims.registry.claim import Bound, Check, Claim, Effect, Evidence, Origin, Source
from workbench.claims.registry.entry import Entry, sentence_of
from workbench.claims.registry.sums import Arithmetic
from workbench.errors import ParameterError, nearest

EXAMPLE: dict[str, Any] = {
    "id": "MY-CLAIM",
    "statement": "Chunked prefill halves the worst gap.",
    "metric": "longest ICL",
    "effects": [
        {"name": "ICL", "quantifier": "typical", "type": "ratio", "unit": "x", "value": 0.5}
    ],
    "subject": "vLLM with chunked prefill",
    "comparator": "vLLM without",
    "level": "server",
    "phase": "mixed",
    "hardware": "H100 SXM",
    "model": "Llama-3.1-8B",
    "workload": {"input_len": 2048, "concurrency": 64},
    "evidence": {"kind": "measurement"},
    "checks": {},
    "source": {
        "title": "A post", "ref": "https://example.org", "location": "table 2",
        "confirmation": "primary", "how": "read in the post",
    },
    "bounds": [{"limit": "memory_bandwidth", "gpu": "H200", "gpus": 1, "value": 4.5}],
    "arithmetic": [{"kind": "ratio", "of": "1.90", "over": "0.004", "said": "475"}],
    "claims": [],
}  # fmt: skip
"""A good value of each field, which a mistake shows."""

_FIELDS = [
    name
    for kind in (Claim, Effect, Evidence, Check, Bound, Source, *get_args(get_args(Arithmetic)[0]))
    for name in kind.model_fields
]


class _File(Entry):
    source: Origin
    claims: list[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Registry:
    """The claims that are valid, and a sentence for each mistake in the others."""

    claims: dict[str, Claim]
    mistakes: tuple[str, ...] = ()

    def claim(self, claim_id: str) -> Claim:
        """That claim, or ParameterError with the nearest id."""
        if claim_id not in self.claims:
            raise ParameterError(
                f"claim {claim_id!r} does not exist; {nearest(claim_id, self.claims)}"
            )
        return self.claims[claim_id]

    @property
    def published(self) -> tuple[Claim, ...]:
        """All claims but our own."""
        return tuple(claim for claim in self.claims.values() if not claim.source.own)

    def group(self, name: str) -> tuple[Claim, ...]:
        """The claims of one source, in the order of its file."""
        return tuple(claim for claim in self.claims.values() if claim.source.group == name)

    @property
    def groups(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(claim.source.group for claim in self.claims.values()))

    def select(self, words: Sequence[str]) -> tuple[Claim, ...]:
        """The claims of these ids and groups, or `all`, in the order of the registry.

        Raises ParameterError with the nearest id or group for an unknown word.
        """
        known = ("all", *self.groups, *self.claims)
        for word in words:
            if word not in known:
                hints = (nearest(text, known) for text in (word, word.upper(), word.lower()))
                close = next((hint for hint in hints if hint.startswith("did you mean")), "")
                hint = close or "`workbench claims list` shows all"
                raise ParameterError(
                    f"claims must be 'all', or one or more claim ids or groups, got {word!r};"
                    f" {hint} (example: -p claims VLLM-APC)"
                )
        return tuple(
            claim
            for claim in self.claims.values()
            if not {"all", claim.source.group, claim.id}.isdisjoint(words)
        )


def read_registry(folder: Path) -> Registry:
    """The claims of the YAML files in `folder`; those with a mistake are left out and named."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the one in C is ten times as fast
    claims: dict[str, Claim] = {}
    found_in: dict[str, str] = {}
    mistakes: list[str] = []
    paths = sorted(folder.glob("*.yaml"))
    if not paths:
        mistakes.append(f"{folder}: it has no YAML file; docs/claims.md shows how to write one")
    for path in paths:
        content: Any = None
        try:
            content = yaml.load(path.read_text("utf-8"), loader)
            file = _File.model_validate(content)
        except ValidationError as error:
            mistakes.append(f"{path.name}: {_sentence(error, content)}")
            continue
        except (OSError, ValueError, yaml.YAMLError) as error:
            mistakes.append(f"{path.name}: not valid YAML: {' '.join(str(error).split())}")
            continue
        # A claim inherits its file's source and may override it.
        origin = {"group": path.stem, **file.source.model_dump(exclude_unset=True)}
        for number, entry in enumerate(file.claims, 1):
            name = entry.get("id") if isinstance(entry, dict) else None
            where = f"{path.name}: {name or f'claim number {number}'}"
            try:
                claim = _claim(origin, entry)
            except ValidationError as error:
                mistakes.append(f"{where}: {_sentence(error, entry)}")
                continue
            if claim.id in claims:
                mistakes.append(f"{where}: id must be unique; {found_in[claim.id]} has it as well")
                continue
            claims[claim.id], found_in[claim.id] = claim, path.name
    return Registry(claims=claims, mistakes=tuple(mistakes))


def _claim(origin: dict[str, Any], entry: Any) -> Claim:
    if isinstance(entry, dict) and isinstance(entry.get("source"), dict):
        source = {**origin, **entry["source"], "group": origin["group"]}
        entry = {**entry, "source": source}
    return Claim.model_validate(entry)


def _sentence(error: ValidationError, given: Any) -> str:
    return sentence_of(error, given, example=EXAMPLE, known=_FIELDS)
