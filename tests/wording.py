"""The rules for sentences that a person reads: short, plain, and whole."""

import re

from workbench.metrics.gates.gate import Gate

MOST_WORDS = {"PASS": 15, "FAIL": 25, "INCONCLUSIVE": 25}
MOST_WORDS_OF_A_STEP = 20
PRIVATE = (
    "cannot be", "nobody", "is not said", "not told", "are allowed", "all the same", "answers",
    "share of", "quiet", "pretend", "proven", "dated", "as many", "no cause", "beside", "in vain",
)  # fmt: skip
"""Words that made readers stop: there is a usual word for each of them."""


def words(text: str) -> int:
    """Words outside brackets, whose numbers and places a reader may skip."""
    flat = text
    while (less := re.sub(r"\([^()]*\)", "", flat)) != flat:
        flat = less
    return len(re.findall(r"\S*\w\S*", flat))


def plain(text: str, *, most_words: int) -> None:
    """Raises AssertionError with the text where its words break a rule."""
    assert words(text) <= most_words, f"{words(text)} words, at most {most_words}: {text}"
    found = [word for word in PRIVATE if re.search(rf"\b{word}\b", text)]
    assert not found, f"{found} in: {text}"
    assert text.count("(") == text.count(")"), text


def check_words(gate: Gate) -> None:
    """Raises AssertionError with the sentence where a gate's words break a rule."""
    plain(gate.sentence, most_words=MOST_WORDS[gate.outcome])
    plain(gate.next_step, most_words=MOST_WORDS_OF_A_STEP)
    for text in filter(None, (gate.sentence, gate.next_step)):
        assert text[0].isupper() or text[0].isdigit(), text
        assert not text.endswith("."), text
    assert gate.sentence
    assert bool(gate.next_step) == (gate.outcome != "PASS"), f"next step of: {gate.sentence}"
    assert ". " not in gate.next_step
