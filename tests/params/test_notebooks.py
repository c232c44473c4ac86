import ast
import inspect
import math
from dataclasses import MISSING, fields
from typing import Any, get_type_hints

import papermill
import pytest
import yaml

from workbench.errors import ParameterError
from workbench.hardware.machine import repository_root
from workbench.load.catalogue import WORKLOADS
from workbench.params.notebooks import NOTEBOOKS, PrefixCache, check_params
from workbench.params.pd_sweep import PdSweep
from workbench.params.shared import OWN_LENGTHS
from workbench.topology import Topology

ROOT = repository_root()
# params/claims holds claims, not parameters.
FILES = sorted(set(ROOT.glob("params/*/*.yaml")) - set(ROOT.glob("params/claims/*")))
ATTACH = {"engine": "attach", "base_url": "http://127.0.0.1:8000"}


def test_no_parameter_gives_the_defaults():
    assert check_params("pd_sweep", {}) == PdSweep()
    assert PdSweep().topologies == (Topology(prefill=1, decode=4),)


def test_what_a_shell_writes_becomes_typed_values():
    params = check_params(
        "pd_sweep", {"topology": "1p1d,1p4d", "prompt_tokens": "5000", "fork": "false"}
    )
    assert (params.prompt_tokens, params.fork) == (5000, False)
    assert [str(topology) for topology in params.topologies] == ["1p1d", "1p4d"]


@pytest.mark.parametrize(
    "given",
    [
        '{"min_p": 1e-3, "cache_salt": "a"}',  # to YAML 1e-3 is a text
        "{min_p: 0.001, cache_salt: a}",
        "min_p: 0.001\ncache_salt: a",
        {"cache_salt": "a", "min_p": 0.001},
    ],
)
@pytest.mark.parametrize("notebook", ["pd_sweep", "lmcache_hit_analysis"])
def test_fields_of_the_body_are_json_or_yaml_and_kept_as_one_text(notebook, given):
    params = check_params(notebook, {"extra_body": given})
    assert params.extra_body == '{"cache_salt": "a", "min_p": 0.001}'


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ({}, "closed"),
        ({"rate_per_s": 2}, "poisson"),
        ({"rate_per_s": 2, "arrivals": "constant"}, "constant"),
        ({"rate_per_s": 2, "arrivals": "gamma", "burstiness": 0.5}, "gamma"),
        ({"rate_per_s": 2, "arrivals": "ramp", "end_rate_per_s": 4}, "ramp"),
        ({"workload": "trace", "trace_file": "a", "trace_speed": 2}, "trace"),
        ({"workload": "trace", "trace_file": "a", "arrivals": "trace"}, "trace"),
        ({"workload": "trace", "trace_file": "a"}, "closed"),
    ],
)
def test_auto_arrivals_follow_from_rate_and_speed(given, kind):
    assert check_params("single_instance_prefix_cache", given).arrival_kind == kind


def test_a_workload_has_lengths_of_its_own_where_none_are_given():
    assert PdSweep().lengths == (22_660, 3)
    assert PrefixCache().lengths == (2_048, 24)
    assert PrefixCache(workload="code_generation", requests=5).lengths == (8_192, 5)
    for name, (prompt_tokens, requests) in OWN_LENGTHS.items():
        own = inspect.signature(WORKLOADS[name]).parameters
        if name != "trace":  # a file has lengths, but they are those of production
            lengths = own["prompt_tokens"].default, own["requests"].default
            assert lengths == (prompt_tokens, requests)


def test_an_attached_deployment_may_have_any_label():
    params = check_params("pd_sweep", ATTACH | {"topology": "the old cluster"})
    assert params.topology == "the old cluster"


def test_server_lists_are_read_as_a_shell_writes_them():
    urls = "http://127.0.0.1:1,http://127.0.0.1:2"
    assert check_params("pd_sweep", ATTACH | {"decode_urls": urls}).decode_urls == urls.split(",")


PREFIX = "single_instance_prefix_cache"


def test_a_notebooks_globals_are_searched_for_parameters_only():
    history = {"In": ["", "topology = '1p1d'"], "Out": {1: "x"}, "_": "x", "_i1": "topology"}
    others = {"__name__": "__main__", "get_ipython": lambda: None, "math": math, "plan": object()}
    namespace = history | others | {"params": PdSweep(), "topology": "1p1d", "seed": 7}
    assert check_params("pd_sweep", namespace) == PdSweep(topology="1p1d", seed=7)


@pytest.mark.parametrize("junk", ["text", 5, 0.5, True, None, [1], {"a": 1}, [""], {}])
def test_every_unknown_value_that_papermill_can_inject_is_caught(junk):
    with pytest.raises(ParameterError, match="pd_sweep has no parameter 'junk'"):
        check_params("pd_sweep", {"junk": junk})


def test_a_known_parameter_is_never_passed_over():
    assert check_params(PREFIX, {"shares": (0.5,)}) == PrefixCache(shares=[0.5])
    with pytest.raises(ParameterError, match="model must be a string"):
        check_params("pd_sweep", {"model": ROOT})


# The notebooks and the parameter files repeat names and defaults; these hold them together.


def defaults(kind: type) -> dict[str, Any]:
    return {
        spec.name: spec.default if spec.default is not MISSING else spec.default_factory()
        for spec in fields(kind)
    }


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_the_parameters_cell_says_what_the_dataclass_says(notebook):
    shown = papermill.inspect_notebook(str(ROOT / "notebooks" / f"{notebook}.ipynb"))
    kind = NOTEBOOKS[notebook]
    assert {name: ast.literal_eval(p["default"]) for name, p in shown.items()} == defaults(kind)
    helps = {spec.name: spec.metadata["rule"].help for spec in fields(kind)}
    assert {name: p["help"] for name, p in shown.items()} == helps
    types = {spec.name: str(spec.type) for spec in fields(kind)}
    assert {name: p["inferred_type_name"] for name, p in shown.items()} == types


def test_every_notebook_has_parameters():
    assert {path.stem for path in ROOT.glob("notebooks/*.ipynb")} == set(NOTEBOOKS)


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_every_default_and_example_keeps_its_own_rule(notebook):
    kind = NOTEBOOKS[notebook]
    assert check_params(notebook, defaults(kind)) == kind()
    hints = get_type_hints(kind)
    for spec in fields(kind):
        rule = spec.metadata["rule"]
        rule.read(spec.name, rule.example, hints[spec.name])
        assert str(rule.example) not in ("", "[]"), spec.name


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_parameter_file_passes_the_check_of_its_notebook(path):
    check_params(path.stem, yaml.safe_load(path.read_text()))
