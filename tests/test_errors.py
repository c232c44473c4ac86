from workbench import errors
from workbench.errors import WorkbenchError, nearest


def test_a_misspelt_name_is_offered_its_nearest_or_the_whole_list():
    known = ["nixl", "none", "lmcache"]
    assert nearest("lmcash", known) == "did you mean 'lmcache'?"
    assert nearest("redis", known) == "write one of lmcache, nixl, none"


def test_one_except_clause_catches_every_error():
    ours = [kind for name, kind in vars(errors).items() if name.endswith("Error")]
    assert len(ours) > 5 and all(issubclass(kind, WorkbenchError) for kind in ours)
