import pytest

from workbench import errors
from workbench.errors import WorkbenchError, nearest


def test_a_misspelt_name_is_offered_its_nearest():
    assert nearest("lmcash", ["none", "lmcache", "nixl"]) == "did you mean 'lmcache'?"


def test_a_name_like_no_other_gets_the_whole_list():
    assert nearest("redis", ["nixl", "none", "lmcache"]) == "known: lmcache, nixl, none"


@pytest.mark.parametrize("name", [n for n in errors.__all__ if n != "nearest"])
def test_one_except_clause_catches_every_error(name):
    assert issubclass(getattr(errors, name), WorkbenchError)
