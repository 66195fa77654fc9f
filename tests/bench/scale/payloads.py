"""The payloads of a round: its plan, its shards, and the bytes of each, as ``tsr-swarm plan`` has them."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from tsr_swarm.config.layout import Slot, block_bytes, published_slots, split_blocks, upload_slots
from tsr_swarm.config.manifest import Manifest, make_manifest
from tsr_swarm.config.round_plan import RoundPlan
from tsr_swarm.config.run import RunConfig
from tsr_swarm.optim.periods import plan_round
from tsr_swarm.plan.costs import MODEL_SIZES
from tsr_swarm.plan.own_costs import wire_shares
from tsr_swarm.train.llama import parameter_shapes
from tsr_swarm.wire.codec import Section
from tsr_swarm.wire.gate import shard_slots

MODEL_SIZE = "60M"
MEAN_OF = 8  # peers, whose mean is compressed to find its size; a mean of more looks no different


@dataclass(frozen=True)
class RoundPayloads:
    """The shards of a round. ``is_whole``: of whole blocks, as runs have them; else all of the same bytes."""

    manifest: Manifest
    shards: int
    is_whole: bool

    @cached_property
    def block_bytes(self) -> tuple[int, ...]:
        """Bytes of each block in an ordinary round."""
        return block_bytes(self.manifest.blocks, self.manifest.config.wire)

    @cached_property
    def shard_blocks(self) -> tuple[tuple[int, ...], ...]:
        """The blocks of each shard; of a shard that is a piece of blocks, the one block that a message would name."""
        if self.is_whole:
            return split_blocks(self.block_bytes, self.shards)
        return tuple((shard % len(self.manifest.blocks),) for shard in range(self.shards))

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Bytes of each shard, by which shards are assigned to nodes."""
        sizes = self.block_bytes
        if self.is_whole:
            return tuple(sum(sizes[block] for block in blocks) for blocks in self.shard_blocks)
        return (sum(sizes) // self.shards,) * self.shards

    @cached_property
    def uploads(self) -> tuple[tuple[Section, ...], ...]:
        """Sections of a contribution, by shard."""
        return self._sections(upload_slots, _SHARES.sent)

    @cached_property
    def published(self) -> tuple[tuple[Section, ...], ...]:
        """Sections of an average, by shard."""
        return self._sections(published_slots, _SHARES.received)

    def plan(self, round: int, parent: str) -> RoundPlan:
        return plan_round(self.manifest.config, self.manifest.blocks, round, parent)

    def _sections(
        self, walk: Callable[..., Sequence[Slot]], shares: Mapping[str, float]
    ) -> tuple[tuple[Section, ...], ...]:
        slots = walk(self.manifest.blocks, self.plan(1, "").due, self.manifest.config.wire)
        if self.is_whole:
            return tuple(_sections(_raw(shard_slots(slots, blocks)), shares) for blocks in self.shard_blocks)
        raw = {kind: -(-count // self.shards) for kind, count in _raw(slots).items()}
        return (_sections(raw, shares),) * self.shards


def wire_bytes(sections: Sequence[Section]) -> int:
    return sum(section.wire_bytes for section in sections)


def round_payloads(peers: int, shards: int, is_whole: bool = False) -> RoundPayloads:
    """The payloads of a run of ``peers``, whose data has a part for each of them."""
    config = replace(_CONFIG, data=replace(_CONFIG.data, parts=max(8, peers)))
    config = replace(config, run=replace(config.run, min_peers=peers))
    return RoundPayloads(make_manifest("scale", config, parameter_shapes(config.model)), shards, is_whole)


def whole_bytes(payloads: RoundPayloads) -> tuple[int, int]:
    """Bytes of one whole contribution, and of one whole average."""
    return sum(map(wire_bytes, payloads.uploads)), sum(map(wire_bytes, payloads.published))


_CONFIG = RunConfig(model=MODEL_SIZES[MODEL_SIZE].model)
_SHARES = wire_shares(_CONFIG, MEAN_OF)


def _raw(slots: Sequence[Slot]) -> dict[str, int]:
    counts: dict[str, int] = defaultdict(int)
    for slot in slots:
        counts[slot.part.kind.value] += slot.raw_bytes
    return counts


def _sections(raw: Mapping[str, int], shares: Mapping[str, float]) -> tuple[Section, ...]:
    return tuple(
        Section(kind, count, round(count * shares[kind]), hashlib.blake2b(kind.encode(), digest_size=32).digest())
        for kind, count in raw.items()
    )
