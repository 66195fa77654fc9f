"""The work of a reducer: average the contributions to a shard, publish the step from their mean, seal the round.

Which contributions count is decided in rounds/.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tsr_swarm.config.layout import Slot, published_slots, upload_slots
from tsr_swarm.config.manifest import Manifest
from tsr_swarm.config.round_plan import RoundPlan
from tsr_swarm.errors import PeerError, RunError
from tsr_swarm.lowrank.basis import Basis
from tsr_swarm.lowrank.grid import Grid
from tsr_swarm.optim.outer_step import OuterState
from tsr_swarm.optim.periods import follows_manifest
from tsr_swarm.optim.publish import publish_step
from tsr_swarm.wire.codec import encode
from tsr_swarm.wire.gate import check_published, decode_published, shard_slots, void_blocks
from tsr_swarm.wire.messages import PublishedHeader, ShardResult, chain_hash
from tsr_swarm.wire.v1 import swarm_pb2 as pb


@dataclass(frozen=True, slots=True)
class WeightedPayload:
    """One peer's decoded contribution to a shard. ``tokens`` is its weight; ``number`` fixes its place in the sum."""

    number: int
    tokens: int
    grids: Mapping[Slot, Grid]


@dataclass(frozen=True, slots=True)
class Published:
    """The result of a whole round: its header, its bytes as they travel, and the numbers that they encode."""

    header: PublishedHeader
    data: bytes
    grids: Mapping[Slot, Grid]

    @property
    def void(self) -> frozenset[int]:
        """Blocks nothing was published for."""
        return void_blocks(self.header)

    def included_blocks(self, peer_id: str) -> frozenset[int]:
        """Blocks in whose average this peer's contribution is."""
        pairs = zip(self.header.shard_blocks, self.header.shards, strict=True)
        return frozenset(index for blocks, result in pairs if peer_id in result.included for index in blocks)


def weighted_mean(contributions: Sequence[WeightedPayload], slots: Sequence[Slot]) -> dict[Slot, Tensor]:
    """Mean by tokens of every slot, float64 (rows, cols). Summed in the order of peer numbers.

    ``contributions`` must not be empty, and each must hold every slot.
    """
    ordered = sorted(contributions, key=lambda contribution: contribution.number)
    total = sum(contribution.tokens for contribution in ordered)
    means = {}
    for slot in slots:
        # mean = sum_i w_i x_i / sum_i w_i
        sums = torch.zeros(slot.rows, slot.cols, dtype=torch.float64)
        for contribution in ordered:
            sums += contribution.grids[slot].numbers() * contribution.tokens
        means[slot] = sums / total
    return means


def publish_shard(
    manifest: Manifest,
    plan: RoundPlan,
    blocks: Sequence[int],
    contributions: Mapping[str, WeightedPayload],
    bases: Mapping[int, Basis],
    outer: OuterState,
) -> tuple[ShardResult, bytes, OuterState]:
    """Average the ``contributions`` (by peer) to a shard of ``blocks``, and publish the step from them. Heavy.

    Returns the result, its bytes, and the outer state of these blocks after it, in the bases of before the round.
    All three depend on who is included, on their numbers and on ``outer`` (left as it is), not on who came first.
    The shard is void without contributions, and where the mean or the step from it is not finite.
    """
    void: tuple[ShardResult, bytes, OuterState] = ShardResult(void=True), b"", {}
    if not contributions:
        return void
    config, due = manifest.config, plan.due
    order = sorted(contributions, key=lambda peer: (contributions[peer].number, peer))
    before = {block: outer[block] for block in blocks if block in outer}
    slots = shard_slots(published_slots(manifest.blocks, due, config.wire), blocks)
    uploaded = shard_slots(upload_slots(manifest.blocks, due, config.wire), blocks)
    try:
        mean = weighted_mean([contributions[peer] for peer in order], uploaded)
        grids, after = publish_step(mean, slots, manifest.blocks, bases, config.optimizer, before)
        sections, data = encode(slots, grids, config.wire.zstd_level)
    except RunError:  # one peer's absurd but legal numbers may cost a round, not the run
        return void
    tokens = sum(contribution.tokens for contribution in contributions.values())
    return ShardResult(included=tuple(sorted(order)), tokens=tokens, sections=sections), data, after


def seal(
    plan: RoundPlan,
    shard_blocks: Sequence[tuple[int, ...]],
    results: Sequence[ShardResult],
    voters: Sequence[str] = (),
) -> PublishedHeader:
    """Put a round's shards together under its chain hash. ``voters`` decide about the next round; ascending."""
    chain = chain_hash(bytes.fromhex(plan.parent), plan, shard_blocks, results, voters)
    return PublishedHeader(plan, tuple(shard_blocks), tuple(results), chain, tuple(voters))


def reduce_round(
    manifest: Manifest,
    plan: RoundPlan,
    contributions: Sequence[Mapping[str, WeightedPayload]],
    bases: Mapping[int, Basis],
    outer: OuterState,
    voters: Sequence[str] = (),
) -> tuple[PublishedHeader, bytes, OuterState]:
    """Average and publish every shard in one place, and seal the round. ``contributions``: by shard, then by peer.

    Returns the round and the outer state after it, in the bases of before it. Blocks of a void shard keep theirs.
    """
    results, data, after = [], b"", dict(outer)
    for blocks, of_shard in zip(manifest.shard_blocks, contributions, strict=True):
        result, frames, kept = publish_shard(manifest, plan, blocks, of_shard, bases, outer)
        results.append(result)
        data += frames
        after |= kept
    return seal(plan, manifest.shard_blocks, results, voters), data, after


def open_published(manifest: Manifest, message: pb.PublishedHeader, data: bytes, parent: str) -> Published:
    """Check and decode the round that follows chain hash ``parent``, from the wire or from disk. Raises PeerError."""
    header = check_published(message, manifest=manifest, parent=bytes.fromhex(parent))
    if not follows_manifest(header.plan, manifest):
        raise PeerError("plan", f"Round {header.plan.round} was not planned as the run's manifest says; it is refused.")
    return Published(header, data, decode_published(header, data, manifest=manifest))
