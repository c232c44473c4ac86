import pytest

from workbench.claims.registry import read_registry
from workbench.claims.selection import select
from workbench.errors import ParameterError
from workbench.hardware.machine import repository_root

REGISTRY = read_registry(repository_root() / "params" / "claims")


def test_all_groups_and_ids_each_once_in_the_order_of_the_registry():
    assert len(select(REGISTRY, ["all"])) == len(REGISTRY.claims)
    chosen = select(REGISTRY, ["VLLM-APC", "rocm_notes", "S001-LAT"])
    assert chosen[0].id == "VLLM-APC"
    assert len(chosen) == 1 + len(REGISTRY.group("rocm_notes"))


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("VLLM-APCC", "did you mean 'VLLM-APC'"),
        ("vllm-apc", "did you mean 'VLLM-APC'"),
        ("litrature", "did you mean 'literature'"),
        ("qqq", "write all, a group or an id"),
    ],
)
def test_an_unknown_word_gets_the_nearest_claim_or_group(word, sentence):
    with pytest.raises(ParameterError, match=sentence):
        select(REGISTRY, ["all", word])
