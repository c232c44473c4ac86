"""vLLM itself says which arguments it accepts; its answer is kept."""

import json
from types import SimpleNamespace

import pytest

from workbench.errors import PlanError
from workbench.serve import argument_check
from workbench.serve.argument_check import check_arguments


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """Each time that vLLM is asked; it knows --seed only."""
    calls = []

    def run(command, **_):
        args = json.loads(command[-1])
        calls.append(args)
        error = "" if args[0] == "--seed" else f"unrecognized arguments: {args[0]}"
        answer = {"error": error, "options": ["--seed"]}
        return SimpleNamespace(returncode=0, stdout=f"a line of a library\n{json.dumps(answer)}\n")

    monkeypatch.setattr(argument_check.subprocess, "run", run)
    monkeypatch.setattr(argument_check, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(argument_check, "_version", lambda: "0.32.0")
    return calls


def test_vllm_is_asked_once_for_the_same_arguments(asked):
    check_arguments("engine_args", ())
    for _ in range(2):
        check_arguments("engine_args", ("--seed", "3"))
    assert asked == [["--seed", "3"]]


def test_an_unknown_argument_is_told_in_vllms_words_with_the_nearest_one(asked):
    with pytest.raises(PlanError, match=r"accepts: unrecognized arguments: --sede; did you"):
        check_arguments("decode_args", ("--sede", "3"))


def test_without_vllm_nothing_is_asked(asked, monkeypatch):
    monkeypatch.setattr(argument_check, "_version", lambda: "")
    check_arguments("engine_args", ("--sede", "3"))
    assert asked == []


@pytest.mark.engine
@pytest.mark.parametrize(
    ("args", "error"),
    [
        (["--max-num-batched-tokens", "2048", "--enable-chunked-prefill"], ""),
        (["--block-size", "x"], "argument --block-size: invalid int value: 'x'"),
        (["--no-such-flag"], "unrecognized arguments: --no-such-flag"),
    ],
)
def test_the_real_parser(args, error):
    assert argument_check._answer(args)["error"] == error
