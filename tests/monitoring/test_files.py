"""The files for Prometheus and Grafana: held against Prometheus' own checker, and by their form."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from workbench.monitoring.dashboard import TAG, dashboard
from workbench.monitoring.panels import PANELS, panels_for
from workbench.monitoring.provisioning import files
from workbench.monitoring.rules import rules
from workbench.monitoring.scrape import RULES_FILE, Target, prometheus_config, target_file

TARGETS = [
    Target(name="prefill-0", role="prefill", connector="nixl", address="127.0.0.1:8100"),
    Target(name="decode-0", role="decode", connector="nixl", address="127.0.0.1:8200"),
    Target(name="store", role="store", connector="nixl", address="store:9003", path="/m"),
]


def promtool(*arguments: str) -> str:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed (Debian's package prometheus)")
    done = subprocess.run([program, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_promtool_accepts_rules_and_configuration(tmp_path: Path):
    (tmp_path / RULES_FILE).write_text(rules())
    (tmp_path / "prometheus.yml").write_text(prometheus_config(TARGETS))
    said = promtool("check", "config", str(tmp_path / "prometheus.yml"))
    assert "1 rule files found" in said and "SUCCESS" in said


def test_promtool_accepts_a_file_of_targets(tmp_path: Path):
    (tmp_path / "targets.json").write_text(target_file(TARGETS, run="a"))
    config = {
        "scrape_configs": [
            {
                "job_name": "a",
                "file_sd_configs": [{"files": [str(tmp_path / "*.json")]}],
            }
        ]
    }
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    assert "SUCCESS" in promtool("check", "config", str(tmp_path / "prometheus.yml"))


def test_each_server_has_the_labels_that_it_does_not_know():
    config = yaml.safe_load(prometheus_config(TARGETS, interval_s=0.5))
    assert config["global"]["scrape_interval"] == "500ms"
    first, _, store = config["scrape_configs"][0]["static_configs"]
    assert first == {
        "targets": ["127.0.0.1:8100"],
        "labels": {"instance": "prefill-0", "role": "prefill", "connector": "nixl"},
    }
    assert store["labels"]["__metrics_path__"] == "/m"


def test_rules_record_what_dashboards_of_many_days_need():
    recorded, alerts = yaml.safe_load(rules())["groups"]
    names = {rule["record"] for rule in recorded["rules"]}
    assert names == {
        "connector_role_source:prompt_tokens:rate1m",
        "connector_role_source:prompt_tokens:ratio_rate1m",
        "connector_role:requests_running:sum",
        "connector_role:requests_waiting:sum",
        "connector_role:kv_moved_bytes:rate1m",
        "connector:kv_failures:rate1m",
        "connector:store_fill:ratio",
    }
    assert {rule["alert"] for rule in alerts["rules"]} == {
        "ServerDown", "KVTransfersFail", "TierLosesChunks",
    }  # fmt: skip


def test_no_two_rules_write_one_series():
    recorded, _ = yaml.safe_load(rules())["groups"]
    written = [(rule["record"], *sorted(rule.get("labels", {}).items()))
               for rule in recorded["rules"]]  # fmt: skip
    assert len(set(written)) == len(written)


ALERT_TEST = """
rule_files: [{rules}]
evaluation_interval: 15s
tests:
  - interval: 15s
    input_series:
      - series: 'vllm:nixl_num_failed_transfers_total{{connector="nixl",role="decode"}}'
        values: '0 0 0 0 3 3 3 3 3 3 3 3 3 3'
      - series: 'up{{connector="nixl",instance="decode-0",role="decode"}}'
        values: '1 1 1 1 0 0 0 0 0 0 0 0 0 0'
      - series: 'lmcache_mp_l1_usage_ratio{{connector="lmcache"}}'
        values: '1x14'
    alert_rule_test:
      - alertname: KVTransfersFail
        eval_time: 45s
        exp_alerts: []
      - alertname: KVTransfersFail
        eval_time: 75s
        exp_alerts:
          - exp_labels: {{connector: nixl, failed: failed transfers}}
            exp_annotations:
              summary: >-
                nixl: failed transfers. Decode computes their KV again, or the request fails.
      - alertname: ServerDown
        eval_time: 150s
        exp_alerts:
          - exp_labels: {{connector: nixl, instance: decode-0, role: decode}}
            exp_annotations: {{summary: decode-0 does not respond to Prometheus.}}
"""


def test_alerts_fire_on_a_failed_transfer_and_a_dead_server_alone(tmp_path: Path):
    (tmp_path / "rules.yml").write_text(rules())
    (tmp_path / "test.yml").write_text(ALERT_TEST.format(rules=tmp_path / "rules.yml"))
    assert "SUCCESS" in promtool("test", "rules", str(tmp_path / "test.yml"))


def test_the_dashboard_has_every_panel_once_in_rows_that_do_not_overlap():
    made = dashboard()
    panels = [panel for panel in made["panels"] if panel["type"] == "timeseries"]
    assert [panel["title"] for panel in panels] == [panel.title for panel in PANELS]
    places = [panel["gridPos"] for panel in made["panels"]]
    cells = {
        (x, y)
        for place in places
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    }
    assert len(cells) == sum(place["w"] * place["h"] for place in places)
    assert max(place["x"] + place["w"] for place in places) <= 24
    numbers = [panel["id"] for panel in made["panels"]]
    assert len(set(numbers)) == len(numbers)


def test_the_dashboard_of_a_connector_has_its_panels_alone():
    titles = {p["title"] for p in dashboard("nixl")["panels"] if p["type"] == "timeseries"}
    assert titles == {panel.title for panel in panels_for("nixl", tiers=True)}


def test_each_query_of_the_dashboard_can_be_chosen_by_role_and_instance():
    made = json.loads(json.dumps(dashboard()))
    assert [v["name"] for v in made["templating"]["list"]] == ["datasource", "role", "instance"]
    targets = [t for panel in made["panels"] for t in panel.get("targets", [])]
    assert len(targets) == sum(len(panel.queries) for panel in PANELS)
    for target in targets:
        assert 'role=~"$role",instance=~"$instance"' in target["expr"]
        assert target["datasource"]["uid"] == "${datasource}"
        assert "rate(" not in target["expr"] or "[$__rate_interval]" in target["expr"]


def test_the_dashboard_shows_the_passes_of_runs():
    (passes,) = dashboard()["annotations"]["list"]
    assert passes["target"]["tags"] == [TAG]


def test_grafana_finds_prometheus_and_the_dashboard():
    made = {name: yaml.safe_load(text) for name, text in files().items()}
    (source,) = made["datasources/prometheus.yaml"]["datasources"]
    assert (source["type"], source["url"]) == ("prometheus", "http://prometheus:9090")
    assert source["jsonData"]["timeInterval"] == "5s"
    (provider,) = made["dashboards/workbench.yaml"]["providers"]
    assert provider["options"]["path"] == "/var/lib/grafana/dashboards"
