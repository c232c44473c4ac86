import pytest

from workbench.errors import ParameterError
from workbench.params.notebooks import check_params
from workbench.params.several_models import short_names

TWO = "meta-llama/Llama-3.3-70B-Instruct", "openai/gpt-oss-120b"


@pytest.mark.parametrize("given", [",".join(TWO), list(TWO), dict.fromkeys(TWO)])
def test_models_are_a_list_of_names_or_a_mapping(given):
    params = check_params("pd_sweep", {"models": given})
    each = params.each_model
    assert list(each) == ["Llama-3.3-70B-Instruct", "gpt-oss-120b"]
    assert [own.model for own in each.values()] == list(TWO)
    assert all(own.models == "" for own in each.values())


def test_a_model_has_settings_of_its_own_and_the_rest_of_the_run():
    own = {"prefill_tp": "2", "engine_args": ["--max-num-seqs", 8]}  # as a shell or YAML has them
    given = {"models": {TWO[0]: own, TWO[1]: None}, "rounds": 5, "prefill_tp": 1}
    llama, gpt = check_params("pd_sweep", given).each_model.values()
    assert (llama.prefill_tp, llama.engine_args, llama.rounds) == (2, "--max-num-seqs 8", 5)
    assert (gpt.prefill_tp, gpt.engine_args, gpt.rounds) == (1, "", 5)


def test_the_order_of_a_mapping_stays():
    params = check_params("pd_sweep", {"models": {"b/second": {}, "a/first": {}}})
    assert list(params.each_model) == ["second", "first"]


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["a/llama", "b/gpt"], ["llama", "gpt"]),
        (["a/llama", "b/llama"], ["a-llama", "b-llama"]),
        (["/x/a/m", "/y/a/m"], ["x-a-m", "y-a-m"]),
        (["/models/my llama/", "tiny"], ["my-llama", "tiny"]),
    ],
)
def test_short_names_differ_and_can_be_part_of_a_file_name(names, short):
    assert list(short_names(dict.fromkeys(names)).values()) == short


@pytest.mark.parametrize(
    "names",
    [
        ["meta/llama", "other/llama", "meta-llama"],
        ["a b", "a-b"],
        ["/m/my llama", "/m/my-llama"],
        ["Tiny", "tiny"],
    ],
)
def test_models_that_would_be_called_alike_are_refused(names):
    with pytest.raises(ParameterError, match="no two make the same short name"):
        check_params("pd_sweep", {"models": names})


def test_a_slash_at_the_end_makes_no_other_model():
    with pytest.raises(ParameterError, match="at least two different names"):
        check_params("pd_sweep", {"models": "/m/llama,/m/llama/"})
