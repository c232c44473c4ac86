from __future__ import annotations

import pytest

from workbench.errors import ParameterError
from workbench.load.files.trace_blocks import Length, block_size


def lengths(*pairs: tuple[int, int]) -> list[Length]:
    return [
        Length(where=f"line {n}", prompt_tokens=tokens, ids=ids)
        for n, (tokens, ids) in enumerate(pairs, 1)
    ]


@pytest.mark.parametrize(
    ("pairs", "tokens"),
    [
        ([(6758, 14), (7322, 15)], 512),
        ([(600, 2), (700, 2)], 512),  # 350 to 599 fit
        ([(200, 1), (90, 1)], 512),  # 200 and more fit, and no prompt shows which
        ([(815, 51), (1439, 90)], 16),
        ([(655, 3)], 256),  # 219 to 327 fit
        ([(5280, 10), (540, 2)], 528),  # 528 to 539 fit: 33 times 16, as hybrid models have
        ([], 512),
    ],
)
def test_the_size_that_fits_all_lines(pairs: list[tuple[int, int]], tokens: int) -> None:
    assert block_size(lengths(*pairs)).tokens == tokens


def test_a_size_that_was_asked_for_is_taken_where_it_fits() -> None:
    assert block_size(lengths((600, 2)), asked=400).tokens == 400
    (doubt,) = block_size(lengths((600, 2)), asked=256).doubts
    assert "whole blocks only" in doubt
    with pytest.raises(ParameterError, match="all lines fit 300 to 599; leave trace_block_tokens"):
        block_size(lengths((600, 2)), asked=128)


def test_the_first_line_that_contradicts_most_others_is_named() -> None:
    right = [(100 * n, -(-100 * n // 64)) for n in range(1, 9)]
    with pytest.raises(ParameterError, match="line 4: hash_ids has 9 and input_length 400 takes 7"):
        block_size(lengths(*right[:3], (400, 9), *right[4:]))
