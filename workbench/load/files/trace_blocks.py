"""How many prompt tokens one hash id of a trace stands for. No format states it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from workbench.errors import ParameterError

_PUBLISHED = 512
"""Block size of Mooncake's own traces, AIPerf's default, and the traces that we write."""
_ENDLESS = 2**62


class Length(NamedTuple):
    """A prompt and its number of hash ids."""

    where: str
    prompt_tokens: int
    ids: int

    def sizes(self, *, whole_only: bool) -> tuple[int, int]:
        """The smallest and the largest block that give this prompt its number of ids.

        The last block may be shorter than the others; with `whole_only` it has no id then.
        """
        if whole_only:
            most = self.prompt_tokens // self.ids if self.ids else _ENDLESS
            return self.prompt_tokens // (self.ids + 1) + 1, most
        if not self.ids:
            return 1, 0
        most = -(-self.prompt_tokens // (self.ids - 1)) - 1 if self.ids > 1 else _ENDLESS
        return -(-self.prompt_tokens // self.ids), most


def block_size(lengths: Sequence[Length], *, asked: int = 0) -> tuple[int, list[str]]:
    """How many prompt tokens one hash id stands for, and doubts.

    The size that fits every prompt's length and number of ids, or the one asked for. Raises
    ParameterError if none fits (naming the first line that contradicts the others) or several do.
    """
    if not lengths:
        return asked or _PUBLISHED, []
    for whole_only in (False, True):
        least, most = _common(lengths, whole_only=whole_only)
        if least > most or (asked and not least <= asked <= most):
            continue
        tokens = asked or _usual(least, most)
        if not tokens:
            raise ParameterError(
                f"trace_block_tokens must be set, because blocks of {_span(least, most)} tokens fit"
                f" all {len(lengths):,} lines of trace_file (example: -p trace_block_tokens"
                f" {_example(least, most)})"
            )
        doubts = []
        if not asked and tokens != _PUBLISHED:
            others = f" ({_span(least, most)} would fit; trace_block_tokens chooses)"
            doubts.append(
                f"One hash id of trace_file stands for {tokens} tokens, judging by the prompt"
                f" lengths{others if least < most else ''}."
            )
        if whole_only:
            doubts.append(
                "hash_ids of trace_file cover whole blocks only. The last tokens of each prompt"
                " count as not shared."
            )
        return tokens, doubts
    raise ParameterError(_contradiction(lengths, asked))


def _common(lengths: Iterable[Length], *, whole_only: bool) -> tuple[int, int]:
    sizes = [length.sizes(whole_only=whole_only) for length in lengths]
    return max(least for least, _ in sizes), min(most for _, most in sizes)


def _usual(least: int, most: int) -> int:
    """The published size if it fits, else the only usual one; 0 if several fit."""
    if least == most:
        return least
    if least <= _PUBLISHED <= most:
        return _PUBLISHED
    powers = [2**n for n in range(31) if least <= 2**n <= most]
    if powers:
        return powers[0] if len(powers) == 1 else 0
    sixteens = range(-(-least // 16) * 16, min(most, least + 64) + 1, 16)
    return sixteens[0] if len(sixteens) == 1 else 0


def _span(least: int, most: int) -> str:
    if most == _ENDLESS:
        return f"{least:,} and more"
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def _example(least: int, most: int) -> int:
    power = 1 << (least - 1).bit_length()
    return power if power <= most else least


def _contradiction(lengths: Sequence[Length], asked: int) -> str:
    """The error for the first line that does not fit the size asked for or the usual size."""
    # Most lines are right: the size that fits most of them shows the first that is wrong.
    tried = {2**n for n in range(31)} | {each.sizes(whole_only=False)[0] for each in lengths[:9]}
    fitting = {
        size: sum(_fits(each, size) for each in lengths)
        for size in ([asked] if asked else sorted(tried))
    }
    size = max(fitting, key=lambda size: (fitting[size], size == _PUBLISHED))
    bad = next(each for each in lengths if not _fits(each, size))
    said = (
        f"{bad.where}: input_length {bad.prompt_tokens:,} must have"
        f" {-(-bad.prompt_tokens // size)} hash_ids (blocks of {size} tokens), got {bad.ids}"
    )
    least, most = _common(lengths, whole_only=False)
    if least <= most:
        return f"{said}. Blocks of {_span(least, most)} fit all lines: set trace_block_tokens to 0"
    return (
        f"{said}. They fit {fitting[size]:,} of {len(lengths):,} lines, and no size fits all."
        " Correct or remove the line"
    )


def _fits(length: Length, size: int) -> bool:
    least, most = length.sizes(whole_only=False)
    return least <= size <= most
