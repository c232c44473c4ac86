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
    assert block_size(lengths(*pairs))[0] == tokens


def test_a_size_that_was_asked_for_is_taken_where_it_fits() -> None:
    assert block_size(lengths((600, 2)), asked=400)[0] == 400
    (doubt,) = block_size(lengths((600, 2)), asked=256)[1]
    assert "whole blocks only" in doubt
    with pytest.raises(
        ParameterError, match=r"must have 5 hash_ids .blocks of 128.*300 to 599 fit all lines"
    ):
        block_size(lengths((600, 2)), asked=128)


MOST_64 = [(100 * n, -(-100 * n // 64)) for n in range(1, 9)]


@pytest.mark.parametrize(
    ("pairs", "sentence"),
    [
        ([(2_000, 1), (900, 1)], r"blocks of 2,000 and more tokens fit all 2 lines .* 2048"),
        ([(1_040, 10), (1_000, 10)], r"blocks of 104 to 111 tokens .* -p trace_block_tokens 104"),
        (
            [(1_000, 5), (1_000, 7), (1_000, 5)],
            "line 2: input_length 1,000 must have 5 hash_ids .*, got 7",
        ),
        (
            [*MOST_64[:3], (400, 9), *MOST_64[4:]],
            "line 4: input_length 400 must have 7 hash_ids .*, got 9",
        ),
    ],
)
def test_what_the_file_leaves_open_or_contradicts_is_told(
    pairs: list[tuple[int, int]], sentence: str
) -> None:
    with pytest.raises(ParameterError, match=sentence):
        block_size(lengths(*pairs))
