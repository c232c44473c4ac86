"""How a pretend instance reaches KV that lies elsewhere: the store, or a prefill instance."""

from __future__ import annotations

from collections.abc import Mapping
from time import monotonic
from typing import Any

import aiohttp
import orjson

from workbench.serve.simulated.blocks import chain
from workbench.serve.simulated.sequence import Sequence
from workbench.serve.simulated.store import BLOCKS_IN_CHUNK, CHUNK_TOKENS

__all__ = ["Links"]

TIMEOUT_S = 1.5
"""How long a silent store or peer is waited for; then the prompt is computed here."""
DEGRADED_S = 1.0
"""How long a store that did not answer is left alone, as LMCache's heartbeat does."""
_BROKEN = (aiohttp.ClientError, OSError, TimeoutError)


class Links:
    """Connections of one instance. Needs a running event loop."""

    def __init__(self, store_url: str, *, key_seed: bytes = b"") -> None:
        self._store_url = store_url
        self._key_seed = key_seed
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT_S))
        self._degraded_until_s = 0.0

    async def close(self) -> None:
        await self._session.close()

    async def lookup(self, sequence: Sequence) -> list[bytes]:
        """What the store has in the blocks of the prompt's longest prefix of whole chunks."""
        answer = await self._ask_store("lookup", self._chunks(sequence, sequence.hashes))
        found = answer.get("found", [])
        return [bytes.fromhex(content) for chunk in found for content in chunk]

    async def write(self, sequence: Sequence, contents: list[bytes], found: int) -> None:
        """Give the store the prompt's whole chunks behind the first `found`."""
        chunks = self._chunks(sequence, contents)
        missing = dict(list(chunks.items())[found:])
        if missing:
            await self._ask_store("store", missing)

    async def pull(self, transfer: Mapping[str, Any]) -> tuple[list[bytes], bytes] | None:
        """The contents that a prefill instance holds for us, and the whole prompt's; or None."""
        url = f"http://{transfer['remote_host']}:{transfer['remote_port']}/simulated/pull"
        body = orjson.dumps({"request_id": transfer["remote_request_id"]})
        try:
            async with self._session.post(url, data=body) as response:
                if response.status != 200:
                    return None
                said = orjson.loads(await response.read())
        except _BROKEN:
            return None
        return [bytes.fromhex(c) for c in said["contents"]], bytes.fromhex(said["final"])

    def _chunks(self, sequence: Sequence, contents: list[bytes]) -> dict[str, list[str]]:
        """Key and contents of each whole chunk of the prompt, in order."""
        chunks = {}
        for number in range(len(sequence.prompt) // CHUNK_TOKENS):
            blocks = slice(number * BLOCKS_IN_CHUNK, (number + 1) * BLOCKS_IN_CHUNK)
            key = sequence.hashes[blocks.stop - 1]
            if self._key_seed:
                key = chain(self._key_seed + key, [])
            chunks[key.hex()] = [content.hex() for content in contents[blocks]]
        return chunks

    async def _ask_store(self, what: str, chunks: dict[str, list[str]]) -> dict[str, Any]:
        if not self._store_url or monotonic() < self._degraded_until_s:
            return {}
        body = orjson.dumps({"chunks": chunks})
        try:
            async with self._session.post(f"{self._store_url}/{what}", data=body) as response:
                said: dict[str, Any] = orjson.loads(await response.read())
                return said
        except _BROKEN:
            self._degraded_until_s = monotonic() + DEGRADED_S
            return {}
