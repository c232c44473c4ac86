"""Which claims are meant by ids, groups and `all`."""

from __future__ import annotations

from collections.abc import Sequence

from workbench.claims.claim import Claim
from workbench.claims.registry import Registry
from workbench.errors import ParameterError, nearest

__all__ = ["select"]


def select(registry: Registry, words: Sequence[str]) -> tuple[Claim, ...]:
    """The claims of ids and groups, or `all`, each once, in the order of the registry.

    Raises ParameterError with the nearest id or group for a word that is none.
    """
    chosen: set[str] = set()
    known = ("all", *registry.groups, *registry.claims)
    for word in words:
        if word not in known:
            raise ParameterError(
                f"claims has {word!r}, which is no claim and no group: {_nearest(word, known)}"
            )
        chosen |= {
            claim.id
            for claim in registry.claims.values()
            if word in ("all", claim.source.group, claim.id)
        }
    return tuple(claim for claim in registry.claims.values() if claim.id in chosen)


def _nearest(word: str, known: Sequence[str]) -> str:
    """The closest of many names, also of another case; where none is close, what may be written."""
    for text in (word, word.upper(), word.lower()):
        close = nearest(text, known)
        if close.startswith("did you mean"):
            return close
    return "write all, a group or an id; `workbench claims list` shows them"
