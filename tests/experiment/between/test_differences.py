from dataclasses import replace

import pytest

from tests.experiment.between.recorded import recorded
from workbench.errors import ResultError
from workbench.experiment.between.differences import (
    check_alike,
    differences,
    distinct_labels,
    first_line,
    options,
)
from workbench.experiment.result.facts import ModelRow
from workbench.experiment.result.result_file import read_facts


@pytest.fixture(scope="module")
def base():
    return read_facts(recorded("base") / "result.json")


def with_parameters(run, **changes):
    return replace(run, parameters=dict(run.parameters) | changes)


def with_machine(run, **changes):
    return replace(run, machine=dict(run.machine) | changes)


def a_model(**changes):
    row = ModelRow(
        model="tiny", name="tiny", layers=1, dtype="float32", kv_bytes_per_token=1.0,
        prompt_tokens=100, workload_hash="a" * 64,
    )  # fmt: skip
    return replace(row, **changes)


def test_two_runs_of_one_command_are_a_repetition(base):
    """Ports differ between their command lines, and nothing else."""
    again = read_facts(recorded("again") / "result.json")
    assert base.arms[0].command_lines != again.arms[0].command_lines
    assert differences(base, again) == ()
    assert first_line(()) == "no setting differs: a repetition"


def test_one_parameter_is_one_setting_although_command_lines_follow_it(base):
    slow = read_facts(recorded("slow") / "result.json")
    found = differences(base, slow)
    assert first_line(found) == "1 setting differs: fault (none and slow_instance)"
    assert [(each.name, each.counted) for each in found] == [("fault", True), ("--fault", False)]
    small = with_parameters(base, kv_cache_mib=64)
    assert first_line(differences(base, small)) == "1 setting differs: kv_cache_mib (256 and 64)"


def test_a_command_line_that_no_parameter_explains_counts(base):
    (arm,) = base.arms
    lines = [line.replace("--max-model-len 24576", "--max-model-len 8192")
             for line in arm.command_lines]  # fmt: skip
    other = replace(base, arms=(replace(arm, command_lines=tuple(lines)),))
    assert first_line(differences(base, other)) == (
        "1 setting differs: --max-model-len (24576 and 8192)"
    )


def test_versions_machine_commit_and_workload_count(base):
    other = with_machine(
        base, cores=64, versions=dict(base.machine["versions"]) | {"vllm": "9.9"},
        git_commit="0123456789abcdef", memory_gb=4 * base.machine["memory_gb"],
    )  # fmt: skip
    other = with_parameters(other, connector="none", seed=1, rounds=9)
    other = replace(other, workload=replace(base.workload, hash="f" * 64))
    assert first_line(differences(base, other)) == (
        "7 settings differ, so no effect can be attributed to one: seed, connector, rounds, cores,"
        " memory_gb, vllm and 1 more"
    )
    (hashed,) = (each for each in differences(base, other) if each.group == "workload")
    assert not hashed.counted  # the seed explains it
    only = replace(base, workload=replace(base.workload, hash="f" * 64))
    assert first_line(differences(base, only)).startswith("1 setting differs: workload hash (")


def test_a_parameter_that_an_earlier_version_lacked_has_its_default(base):
    known = {name: value for name, value in base.parameters.items() if name != "tier_gb"}
    old = replace(base, parameters=known)
    assert differences(old, base) == ()
    assert first_line(differences(old, with_parameters(base, tier_gb=9.0))) == (
        "1 setting differs: tier_gb (1.0 and 9.0)"
    )


def test_where_the_output_goes_is_no_setting(base):
    assert differences(base, with_parameters(base, output_dir="elsewhere")) == ()


@pytest.mark.parametrize(
    ("changed", "kind", "message"),
    [
        (lambda run: with_machine(run, cores=999), "machine", "cores must be the same in both"),
        (lambda run: with_machine(run, gpus=[{"name": "H200"}]), "machine", "gpus must be the"),
        (
            lambda run: replace(run, workload=replace(run.workload, hash="0" * 64)),
            "workload",
            "workload must be the same in both runs, got reference",
        ),
        (lambda run: replace(run, engine=replace(run.engine, dtype="x")), "model", "dtype must be"),
        (
            lambda run: replace(run, models=(a_model(layers=3),)),
            "model",
            "layers of tiny must be the same in both runs, got 1 in one and 3 in two",
        ),
    ],
)
def test_unlike_runs_are_refused_unless_told_otherwise(base, changed, kind, message):
    base = replace(base, engine=replace(base.engine, dtype="float32"), models=(a_model(),))
    runs = {"one": base, "two": changed(base)}
    with pytest.raises(ResultError, match=message) as refused:
        check_alike(runs)
    assert f"--unlike {kind}" in str(refused.value)
    check_alike(runs, [kind])


def test_a_run_of_one_model_beside_a_sweep_of_several_differs_in_models(base):
    """Not in layers: those of a sweep are known only where its models have them in common."""
    several = replace(
        base,
        engine=replace(base.engine, model="", layers=None, dtype=""),
        models=(a_model(), a_model(model="wide", name="wide")),
    )
    with pytest.raises(ResultError, match=r"models must be the same .* got simulated in one and t"):
        check_alike({"one": base, "two": several})
    with pytest.raises(ResultError, match=r"models must be the same .* got tiny, wide in two and"):
        check_alike({"two": several, "one": base})
    check_alike({"one": base, "two": several}, ["model"])


def test_a_command_line_without_ports_and_folders():
    line = (
        "/opt/venv/bin/python3.11 -m vllm --model /root/x/tiny-1 --port 20002 --host 127.0.0.1"
        """ --kv-transfer-config '{"lmcache.mp.port": 20000, "kv_role": "kv_both"}'"""
        " --shm-name workbench-1f --prefill http://127.0.0.1:20002 --enforce-eager"
    )
    assert options(line) == {
        "program": "python -m vllm",
        "--model": "tiny-1",
        "--port": "PORT",
        "--host": "127.0.0.1",
        "--kv-transfer-config": '{"lmcache.mp.port": PORT, "kv_role": "kv_both"}',
        "--shm-name": "NAME",
        "--prefill": "http://127.0.0.1:PORT",
        "--enforce-eager": "",
    }


def test_folders_of_one_name_are_numbered():
    assert distinct_labels(["a", "b"]) == ["a", "b"]
    assert distinct_labels(["a", "a"]) == ["1: a", "2: a"]
