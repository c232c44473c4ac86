import sys
from itertools import count, pairwise
from pathlib import Path

import pytest

from tests.environments import environment
from workbench.serve.checks.capacity import Capacity
from workbench.serve.connectors import connector
from workbench.serve.deployed import DeploymentPlan
from workbench.serve.deployment import plan_deployment
from workbench.serve.processes.forkserver import named
from workbench.serve.vllm import EngineSettings
from workbench.topology import TensorParallel, Topology

EIGHT = Capacity(devices=tuple("01234567"))


def plan(
    topology: str,
    name: str,
    platform: str = "cpu",
    *,
    tp: TensorParallel | None = None,
    capacity: Capacity | None = None,
    cores: int = 0,
) -> DeploymentPlan:
    known = Topology.parse(topology)
    return plan_deployment(
        known,
        connector(name),
        EngineSettings(model=Path("/models/tiny"), platform=platform, cores_per_instance=cores),
        ports=count(20_000),
        tp=tp,
        capacity=capacity or (EIGHT if platform != "cpu" else Capacity()),
        shm_name="workbench-7",
    )


def names(made: DeploymentPlan) -> list[str]:
    return [process.name for process in made.processes]


@pytest.mark.parametrize("platform", ["cpu", "cuda", "rocm"])
@pytest.mark.parametrize(
    ("topology", "name", "processes"),
    [
        ("1p4d", "lmcache", "store prefill-0 decode-0 decode-1 decode-2 decode-3 proxy"),
        ("1p4d", "nixl", "prefill-0 decode-0 decode-1 decode-2 decode-3 proxy"),
        ("3a", "none", "aggregated-0 aggregated-1 aggregated-2 proxy"),
        ("1a", "lmcache", "store aggregated-0"),
        ("1a", "none", "aggregated-0"),
    ],
)
def test_the_processes_of_a_topology_in_the_order_of_their_start(
    platform, topology, name, processes
):
    assert names(plan(topology, name, platform)) == processes.split()


@pytest.mark.parametrize("platform", ["cpu", "cuda"])
def test_vllm_and_its_store_run_in_another_environment_and_the_proxy_in_ours(platform, tmp_path):
    python = str(environment(tmp_path / "env", vllm="0.27.0"))
    settings = EngineSettings(model=Path("/models/tiny"), platform=platform, python=python)
    made = plan_deployment(
        Topology.parse("1p1d"), connector("lmcache"), settings, ports=count(20_000), capacity=EIGHT
    )
    *theirs, proxy = made.processes
    assert {process.program[0] for process in theirs} == {python}
    for process in theirs:
        assert Path(process.env["PYTHONPATH"].split(":")[0], "workbench").is_dir()
        assert process.env["PATH"].startswith(str(Path(python).parent))
    assert proxy.program[0] == sys.executable and "PYTHONPATH" not in proxy.env


@pytest.mark.parametrize("platform", ["cpu", "cuda"])
@pytest.mark.parametrize("name", ["lmcache", "nixl"])
def test_no_port_is_given_out_twice(name, platform):
    made = plan("4p4d", name, platform)
    ports = [process.port for process in made.processes]
    ports += [int(p.env["VLLM_NIXL_SIDE_CHANNEL_PORT"]) for p in made.instances if name == "nixl"]
    if made.store_http_url:
        ports.append(int(made.store_http_url.rpartition(":")[2]))
    assert len(set(ports)) == len(ports)


def test_requests_go_to_the_proxy_or_to_the_only_instance():
    made = plan("1p4d", "lmcache")
    assert made.url == made.processes[-1].url
    assert made.processes[-1].role == "proxy"
    alone = plan("1a", "lmcache")
    assert alone.url == alone.instances[0].url


def test_the_proxy_knows_every_instance_by_its_leg():
    made = plan("2p3d", "nixl")
    prefill = [p.url for p in made.instances if p.role == "prefill"]
    decode = [p.url for p in made.instances if p.role == "decode"]
    args = made.processes[-1].args
    legs = list(pairwise(args))
    assert [url for option, url in legs if option == "--prefill"] == prefill
    assert [url for option, url in legs if option == "--decode"] == decode
    assert ("--mode", "nixl") in legs


def test_a_proxy_before_aggregated_instances_has_one_leg():
    args = plan("3a", "lmcache").processes[-1].args
    assert "--prefill" not in args
    assert args.count("--decode") == 3
    assert args[args.index("--mode") + 1] == "none"


def test_every_instance_finds_the_store():
    made = plan("1p4d", "lmcache")
    store = made.processes[0]
    port = f'"lmcache.mp.port": {store.port}'
    assert all(port in " ".join(process.args) for process in made.instances)
    assert "--shm-name workbench-7" in store.command_line


def test_without_a_store_there_is_nothing_of_it():
    assert plan("1p1d", "nixl").store_http_url == ""


@pytest.mark.parametrize("platform", ["cpu", "simulated"])
def test_without_a_gpu_servers_are_forked_by_functions_that_are_there(platform):
    processes = plan("1p1d", "lmcache", platform).processes
    assert all(callable(named(process.forks)) for process in processes if process.forks)
    plain = {process.role for process in processes if not process.forks}
    assert plain == ({"proxy"} if platform == "cpu" else set())
    assert {process.forks for process in plan("1p1d", "lmcache", "cuda").processes} == {""}


def test_an_instance_fails_by_the_texts_of_its_engine_and_of_its_connector():
    alone, pulling = plan("1a", "none").instances[0].fatal, plan("1p1d", "nixl").instances[0].fatal
    assert set(pulling) - set(alone) == {"NIXL is not avail"}


def devices(made: DeploymentPlan) -> list[str]:
    return [process.env["CUDA_VISIBLE_DEVICES"] for process in made.instances]


def test_each_instance_gets_gpus_of_its_own():
    tp = TensorParallel(prefill=4, decode=1)
    made = plan("1p4d", "nixl", "cuda", tp=tp)
    assert devices(made) == ["0,1,2,3", "4", "5", "6", "7"]
    assert "--tensor-parallel-size 4" in made.instances[0].command_line
    assert "--tensor-parallel-size 1" in made.instances[1].command_line


def test_the_given_gpus_are_handed_out_in_the_given_order():
    made = plan("1p1d", "nixl", "cuda", capacity=Capacity(devices=("6", "GPU-3f", "2")))
    assert devices(made) == ["6", "GPU-3f"]


def test_a_gpu_is_shared_only_when_all_are_in_use():
    made = plan("1p3d", "nixl", "cuda", capacity=Capacity(devices=("0", "1"), instances_per_gpu=2))
    assert devices(made) == ["0", "1", "0", "1"]
    assert all("--gpu-memory-utilization 0.45" in p.command_line for p in made.instances)


def test_each_cpu_instance_may_have_cores_of_its_own():
    made = plan("1p2d", "nixl", capacity=Capacity(cores=(1, 2, 3, 5, 6, 7)), cores=2)
    assert [process.cores for process in made.processes] == [(1, 2), (3, 5), (6, 7), ()]
    assert made.instances[1].command_line.startswith("taskset --cpu-list 3,5 ")
    assert made.instances[1].env["OMP_NUM_THREADS"] == "2"
    shared = plan("1p2d", "nixl", capacity=Capacity(cores=(1, 2)))
    assert {process.cores for process in shared.processes} == {()}


def test_what_is_planned_can_be_read_and_typed_again():
    made = plan("1p1d", "nixl", "cuda", tp=TensorParallel(prefill=2))
    lines = str(made).splitlines()
    assert lines[0] == "1p1d: 1 prefill x 2 GPU, 1 decode x 1 GPU; connector nixl"
    assert len(lines) == 1 + len(made.processes)
    words = ["prefill-0", *made.processes[0].program]
    assert lines[1].split()[: len(words)] == words
    assert '\'{"kv_connector": "NixlConnector"' in lines[1]  # quoted for a shell
    assert str(plan("1p1d", "nixl")).startswith("1p1d: 1 prefill, 1 decode; connector nixl")


def test_the_proxy_runs_in_this_interpreter():
    assert plan("1p1d", "nixl").processes[-1].program[0] == sys.executable
