"""Which deployments a file has: those of a sweep, with ports of their own."""

import shlex
from dataclasses import asdict
from itertools import pairwise

import pytest

from workbench.compose.profiles import compose_params, profiles_of
from workbench.errors import ParameterError, PlanError
from workbench.experiment.plan.arms import plan
from workbench.params.notebooks import check_params
from workbench.params.pd_sweep import PdSweep

IMAGE = {"image": "my/vllm:1"}


def made(**given):
    return profiles_of(compose_params(IMAGE | given))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"topology": "1p4d", "connector": "lmcache"},
         {"disaggregated": "1p4d lmcache", "aggregated": "5a none",
          "aggregated-lmcache": "5a lmcache"}),
        ({"topology": "1p1d", "connector": "nixl", "opponents": False},
         {"disaggregated": "1p1d nixl"}),
        ({"topology": "1a", "connector": "none"}, {"aggregated": "1a none"}),
        ({"topology": "2a", "connector": "offload"},
         {"aggregated": "2a offload", "aggregated-none": "2a none"}),
    ],
)  # fmt: skip
def test_profiles_are_the_arms_of_a_sweep(given, expected, machine_has):
    found = made(**given)
    assert {p.name: f"{p.plan.topology} {p.plan.connector.name}" for p in found} == expected
    arms = plan(PdSweep(**given)).arms
    assert [f"{arm.topology} {arm.connector}" for arm in arms] == [*expected.values()]


def test_profiles_can_run_beside_one_another(machine_has):
    ports = [
        {process.port for process in profile.plan.processes}
        for profile in made(topology="4p4d", connector="lmcache")
    ]
    assert sum(map(len, ports)) == len(set.union(*ports))
    # A side channel has a port for each rank after its own.
    together = sorted(set.union(*ports))
    assert min(b - a for a, b in pairwise(together)) >= 10


def test_the_attach_line_names_every_server_and_says_what_is_sent(machine_has):
    (profile, *_) = made(topology="1p2d", connector="lmcache", requests=2, rounds=1, store_gb=2)
    words = shlex.split(profile.attach_line)
    given = {words[i + 1]: words[i + 2] for i, word in enumerate(words) if word == "-p"}
    params = check_params("pd_sweep", given)
    urls = {p.name: p.url for p in profile.plan.processes}
    assert params.base_url == urls["proxy"]
    assert params.prefill_urls == [urls["prefill-0"]]
    assert params.decode_urls == [urls["decode-0"], urls["decode-1"]]
    assert params.lmcache_url == profile.plan.store_http_url
    assert (params.topology, params.requests, params.rounds) == ("1p2d", 2, 1)
    assert plan(params).arms[0].role == "attached"


@pytest.mark.parametrize(
    "name",
    ["HF_TOKEN", "MY_PASS", "DB_PASSWD", "GH_PAT", "REDIS_AUTH", "MY_TOKEN_1", "my_apikey",
     "TOKEN2", "AUTH_OF_X", "AWS_SECRET_ACCESS_KEY", "SSH_KEYS", "PASSWORD_FILE",
     "GCP_CREDENTIALS_JSON"],
)  # fmt: skip
def test_a_secret_is_refused_by_the_parts_of_its_name(name):
    with pytest.raises(ParameterError, match=f"must not contain {name},"):
        compose_params(IMAGE | {"engine_env": f"A=1 {name}=x"})


@pytest.mark.parametrize(
    "name",
    ["LD_LIBRARY_PATH", "TOKENIZERS_PARALLELISM", "MAX_BATCHED_TOKENS", "COMPASS", "AUTHOR",
     "VLLM_COMPILE_BYPASS"],
)  # fmt: skip
def test_other_names_are_no_secrets(name, machine_has):
    assert compose_params(IMAGE | {"engine_env": f"{name}=x"}).engine_env == f"{name}=x"


def test_only_a_store_of_lmcache_is_named(machine_has):
    for connector in ("nixl", "mooncake-store"):
        (profile, *_) = made(topology="1p1d", connector=connector)
        assert "lmcache_url" not in profile.attach_line


def test_gpus_are_those_of_this_machine_or_as_many_as_another_needs(machine_has):
    def devices(**given):
        (profile, *_) = made(topology="1p2d", platform="cuda", opponents=False, **given)
        return [instance.devices for instance in profile.plan.instances]

    assert devices() == [("0",), ("1",), ("2",)]
    assert devices(prefill_tp=2) == [("0", "1"), ("2",), ("3",)]
    machine_has("cuda", gpus=8, visible="4,5,6,7")
    assert devices() == [("4",), ("5",), ("6",)]
    machine_has("cuda", gpus=2)
    with pytest.raises(PlanError, match="topology 1p2d needs 3 GPUs, got 2"):
        devices()
    assert devices(instances_per_gpu=2) == [("0",), ("1",), ("0",)]


def test_images_are_those_of_the_platform(machine_has):
    def image(**given):
        return compose_params({"topology": "1a", "connector": "none", **given}).image

    assert image(platform="cuda") == "vllm/vllm-openai:v0.32.0"
    assert image(platform="rocm") == "vllm/vllm-openai-rocm:v0.32.0"
    assert image(platform="rocm", image="my/rocm:2") == "my/rocm:2"
    machine_has("rocm", gpus=1)
    assert image() == "vllm/vllm-openai-rocm:v0.32.0"


def test_nothing_is_asked_of_an_image_that_is_not_here(machine_has, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")  # neither docker nor podman
    (profile,) = made(topology="1a", connector="none")
    assert profile.plan.instances[0].program[0] == "python3"
    assert asdict(profile.plan.settings.abilities)["lacks"] == ()
