"""The parameters of each notebook: names, types, defaults, rules, and one check for all of them.

Papermill accepts unknown names and any type. So every notebook's second cell calls `check_params`,
and `workbench run` calls it before a kernel starts. The parameter cells of the notebooks repeat
defaults and help; a test keeps the two equal.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar, get_type_hints

from workbench.errors import ParameterError, must_be, nearest, unused
from workbench.params.engine_args import place_mistakes
from workbench.params.pd_sweep import PdSweep
from workbench.params.rules import address_mistakes, body_mistakes, param, share_mistakes
from workbench.params.shared import EngineParams as EngineParams
from workbench.params.shared import LoadParams as LoadParams
from workbench.params.store_tiers import tier_mistakes

_OWN_TIERS = ["memory", "disk"]
"""What the hit analysis measures unless told otherwise."""
CLAIM_TIERS = ("source", "kernel", "engine", "serving")
"""How a claim is tested: by reading and arithmetic, or by a measurement at one of three levels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixCache(LoadParams):
    """Parameters of `single_instance_prefix_cache`."""

    REFERENCE: ClassVar[tuple[int, int]] = (2_048, 24)

    concurrency: int = param(4, "only in a closed loop: requests in flight", low=1, high=100_000)
    shares: list[float] = param(
        [0.25, 0.5, 0.75], "cached fractions of each prompt (partly warm passes)"
    )
    rounds: int = param(
        3,
        "launches of each arm; confidence intervals come from the spread between them",
        low=1,
        high=1000,
    )
    aggregated_tp: int = param(1, "GPUs of the instance (tensor parallelism)", low=1, high=64)

    def mistakes(self) -> Iterator[str]:
        if self.engine == "attach":
            allowed = "vllm or simulated (this notebook starts its own servers)"
            yield must_be("engine", allowed, self.engine, "vllm")
        yield from LoadParams.mistakes(self)
        yield from share_mistakes(self.shares)


@dataclass(frozen=True, slots=True, kw_only=True)
class LMCacheHitAnalysis(EngineParams):
    """Parameters of `lmcache_hit_analysis`."""

    log_file: str = param(
        "",
        "analyse this vLLM or LMCache log, start no servers (several: a.log,b.log)",
        example="logs/vllm.log",
    )
    log_ranks: int = param(
        0, "only with log_file: tensor-parallel workers per instance (0: detect)", low=0, high=1024
    )
    prompt_tokens: list[int] = param([400, 900, 1900, 3900], "prompt lengths in tokens")
    output_tokens: int = param(8, "output tokens of each request", low=1, high=1_000_000)
    requests: int = param(2, "requests of each prompt length per pass", low=1, high=100_000)
    shares: list[float] = param([0.5], "cached fractions of each prompt (partly warm passes)")
    chunk_tokens: list[int] = param([64, 128, 256, 512], "LMCache chunk sizes to compare (tokens)")
    block_tokens: int = param(
        64,
        "vLLM's KV block size in tokens (0: its default); chunks are multiples",
        low=0,
        high=65_536,
    )
    store_gb: float = param(0.5, "LMCache's memory (L1), in GB", low=0.1, high=100_000)
    small_store_mb: float = param(
        5.0, "LMCache's memory (L1) in the eviction test, in MB", low=1, high=100_000
    )
    store_tiers: list[str] = param(
        _OWN_TIERS,
        "LMCache's tiers; all but memory get an arm (docs/engine.md)",
        example="memory,disk,redis",
    )
    tier_gb: float = param(1.0, "size of a Redis or Mooncake tier, in GB", low=0.02, high=1_000_000)
    rounds: int = param(
        3,
        "launches of each arm; confidence intervals come from the spread between them",
        low=1,
        high=1000,
    )
    aggregated_tp: int = param(1, "GPUs of the instance (tensor parallelism)", low=1, high=64)
    base_url: str = param(
        "", "only with engine attach: URL to send the requests to", example="http://127.0.0.1:8000"
    )
    decode_urls: list[str] = param(
        [],
        "only with engine attach: vLLM servers (metrics, resets)",
        example="http://127.0.0.1:8200",
    )
    lmcache_url: str = param(
        "",
        "only with engine attach: HTTP URL of the LMCache server",
        example="http://127.0.0.1:8080",
    )
    tokenizer: str = param(
        "",
        "only with engine attach: tokenizer folder or hub name (empty: that of model)",
        example="Qwen/Qwen2.5-7B-Instruct",
    )
    extra_body: str = param(
        "",
        "additional fields of every request body, as a JSON object",
        example='{"top_k": 1}',
        mapping=True,
    )

    @property
    def log_files(self) -> list[str]:
        """The files of `log_file`, which are separated by commas."""
        if self.log_file and Path(self.log_file).exists():
            return [self.log_file]
        return [name.strip() for name in self.log_file.split(",") if name.strip()]

    def mistakes(self) -> Iterator[str]:
        if self.engine == "simulated":
            allowed = "vllm or attach (the simulated engine has no LMCache tiers)"
            yield must_be("engine", allowed, self.engine, "vllm")
        yield from EngineParams.mistakes(self)
        if self.engine == "attach":
            if self.log_file:
                example = f"-p engine vllm -p log_file {self.log_file}"
                yield unused("log_file", self.log_file, "engine=attach", example)
            yield from address_mistakes(
                base_url=self.base_url,
                decode_urls=self.decode_urls,
                lmcache_url=self.lmcache_url or (),
            )
        for name, least in (("prompt_tokens", 32), ("chunk_tokens", 16)):
            values = getattr(self, name)
            if not values or min(values) < least or len(set(values)) < len(values):
                allowed = f"one or more numbers, none twice, each at least {least}"
                yield must_be(name, allowed, values, [4 * least, 16 * least])
        tiers = self.store_tiers
        if self.engine == "vllm" or tiers != _OWN_TIERS:  # the default is for servers started here
            yield from tier_mistakes(tiers, engine=self.engine, connector="lmcache")
        yield from share_mistakes(self.shares)
        yield from body_mistakes(self.extra_body)
        self.check_lengths(max(self.prompt_tokens), self.output_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class PaperClaimValidation(EngineParams):
    """Parameters of `paper_claim_validation`."""

    claims: list[str] = param(
        ["all"],
        "'all', or claim ids and groups (workbench claims list)",
        example="VLLM-APC,own_runs",
    )
    tiers: list[str] = param(
        list(CLAIM_TIERS),
        "how to test: source (read and compute); kernel, engine, serving (measure)",
    )
    time_budget_s: float = param(
        420.0, "time for measurements, in seconds (0: only read sources)", low=0, high=1_000_000
    )
    rounds: int = param(5, "minimum launches of each arm; a verdict needs 5", low=1, high=1000)
    registry: str = param(
        "params/claims",
        "folder of the claims, relative to the repository root",
        example="my/claims",
    )

    def mistakes(self) -> Iterator[str]:
        if self.engine == "attach":
            allowed = "vllm or simulated (this notebook starts its own servers)"
            yield must_be("engine", allowed, self.engine, "vllm")
        if self.place != "local":
            allowed = "local (claims are measured by processes of this machine)"
            yield must_be("place", allowed, self.place, "local")
        for name in ("engine_args", "engine_env"):
            if text := getattr(self, name):
                yield must_be(name, "empty (claims set their own arguments)", text, f"-p {name} ''")
        yield from EngineParams.mistakes(self)
        if not self.claims:
            allowed = "'all', or one or more claim ids or groups"
            yield must_be("claims", allowed, self.claims, "VLLM-APC")
        if not self.tiers or not {*self.tiers} <= {*CLAIM_TIERS}:
            allowed = f"one or more of {', '.join(CLAIM_TIERS)}"
            yield must_be("tiers", allowed, self.tiers, "source,kernel")


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentCheck:
    """Parameters of `environment_check`."""

    platform: str = param(
        "auto", "auto (detect), cpu, cuda or rocm", choices=("auto", "cpu", "cuda", "rocm")
    )
    engine_python: str = param(
        "",
        "Python interpreter of another environment that has vLLM (empty: this one)",
        example="/opt/vllm/bin/python",
    )
    place: str = param(
        "local",
        "local: this machine, container: docker or podman",
        choices=("local", "container"),
    )
    image: str = param(
        "",
        "only with place container: an image with vLLM that is on this machine",
        example="vllm/vllm-openai:v0.32.0",
    )
    container_args: str = param(
        "",
        "only with place container: more options of docker run, as in a shell",
        example="--device /dev/infiniband --cap-add IPC_LOCK",
        words=True,
    )
    smoke: bool = param(True, "start a real 1p1d deployment and send a few requests")
    output_dir: str = param("outputs", "folder for results, relative to the repository root")

    def __post_init__(self) -> None:
        if why := next(place_mistakes(self.place, self.image, self.container_args), ""):
            raise ParameterError(why)


NOTEBOOKS: dict[str, type[EngineParams] | type[EnvironmentCheck]] = {
    "environment_check": EnvironmentCheck,
    "pd_sweep": PdSweep,
    "single_instance_prefix_cache": PrefixCache,
    "lmcache_hit_analysis": LMCacheHitAnalysis,
    "paper_claim_validation": PaperClaimValidation,
}
"""In the order in which a new user wants to see them."""


def check_params(notebook: str, values: Mapping[str, Any]) -> Any:
    """The checked parameters of a notebook.

    `values` may be a notebook's `globals()`: an unknown name is an error only if papermill could
    have injected it. Raises ParameterError on an unknown name, a wrong type or value, and on values
    that contradict each other.
    """
    if notebook not in NOTEBOOKS:
        raise ParameterError(f"unknown notebook {notebook!r}; {nearest(notebook, NOTEBOOKS)}")
    kind = NOTEBOOKS[notebook]
    hints = get_type_hints(kind)
    hints = {spec.name: hints[spec.name] for spec in fields(kind)}
    for name, value in values.items():
        if name not in hints and _injected(name, value):
            near = get_close_matches(name, hints, n=1)
            manual = f"papermill --help-notebook notebooks/{notebook}.ipynb"
            hint = f"did you mean {near[0]!r}?" if near else f"{manual} lists them"
            raise ParameterError(f"{notebook} has no parameter {name!r}; {hint}")
    checked = {}
    for spec in fields(kind):
        if spec.name in values:
            rule = spec.metadata["rule"]
            checked[spec.name] = rule.read(spec.name, values[spec.name], hints[spec.name])
    return kind(**checked)


def changed(params: EngineParams | EnvironmentCheck) -> dict[str, Any]:
    """The parameters that differ from their default."""
    usual = asdict(type(params)())
    return {name: value for name, value in asdict(params).items() if value != usual[name]}


def as_typed(values: Mapping[str, Any]) -> list[str]:
    """Parameters as command-line words: `-p rounds 5`."""
    words = []
    for name, value in values.items():
        words += ["-p", name, ",".join(map(str, value)) if isinstance(value, list) else str(value)]
    return words


def _injected(name: str, value: Any) -> bool:
    """True for plain data; False for modules, functions, results and IPython's history."""
    plain = type(value) in (str, int, float, bool, dict, list, type(None))
    return plain and not name.startswith("_") and name not in ("In", "Out")
