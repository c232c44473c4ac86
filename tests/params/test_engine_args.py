import pytest

from workbench.errors import ParameterError
from workbench.params.engine_args import count_of, value_of, variables, words
from workbench.params.notebooks import PaperClaimValidation, check_params
from workbench.params.pd_sweep import PdSweep


def test_arguments_are_split_as_a_shell_does():
    text = """--speculative-config '{"method": "ngram"}' --enable-chunked-prefill"""
    assert words(text) == (
        "--speculative-config", '{"method": "ngram"}', "--enable-chunked-prefill",
    )  # fmt: skip
    assert variables("NCCL_MIN_NCHANNELS=112 A='b c'") == {"NCCL_MIN_NCHANNELS": "112", "A": "b c"}


@pytest.mark.parametrize("given", ["--block-size 64 --seed 3", ["--block-size", 64, "--seed", "3"]])
def test_yaml_may_have_a_list_and_a_mapping(given):
    params = check_params("pd_sweep", {"engine_args": given, "engine_env": {"A": "b c"}})
    assert params.engine_args == "--block-size 64 --seed 3"
    assert variables(params.engine_env) == {"A": "b c"}


def test_the_last_of_equal_arguments_counts_with_dashes_or_underscores():
    args = words("--kv_cache_dtype=fp8 --kv-cache-dtype auto -dp 2")
    assert value_of(args, "--kv-cache-dtype") == "auto"
    assert value_of(words("--block 64"), "--block-size") == "64"  # as vLLM reads it
    assert value_of(words("-- 64 - 3"), "--block-size") == ""
    assert (count_of(args, "--data-parallel-size", "-dp"), count_of(args, "-pp")) == (2, 1)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            {"engine_args": "--port 3"},
            "must not contain --port, which the workbench sets.*Leave it out",
        ),
        ({"engine_args": "--max_model_len=9"}, "Use -p context_tokens"),
        ({"engine_args": "--max-model 9"}, "Use -p context_tokens"),  # argparse takes it
        ({"decode_args": "-tp 2"}, "Use -p prefill_tp, decode_tp or aggregated_tp"),
        ({"prefill_args": "--block-size 64"}, "must be equal in all instances"),
        ({"engine_args": "chunked"}, "arguments that start with a dash"),
        ({"engine_args": "--a 'b"}, "with closed quotes"),
        ({"engine_env": "A"}, "NAME=VALUE, separated by spaces"),
        ({"engine_env": "VLLM_PORT=3"}, "must not contain VLLM_PORT, which the workbench sets"),
        ({"store_args": "--l1-size-gb 4"}, "Use -p store_gb"),
        ({"engine_args": "--seed 3", "engine": "simulated"}, "engine_args.*engine=simulated"),
    ],
)
def test_what_the_workbench_sets_itself_is_refused_with_what_to_use(given, sentence):
    with pytest.raises(ParameterError, match=sentence):
        PdSweep(**given)


def test_claims_set_their_own_arguments():
    with pytest.raises(ParameterError, match="claims set their own arguments"):
        PaperClaimValidation(engine_args="--seed 3")
