"""Prometheus and Grafana of a file: what they read is inside it, and nobody sees it unasked."""

import json
import shutil
import subprocess

import pytest
import yaml

from workbench.monitoring.panels import PANELS


@pytest.fixture
def content(written):
    def made(**given):
        return yaml.safe_load(written(**{"topology": "1p1d", "connector": "lmcache", **given}))

    return made


def files_of(content, service):
    """The files of a service as it sees them, by path."""
    found = content["services"][service]["configs"]
    texts = content["configs"]
    return {c["target"]: texts[c["source"]]["content"].replace("$$", "$") for c in found}


def test_every_server_with_metrics_is_a_target_by_the_name_of_its_service(content):
    made = content()
    config = yaml.safe_load(files_of(made, "prometheus")["/etc/prometheus/prometheus.yml"])
    (job,) = config["scrape_configs"]
    groups = {group["labels"]["instance"]: group for group in job["static_configs"]}
    servers = {n for n, s in made["services"].items() if "ipc" in s and s["ipc"] != "shareable"}
    assert groups.keys() == servers
    for name, group in groups.items():
        (address,) = group["targets"]
        assert address.startswith("127.0.0.1:")
        assert address in made["services"][name]["healthcheck"]["test"][-1]
    assert groups["prefill-0"]["labels"]["role"] == "prefill"
    assert groups["aggregated-0"]["labels"]["connector"] == "none"


@pytest.mark.parametrize("connector", ["lmcache", "nixl", "mooncake-store"])
def test_prometheus_takes_its_files(content, connector, tmp_path):
    if not (promtool := shutil.which("promtool")):
        pytest.skip("promtool is not installed (apt-get install prometheus)")
    for path, text in files_of(content(connector=connector), "prometheus").items():
        (tmp_path / path.rpartition("/")[2]).write_text(text)
    done = subprocess.run(
        [promtool, "check", "config", tmp_path / "prometheus.yml"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "rules found" in done.stdout


def test_grafana_finds_prometheus_and_the_dashboard(content):
    made = content()
    files = files_of(made, "grafana")
    folder = "/etc/grafana/provisioning"
    (source,) = yaml.safe_load(files[f"{folder}/datasources/prometheus.yaml"])["datasources"]
    listens = made["services"]["prometheus"]["command"][-1]
    assert listens == f"--web.listen-address={source['url'].removeprefix('http://')}"
    (provider,) = yaml.safe_load(files[f"{folder}/dashboards/workbench.yaml"])["providers"]
    shown = json.loads(files[f"{provider['options']['path']}/workbench.json"])
    titles = {panel["title"] for panel in shown["panels"]}
    assert {panel.title for panel in PANELS} <= titles
    assert "$__rate_interval" in json.dumps(shown)  # Grafana's own variables arrive as they are


def test_grafana_does_not_start_without_a_password(content):
    made = content()["services"]["grafana"]
    assert made["environment"]["GF_AUTH_ANONYMOUS_ENABLED"] == "false"
    assert made["environment"]["GF_SERVER_HTTP_ADDR"] == "127.0.0.1"
    program, *words = (word.replace("$$", "$") for word in made["entrypoint"])
    for given, said in (("", "set GRAFANA_PASSWORD\n"), ("a", "started\n")):
        words[-1] = words[-1].replace("/run.sh", "echo started")
        done = subprocess.run(
            [program, *words], capture_output=True, text=True,
            env={"GF_SECURITY_ADMIN_PASSWORD": given},
        )  # fmt: skip
        assert (done.stdout, done.returncode) == (said, int(not given))


def test_the_password_is_asked_for_by_no_other_profile(written, compose):
    text = written(topology="1p1d")
    assert "${GRAFANA_PASSWORD:-}" in text
    for profile in ("disaggregated", "monitoring"):
        assert compose(text, "--profile", profile, "config", "--quiet").returncode == 0
