"""The workbench without vLLM, torch and the like; and the engine's side without our packages."""

import subprocess
import sys

BLOCKED = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocked())
"""
ALL = """
from importlib import import_module
from pkgutil import walk_packages
import workbench
names = [found.name for found in walk_packages(workbench.__path__, "workbench.")]
names = [name for name in names if not name.startswith({there})]
for name in names:
    import_module(name)
print(len(names))
"""
INSIDE = ("workbench.serve.inside_vllm.", "workbench.serve.connectors.tiers.lmcache_plugins.")
"""Modules that only vLLM and LMCache import, and that need these."""
MEASURED = """
from importlib import import_module
from pkgutil import iter_modules
import workbench.claims.engines, workbench.claims.kernels
names = [
    found.name
    for room in (workbench.claims.engines, workbench.claims.kernels)
    for found in iter_modules(room.__path__, room.__name__ + ".")
]
for name in names:
    import_module(name)
print(len(names))
"""
ENGINE = (
    "vllm", "torch", "lmcache", "nixl", "mooncake", "transformers", "tokenizers", "safetensors",
)  # fmt: skip
OURS = (
    "aiohttp", "bs4", "click", "httptools", "httpx", "IPython", "jinja2", "matplotlib", "nbclient",
    "nbconvert", "nbformat", "orjson", "pandas", "papermill", "psutil", "pyarrow", "scipy",
    "seaborn", "simpy", "tqdm", "yaml",
)  # fmt: skip
"""Our dependencies but numpy, pydantic and uvloop, which vLLM has."""
THERE = (
    "workbench.serve.processes.forkserver", "workbench.serve.vllm",
    "workbench.serve.checks.argument_check", "workbench.serve.checks.connector_check",
    "workbench.serve.tiny_model", "workbench.claims.recipes.launches",
)  # fmt: skip
"""What runs in the engine's interpreter; `serve.vllm` imports the patches and all connectors."""


def run(code: str, *, without: tuple[str, ...]) -> str:
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED.format(names=without) + code], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_every_module_can_be_imported_without_an_engine():
    assert int(run(ALL.format(there=INSIDE), without=ENGINE)) > 200


def test_what_runs_with_the_engine_needs_none_of_our_packages():
    code = "\n".join(f"import {name}" for name in THERE)
    run(code, without=(*OURS, "numpy", "pydantic", "uvloop"))


def test_what_claims_measure_with_the_engine_needs_numpy_and_pydantic_only():
    assert int(run(MEASURED, without=OURS)) >= 9
