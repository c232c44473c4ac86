"""vLLM as a program: its command line, its environment, and what the fork server loads.

Everything that depends on vLLM's version is here and in `cpu_patches`; docs/engine.md has reasons.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from importlib.util import find_spec
from math import nan
from pathlib import Path
from runpy import run_module
from typing import Any, Literal

from workbench.hardware.cache import cache_folder
from workbench.hardware.hosts import THIS_MACHINE, Cluster, Host
from workbench.hardware.images import Image
from workbench.hardware.interpreter import Interpreter, interpreter
from workbench.params.engine_args import count_of, value_of
from workbench.serve.cpu_patches import register
from workbench.serve.tiny_model import ModelFacts, model_facts
from workbench.topology import Role, TensorParallel

PACKAGES = {"vllm": "0.32.0"}
"""The pinned version, which is measured most; docs/compatibility.md has others."""
PROCESS_MARKS = ("VLLM::", "vllm.entrypoints", "vllm serve")
"""Each of its processes has one of these in its command line."""
FATAL = ("To serve at least one request with the model's max seq len",)
"""Log text after which it never becomes ready, though its API server runs on for a while."""
FORKS, LOAD = f"{__name__}:serve", f"{__name__}:load"
"""What a fork of the fork server calls for a CPU instance, and what the fork server loads."""

SERVERS = ("vllm.entrypoints.launchers.api_server.entry", "vllm.entrypoints.openai.api_server")
"""The module of the API server; the second name is that before 0.29."""
PARSERS = tuple(f"vllm.entrypoints.{room}.cli_args" for room in ("common", "launchers", "openai"))
"""The module of its option parser: since 0.33, since 0.29, before."""
MAY_LACK = {"--enable-per-request-metrics": "has no per-request metrics (they came with 0.25)"}
"""Options that the workbench sets and an older vLLM does not know: what follows for it."""

_COMMAND = ("-m", "vllm.entrypoints.cli.main", "serve")

Platform = Literal["cpu", "cuda", "rocm", "simulated"]
"""What instances run on; `simulated` ones are in `workbench.serve.simulated`."""

SERVED_MODEL = "workbench"
"""The name under which every instance serves its model."""

_QUIET = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}

# A model in a folder needs no hub, and nothing may wait for an unreachable one.
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}

# One executor process per instance, and one OpenMP thread unless it has cores of its own: more
# threads speed up only a single prefill alone on the machine and ruin the inter-token latency of
# all other instances.
_CPU = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_WAIT_POLICY": "PASSIVE",
}

# AMD's and vLLM's guides for MI300-class GPUs ("vLLM V1 performance optimization").
_ROCM = {
    "VLLM_ROCM_USE_AITER": "1",
    "HIP_FORCE_DEV_KERNARG": "1",
    "SAFETENSORS_FAST_GPU": "1",
    "TORCH_BLAS_PREFER_HIPBLASLT": "1",
    "NCCL_MIN_NCHANNELS": "112",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Abilities:
    """What the installed vLLM has, as it says itself; by default what the tested version has."""

    version: str = ""
    server: str = SERVERS[0]
    """The module of its API server."""
    lacks: tuple[str, ...] = ()
    """Options that the workbench sets and this vLLM does not know; they are left out."""

    @property
    def losses(self) -> tuple[str, ...]:
        """A clause for each: `vLLM 0.24.0 has no per-request metrics (they came with 0.25)`."""
        return tuple(f"vLLM {self.version} {MAY_LACK[option]}" for option in self.lacks)


@dataclass(frozen=True, slots=True, kw_only=True)
class Drafting:
    """What speculative decoding of an instance changes; the defaults are those without it."""

    tokens: int = 0
    """Draft tokens of a step, all of which may be accepted."""
    drops_block: bool = False
    """A prefix hit is a block shorter: drafts need the hidden states of the last block (EAGLE,
    MTP)."""
    kv_elements: int = 0
    """KV elements of a token in the draft model's own layers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """What all instances of a deployment have in common."""

    model: Path
    platform: Platform
    python: str = ""
    """Path of the interpreter that runs vLLM; empty for our own, or what an image calls python3."""
    image: Image | None = None
    """The image in whose containers servers run; None for processes of this machine."""
    cluster: Cluster | None = None
    """The hosts on which instances run; None for this machine alone."""
    abilities: Abilities = Abilities()
    dtype: str = ""
    """dtype of weights and KV as vLLM names it; empty for the model's own."""
    context_tokens: int = 24_576
    kv_cache_mib: int = 256
    """KV space of a CPU instance; on a GPU `gpu_memory_share` decides."""
    gpu_memory_share: float = 0.9
    cores_per_instance: int = 0
    """Cores that no other CPU instance uses; 0 if all share all."""
    prefix_caching: bool = True
    fault: str = ""
    """Simulated instances: the injected fault."""
    seed: int = 0
    """Simulated instances: seed of their latencies."""
    extra_args: tuple[str, ...] = ()
    """Arguments of every instance, after those that the workbench sets."""
    role_args: Mapping[Role, tuple[str, ...]] = field(default_factory=dict)
    """More of them, for the instances of one role."""
    extra_env: Mapping[str, str] = field(default_factory=dict)
    """More environment variables of every instance."""
    drafting: Mapping[Role, Drafting] = field(default_factory=dict)
    """Speculative decoding by role, as vLLM reads it from these arguments."""

    def without_arguments(self) -> EngineSettings:
        """The same without arguments that were passed on."""
        return replace(self, extra_args=(), role_args={})

    def drafts(self, role: Role) -> Drafting:
        """Speculative decoding of instances of this role."""
        return self.drafting.get(role, Drafting())

    def args_of(self, role: Role) -> tuple[str, ...]:
        """All arguments that were passed on for instances of this role."""
        return (*self.extra_args, *self.role_args.get(role, ()))

    @property
    def interpreter(self) -> Interpreter:
        """What runs vLLM, the store and their connectors."""
        return interpreter(self.python, self.image)

    @property
    def kv_dtype(self) -> str:
        """The KV cache's own dtype, if it was given."""
        return value_of(self.extra_args, "--kv-cache-dtype")

    def gpus(self, tp: TensorParallel) -> TensorParallel:
        """GPUs per instance by role: tensor x pipeline x data parallel size."""

        def span(role: Role) -> int:
            args = self.args_of(role)
            pipeline = count_of(args, "--pipeline-parallel-size", "-pp")
            return int(getattr(tp, role)) * pipeline * count_of(args, "--data-parallel-size", "-dp")

        return TensorParallel(
            prefill=span("prefill"), decode=span("decode"), aggregated=span("aggregated")
        )

    @property
    def facts(self) -> ModelFacts:
        """Sizes of a local model in its dtypes. Raises PlanError if it cannot be read."""
        return model_facts(self.model).run_as(self.dtype, self.kv_dtype)

    @property
    def kv_bytes_per_token(self) -> float:
        """KV of one token in all layers, a draft model's too; NaN for a model on a hub."""
        if not self.local:
            return nan
        shape = self.facts.kv_shape
        drafted = max((drafts.kv_elements for drafts in self.drafting.values()), default=0)
        return shape.bytes_per_token + drafted * shape.element_bytes

    @property
    def weights_gb(self) -> float:
        """Memory of a local model's weights (float32 doubles the files); 0 if unknown."""
        files_gb = sum(file.stat().st_size for file in self.model.glob("*.safetensors")) / 2**30
        return files_gb * (2 if self.dtype == "float32" else 1)

    @property
    def on_gpu(self) -> bool:
        return self.platform in ("cuda", "rocm")

    @property
    def local(self) -> bool:
        """True for a model folder, False for a name on a hub."""
        return self.model.is_dir()


def number_format(asked: str, platform: Platform, *, fast_bf16: bool) -> str:
    """The dtype to start vLLM with; empty for the model's own, usually bfloat16.

    `auto` is float32 on a processor without fast bf16 kernels.
    """
    if asked != "auto":
        return asked
    return "float32" if platform == "cpu" and not fast_bf16 else ""


def instance_argv(
    settings: EngineSettings,
    *,
    role: Role,
    port: int,
    tp: int,
    share_of_gpu: float = 1.0,
    host: Host = THIS_MACHINE,
) -> list[str]:
    """Arguments of `vllm serve`, without those of the connector."""
    # `vllm serve` takes the model as its first argument, the module behind it as an option.
    model = ["--model"] if settings.platform == "cpu" else []
    argv = [
        *model, str(settings.model), "--served-model-name", SERVED_MODEL,
        "--host", host.address, "--port", str(port),
        "--max-model-len", str(settings.context_tokens),
        "--disable-uvicorn-access-log", "--enable-prompt-tokens-details",
        *(option for option in MAY_LACK if option not in settings.abilities.lacks),
    ]  # fmt: skip
    if settings.dtype:
        argv += ["--dtype", settings.dtype]
    if settings.platform == "cpu":
        # Eager mode with a given KV size skips the warm-up forward pass.
        argv += [
            "--enforce-eager", "--distributed-executor-backend", "uni",
            "--kv-cache-memory-bytes", str(settings.kv_cache_mib * 2**20),
        ]  # fmt: skip
    else:
        argv += [
            "--tensor-parallel-size", str(tp),
            "--gpu-memory-utilization", f"{settings.gpu_memory_share * share_of_gpu:.3g}",
        ]  # fmt: skip
    argv.append(
        "--enable-prefix-caching" if settings.prefix_caching else "--no-enable-prefix-caching"
    )
    return [*argv, *settings.args_of(role)]


def instance_env(
    platform: Platform,
    *,
    devices: tuple[str, ...] = (),
    offline: bool = True,
    host: Host = THIS_MACHINE,
    threads: int = 1,
) -> dict[str, str]:
    """Environment variables of an instance, in addition to the notebook's own.

    `devices` are the GPUs of this instance; `offline` means that its model is a local folder;
    `threads` are the OpenMP threads of a CPU instance.
    VLLM_SERVER_DEV_MODE enables /reset_prefix_cache.
    """
    env = {**_QUIET, **(_OFFLINE if offline else {}), "VLLM_SERVER_DEV_MODE": "1"}
    if host != THIS_MACHINE:
        # Otherwise vLLM asks which address leads to the internet, and warns if none does.
        env["VLLM_HOST_IP"] = host.address
    if platform == "cpu":
        return env | _CPU | {"OMP_NUM_THREADS": str(threads)}
    visible = ",".join(devices)
    if platform == "rocm":
        # vLLM refuses to start if the two differ, and the shell may have set either.
        return env | _ROCM | {"HIP_VISIBLE_DEVICES": visible, "CUDA_VISIBLE_DEVICES": visible}
    return env | {"CUDA_VISIBLE_DEVICES": visible}


def files(settings: EngineSettings) -> tuple[tuple[str, ...], tuple[str, ...], dict[str, str]]:
    """What an instance in a container reads and writes outside it, and the variables for that.

    A model from a hub is downloaded into the cache of this machine. What vLLM compiles for a GPU,
    which takes minutes, is kept for all containers of an image.
    """
    if settings.image is None:
        return (), (), {}
    env: dict[str, str] = {}
    reads: tuple[str, ...] = ()
    if settings.local:
        # The hub's own cache has links to files in a folder beside the model's.
        targets = {file.resolve().parent for file in settings.model.iterdir() if file.is_symlink()}
        reads = tuple(sorted({str(settings.model.absolute()), *map(str, targets)}))
    else:
        home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
        env["HF_HOME"] = os.environ.get("HF_HOME") or f"{home}/huggingface"
    if settings.on_gpu:
        name = f"vllm-{settings.image.id.rpartition(':')[2][:12]}"
        env["VLLM_CACHE_ROOT"] = str(cache_folder() / name)
    return reads, tuple(env.values()), env


def program(settings: EngineSettings) -> tuple[str, ...]:
    """The command that starts an instance without the fork server."""
    # The CPU build is a distribution of another name, which the `vllm` command does not find, so
    # the module behind the command is run.
    module = ("-m", settings.abilities.server) if settings.platform == "cpu" else _COMMAND
    return (settings.interpreter.path, *module)


def first_of(modules: Sequence[str]) -> str:
    """The first of these modules that the vLLM of this environment has."""
    return next(filter(_has, modules), modules[0])


def _has(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # not even the package above it
        return False


def load() -> None:
    """Import what a CPU instance needs, and make the CPU platform fork, not spawn."""
    import vllm.model_executor.models.llama
    import vllm.v1.attention.backends.cpu_attn
    import vllm.v1.engine.async_llm
    import vllm.v1.engine.core
    import vllm.v1.executor.uniproc_executor
    import vllm.v1.worker.cpu_worker  # noqa: F401
    from vllm.platforms.cpu import CpuPlatform

    for modules in (SERVERS, PARSERS):
        import_module(first_of(modules))
    check = CpuPlatform.check_and_update_config.__func__

    def check_then_fork(cls: Any, config: Any) -> None:
        check(cls, config)
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"

    CpuPlatform.check_and_update_config = classmethod(check_then_fork)
    scan_kernels_once()


def scan_kernels_once() -> None:
    """Make vLLM scan loaded modules for kernels once now, which is slow, and not in forks.

    vLLM scans them since 0.31.
    """
    from vllm.platforms.cpu import CpuPlatform

    register()
    if hasattr(CpuPlatform, "register_triton_kernel_overrides"):
        CpuPlatform.register_triton_kernel_overrides()
        CpuPlatform.register_triton_kernel_overrides = classmethod(lambda cls: None)


def serve(arguments: Sequence[str]) -> None:
    """Run an API server with these arguments, in a fork, as the command does."""
    sys.argv = ["vllm", *arguments]
    run_module(first_of(SERVERS), run_name="__main__", alter_sys=True)
