from __future__ import annotations

import pytest

from workbench.errors import ParameterError
from workbench.load.catalogue import WORKLOADS, build
from workbench.load.workload import texts
from workbench.load.workload.scenarios import SCENARIOS
from workbench.load.workload.workload import short
from workbench.params import shared


def test_a_workload_is_found_by_the_name_that_a_parameter_gives_it() -> None:
    assert build("short", salt="s", requests=2).hash == short(salt="s", requests=2).hash
    assert set(WORKLOADS) == set(shared.WORKLOADS)
    assert set(SCENARIOS) == set(shared.SCENARIOS)
    assert texts.NAMES == shared.TEXTS


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("shrot", {}, "there is no workload 'shrot'; did you mean 'short'?"),
        ("short", {"prompt_token": 9}, "'short' has no option 'prompt_token'; did you mean"),
        ("shared_prefix", {"requests": 2}, "needs prompt_tokens, shared_tokens"),
        ("short", {"prompt_tokens": 16}, "prompt_tokens is 16: it has to be at least 17"),
        ("short", {"requests": 0}, "requests is 0: it has to be at least 1"),
        ("short", {"output_tokens": 0}, "output_tokens is 0"),
        ("short", {"requests": 100, "vocab_tokens": 100}, "vocab_tokens is 100: .* at least 116"),
        ("short", {"seed": -1}, "seed is -1"),
        ("short", {"salt": ""}, "salt is empty"),
        (
            "shared_prefix",
            {"requests": 2, "prompt_tokens": 20, "shared_tokens": 21},
            "choose 16 to prompt_tokens",
        ),
        (
            "shared_prefix",
            {"requests": 2, "prompt_tokens": 20, "shared_tokens": 16, "groups": 0},
            "groups is 0",
        ),
    ],
)
def test_errors_say_what_is_wrong(name: str, options: dict[str, int], sentence: str) -> None:
    with pytest.raises(ParameterError, match=sentence):
        build(name, **{"salt": "s", **options})
