"""A vLLM says itself whether it can load a connector; asked if its versions were not measured."""

from pathlib import Path

import pytest

from tests.environments import environment
from workbench.errors import LaunchError, PlanError
from workbench.hardware.interpreter import Interpreter, interpreter
from workbench.serve.checks import connector_check
from workbench.serve.checks.connector_check import check_connector
from workbench.serve.connectors import connector

FACTORY = """
class KVConnectorFactory:
    def get_connector_class(config):
        print("a line of a library")
        if config["kv_connector"] != "LMCacheMPConnector":
            raise ValueError(f"Unsupported connector type: {config['kv_connector']}")
        import lmcache.integration
"""
KV_TRANSFER = "KVTransferConfig = dict"
"""The modules of a vLLM that knows LMCache's connector only."""


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Interpreter:
    """Another environment with that vLLM, and with an LMCache that it cannot import from."""
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    python = environment(tmp_path / "env", vllm="0.24.0", lmcache="0.4.1", nixl="1.5.1")
    (site,) = (tmp_path / "env").glob("lib/python*/site-packages")
    modules = {
        "config/kv_transfer": KV_TRANSFER,
        "distributed/kv_transfer/kv_connector/factory": FACTORY,
    }
    for name, source in modules.items():
        file = site / "vllm" / f"{name}.py"
        file.parent.mkdir(parents=True)
        file.write_text(source)
    return interpreter(str(python))


def test_an_lmcache_that_does_not_fit_is_told_with_the_tested_versions(engine):
    with pytest.raises(PlanError) as refused:
        check_connector(connector("lmcache"), engine)
    said = str(refused.value)
    assert "got vllm 0.24.0 and lmcache 0.4.1: No module named 'lmcache.integration'" in said
    assert "install vllm 0.32.0 and lmcache 0.5.6" in said
    assert said.endswith("(example: -p connector none -p topology 2a)")
    assert len(said.split()) <= 45


def test_what_was_mended_is_asked_again_and_what_fits_only_once(engine, tmp_path):
    with pytest.raises(PlanError):
        check_connector(connector("lmcache"), engine)
    (home,) = (tmp_path / "env").glob("lib/python*/site-packages/lmcache")
    (home / "integration.py").write_text("")
    check_connector(connector("lmcache"), engine)
    (home / "integration.py").unlink()
    check_connector(connector("lmcache"), engine)


def test_a_connector_that_this_vllm_does_not_have_is_told(engine):
    with pytest.raises(PlanError, match=r"'nixl' .*Unsupported connector type: NixlConnector"):
        check_connector(connector("nixl"), engine)


def test_a_missing_package_is_told_with_where_to_install_it(engine):
    with pytest.raises(LaunchError, match=r"the package mooncake, .* next to that vLLM \(/.*\)"):
        check_connector(connector("mooncake-store"), engine)


def test_without_a_connector_only_vllm_must_be_there(engine, tmp_path):
    check_connector(connector("none"), engine)
    lacking = interpreter(str(environment(tmp_path / "bare")))
    with pytest.raises(PlanError) as refused:
        check_connector(connector("none"), lacking)
    assert str(refused.value) == (
        "engine=vllm needs engine_python (this environment has no vLLM), got ''"
        " (example: -p engine_python /opt/vllm/bin/python)"
    )


@pytest.mark.engine
@pytest.mark.xdist_group("imports vLLM")
@pytest.mark.parametrize(
    ("name", "error"),
    [("LMCacheMPConnector", ""), ("NixlConnector", ""), ("NoSuch", "Unsupported connector type")],
)
def test_the_real_vllm(name, error):
    said = connector_check._answer({"kv_connector": name, "kv_role": "kv_both"})["error"]
    assert said.startswith(error) and bool(said) is bool(error)
