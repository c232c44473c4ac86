import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.errors import ParameterError
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
    ("value", "wanted", "sentence"),
    [
        ("many", int, "n is 'many': it takes a whole number, e.g. 3"),
        (2.5, int, "n is 2.5: it takes a whole number, e.g. 3"),
        (True, int, "n is True: it takes a whole number, e.g. 3"),
        (None, int, "n is None: it takes a whole number, e.g. 3"),
        ({}, int, "n is {}: it takes a whole number, e.g. 3"),
        ("nan", float, "n is 'nan': it takes a number, e.g. 3"),
        ("1e999", float, "n is '1e999': it takes a number, e.g. 3"),
        (10**400, float, f"n is {10**400}: it takes a number, e.g. 3"),
        ("yes", bool, "n is 'yes': it takes True or False, e.g. 3"),
        (1, bool, "n is 1: it takes True or False, e.g. 3"),
        (5.5, str, "n is 5.5: it takes text, e.g. 3"),
        (True, str, "n is True: it takes text, e.g. 3"),
        (None, str, "n is None: it takes text, e.g. 3"),
        ([0.5, "x"], list[float], "n is [0.5, 'x']: it takes a list, e.g. 3"),
        (True, list[float], "n is True: it takes a list, e.g. 3"),
    ],
)
def test_a_wrong_type_is_refused_with_what_it_takes_and_an_example(value, wanted, sentence):
    with pytest.raises(ParameterError) as refused:
        COUNT.read("n", value, wanted)
    assert str(refused.value) == sentence


@pytest.mark.parametrize("value", [0, 100_001, "-1"])
def test_a_value_out_of_range_is_refused_with_both_ends(value):
    with pytest.raises(ParameterError, match=r"it is at least 1 and at most 100,000, e\.g\. 3"):
        COUNT.read("n", value, int)


@given(st.integers(1, 100_000))
def test_every_value_in_range_is_kept(value):
    assert COUNT.read("n", value, int) == COUNT.read("n", str(value), int) == value


def test_a_word_that_is_no_choice_is_refused_with_all_of_them():
    rule = Rule("how KV moves", example="lmcache", choices=("none", "lmcache", "nixl"))
    assert rule.read("connector", "nixl", str) == "nixl"
    with pytest.raises(ParameterError) as refused:
        rule.read("connector", "lmcash", str)
    assert str(refused.value) == "connector is 'lmcash': write one of none, lmcache, nixl"


def test_an_empty_choice_is_taken_and_not_listed():
    rule = Rule("what goes wrong", example="wrong_kv", choices=("", "wrong_kv", "eviction"))
    assert rule.read("fault", "", str) == ""
    with pytest.raises(ParameterError, match="write one of wrong_kv, eviction"):
        rule.read("fault", "smoke", str)
