import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.errors import ParameterError
from workbench.topology import TensorParallel, Topology

RULE = (
    "write prefill and decode counts from 1 up as in 1p4d (1 prefill, 4 decode),"
    " or aggregated instances as in 5a"
)


@pytest.mark.parametrize(
    ("text", "prefill", "decode", "aggregated"),
    [
        ("1p4d", 1, 4, 0),
        ("2p1d", 2, 1, 0),
        ("10p12d", 10, 12, 0),
        ("5a", 0, 0, 5),
        (" 1P4D ", 1, 4, 0),
    ],
)
def test_a_name_says_how_many_instances_each_role_has(text, prefill, decode, aggregated):
    topology = Topology.parse(text)
    assert (topology.prefill, topology.decode, topology.aggregated) == (prefill, decode, aggregated)
    assert topology.instances == prefill + decode + aggregated
    assert topology.disaggregated == (prefill > 0)


@pytest.mark.parametrize(
    "text",
    [
        "p4d",
        "0p0d",
        "1p-4d",
        "1p0d",
        "0a",
        "4",
        "1p",
        "4d",
        "d4p1",
        "1p4d5a",
        "01p4d",
        "1.5a",
        "1٤a",
        "",
    ],
)
def test_any_other_text_is_refused_with_the_rule_and_good_examples(text):
    with pytest.raises(ParameterError) as refused:
        Topology.parse(text)
    assert str(refused.value) == f"topology {text!r} cannot be read: {RULE}"


@pytest.mark.parametrize("counts", [{}, {"prefill": 1}, {"decode": 4}, {"aggregated": -1}])
def test_counts_that_are_no_topology_are_refused_by_the_same_rule(counts):
    with pytest.raises(ParameterError, match="1p4d"):
        Topology(**counts)


def test_aggregated_instances_do_not_mix_with_the_other_roles():
    with pytest.raises(ParameterError, match="or aggregated instances as in 5a"):
        Topology(prefill=1, decode=1, aggregated=1)


counts = st.integers(1, 999)
topologies = st.builds(Topology, prefill=counts, decode=counts) | st.builds(
    Topology, aggregated=counts
)


@given(topologies)
def test_the_name_reads_back_as_the_same_topology(topology):
    assert Topology.parse(str(topology)) == topology


@given(st.text(alphabet="0159pdaPDA -٤", max_size=8))
def test_a_text_is_read_or_refused_and_nothing_else(text):
    try:
        topology = Topology.parse(text)
    except ParameterError:
        return
    assert str(topology) == text.strip().lower()


def names(text):
    return [str(topology) for topology in Topology.parse_list(text)]


def test_a_list_keeps_its_order_and_each_topology_once():
    assert names("4p2d, 1p1d,4p2d") == ["4p2d", "1p1d"]


def test_all_is_the_sweep_of_the_reference_report():
    everything = ["1p1d", "1p2d", "1p4d", "2p1d", "2p2d", "4p1d", "4p2d", "4p4d"]
    assert names("all") == names(" ALL ") == everything


@pytest.mark.parametrize("text", ["1p1d,", ",", "1p1d;1p4d", "1p1d,nonsense"])
def test_one_bad_part_refuses_the_list(text):
    with pytest.raises(ParameterError, match="cannot be read"):
        Topology.parse_list(text)


def test_gpus_are_counted_by_role():
    tp = TensorParallel(prefill=2, decode=4, aggregated=8)
    assert Topology.parse("1p4d").gpus(tp) == 2 + 16
    assert Topology.parse("5a").gpus(tp) == 40
    assert Topology.parse("1p4d").gpus(TensorParallel()) == 5


def test_roles_come_prefill_first_and_empty_ones_not_at_all():
    assert Topology.parse("1p4d").roles == (("prefill", 1), ("decode", 4))
    assert Topology.parse("5a").roles == (("aggregated", 5),)


def test_a_description_names_gpus_only_where_there_are_some():
    topology = Topology.parse("1p4d")
    assert topology.describe() == "1p4d: 1 prefill, 4 decode"
    text = topology.describe(TensorParallel(prefill=2))
    assert text == "1p4d: 1 prefill x 2 GPU, 4 decode x 1 GPU"


def test_an_instance_spans_at_least_one_gpu():
    with pytest.raises(ParameterError, match="decode_tp is 0: an instance spans at least 1 GPU"):
        TensorParallel(decode=0)
