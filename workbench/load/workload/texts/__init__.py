"""Built-in texts, a few hundred words each, extended to any exact number of tokens.

Random tokens mean nothing; some servers and models behave differently with language.
"""

from __future__ import annotations

from bisect import bisect_right
from functools import cache
from importlib.resources import files

import numpy as np

from workbench.errors import ParameterError, must_be, nearest
from workbench.load.workload.chat import chat_request, with_reuse
from workbench.load.workload.token_ids import SALT_TOKENS, salt_ids
from workbench.load.workload.tokenizer import Tokenizer
from workbench.load.workload.workload import Request, Workload, assemble, check_numbers

NAMES = ("astrophysics", "code_to_refactor", "fiction", "hardware_history", "licence_terms")

_FEWEST_CHARACTERS = 3
"""Characters prepared per wanted token; a token of these texts has about 4."""


@cache
def paragraphs(name: str) -> tuple[str, ...]:
    """A text's paragraphs in order. Raises ParameterError for an unknown name."""
    if name not in NAMES:
        raise ParameterError(f"unknown text {name!r}; {nearest(name, NAMES)}")
    whole = (files(__package__) / f"{name}.txt").read_text(encoding="utf-8")
    return tuple(part.strip("\n") for part in whole.split("\n\n"))


def extended(name: str, characters: int, *, start: int = 0) -> str:
    """At least this many characters: numbered paragraphs, repeated from paragraph `start` on."""
    known = paragraphs(name)
    parts: list[str] = []
    length = 0
    while length < characters:
        number = len(parts)
        part = f"[{number + 1}] {known[(start + number) % len(known)]}\n\n"
        parts.append(part)
        length += len(part)
    return "".join(parts)


def text(
    *,
    text: str = "hardware_history",
    requests: int = 8,
    prompt_tokens: int = 4_096,
    output_tokens: int = 32,
    tokenizer: Tokenizer,
    chat: bool = False,
    vocab_tokens: int = 12_288,
    seed: int = 0,
    salt: str,
) -> Workload:
    """Prompts of exactly `prompt_tokens`: the salt, then one text; they share nothing.

    With `chat` each is one message, and the tokens of the chat template count too.
    """
    check_numbers(
        salt,
        requests=(requests, 1),
        prompt_tokens=(prompt_tokens, 2 * SALT_TOKENS),
        output_tokens=(output_tokens, 1),
        seed=(seed, 0),
    )
    starts = [seed + index for index in range(requests)]
    if chat:
        made = tuple(
            _message(text, index, start, prompt_tokens, output_tokens, tokenizer, salt)
            for index, start in enumerate(starts)
        )
        return with_reuse(Workload(name="text", seed=seed, salt=salt, requests=made))
    prompts = []
    for index, start in enumerate(starts):
        ids = np.asarray(_ids(text, start, prompt_tokens - SALT_TOKENS, tokenizer), dtype=np.int32)
        prompts.append(np.concatenate([salt_ids(salt, index, vocab_tokens), ids]))
    return assemble("text", prompts, [output_tokens] * requests, seed=seed, salt=salt)


def _ids(name: str, start: int, tokens: int, tokenizer: Tokenizer) -> list[int]:
    """The first `tokens` ids of a text that is repeated as needed."""
    characters = _FEWEST_CHARACTERS * tokens
    while len(ids := tokenizer.encode(extended(name, characters, start=start))) < tokens:
        characters *= 2
    return ids[:tokens]


def _message(
    name: str,
    index: int,
    start: int,
    prompt_tokens: int,
    output_tokens: int,
    tokenizer: Tokenizer,
    salt: str,
) -> Request:
    """A chat of exactly `prompt_tokens`: the text cut to fit, then filled up with words."""
    characters = 8 * prompt_tokens
    whole = extended(name, characters, start=start)

    def request(end: int, filling: int) -> Request:
        said = whole[:end].rstrip() + tokenizer.words[0] * filling
        return chat_request(
            index,
            [{"role": "user", "content": said}],
            max_tokens=output_tokens,
            tokenizer=tokenizer,
            salt=salt,
            group=index,
        )

    def tokens(end: int) -> int:
        return request(end, 0).prompt_tokens

    longest = bisect_right(range(characters + 1), prompt_tokens, key=tokens) - 1
    for end in range(longest, max(-1, longest - 40), -1):
        cut = request(end, 0)
        missing = prompt_tokens - cut.prompt_tokens
        if missing >= 0:
            filled = request(end, missing) if missing else cut
            if filled.prompt_tokens == prompt_tokens:
                return filled
    allowed = f"a length that text {name} can reach in a chat"
    raise ParameterError(must_be("prompt_tokens", allowed, prompt_tokens, "-p api completions"))
