from __future__ import annotations

from dataclasses import replace
from functools import partial
from math import nan

import pytest

from workbench.metrics.counters import StoreCounters, TokenSources
from workbench.metrics.gates.cache_gates import (
    cold_was_cold,
    in_state,
    kv_moved,
    tier_warm,
    tiers_kept,
)
from workbench.metrics.ideal import Reuse
from workbench.metrics.passes import PassCounters, TierCounts

engine_warm, cross_instance, store_warm = (
    partial(in_state, state) for state in ("engine-warm", "cross-instance", "store-warm")
)

# Six prompts of 5,000 tokens with LMCache in chunks of 256 and vLLM in blocks of 128, as a CPU
# shows them: 4,864 tokens of each come from the store, 4,992 from the engine's own cache.
SENT, STORE, OWN = 30_000, 6 * 4864, 6 * 4992
COMPUTED = TokenSources(computed=SENT, engine_hit=0, external_hit=0)
FROM_STORE = TokenSources(computed=SENT - STORE, engine_hit=0, external_hit=STORE)
FROM_OWN = TokenSources(computed=SENT - OWN, engine_hit=OWN, external_hit=0)


def a_pass(name: str, prefill: TokenSources, decode: TokenSources, **facts) -> PassCounters:
    given = {
        "arm": "1p4d lmcache",
        "round": 1,
        "pass_name": name,
        "stores": True,
        "requests_sent": 6,
        "prompt_tokens_sent": SENT,
        "sources": {"prefill": prefill, "decode": decode},
        "requests": {"prefill": 6, "decode": 6},
        "block_tokens": 128,
        "chunk_tokens": 256,
    }
    return PassCounters(**(given | facts))


def alone(name: str, sources: TokenSources, **facts) -> PassCounters:
    given = {"arm": "5a none", "sources": {"aggregated": sources}, "requests": {"aggregated": 6}}
    return replace(a_pass(name, sources, sources, stores=False), **(given | facts))


COLD = a_pass("cold", COMPUTED, FROM_STORE)
ENGINE_WARM = a_pass("engine-warm", FROM_OWN, FROM_OWN)
CROSS = a_pass("cross-instance", FROM_OWN, FROM_STORE)
STORE_WARM = a_pass("store-warm", FROM_STORE, FROM_STORE)
ALL = [COLD, ENGINE_WARM, CROSS, STORE_WARM]


@pytest.mark.parametrize(
    ("gate", "sentence"),
    [
        (
            cold_was_cold,
            "0 of 60,000 prompt tokens hit a cache in 1 cold pass (a PD prompt counts twice, on"
            " prefill and on decode; KV received from prefill is no hit)",
        ),
        (
            kv_moved,
            "Decode instances fetched 87,552 prompt tokens, had 29,952 cached and computed 2,496"
            " (at most 6,168 may be computed; 4 passes)",
        ),
        (
            engine_warm,
            "The prefix cache served 99.8 % of prompt tokens (on prefill and decode instances)",
        ),
        (
            cross_instance,
            "The prefix cache served 99.8 % of prompt tokens (on prefill instances) and the"
            " connector served 97.3 % (on decode instances)",
        ),
        (
            store_warm,
            "The connector served 97.3 % of prompt tokens (on prefill and decode instances)",
        ),
    ],
)
def test_a_sound_run_passes_with_its_numbers(gate, sentence):
    result = gate(ALL)
    assert (result.outcome, result.sentence) == ("PASS", sentence)


OLD = "loads through the connector are not counted; this takes vLLM 0.16 or later"


def old(engine_hit: float) -> TokenSources:
    """What vLLM 0.9 to 0.11 counts: hits of its prefix cache alone."""
    return TokenSources(engine_hit=engine_hit, all_tokens=SENT, unknown=OLD)


def test_counters_of_older_vllm_are_used_where_they_suffice():
    cold, warm = alone("cold", old(0)), alone("engine-warm", old(OWN))
    assert engine_warm([warm]).outcome == "PASS"
    assert engine_warm([replace(warm, sources={"aggregated": old(0)})]).outcome == "FAIL"
    assert cold_was_cold([replace(cold, sources={"aggregated": old(OWN)})]).outcome == "FAIL"
    assert cold_was_cold([replace(cold, sources={"decode": old(0)})]).outcome == "PASS"
    whole = replace(cold, sources={"aggregated": old(0).without_external()})
    assert cold_was_cold([whole]).outcome == "PASS"


@pytest.mark.parametrize(
    ("gate", "measured", "prefill_hit"),
    [
        (cold_was_cold, COLD, 0),
        (kv_moved, COLD, 0),
        (cross_instance, CROSS, OWN),
        (store_warm, STORE_WARM, 0),
    ],
)
def test_where_they_do_not_suffice_the_sentence_names_a_version_that_does(
    gate, measured, prefill_hit
):
    sources = {"prefill": old(prefill_hit), "decode": old(0)}
    result = gate([replace(measured, sources=sources)])
    assert result.outcome == "INCONCLUSIVE"
    assert OLD in result.sentence


def test_no_counter_at_all_is_never_taken_for_cold():
    blind = TokenSources(all_tokens=SENT, unknown="only a hit rate")
    result = cold_was_cold([alone("cold", blind)])
    assert result.outcome == "INCONCLUSIVE"
    assert "only a hit rate" in result.sentence


def test_the_numbers_of_many_passes_add_up():
    rounds = [replace(COLD, round=number) for number in range(9)]
    assert cold_was_cold(rounds).sentence.startswith("0 of 540,000 prompt tokens")
    assert cold_was_cold(rounds).sentence.startswith(
        "0 of 540,000 prompt tokens hit a cache in 9 cold passes ("
    )


@pytest.mark.parametrize("gate", [cold_was_cold, kv_moved, engine_warm, cross_instance, store_warm])
class TestNothingToJudgeBy:
    def test_no_pass(self, gate):
        result = gate([])
        assert result.outcome == "INCONCLUSIVE"
        assert result.sentence.startswith("No ")
        assert result.sentence.endswith("pass was measured")

    def test_counters_missing_on_one_role(self, gate):
        hidden = [
            replace(p, sources={**p.sources, "decode": TokenSources()}, requests={"prefill": 6})
            for p in ALL
        ]
        result = gate(hidden)
        assert result.outcome == "INCONCLUSIVE"
        said = "The decode instances do not report where their prompt tokens came from ("
        assert result.sentence.startswith(said)
        assert "/metrics" in result.next_step

    def test_somebody_else_uses_the_servers(self, gate):
        stray = TokenSources(computed=400, engine_hit=0, external_hit=0)
        shared = [
            replace(p, sources={role: own + stray for role, own in p.sources.items()}) for p in ALL
        ]
        result = gate(shared)
        assert result.outcome == "INCONCLUSIVE"
        assert "counted 30,400 prompt tokens, but 30,000 were sent" in result.sentence


def test_a_pass_that_no_server_counted_is_not_cold_for_that():
    nothing = TokenSources(computed=0, engine_hit=0, external_hit=0)
    result = cold_was_cold([alone("cold", nothing)])
    assert result.outcome == "INCONCLUSIVE"
    assert (
        "The aggregated instances counted 0 prompt tokens, but 30,000 were sent" in result.sentence
    )


@pytest.mark.parametrize(
    "warm",
    [
        a_pass("cold", FROM_STORE, FROM_STORE),  # the store was not cleared
        a_pass("cold", COMPUTED, FROM_OWN),  # the decode engines were not reset
        alone("cold", FROM_OWN),
    ],
)
def test_a_warm_cold_pass_fails(warm):
    result = cold_was_cold([COLD, warm])
    assert result.outcome == "FAIL"
    assert f"of {SENT:,} prompt tokens hit a cache on the " in result.sentence
    assert f"(limit 0; {warm.arm}, round 2, cold)" in result.sentence
    assert "Reset every cache tier" in result.next_step


def test_the_workloads_own_repeats_may_hit_in_a_cold_pass_but_no_more():
    hits = TokenSources(computed=SENT - 1024, engine_hit=1024, external_hit=0)
    fits = cold_was_cold([alone("cold", hits, ideal_reuse_tokens=2048)])
    assert fits.outcome == "PASS"
    assert fits.sentence == (
        "1,024 of 30,000 prompt tokens hit a cache in 1 cold pass (the workload itself repeats"
        " 2,048)"
    )
    assert cold_was_cold([alone("cold", hits, ideal_reuse_tokens=1000)]).outcome == "FAIL"


def test_further_failures_are_counted_in_the_sentence():
    warm = alone("cold", FROM_OWN)
    assert cold_was_cold([warm] * 3).sentence.endswith(" (and 2 more cases)")


SHORT = TokenSources(computed=600, engine_hit=0, external_hit=0)


@pytest.mark.parametrize(
    ("p", "sentence"),
    [
        (
            a_pass("cold", COMPUTED, TokenSources(computed=29_744, engine_hit=0, external_hit=256)),
            "The decode instances computed 29,744 of 30,000 prompt tokens (limit 1,542;",
        ),
        (  # prompts shorter than a chunk
            a_pass("cold", SHORT, SHORT, prompt_tokens_sent=600),
            "The decode instances fetched 0 of 600 prompt tokens through the connector (",
        ),
        (
            a_pass("cold", COMPUTED, FROM_STORE, requests={"prefill": 4, "decode": 6}),
            "The prefill instances finished 4 requests, but 6 were sent (",
        ),
        (
            a_pass("cold", COMPUTED, FROM_STORE, requests={"prefill": 6, "decode": 9}),
            "The decode instances finished 9 requests, but 6 were sent (",
        ),
    ],
)
def test_kv_that_did_not_move_is_seen(p, sentence):
    result = kv_moved([p])
    assert result.outcome == "FAIL"
    assert result.sentence.startswith(sentence)


def test_engine_warm_decode_instances_need_not_receive_anything():
    assert kv_moved([ENGINE_WARM]).outcome == "PASS"


@pytest.mark.parametrize(
    ("stores", "rest_each", "outcome"),
    [
        (True, 257, "PASS"),
        (True, 258, "FAIL"),
        (False, 128, "PASS"),
        (False, 129, "FAIL"),
    ],
)
def test_what_decode_may_compute_is_one_chunk_and_a_token_or_the_last_block(
    stores, rest_each, outcome
):
    rest = 6 * rest_each
    decode = TokenSources(computed=rest, engine_hit=0, external_hit=SENT - rest)
    assert kv_moved([a_pass("cold", COMPUTED, decode, stores=stores)]).outcome == outcome
    # Attached servers: the connector is unknown, but a store may be counted.
    counted = StoreCounters(hit_tokens=0, hit_l1_tokens=0, written_chunks=0, read_chunks=0)
    attached = a_pass("cold", COMPUTED, decode, stores=False, store=counted if stores else None)
    assert kv_moved([attached]).outcome == outcome


@pytest.mark.parametrize(
    ("computed_share", "written", "evicted", "outcome"),
    [
        (0.2, 40, 0, "INCONCLUSIVE"),
        (0.6, 40, 0, "FAIL"),  # more than a store that is late now and then
        (0.2, 0, 0, "FAIL"),  # nothing was stored in this pass, so nothing was late
        (0.2, 40, 5, "FAIL"),  # evictions explain it
    ],
)
def test_a_store_that_is_written_after_the_response_may_be_too_late(
    computed_share, written, evicted, outcome
):
    store = StoreCounters(
        requested_tokens=0, hit_tokens=0, hit_l1_tokens=0, hit_l2_tokens=0, read_chunks=0,
        written_chunks=written, evicted_chunks=evicted,
    )  # fmt: skip
    rest = computed_share * SENT
    decode = TokenSources(computed=rest, engine_hit=0, external_hit=SENT - rest)
    p = a_pass("cold", COMPUTED, decode, stores_late=True, store=store, store_since_empty=store)
    result = kv_moved([p])
    assert result.outcome == outcome
    assert ("Prefill responds before" in result.sentence) == (outcome == "INCONCLUSIVE")


@pytest.mark.parametrize(
    ("gate", "wrong"),
    [
        (engine_warm, a_pass("engine-warm", FROM_OWN, FROM_STORE)),  # another decode instance
        (cross_instance, a_pass("cross-instance", FROM_OWN, FROM_OWN)),  # the same one again
        (cross_instance, a_pass("cross-instance", COMPUTED, FROM_STORE)),
        (store_warm, a_pass("store-warm", COMPUTED, FROM_STORE)),  # the store lost it
        (store_warm, a_pass("store-warm", FROM_OWN, FROM_STORE)),  # the engine was not reset
        (store_warm, alone("store-warm", FROM_OWN)),
    ],
)
def test_a_state_that_was_not_made_fails(gate, wrong):
    result = gate([*ALL, wrong])
    assert result.outcome == "FAIL"
    assert " served 0 of 30,000 prompt tokens (at least " in result.sentence
    assert result.sentence.endswith(
        f" expected; {wrong.label}). The pass was not {wrong.pass_name}"
    )


def test_the_share_is_of_what_whole_blocks_can_hold():
    # 200-token prompts in blocks of 128: 128 tokens of each can hit, 64 % of what was sent.
    hit = TokenSources(computed=6 * 72, engine_hit=6 * 128, external_hit=0)
    short = alone("engine-warm", hit, prompt_tokens_sent=1200)
    assert engine_warm([short]).outcome == "PASS"


def test_prompts_within_one_chunk_prove_nothing():
    whole = TokenSources(computed=1200, engine_hit=0, external_hit=0)
    result = store_warm([a_pass("store-warm", whole, whole, prompt_tokens_sent=1200)])
    assert result.outcome == "INCONCLUSIVE"
    assert "are too short to hit the connector (a hit takes 256 tokens;" in result.sentence


def tiered(below: float = 1000.0, **tier: float) -> PassCounters:
    """A pass that an emptied memory could not serve; by default all came from Redis."""
    told = TokenSources(computed=24.0, engine_hit=0.0, external_hit=1000.0)
    store = StoreCounters(
        requested_tokens=1024.0, hit_tokens=1000.0, hit_l1_tokens=0.0, hit_l2_tokens=below,
        written_chunks=0.0, read_chunks=4.0, evicted_chunks=0.0,
    )  # fmt: skip
    redis = {"loads": 1.0, "sent": 4.0, "written": 4.0, "held": 4.0, "evicted": 0.0} | tier
    return PassCounters(
        arm="1a", round=0, pass_name="remote-warm", requests_sent=1, prompt_tokens_sent=1024,
        sources={"aggregated": told}, store=store, store_since_empty=store,
        tiers=(TierCounts(name="redis", shown="Redis", state="remote-warm", **redis),),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("below", "outcome"), [(1000.0, "PASS"), (0.0, "FAIL"), (nan, "INCONCLUSIVE")]
)
def test_a_remote_warm_pass_is_served_from_below_the_stores_memory(below, outcome):
    assert tier_warm("remote-warm", [tiered(below)]).outcome == outcome
    assert tier_warm("disk-warm", [tiered(below)]).outcome == "INCONCLUSIVE"  # none was measured


def test_a_disk_warm_pass_that_redis_served_was_not_disk_warm():
    gate = tier_warm("disk-warm", [replace(tiered(), pass_name="disk-warm")])
    assert gate.outcome == "FAIL" and "also loaded from Redis" in gate.sentence


@pytest.mark.parametrize(
    ("counted", "outcome", "said"),
    [
        ({}, "PASS", "Redis held every chunk that LMCache sent"),
        ({"held": 1, "written": 1}, "FAIL", "Redis holds 1 of 4 chunks that LMCache sent: 3 were"),
        ({"held": 1, "evicted": 3}, "FAIL", "it evicted 3"),
        ({"held": 3}, "FAIL", "no counter shows why"),
        ({"held": nan}, "INCONCLUSIVE", "not counted"),
        ({"held": nan, "problem": "no connection"}, "FAIL", "did not answer after the pass: no"),
    ],
)
def test_a_tier_is_asked_for_what_lmcache_says_it_wrote(counted, outcome, said):
    gate = tiers_kept([tiered(**counted)])
    assert gate.outcome == outcome and said in gate.sentence


def test_chunks_that_memory_evicted_may_be_sent_twice():
    p = tiered(held=3)
    evicted = replace(p.store_since_empty, evicted_chunks=2.0)
    assert tiers_kept([replace(p, store_since_empty=evicted)]).outcome == "INCONCLUSIVE"


def reuse(engine_hit: int = 0, external_hit: int = 0) -> Reuse:
    none = dict.fromkeys(
        ("held_twice", "alone_external_hit", "alone_held_twice", "in_flight", "own_in_flight"), 0
    )
    return Reuse(
        **none, legs=6, prompt_tokens=SENT, ideal=29_994, engine_hit=engine_hit,
        external_hit=external_hit, moved_tokens=0, rest=(),
    )  # fmt: skip


def test_a_state_says_how_much_its_source_could_serve():
    # Of a conversation the prefix cache serves all but the first turn in a store-warm pass.
    little = TokenSources(computed=900, engine_hit=28_332, external_hit=768)
    could = {"aggregated": reuse(28_332, 768)}
    gate = store_warm([alone("store-warm", little, stores=True, reuse=could)])
    assert gate.outcome == "PASS"
    assert gate.sentence == (
        "The connector served 100 % of cacheable tokens (2.6 % of all prompt tokens)"
    )


def test_the_role_with_the_lowest_fraction_comes_first():
    could = {"prefill": reuse(engine_hit=OWN), "decode": reuse(engine_hit=OWN)}
    less = TokenSources(computed=SENT - 28_000, engine_hit=28_000, external_hit=0)
    gate = engine_warm([a_pass("engine-warm", FROM_OWN, less, reuse=could)])
    assert gate.outcome == "PASS"
    assert gate.sentence == (
        "The prefix cache served 96.7 % of cacheable tokens (decode 93.5 %; prefill 100 %;"
        " 96.6 % of all prompt tokens)"
    )
