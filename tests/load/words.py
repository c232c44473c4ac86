"""A small tokenizer for tests: one id for each word, with the space before it, and each sign."""

import re


class Words:
    """Like a model's own, but readable: ids from 16 on in the order in which words are met."""

    def __init__(self, *, trims: bool = False, joins: bool = False) -> None:
        self.trims, self.joins = trims, joins
        self.known: dict[str, int] = {}
        self.words = tuple(f" {a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in "lmnprstvxz")
        self.encode("".join(self.words))

    def encode(self, text: str) -> list[int]:
        pattern = r"\s?\w+(?: \w+)?|." if self.joins else r"\s?\w+|."
        found = re.findall(pattern, text, re.DOTALL)
        return [self.known.setdefault(piece, 16 + len(self.known)) for piece in found]

    def completion(self, text: str) -> list[int]:
        return [1, *self.encode(text)]

    def decode(self, ids: list[int]) -> str:
        pieces = list(self.known)
        return "".join(pieces[number - 16] for number in ids)

    def chat(self, messages: tuple[dict[str, str], ...]) -> list[int]:
        said = [
            f"<{m['role']}>{m['content'].strip() if self.trims else m['content']}</s>"
            for m in messages
        ]
        return self.encode("".join([*said, "<assistant>"]))
