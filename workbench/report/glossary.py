"""The product's own words, with one sentence each: tooltips of the page, glossary of the README."""

from __future__ import annotations

import re

GLOSSARY = {
    "arm": (
        "One set-up that is measured, for example 1p4d with LMCache or its baseline of 5 "
        "aggregated instances."
    ),
    "pass": (
        "One run of the workload against an arm in one cache state. Cold: nothing is cached. "
        "Engine-warm: in vLLM's prefix cache. Store-warm: only in the KV store. Cross-instance: "
        "computed by another instance."
    ),
    "round": (
        "One launch of an arm with fresh servers, followed by all its passes. Intervals come from "
        "the spread between rounds."
    ),
    "gate": (
        "A check that decides whether a number may be used: PASS, FAIL, or INCONCLUSIVE if it "
        "could not be decided."
    ),
    "doubt": "A weakness of this run that no gate covers, such as too few requests for a p99.",
    "ledger": (
        "The table that says where each prompt token came from: computed, a prefix cache, the KV "
        "store, or another instance."
    ),
}
"""The six words that a reader does not know from vLLM or LMCache."""

_WORD = re.compile(r"(?<![\w-])(arm|pass|round|gate|doubt|ledger)(s|es)?(?![\w-])", re.IGNORECASE)
_UNTOUCHED = "a|button|code|dfn|h[1-6]|pre|script|style|summary|svg|title"
_PIECE = re.compile(rf"<({_UNTOUCHED})\b[^>]*>.*?</\1>|<!--.*?-->|<[^>]*>|[^<]+", re.DOTALL)
"""An element whose text stays as it is, a tag, or text. Attributes hold no bare `>` here."""


def with_tooltips(html: str) -> str:
    """The page with the first use of each glossary word in a section marked as a `dfn`.

    A section begins at a heading of level 2. A word that is first used in a folded part is marked
    again where it is first used in the open.
    """
    seen: list[set[str]] = [set()]

    def marked(word: re.Match[str]) -> str:
        text, name = word[0], word[1].lower()
        # in capitals it is the outcome PASS
        if name in seen[-1] or text.isupper():
            return text
        seen[-1].add(name)
        return f'<dfn tabindex="0" aria-describedby="term-{name}">{text}</dfn>'

    def piece(found: re.Match[str]) -> str:
        text = found[0]
        if text.startswith("<h2"):
            seen[-1].clear()
        elif text.startswith("<details"):
            seen.append(set(seen[-1]))
        elif text == "</details>" and len(seen) > 1:
            seen.pop()
        return text if text.startswith("<") else _WORD.sub(marked, text)

    head, body, rest = html.partition("<main ")
    return head + body + _PIECE.sub(piece, rest)
