from __future__ import annotations

import pytest

from workbench.errors import ParameterError
from workbench.load.catalogue import build
from workbench.load.workload.scenarios import SCENARIOS


@pytest.mark.parametrize("reuse", [0.3, 0.5, 0.77])
@pytest.mark.parametrize("name", sorted(set(SCENARIOS) - {"cold_start"}))
def test_the_reuse_that_is_asked_is_met(name: str, reuse: float) -> None:
    workload = build(name, salt="s", reuse=reuse, prompt_tokens=1_000, requests=24)
    assert workload.ideal_reuse == pytest.approx(reuse, rel=0.01)


def test_the_number_of_requests_in_the_sentence_is_enough() -> None:
    for name in ("batch_processing", "code_generation", "long_context_high_reuse"):
        with pytest.raises(ParameterError) as refused:
            build(name, salt="s", prompt_tokens=1_000, requests=4)
        enough = int(str(refused.value).split("e.g. to ")[1].split(",")[0])
        build(name, salt="s", prompt_tokens=1_000, requests=enough)
