from workbench.serve.simulated.kv_blocks import BLOCK_TOKENS, BlockPool, blocks_of, chain, chain_of


def cached(pool: BlockPool, *keys: bytes) -> list[int]:
    """Blocks that hold these keys and that nobody uses any more."""
    blocks = pool.new(len(keys))
    for block, key in zip(blocks, keys, strict=True):
        pool.cache(block, key, key)
    pool.give_back(blocks)
    return blocks


def test_only_whole_blocks_have_a_hash():
    assert [len(chain_of([7] * n)) for n in (0, 1, 127, 128, 255, 256)] == [0, 0, 0, 1, 1, 2]
    assert [blocks_of(n) for n in (0, 1, 128, 129)] == [0, 1, 1, 2]


def test_a_hash_stands_for_everything_before_it():
    a, b = [1] * BLOCK_TOKENS, [2] * BLOCK_TOKENS
    assert chain_of(a + b)[0] == chain_of(a)[0]
    assert chain_of(a + b)[1] != chain_of(b + b)[1]
    assert chain_of(a + b)[1] == chain(chain_of(a)[0], b)


def test_the_longest_prefix_is_found():
    pool = BlockPool(10)
    first, second = cached(pool, b"a", b"b")
    assert pool.find([b"a", b"b", b"c"]) == [first, second]
    assert pool.find([b"x", b"b"]) == []


def test_the_tail_of_the_oldest_prompt_is_evicted_first():
    pool = BlockPool(5)  # four usable: vLLM's null block is one
    cached(pool, b"a", b"b")
    cached(pool, b"c", b"d")
    pool.new(1)
    assert [len(pool.find([key])) for key in (b"a", b"b", b"c", b"d")] == [1, 0, 1, 1]


def test_a_block_in_use_is_not_evicted():
    pool = BlockPool(4)
    a = cached(pool, b"a")
    pool.take(a)
    pool.new(2)
    assert pool.free == 0 and pool.find([b"a"]) == a
    assert pool.usage == 1.0


def test_blocks_without_a_hash_are_used_again_first():
    pool = BlockPool(6)
    cached(pool, b"a")
    plain = pool.new(2)
    pool.give_back(plain)
    assert sorted(pool.new(2)) == plain


def test_a_reset_waits_for_blocks_in_use():
    pool = BlockPool(4)
    a = cached(pool, b"a")
    pool.take(a)
    assert not pool.reset() and pool.find([b"a"])
    pool.give_back(a)
    assert pool.reset() and not pool.find([b"a"])


def test_without_caching_nothing_is_found():
    pool = BlockPool(4, caching=False)
    cached(pool, b"a")
    assert pool.find([b"a"]) == []
