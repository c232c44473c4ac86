"""The tiers of LMCache's store: which there are, and how a parameter names them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from workbench.errors import must_be, needs, unused

MEMORY = "memory"
"""The store's own memory (LMCache's L1), which is always there."""
STORE_TIERS = ("disk", "redis", "mooncake")
"""Where LMCache may keep chunks below its memory (its L2), see `serve.connectors.tiers`."""
SIZED = frozenset({"redis", "mooncake"})
"""Those that are started here with `tier_gb` of memory."""

_REDIS = re.compile(r"redis://[\w.-]+:\d{1,5}")
_EXAMPLE = "memory,redis"


def tier_kind(name: str) -> str:
    """`redis` of `redis://127.0.0.1:6379`."""
    return name.partition("://")[0]


def tier_mistakes(
    tiers: Sequence[str], *, engine: str, connector: str, together: bool = False
) -> Iterator[str]:
    """What is wrong with `store_tiers`, alone and with the engine and the connector.

    Tiers are used `together` below one memory, or each by itself.
    """
    below = [name for name in tiers if name != MEMORY]
    kinds = [tier_kind(name) for name in tiers]
    allowed = f"{MEMORY}, then any of {', '.join(STORE_TIERS)} or redis://HOST:PORT, each once"
    if kinds[:1] != [MEMORY] or not {*kinds[1:]} <= {*STORE_TIERS} or len({*kinds}) < len(kinds):
        yield must_be("store_tiers", allowed, ",".join(tiers), _EXAMPLE)
        return
    if together and {"redis", "mooncake"} <= {*kinds}:
        allowed = "with redis or mooncake, not both (the second would never be read)"
        yield must_be("store_tiers", allowed, ",".join(tiers), _EXAMPLE)
    for name in below:
        if "@" in name:
            yield (
                "store_tiers must not contain a user or password. Set LMCACHE_RESP_USERNAME and"
                " LMCACHE_RESP_PASSWORD in the environment (example: -p store_tiers"
                " memory,redis://127.0.0.1:6379)"
            )
        elif name not in STORE_TIERS and not _REDIS.fullmatch(name):
            address = "redis://HOST:PORT (LMCache uses database 0, without TLS)"
            yield must_be("store_tiers", address, name, "memory,redis://127.0.0.1:6379")
    if below and engine != "vllm":
        example = f"-p engine vllm -p store_tiers {','.join(tiers)}"
        yield unused("store_tiers", [*tiers], f"engine={engine}", example)
    elif below and connector != "lmcache":
        yield needs(f"store_tiers={','.join(tiers)}", "connector=lmcache", connector, "lmcache")
