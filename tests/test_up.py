"""`workbench up` as typed in a shell: what it prints, and that its servers end with it."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import psutil
import pytest

from workbench import cli
from workbench.hardware.machine import repository_root
from workbench.params.pd_sweep import PdSweep
from workbench.params.serving import SERVING
from workbench.params.shared import EngineParams, LoadParams

SIMULATED = "-p topology 1p1d -p engine simulated"


class Started:
    """A running command, its lines so far, and what it says until a line."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.said = ""

    def until(self, text: str) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said += line
            if text in line:
                return self.said
        raise AssertionError(f"no {text!r} in {self.said!r}")

    def indented(self, heading: str) -> str:
        """The lines below a heading."""
        (block,) = re.findall(rf"^{heading}\n((?:  .*\n)+)", self.said, re.MULTILINE)
        return str(block)

    def rest(self) -> str:
        assert self.process.stdout is not None
        self.said += self.process.stdout.read()
        return self.said


@pytest.fixture
def up(tmp_path: Path, nothing_left: str) -> Callable[..., object]:
    @contextmanager
    def start(arguments: str = SIMULATED) -> Iterator[Started]:
        words = [sys.executable, "-m", "workbench.cli", "up", *shlex.split(arguments)]
        with subprocess.Popen(
            [*words, "-p", "output_dir", str(tmp_path)], cwd=repository_root(), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        ) as process:  # fmt: skip
            try:
                yield Started(process)
            finally:
                process.kill()

    return start


def shell(line: str) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-c", line], cwd=repository_root(), env=os.environ | {"PATH": path},
        check=True, capture_output=True, text=True, timeout=100,
    ).stdout  # fmt: skip


def test_it_says_what_starts_then_commands_that_work_as_typed_and_ends_on_ctrl_c(up, tmp_path):
    with up() as started:
        said = started.until("Ctrl-C")
        assert said.startswith("starting 1p1d: 1 prefill, 1 decode; connector lmcache; simulated\n")
        assert "  store, prefill-0, decode-0, proxy\n" in said
        answer = json.loads(shell(started.indented("use it:")))
        assert answer["usage"]["completion_tokens"] == 16
        metrics = dict(line.split() for line in started.indented("metrics:").splitlines())
        assert list(metrics) == ["prefill-0", "decode-0", "store"]
        assert all("# TYPE" in shell(f"curl -s {url}") for url in metrics.values())
        started.process.send_signal(signal.SIGINT)
        assert started.rest().endswith(
            "\nending 1p1d lmcache\nall servers of 1p1d lmcache are stopped\n"
        )
        assert started.process.wait() == 0
    logs = Path(re.search("^logs: (.*)$", said, re.MULTILINE)[1])
    assert {"store.log", "prefill-0.log", "proxy.log"} <= {log.name for log in logs.iterdir()}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("moment", ["logs:", "Ctrl-C"])
def test_it_ends_on_any_signal_at_any_time(number, moment, up):
    with up() as started:
        started.until(moment)
        started.process.send_signal(number)
        assert started.rest().endswith("all servers of 1p1d lmcache are stopped\n")
        assert started.process.wait() == 0


def test_its_servers_do_not_outlive_it_when_it_is_killed(up, alive):
    with up() as started:
        started.until("Ctrl-C")
        assert len(alive()) > 4
        started.process.kill()
        # `nothing_left` waits until they are gone


def test_a_server_that_ends_by_itself_is_told_with_its_log_and_ends_the_others(up):
    with up() as started:
        started.until("Ctrl-C")
        (decode,) = [
            connection.pid
            for connection in psutil.net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN
            and f":{connection.laddr.port}/" in started.indented("metrics:").splitlines()[1]
        ]
        psutil.Process(decode).kill()
        said = started.rest()
        assert "decode-0 ended by itself: killed by SIGKILL" in said
        assert "decode-0.log" in said
        assert said.endswith("all servers of 1p1d lmcache are stopped\n")
        assert started.process.wait() == 1


def test_a_short_context_is_measured_with_prompts_that_fit(up):
    with up(f"{SIMULATED} -p context_tokens 1024 -p connector nixl") as started:
        started.until("Ctrl-C")
        words = shlex.split(started.indented("measure it:"))
        assert words[words.index("prompt_tokens") + 1] == "992"
        assert "lmcache_url" not in words


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("-p topology p4d", "topology must be like 1p4d (1 prefill, 4 decode"),
        ("-p topology 1p1d,1p4d", "topology must be a single one, got '1p1d,1p4d'"),
        ("-p connector all", "connector must be one of none, lmcache,"),
        ("-p engine attach -p base_url http://127.0.0.1:1", "engine must be vllm or simulated"),
        ("-p rounds 3", "starts servers and sends no load, so it does not take 'rounds'"),
        ("-p topologie 1p4d", "did you mean 'topology'?"),
        ("-p engine simulated -p dtype float16", "dtype=float16 does not apply to engine"),
        ("-p topology 1p1d -p aggregated_args --x", "aggregated_args=--x does not apply to"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence_and_nothing_starts(arguments, sentence, capsys):
    assert cli.main(["up", *arguments.split()]) == 2
    shown = capsys.readouterr()
    assert sentence in shown.err
    assert shown.out == ""


def test_each_parameter_of_a_sweep_is_either_of_its_servers_or_of_its_measurement():
    measuring = {
        "timeout_s", "kernel_stamps", "client_workers", "seed", "rates_per_s", "search",
        "ttft_limit_ms", "tpot_limit_ms", "limits_share", "working_sets", "rounds", "opponents",
        "base_url", "prefill_urls", "decode_urls", "lmcache_url", "tokenizer", "link_runs",
        "models", "time_budget_s", "gpu_hour_price", "concurrencies", "predict", "measure",
    }  # fmt: skip
    load = {spec.name for spec in fields(LoadParams)} - {s.name for s in fields(EngineParams)}
    assert {*SERVING} | measuring | load == {spec.name for spec in fields(PdSweep)}
    assert not {*SERVING} & (measuring | load)
