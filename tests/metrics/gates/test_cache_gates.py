from __future__ import annotations

from dataclasses import replace
from functools import partial
from math import nan

import pytest

from workbench.metrics.counters import StoreCounters, TokenSources
from workbench.metrics.gates.cache_gates import cold_was_cold, disk_warm, in_state, kv_moved
from workbench.metrics.ideal import Reuse
from workbench.metrics.passes import PassCounters

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
        (cold_was_cold, "0 of 60,000 prompt tokens of all roles came from a cache in 1 cold pass"),
        (
            kv_moved,
            "the decode instances received 87,552 of 120,000 prompt tokens and computed 2,496,"
            " where 6,168 are allowed, in 4 passes",
        ),
        (
            engine_warm,
            "of 30,000 prompt tokens in 1 engine-warm pass, by role: "
            "99.8 % on prefill instances from their own prefix cache, "
            "99.8 % on decode instances from their own prefix cache",
        ),
        (
            cross_instance,
            "of 30,000 prompt tokens in 1 cross-instance pass, by role: "
            "99.8 % on prefill instances from their own prefix cache, "
            "97.3 % on decode instances from the connector",
        ),
        (
            store_warm,
            "of 30,000 prompt tokens in 1 store-warm pass, by role: "
            "97.3 % on prefill instances from the connector, "
            "97.3 % on decode instances from the connector",
        ),
    ],
)
def test_a_sound_run_passes_with_its_numbers(gate, sentence):
    result = gate(ALL)
    assert (result.outcome, result.sentence) == ("PASS", sentence)


OLD = "what a connector loads is not counted; vLLM 0.16 and later say it"


def old(engine_hit: float) -> TokenSources:
    """What vLLM 0.9 to 0.11 says: hits of its own cache alone."""
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
def test_where_they_do_not_suffice_it_is_said_which_version_does(gate, measured, prefill_hit):
    sources = {"prefill": old(prefill_hit), "decode": old(0)}
    result = gate([replace(measured, sources=sources)])
    assert result.outcome == "INCONCLUSIVE"
    assert OLD in result.sentence


def test_no_counter_at_all_is_never_taken_for_cold():
    blind = TokenSources(all_tokens=SENT, unknown="a hit rate is no counter")
    result = cold_was_cold([alone("cold", blind)])
    assert result.outcome == "INCONCLUSIVE"
    assert "a hit rate is no counter" in result.sentence


def test_the_numbers_of_many_passes_add_up():
    rounds = [replace(COLD, round=number) for number in range(9)]
    assert cold_was_cold(rounds).sentence.startswith("0 of 540,000 prompt tokens")
    assert cold_was_cold(rounds).sentence.endswith("in 9 cold passes")


@pytest.mark.parametrize("gate", [cold_was_cold, kv_moved, engine_warm, cross_instance, store_warm])
class TestNothingToJudgeBy:
    def test_no_pass(self, gate):
        result = gate([])
        assert result.outcome == "INCONCLUSIVE"
        assert result.sentence.startswith("no ")
        assert result.sentence.endswith("pass was measured")

    def test_counters_missing_on_one_role(self, gate):
        hidden = [
            replace(p, sources={**p.sources, "decode": TokenSources()}, requests={"prefill": 6})
            for p in ALL
        ]
        result = gate(hidden)
        assert result.outcome == "INCONCLUSIVE"
        assert "the decode instances do not say where their prompt tokens came from" in (
            result.sentence
        )
        assert "/metrics" in result.next_step

    def test_somebody_else_uses_the_servers(self, gate):
        stray = TokenSources(computed=400, engine_hit=0, external_hit=0)
        shared = [
            replace(p, sources={role: own + stray for role, own in p.sources.items()}) for p in ALL
        ]
        result = gate(shared)
        assert result.outcome == "INCONCLUSIVE"
        assert "counted 30,400 prompt tokens, 30,000 were sent" in result.sentence


def test_a_pass_that_no_server_counted_is_not_cold_for_that():
    nothing = TokenSources(computed=0, engine_hit=0, external_hit=0)
    result = cold_was_cold([alone("cold", nothing)])
    assert result.outcome == "INCONCLUSIVE"
    assert "the aggregated instances counted 0 prompt tokens, 30,000 were sent" in result.sentence


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
    assert f"of {SENT:,} prompt tokens came from a cache" in result.sentence
    assert result.sentence.startswith(f"{warm.arm}, round 2, cold: ")
    assert "reset every tier" in result.next_step


def test_the_workloads_own_repeats_may_hit_in_a_cold_pass_but_no_more():
    hits = TokenSources(computed=SENT - 1024, engine_hit=1024, external_hit=0)
    fits = cold_was_cold([alone("cold", hits, ideal_reuse_tokens=2048)])
    assert fits.outcome == "PASS"
    assert fits.sentence == (
        "1,024 of 30,000 prompt tokens of all roles came from a cache in 1 cold pass;"
        " the workload itself repeats 2,048"
    )
    assert cold_was_cold([alone("cold", hits, ideal_reuse_tokens=1000)]).outcome == "FAIL"


def test_further_failures_are_counted_in_the_sentence():
    warm = alone("cold", FROM_OWN)
    assert cold_was_cold([warm] * 3).sentence.endswith("(and 2 more like it)")


def test_decode_instances_that_prefill_in_silence_are_caught():
    computing = TokenSources(computed=SENT - 256, engine_hit=0, external_hit=256)
    result = kv_moved([a_pass("cold", COMPUTED, computing)])
    assert result.outcome == "FAIL"
    assert (
        "the decode instances computed 29,744 of 30,000 prompt tokens, where 1,542 are allowed"
        in result.sentence
    )


def test_prompts_shorter_than_a_chunk_move_nothing():
    short = TokenSources(computed=600, engine_hit=0, external_hit=0)
    result = kv_moved([a_pass("cold", short, short, prompt_tokens_sent=600)])
    assert result.outcome == "FAIL"
    assert "received 0 of 600 prompt tokens through the connector" in result.sentence
    assert "exceed one chunk" in result.next_step


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


def test_every_request_passes_through_a_prefill_instance():
    result = kv_moved([a_pass("cold", COMPUTED, FROM_STORE, requests={"prefill": 4, "decode": 6})])
    assert result.outcome == "FAIL"
    assert "the prefill instances finished 4 requests, 6 were sent" in result.sentence


def test_aggregated_passes_say_nothing_of_moving():
    result = kv_moved([alone("cold", COMPUTED)])
    assert (result.outcome, result.sentence) == (
        "INCONCLUSIVE",
        "no prefill/decode pass was measured",
    )


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
    assert result.sentence.startswith(f"{wrong.label}: 0 of 30,000 prompt tokens of the ")


def test_the_share_is_of_what_whole_blocks_can_hold():
    # 200-token prompts in blocks of 128: 128 tokens of each can hit, 64 % of what was sent.
    hit = TokenSources(computed=6 * 72, engine_hit=6 * 128, external_hit=0)
    short = alone("engine-warm", hit, prompt_tokens_sent=1200)
    assert engine_warm([short]).outcome == "PASS"


def test_prompts_within_one_chunk_prove_nothing():
    whole = TokenSources(computed=1200, engine_hit=0, external_hit=0)
    result = store_warm([a_pass("store-warm", whole, whole, prompt_tokens_sent=1200)])
    assert result.outcome == "INCONCLUSIVE"
    assert "prompts too short to show a hit of the connector" in result.sentence


@pytest.mark.parametrize(
    ("below", "outcome"), [(1000.0, "PASS"), (0.0, "FAIL"), (nan, "INCONCLUSIVE")]
)
def test_a_disk_warm_pass_is_served_from_below_the_stores_memory(below, outcome):
    told = TokenSources(computed=24.0, engine_hit=0.0, external_hit=1000.0)
    store = StoreCounters(
        requested_tokens=1024.0, hit_tokens=1000.0, hit_l1_tokens=0.0, hit_l2_tokens=below,
        written_chunks=0.0, read_chunks=4.0, evicted_chunks=0.0,
    )  # fmt: skip
    p = PassCounters(
        arm="1a", round=0, pass_name="disk-warm", requests_sent=1, prompt_tokens_sent=1024,
        sources={"aggregated": told}, store=store,
    )  # fmt: skip
    assert disk_warm([p]).outcome == outcome


def test_a_state_says_how_much_its_source_could_have_served_at_all() -> None:
    # Of a conversation the engine's own cache serves all but the first turn in a store-warm pass.
    little = TokenSources(computed=900, engine_hit=28_332, external_hit=768)
    none = dict.fromkeys(
        ("held_twice", "alone_external_hit", "alone_held_twice", "in_flight", "own_in_flight"), 0
    )
    left = Reuse(
        **none, legs=6, prompt_tokens=SENT, ideal=29_994, engine_hit=28_332, external_hit=768,
        moved_tokens=768, rest=(),
    )  # fmt: skip
    gate = store_warm([alone("store-warm", little, stores=True, reuse={"aggregated": left})])
    assert gate.outcome == "PASS"
    assert "2.6 % on aggregated instances from the connector (2.6 % could be)" in gate.sentence
    unknown = store_warm([STORE_WARM])
    assert "could be" not in unknown.sentence
