"""A leader's copy of what reducers made: the bytes of each shard, fetched and checked before the shard counts as done.

What everybody is to apply must be what everybody can open, so a reducer that gives anything else has made nothing.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tsr_swarm.config.layout import Slot, published_slots
from tsr_swarm.config.manifest import Manifest
from tsr_swarm.config.round_plan import RoundPlan
from tsr_swarm.errors import ConfigError, PeerError, RefusedError, UnreachableError
from tsr_swarm.node.address_book import ClientPool
from tsr_swarm.node.round_cache import ReducedShard, RoundCache
from tsr_swarm.rounds.gather import ShardDigest
from tsr_swarm.rounds.protocol import ShardDone
from tsr_swarm.wire.codec import check_sections, decode
from tsr_swarm.wire.gate import shard_slots
from tsr_swarm.wire.messages import sections_to_proto
from tsr_swarm.wire.v1 import swarm_pb2 as pb

FETCH_SECONDS = 30.0  # longer than a round waits for a reducer


@dataclass(slots=True)
class ShardCollector:
    """One leader's. Its event loop owns it."""

    manifest: Manifest
    clients: ClientPool
    round_cache: RoundCache
    parent: Callable[[str, ShardDone], str | None]  # of the round, if it asked this reducer for that; else None
    warn: Callable[[str], None]
    _under_way: set[tuple[int, int, int]] = field(default_factory=set)  # term, round, shard: one is fetched at a time

    async def fetch(self, reducer: str, done: ShardDone, made: ReducedShard) -> ShardDigest | None:
        """Have the bytes of ``made``. What it counts as: void if they are wrong; None if they are not to be had now."""
        key, parent = (done.term, done.round, done.shard), self.parent(reducer, done)
        plan = None if parent is None else self.round_cache.plan(done.round, parent)
        if plan is None or key in self._under_way:
            return None
        if self.round_cache.reduced_shard(done.round, done.shard, done.result) is not None:
            return done.result
        self._under_way.add(key)
        try:
            client = await self.clients.to(reducer)
            sections = sections_to_proto(made.result.sections)
            check_sections(self._slots(plan, done.shard), made.result.sections)
            request = pb.FetchShardRequest(
                round=done.round, shard=done.shard, hashes=[section.hash for section in sections]
            )
            data = await client.fetch_shard(request, sections, FETCH_SECONDS)
            await asyncio.to_thread(decode, self._slots(plan, done.shard), made.result.sections, data)
        except (UnreachableError, RefusedError, ConfigError):
            return None
        except PeerError as error:
            self.warn(f"Shard {done.shard} of round {done.round} by {reducer[:8]} counts for nothing: {error}")
            return ShardDigest()
        finally:
            self._under_way.discard(key)
        self.round_cache.add_reduced_shard(done.round, done.shard, made, data)
        return done.result

    def _slots(self, plan: RoundPlan, shard: int) -> Sequence[Slot]:
        slots = published_slots(self.manifest.blocks, plan.due, self.manifest.config.wire)
        return shard_slots(slots, self.manifest.shard_blocks[shard])
