import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.errors import ParameterError
from workbench.topology import TensorParallel, Topology


@pytest.mark.parametrize(
    ("text", "roles"),
    [
        ("1p4d", (("prefill", 1), ("decode", 4))),
        (" 1P4D ", (("prefill", 1), ("decode", 4))),
        ("10p12d", (("prefill", 10), ("decode", 12))),
        ("5a", (("aggregated", 5),)),
    ],
)
def test_a_name_says_how_many_instances_each_role_has(text, roles):
    topology = Topology.parse(text)
    assert topology.roles == roles  # prefill first, and empty ones not at all
    assert topology.instances == sum(number for _, number in roles)
    assert topology.disaggregated == (len(roles) == 2)


@pytest.mark.parametrize(
    "text", [*"p4d 0p0d 1p-4d 1p0d 0a 4 1p 4d d4p1 1p4d5a 01p4d 1.5a 1٤a".split(), ""]
)
def test_any_other_text_is_refused_with_the_rule_and_good_examples(text):
    with pytest.raises(ParameterError, match=r"like 1p4d .* -p topology 1p4d\)$") as refused:
        Topology.parse(text)
    assert f"got {text!r} " in str(refused.value)


@pytest.mark.parametrize(
    "counts",
    [{}, {"prefill": 1}, {"decode": 4}, {"aggregated": -1},
     {"prefill": 1, "decode": 1, "aggregated": 1}],
)  # fmt: skip
def test_counts_that_are_no_topology_are_refused_by_the_same_rule(counts):
    with pytest.raises(ParameterError, match=r"like 1p4d .* or 5a"):
        Topology(**counts)


counts = st.integers(1, 999)
pairs = st.builds(Topology, prefill=counts, decode=counts)


@given(pairs | st.builds(Topology, aggregated=counts))
def test_the_name_reads_back_as_the_same_topology(topology):
    assert Topology.parse(str(topology)) == topology


@given(st.text(alphabet="0159pdaPDA -٤", max_size=8))
def test_a_text_is_read_or_refused_and_nothing_else(text):
    try:
        topology = Topology.parse(text)
    except ParameterError:
        return
    assert str(topology) == text.strip().lower()


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("4p2d, 1p1d,4p2d", "4p2d 1p1d"),  # in order, each once
        (" ALL ", "1p1d 1p2d 1p4d 2p1d 2p2d 4p1d 4p2d 4p4d"),  # the reference report's sweep
    ],
)
def test_a_list_is_read_in_its_order(text, names):
    assert " ".join(map(str, Topology.parse_list(text))) == names


@pytest.mark.parametrize("text", ["1p1d,", ",", "1p1d;1p4d", "1p1d,nonsense"])
def test_one_bad_part_refuses_the_list(text):
    with pytest.raises(ParameterError, match="must be like 1p4d"):
        Topology.parse_list(text)


def test_gpus_are_counted_and_described_by_role():
    pair, tp = Topology.parse("1p4d"), TensorParallel(prefill=2, decode=4, aggregated=8)
    assert (pair.gpus(tp), Topology.parse("5a").gpus(tp)) == (2 + 16, 40)
    assert pair.gpus(TensorParallel()) == 5
    assert pair.describe() == "1p4d: 1 prefill, 4 decode"
    assert pair.describe(tp) == "1p4d: 1 prefill x 2 GPU, 4 decode x 4 GPU"
