"""Arguments and environment variables for vLLM and LMCache that are passed on as they are typed.

What the workbench sets itself is refused here, with the parameter to use instead. Whether vLLM
knows an argument is asked of vLLM itself, see `serve.argument_check`.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence

from workbench.errors import must_be, needs, pasted, shown, taken, unused

SAME_FOR_ALL = ("--kv-cache-dtype", "--block-size")
"""Both ends of a KV transfer must agree on these, so they go into engine_args."""

_TP = "prefill_tp, decode_tp or aggregated_tp"
OURS = {
    "--model": "model",
    "--max-model-len": "context_tokens",
    "--dtype": "dtype",
    "--kv-cache-memory-bytes": "kv_cache_mib",
    "--gpu-memory-utilization": "gpu_memory_share",
    "--tensor-parallel-size": _TP,
    "-tp": _TP,
    "--kv-transfer-config": "connector",
    **dict.fromkeys(("--host", "--port", "--uds", "--root-path", "--api-key", "--config"), ""),
    **dict.fromkeys(("--served-model-name", "--ssl-keyfile", "--ssl-certfile", "--headless"), ""),
    **dict.fromkeys(("--enable-prefix-caching", "--no-enable-prefix-caching"), ""),
    **dict.fromkeys(("--enable-per-request-metrics", "--enable-prompt-tokens-details"), ""),
}
"""Arguments of vLLM that the workbench sets, and the parameter to use instead, if there is one."""
OUR_VARIABLES = (
    "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "VLLM_SERVER_DEV_MODE", "VLLM_PORT",
    "VLLM_HOST_IP", "VLLM_NIXL_SIDE_CHANNEL_HOST", "VLLM_NIXL_SIDE_CHANNEL_PORT",
    "VLLM_ENABLE_V1_MULTIPROCESSING", "MOONCAKE_CONFIG_PATH",
    "VLLM_MOONCAKE_BOOTSTRAP_PORT", "VLLM_LOG_STATS_INTERVAL",
)  # fmt: skip
STORE_OURS = {
    "--l1-size-gb": "store_gb",
    **dict.fromkeys(("--host", "--port", "--http-host", "--http-port", "--shm-name"), ""),
    **dict.fromkeys(("--l2-adapter", "--chunk-size", "--supported-transfer-mode"), ""),
    **dict.fromkeys(("--rpc-address", "--rpc-port", "--metrics-host", "--metrics-port"), ""),
}
"""The same of the servers of KV stores: LMCache's, and Mooncake's master."""

CONTAINER_OURS = {
    "--gpus": "prefill_tp",
    "--env-file": "engine_env",
    **dict.fromkeys(("--name", "--network", "--ipc", "--pid", "--entrypoint", "--pull"), ""),
    **dict.fromkeys(("--detach", "-d", "--rm", "--restart", "--label", "-l", "--shm-size"), ""),
    **dict.fromkeys(("--interactive", "-i", "--tty", "-t", "-it", "-ti"), ""),
}
"""Options of `docker run` that the workbench sets or relies on."""


def words(text: str) -> tuple[str, ...]:
    """The text as a shell splits it. Raises ValueError for an open quote."""
    return tuple(shlex.split(text))


def variables(text: str) -> dict[str, str]:
    """Environment variables of a text such as `NCCL_MIN_NCHANNELS=112 A=b`."""
    return dict(word.split("=", 1) for word in words(text))


def value_of(args: Sequence[str], *names: str) -> str:
    """The value of the last of these arguments, as `--name value` or `--name=value`; else empty.

    As to vLLM, the first letters of a name are enough.
    """
    found = ""
    for position, word in enumerate(args):
        name, equals, value = word.partition("=")
        name = _plain(name)
        if name in names or (name[2:] and any(full.startswith(name) for full in names)):
            following = args[position + 1] if position + 1 < len(args) else ""
            found = value if equals else following
    return found


def count_of(args: Sequence[str], *names: str) -> int:
    """The same as a count; 1 if it is missing or not a count."""
    text = value_of(args, *names)
    return max(1, int(text)) if text.isdecimal() else 1


def argument_mistakes(
    ours: Mapping[str, str] = OURS,
    /,
    *,
    example: str = "--max-num-batched-tokens 2048",
    **given: str,
) -> Iterator[str]:
    """What is wrong with arguments, by the parameter that holds them."""
    for name, text in given.items():
        try:
            args = words(text)
        except ValueError:
            yield must_be(name, "arguments as in a shell, with closed quotes", text, example)
            continue
        if args and not args[0].startswith("-"):
            yield must_be(name, "arguments that start with a dash", text, example)
        for word in args:
            flag = _plain(word.partition("=")[0])
            # argparse also accepts the first letters of a name
            known = flag if flag in ours else ""
            if known := known or next((k for k in ours if flag[2:] and k.startswith(flag)), ""):
                yield taken(name, known, text, instead=ours[known], example=example)
            elif flag in SAME_FOR_ALL and name not in ("engine_args", "store_args"):
                yield (
                    f"{name} must not contain {flag}, which must be equal in all instances, got"
                    f" {shown(text)}. Put it into engine_args"
                    f" (example: {pasted('engine_args', text)})"
                )


def place_mistakes(place: str, image: str, container_args: str) -> Iterator[str]:
    """What is wrong with where servers run."""
    given = {"image": image, "container_args": container_args}
    for name, value in given.items():
        if value and place != "container":
            example = f"-p place container -p {name} {shlex.quote(value)}"
            yield unused(name, value, f"place={place}", example)
    if place == "container" and not image:
        yield needs("place=container", "image", image, "vllm/vllm-openai:v0.32.0")
    yield from argument_mistakes(
        CONTAINER_OURS, example="--volume /data:/data:ro", container_args=container_args
    )


def host_mistakes(place: str, address: str, spread: str) -> Iterator[str]:
    """What is wrong with the hosts on which servers run."""
    for name, value, default in (("ray_address", address, "auto"), ("spread", spread, "pack")):
        if value != default and place != "ray":
            yield unused(name, value, f"place={place}", f"-p place ray -p {name} {value}")
    host, _, port = address.rpartition(":")
    if address != "auto" and not (host and "/" not in host and port.isdecimal()):
        yield must_be("ray_address", "auto or HOST:PORT", address, "10.0.0.1:6379")


def variable_mistakes(name: str, text: str) -> Iterator[str]:
    """What is wrong with environment variables."""
    example = "NCCL_MIN_NCHANNELS=112"
    try:
        given = words(text)
    except ValueError:
        given = ("",)
    bad = [word for word in given if not word.partition("=")[0].isidentifier() or "=" not in word]
    if bad:
        yield must_be(name, "NAME=VALUE, separated by spaces", text, example)
        return
    for variable in variables(text):
        if variable in OUR_VARIABLES:
            yield taken(name, variable, text, instead="", example=example)


def _plain(flag: str) -> str:
    """vLLM takes underscores for dashes, and Mooncake's master one dash for two."""
    if not flag.startswith("--") and "_" in flag:
        flag = f"-{flag}"
    return flag.replace("_", "-") if flag.startswith("--") else flag
