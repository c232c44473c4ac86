from workbench import errors
from workbench.errors import WorkbenchError, must_be, nearest


def test_a_misspelt_name_is_offered_its_nearest_or_the_whole_list():
    known = ["nixl", "none", "lmcache"]
    assert nearest("lmcash", known) == "did you mean 'lmcache'?"
    assert nearest("redis", known) == "allowed: lmcache, nixl, none"
    assert nearest("zz", map(str, range(25))).endswith(" and 5 more")


def test_one_except_clause_catches_every_error():
    ours = [kind for name, kind in vars(errors).items() if name.endswith("Error")]
    assert len(ours) > 5 and all(issubclass(kind, WorkbenchError) for kind in ours)


def test_a_long_value_is_cut_and_an_example_can_be_typed():
    assert len(must_be("log_file", "a file", "x" * 999, "a.log")) < 190
    said = must_be("extra_body", "a JSON object", 5, '{"top_k": 1}')
    assert said.endswith("""got 5 (example: -p extra_body '{"top_k": 1}')""")
    assert must_be("a", "b", 1, "-p a 2").endswith("(example: -p a 2)")
