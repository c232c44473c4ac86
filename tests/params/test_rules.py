import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.errors import ParameterError, shown
from workbench.params.rules import Rule

COUNT = Rule("how many", example=3, low=1, high=100_000)


@pytest.mark.parametrize(
    ("value", "wanted", "read"),
    [
        # As Python, YAML and papermill give them ...
        (3, int, 3),
        (3.0, int, 3),
        (3, float, 3.0),
        (True, bool, True),
        ("1p4d", str, "1p4d"),
        ([0.5, 1], list[float], [0.5, 1.0]),
        ((0.5,), list[float], [0.5]),
        ([], list[str], []),
        # ... and as a shell spells them.
        ("3", int, 3),
        ("1e3", int, 1000),
        ("1e-1", float, 0.1),
        ("true", bool, True),
        (" False", bool, False),
        ("a,b", list[str], ["a", "b"]),
        ("['a', \"b\"]", list[str], ["a", "b"]),
        ("[0.25, 0.5]", list[float], [0.25, 0.5]),
        ("", list[float], []),
        # Papermill reads `-p shares 0.5` and `-p topology 7` as numbers.
        (0.5, list[float], [0.5]),
        (7, str, "7"),
    ],
)
def test_a_value_is_read_from_any_spelling(value, wanted, read):
    got = Rule("", example="").read("name", value, wanted)
    assert got == read
    assert type(got) is type(read)


@pytest.mark.parametrize(
    ("value", "wanted", "allowed"),
    [
        ("many", int, "an integer"),
        (2.5, int, "an integer"),
        (True, int, "an integer"),
        (None, int, "an integer"),
        ({}, int, "an integer"),
        ("nan", float, "a number"),
        ("1e999", float, "a number"),
        (10**400, float, "a number"),
        ("yes", bool, "True or False"),
        (1, bool, "True or False"),
        (5.5, str, "a string"),
        (True, str, "a string"),
        (None, str, "a string"),
        ([0.5, "x"], list[float], "a list of numbers"),
        (True, list[int], "a list of integers"),
        (0.5, list[int], "a list of integers"),
    ],
)
def test_a_wrong_type_is_refused_with_what_is_allowed_and_an_example(value, wanted, allowed):
    with pytest.raises(ParameterError) as refused:
        COUNT.read("n", value, wanted)
    assert str(refused.value) == f"n must be {allowed}, got {shown(value)} (example: -p n 3)"


@pytest.mark.parametrize("value", [0, 100_001, "-1"])
def test_a_value_out_of_range_is_refused_with_both_ends(value):
    with pytest.raises(
        ParameterError, match=r"must be between 1 and 100,000, got .* \(example: -p n 3\)"
    ):
        COUNT.read("n", value, int)


@given(st.integers(1, 100_000))
def test_every_value_in_range_is_kept(value):
    assert COUNT.read("n", value, int) == COUNT.read("n", str(value), int) == value


def test_a_word_that_is_no_choice_is_refused_with_all_of_them():
    rule = Rule("how KV moves", example="lmcache", choices=("none", "lmcache", "nixl"))
    assert rule.read("connector", "nixl", str) == "nixl"
    with pytest.raises(ParameterError) as refused:
        rule.read("connector", "lmcash", str)
    assert str(refused.value) == (
        "connector must be one of none, lmcache, nixl, got 'lmcash' (example: -p connector lmcache)"
    )


def test_an_empty_choice_is_taken_and_not_listed():
    rule = Rule("what goes wrong", example="wrong_kv", choices=("", "wrong_kv", "eviction"))
    assert rule.read("fault", "", str) == ""
    with pytest.raises(ParameterError, match="one of wrong_kv, eviction, got"):
        rule.read("fault", "smoke", str)
