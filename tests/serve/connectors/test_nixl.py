import pytest

from workbench.serve.connectors import Wiring
from workbench.serve.connectors.nixl import CONNECTOR

PARAMS = {"do_remote_prefill": True, "remote_block_ids": [[3, 4]], "remote_port": 5600}


@pytest.mark.parametrize(("role", "kv_role"), [("prefill", "producer"), ("decode", "consumer")])
def test_roles_are_producer_and_consumer(role, kv_role):
    config = CONNECTOR.transfer_config(Wiring(role=role, cpu=False))
    assert config == {"kv_connector": "NixlConnector", "kv_role": f"kv_{kv_role}"}


def test_buffers_lie_in_memory_and_kv_moves_over_loopback_on_a_cpu_only():
    cpu, gpu = (Wiring(role="decode", cpu=cpu, side_port=7) for cpu in (True, False))
    assert CONNECTOR.transfer_config(cpu)["kv_buffer_device"] == "cpu"
    assert CONNECTOR.env(cpu)["UCX_NET_DEVICES"] == "lo"
    assert "UCX_NET_DEVICES" not in CONNECTOR.env(gpu)
    assert CONNECTOR.env(gpu)["VLLM_NIXL_SIDE_CHANNEL_PORT"] == "7"


def test_transfer_parameters_are_handed_over_as_they_are():
    assert CONNECTOR.hand_over({"kv_transfer_params": PARAMS}) == {"kv_transfer_params": PARAMS}


@pytest.mark.parametrize(
    ("params", "sentence"),
    [
        (None, "returned no transfer parameters, so it runs without a KV connector"),
        ({}, "returned no transfer parameters, so it runs without a KV connector"),
        (PARAMS | {"do_remote_prefill": False}, "returned no transfer parameters"),
        (PARAMS | {"remote_block_ids": []}, "returned transfer parameters without KV blocks"),
        (PARAMS | {"remote_block_ids": [[], []]}, "returned transfer parameters without KV blocks"),
        (PARAMS | {"remote_block_ids": None}, "returned transfer parameters without KV blocks"),
    ],
)
def test_what_would_make_decode_prefill_again_is_refused(params, sentence):
    with pytest.raises(ValueError, match=sentence):
        CONNECTOR.hand_over({"kv_transfer_params": params})
