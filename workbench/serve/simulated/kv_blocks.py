"""The KV cache of one instance: blocks, prefix cache and eviction, as in vLLM 0.32.

A prompt finds a block by its hash; the block's content identifies the KV in it. Both are the same
hash chain over the tokens, unless a block was filled with another prompt's KV.
"""

from __future__ import annotations

from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b

BLOCK_TOKENS = 128
"""vLLM's block on a CPU."""
TOKEN_BYTES = 768
"""KV of one token in the tiny model."""


def chain(before: bytes, tokens: Sequence[int]) -> bytes:
    """The hash of tokens that follow those of the hash `before`."""
    return blake2b(before + array("q", tokens).tobytes(), digest_size=16).digest()


def chain_of(tokens: Sequence[int]) -> list[bytes]:
    """The hash of each whole block of a prompt."""
    hashes = [b""]
    for start in range(0, len(tokens) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
        hashes.append(chain(hashes[-1], tokens[start : start + BLOCK_TOKENS]))
    return hashes[1:]


def blocks_of(tokens: int) -> int:
    """Blocks needed for this many tokens."""
    return -(-tokens // BLOCK_TOKENS)


class BlockPool:
    """The blocks of an instance. The free ones are in a queue, the next one first.

    Source of the order: vLLM 0.32, `v1/core/block_pool.py`. A freed block that is cached goes to
    the end, any other to the front. Block 0 is never handed out (vLLM's null block).
    """

    def __init__(self, blocks: int, *, caching: bool = True) -> None:
        self.caching = caching
        self.content: dict[int, bytes] = {}
        self._usable = blocks - 1
        self._free = OrderedDict.fromkeys(range(1, blocks))
        self._users: Counter[int] = Counter()
        self._hash: dict[int, bytes] = {}
        # A hash may have several blocks, filled at the same time; the first one is found.
        self._cached: dict[bytes, dict[int, None]] = {}

    @property
    def free(self) -> int:
        """Unused blocks, cached ones included."""
        return len(self._free)

    @property
    def usage(self) -> float:
        """Fraction of the blocks in use, 0 to 1."""
        return 1 - self.free / self._usable

    def find(self, hashes: Iterable[bytes]) -> list[int]:
        """The cached blocks of the longest prefix."""
        found: list[int] = []
        for key in hashes:
            if key not in self._cached:
                break
            found.append(next(iter(self._cached[key])))
        return found

    def idle(self, blocks: Iterable[int]) -> int:
        """How many of these blocks are unused: taking them shortens the queue."""
        return sum(block in self._free for block in blocks)

    def take(self, blocks: Iterable[int]) -> None:
        """Use cached blocks, so that they cannot be evicted."""
        for block in blocks:
            self._free.pop(block, None)
            self._users[block] += 1

    def new(self, count: int) -> list[int]:
        """The next `count` blocks of the queue, removed from the cache. There must be enough."""
        blocks = [self._free.popitem(last=False)[0] for _ in range(count)]
        for block in blocks:
            self._users[block] = 1
            if key := self._hash.pop(block, None):
                del self._cached[key][block]
                if not self._cached[key]:
                    del self._cached[key]
        return blocks

    def cache(self, block: int, key: bytes, content: bytes) -> None:
        """Make a block findable by `key`."""
        self.content[block] = content
        if self.caching and block not in self._hash:
            self._hash[block] = key
            self._cached.setdefault(key, {})[block] = None

    def give_back(self, blocks: Sequence[int]) -> None:
        """Free a request's blocks, in its order: the last one will be evicted first."""
        self._users.subtract(blocks)
        freed = [block for block in blocks if not self._users[block]]
        for block in reversed(freed):
            if block in self._hash:
                self._free[block] = None
        for block in freed:
            if block not in self._hash:
                self._free[block] = None
                self._free.move_to_end(block, last=False)

    def reset(self) -> bool:
        """Empty the cache; False, and nothing is done, while a block is in use."""
        if self.free < self._usable:
            return False
        self._hash.clear()
        self._cached.clear()
        return True
