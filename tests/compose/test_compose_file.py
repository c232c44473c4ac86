"""The file as a whole: Docker's own Compose takes it, and its first lines are commands."""

import json
import re
import shlex

import pytest
import yaml

from tests.compose.test_services import KINDS, TIERS
from workbench import cli


@pytest.mark.parametrize("given", KINDS + TIERS, ids=lambda given: "-".join(given.values()))
def test_dockers_compose_takes_it(given, written, compose):
    text = written(**given)
    for profile in {p for s in yaml.safe_load(text)["services"].values() for p in s["profiles"]}:
        checked = compose(text, "--profile", profile, "config", "--quiet")
        assert (checked.returncode, checked.stderr) == (0, "")


def test_compose_sees_the_words_of_the_plan(written, read, compose):
    """Its reader of YAML is another one: `1e3` stays a word."""
    given = {
        "topology": "1p1d",
        "connector": "nixl",
        "engine_args": "--max-num-seqs 1e3 --zz yes 08",
    }
    shown = compose(written(**given), "--profile", "disaggregated", "config")
    seen = yaml.safe_load(shown.stdout)["services"]
    for name, service in read(**given).items():
        if name in seen:
            assert seen[name]["command"] == [word.replace("$", "$$") for word in service["command"]]


def test_a_mistake_is_found_so_the_check_can_fail(written, compose):
    text = written(topology="1a", connector="none").replace("stop_signal", "stop_sgnal")
    assert compose(text, "--profile", "aggregated", "config", "--quiet").returncode != 0


def test_the_first_line_measures_and_the_second_starts(written):
    text = written(topology="1p4d", connector="lmcache")
    first, second, third, fourth, fifth, *_ = text.splitlines()
    assert first.startswith("# papermill notebooks/pd_sweep.ipynb out.ipynb -p engine attach ")
    assert second == "# docker compose --profile disaggregated up --build --detach --wait"
    assert third == "# docker compose --profile disaggregated down --volumes"
    assert fourth == "# workbench report out.ipynb"
    url, body = re.match(r"# curl (\S+) .* -d '(.*)'$", fifth).groups()
    assert url.removesuffix("/v1/completions") in first
    assert json.loads(body)["model"] in yaml.safe_load(text)["services"]["prefill-0"]["command"]
    assert "out-aggregated.ipynb -p engine attach" in text  # does not replace the first's


def test_a_value_of_several_lines_stays_a_comment_and_its_command_works(written):
    given = {"engine_args": "--max-num-seqs 8\n--zz yes", "engine_env": "A=1\nB=2"}
    text = written(topology="1a", connector="none", **given)
    content = yaml.safe_load(text)
    assert content["services"]["aggregated-0"]["environment"]["B"] == "2"
    head = text.partition("\nname:")[0].rstrip("\n").splitlines()
    assert all(line.startswith("#") for line in head)
    (at,) = [n for n, line in enumerate(head) if line.startswith("# workbench compose")]
    words = shlex.split("\n".join(line.removeprefix("# ") for line in head[at:]))
    assert words[words.index("engine_args") + 1] == given["engine_args"]
    assert words[words.index("engine_env") + 1] == given["engine_env"]


def test_files_that_instances_read_are_inside(written):
    content = yaml.safe_load(written(topology="1p1d", connector="mooncake-store"))
    one = content["services"]["prefill-0"]
    (config,) = one["configs"]
    assert one["environment"]["MOONCAKE_CONFIG_PATH"] == config["target"]
    text = content["configs"][config["source"]]["content"]
    assert '"metadata_server": "P2PHANDSHAKE"' in text


def test_the_command_prints_it(written, capsys, tmp_path):
    file = tmp_path / "params.yaml"
    file.write_text("topology: 2a\nconnector: none\n")
    line = ["compose", "-f", str(file), "-p", "image", "my/vllm:1"]
    assert cli.main([*line, "-p", "engine_args", "--max-num-seqs 8"]) == 0
    out = capsys.readouterr().out
    again = written(topology="2a", connector="none", engine_args="--max-num-seqs 8")
    assert out.partition("\nname:")[2] == again.partition("\nname:")[2]
    assert re.search(r"^# workbench compose .*--max-num-seqs 8", out, re.M)
