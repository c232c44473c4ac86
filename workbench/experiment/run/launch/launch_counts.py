"""What one launch was sent and what it counted: two counter readings become those of a pass."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan, nan

import numpy as np

from workbench.experiment.plan.arm import Arm, Pass
from workbench.experiment.run.launch.isolation import Counted, CounterReading, Made
from workbench.hardware.kv import host_memory_blocks
from workbench.load.workload.workload import Workload
from workbench.metrics.counters import StoreCounters, TokenSources, engine_count
from workbench.metrics.ideal import Asked, Call, IdealCaches, Reuse, reuse_by_role
from workbench.metrics.passes import PassCounters
from workbench.records import LegRecord, ProxyFacts, RequestRecord
from workbench.serve.connectors.lmcache import CHUNK_TOKENS
from workbench.serve.deployed import Deployment
from workbench.topology import Role


class LaunchCounts:
    """Follows one deployment from pass to pass: its ideal caches, and when it was emptied."""

    def __init__(self, arm: Arm, number: int, deployment: Deployment) -> None:
        self._arm, self._number, self._deployment = arm, number, deployment
        self._told = deployment.proxy or ProxyFacts()
        self._kv_bytes_per_token = (arm.settings or self._told).kv_bytes_per_token
        known = arm.kv_connector
        self._stores, self._pulls = bool(known and known.store), bool(known and known.pulls)
        self._private = bool(known and known.store and known.store.private)
        self._transfers = known.transfer_counters if known else {}
        self._chunk_tokens = arm.chunk_tokens if self._stores else 0
        self._ideal: IdealCaches | None = None
        self._emptied: CounterReading | None = None
        self._tiers_emptied: dict[str, CounterReading] = {}
        self._counted_to: CounterReading | None = None
        self._expired_before = 0.0
        self._names = {instance.url: instance for instance in deployment.instances}
        self._block_tokens = 0
        self._answer_tokens: dict[str, int] = {}
        self._failed_tokens = 0
        self.expected_cached: dict[int, int] = {}
        """For the last pass, by request index: what the responding instance could have cached."""

    def begins(self, made: Made, reading: CounterReading) -> None:
        """A pass begins; what was emptied for it is empty from here on."""
        self._block_tokens = reading.block_tokens
        if self._stores and self._deployment.store.keeps_blocks:
            self._chunk_tokens = reading.block_tokens
        if self._ideal is None:
            settings, told = self._arm.settings, self._told
            drafting = settings.drafting if settings else {}
            drop_blocks: set[str] = {
                role for role, drafts in drafting.items() if drafts.drops_block
            }
            self._ideal = IdealCaches(
                block_tokens=reading.block_tokens,
                chunk_tokens=self._chunk_tokens,
                prefix_caching=(settings or told).prefix_caching,
                pulls=self._pulls,
                loads_blocks=self._stores and self._deployment.store.keeps_blocks,
                drop_blocks=drop_blocks | {*told.drop_blocks},
                private=self._private,
            )
        if made.engines_empty:
            self._ideal.forget_engines()
            self._answer_tokens.clear()
            self._failed_tokens = 0
        if made.store_empty:
            self._ideal.forget_store()
        if self._counted_to is not None:
            between = reading.transfers_since(self._counted_to, self._transfers)
            if between is not None and not isnan(between.expired):
                self._expired_before += between.expired
        self._counted_to = reading
        if made.store_empty or self._emptied is None:
            self._emptied = reading
        for tier in self._deployment.tiers:
            if tier.name in made.emptied or tier.name not in self._tiers_emptied:
                self._tiers_emptied[tier.name] = reading

    def ended(
        self,
        measured: Pass,
        prompts: Workload,
        sent: Workload,
        records: Sequence[RequestRecord],
        legs: Sequence[LegRecord],
        reading: CounterReading,
        counted: Counted,
    ) -> PassCounters:
        """A pass has ended. `prompts` are those of the cold pass, `sent` those of this one."""
        assert self._counted_to is not None
        begun, self._counted_to = self._counted_to, reading
        expired_before, self._expired_before = self._expired_before, 0.0
        reuse = self._reuse(sent, records, legs)
        sources = {
            role: seen.without_external() if self._loads_nothing(role, seen, records) else seen
            for role, seen in counted.sources.items()
        }
        loaded = sum(seen.external_hit for seen in sources.values())
        several = any(engine_count(counters) > 1 for counters in reading.engines.values())
        if several or (self._arm.kv_connector is None and loaded > 0):
            # The chunk size of attached servers is unknown, and so is which of several engines,
            # each with a cache of its own, got a prompt.
            reuse, self.expected_cached = {}, {}
        failed = [record for record in records if not record.ok]
        # What a failed request left in a cache shows in later passes too.
        self._failed_tokens += sum(record.prompt_tokens for record in failed)
        return PassCounters(
            arm=self._arm.label,
            round=self._number,
            pass_name=measured.name,
            stores=self._stores or bool(self._deployment.store_url),
            private=self._private,
            stores_late=self._stores and self._deployment.store.stores_late,
            counts_lookups=self._deployment.store.counts_lookups,
            pulls=self._pulls,
            requests_sent=len(records),
            prompt_tokens_sent=prompts.prompt_tokens,
            longest_prompt_tokens=max(r.prompt_tokens for r in sent.requests),
            ideal_reuse_tokens=sum(r.ideal_reuse_tokens for r in prompts.requests),
            sources=sources,
            requests=counted.requests,
            preemptions=counted.preemptions,
            store=self._store_since(begun, reading),
            store_since_empty=self._store_since(self._emptied, reading),
            read_bytes=reading.read_bytes_since(begun) if self._stores else None,
            transfers=reading.transfers_since(begun, self._transfers) if self._pulls else None,
            drafts=reading.drafts_since(begun),
            tiers=reading.tiers_since(begun, self._tiers_emptied),
            chunk_objects=self._chunk_objects(),
            expired_before=expired_before,
            reuse=reuse,
            requests_failed=len(failed),
            failed_prompt_tokens=self._failed_tokens,
            overflowed=self._overflowed(reading),
            kv_bytes_per_token=self._kv_bytes_per_token,
            block_tokens=reading.block_tokens,
            chunk_tokens=self._chunk_tokens or CHUNK_TOKENS,
        )

    def _store_since(
        self, before: CounterReading | None, reading: CounterReading
    ) -> StoreCounters | None:
        """What the store did since; evictions of an instance's own are known since it was empty."""
        if before is None:
            return None
        if not self._private:
            return reading.store_since(before)
        block_bytes = reading.block_tokens * self._kv_bytes_per_token
        held = nan
        if before is self._emptied:
            held = host_memory_blocks(self._arm.store_gb, block_bytes=block_bytes)
        return reading.store_since(before, block_bytes=block_bytes, held_blocks=held)

    def _loads_nothing(
        self, role: Role, sources: TokenSources, records: Sequence[RequestRecord]
    ) -> bool:
        """Whether no connector can have loaded KV: there is none, or the responses' cached tokens
        add up to what the engine's own cache served."""
        if self._arm.kv_connector is not None and not self._arm.kv_connector.loads:
            return True
        told = all(record.ok and record.cached_tokens >= 0 for record in records)
        cached = sum(record.cached_tokens for record in records)
        return role == "aggregated" and told and cached == sources.engine_hit

    def _reuse(
        self, sent: Workload, records: Sequence[RequestRecord], legs: Sequence[LegRecord]
    ) -> dict[Role, Reuse]:
        """Empty if it is unknown which instance got which prompt."""
        self.expected_cached = {}
        leg_of = {leg.request_id: leg for leg in legs}
        prompts = {request.index: request for request in sent.requests}
        asked = []
        for record in records:
            calls = self._calls(record, leg_of.get(record.request_id))
            if calls is None and record.ok:
                return {}
            request = prompts[record.index]
            asked.append(
                Asked(
                    index=record.index,
                    prompt=request.prompt_ids,
                    ideal_tokens=request.ideal_reuse_tokens,
                    calls=calls or (),
                    answer=np.asarray(record.answer_ids) if record.answer_ids else None,
                    ended_s=record.chunk_s[-1] if record.chunk_s else nan,
                )
            )
        assert self._ideal is not None
        served = self._ideal.serve(asked)
        answering = {a.index: a.calls[-1].role for a in asked if a.calls}
        self.expected_cached = {
            leg.index: leg.cached for leg in served if leg.role == answering[leg.index]
        }
        return reuse_by_role(served)

    def _calls(self, record: RequestRecord, leg: LegRecord | None) -> tuple[Call, ...] | None:
        """The legs of a request, failed or not; None if unknown."""
        first_s = record.chunk_s[0] if record.chunk_s else record.stream_end_s
        if leg is None:
            if len(self._names) != 1:
                return None
            (only,) = self._names
            legs = [(only, record.sent_s, first_s)]
        else:
            legs = [
                (leg.prefill_instance, leg.prefill_sent_s, leg.prefill_done_s),
                (leg.decode_instance, leg.decode_sent_s, leg.decode_first_byte_s),
            ]
        if any(url and url not in self._names for url, _, _ in legs):
            return None  # attached servers of which not all are listed
        for url, _, _ in legs:
            if url:
                # Each response fills the prompt's last block and its own blocks.
                name = self._names[url].name
                self._answer_tokens[name] = (
                    self._answer_tokens.get(name, 0) + record.max_tokens + 2 * self._block_tokens
                )
        return tuple(
            Call(
                role=self._names[url].role,
                instance=self._names[url].name,
                asked_s=asked_s,
                # A leg that broke off may have left its KV at any time.
                held_s=asked_s if isnan(held_s) else held_s,
            )
            for url, asked_s, held_s in legs
            if url and not isnan(asked_s)
        )

    def _overflowed(self, reading: CounterReading) -> frozenset[Role]:
        """Roles with an instance that was sent more than fits, including the responses' blocks."""
        assert self._ideal is not None
        held = self._ideal.held_tokens()
        return frozenset(
            instance.role
            for instance in self._deployment.instances
            if not isnan(space := reading.capacity_tokens[instance.name])
            and held.get(instance.name, 0) + self._answer_tokens.get(instance.name, 0) > space
        )

    def _chunk_objects(self) -> int:
        """Each tensor-parallel rank stores its part of a chunk; 0 if roles have several ranks and
        differ."""
        arm = self._arm
        roles = arm.topology.roles if arm.topology else ()
        ranks = {int(getattr(arm.tp, role)) for role, number in roles if number}
        return ranks.pop() if len(ranks) == 1 else 0
