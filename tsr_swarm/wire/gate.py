"""What may enter a round: checks in the order of their cost, each with its own reason; the first that fails counts.

Signatures will be checked between the peer and the sections.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from tsr_swarm.config.layout import Slot, published_slots, upload_slots
from tsr_swarm.config.manifest import PROTOCOL_VERSION, Manifest
from tsr_swarm.config.round_plan import Due, RoundPlan
from tsr_swarm.errors import PeerError
from tsr_swarm.lowrank.grid import Grid
from tsr_swarm.wire.codec import check_sections, decode, wire_bytes
from tsr_swarm.wire.compression import max_wire_bytes
from tsr_swarm.wire.messages import ContributionHeader, PublishedHeader, chain_hash, published_from_proto
from tsr_swarm.wire.v1 import swarm_pb2 as pb


@dataclass(frozen=True, slots=True)
class CheckedContribution:
    """A header that passed the gate, the plan it was checked against, and the slots that its bytes will fill."""

    header: ContributionHeader
    plan: RoundPlan
    slots: tuple[Slot, ...]

    def decode(self, data: bytes) -> dict[Slot, Grid]:
        """Open the bytes that followed. Raises PeerError."""
        return decode(self.slots, self.header.sections, data)


def shard_slots(slots: Sequence[Slot], blocks: Iterable[int]) -> tuple[Slot, ...]:
    """The slots that belong to a shard of ``blocks``, in order."""
    chosen = frozenset(blocks)
    return tuple(slot for slot in slots if slot.block in chosen)


def check_header(
    header: ContributionHeader, *, manifest: Manifest, plan: RoundPlan, is_known: Callable[[str], bool]
) -> CheckedContribution:
    """Check a header from ``messages.open_envelope`` against the open round, before its payload is received.

    Raises PeerError with the reason protocol, manifest, round, parent, peer, shard, tokens, steps, kappas or sections.
    """
    if header.protocol != PROTOCOL_VERSION:
        raise PeerError("protocol", f"Protocol {header.protocol} was used, this run speaks {PROTOCOL_VERSION}.")
    if header.manifest_digest.hex() != manifest.digest:
        raise PeerError("manifest", f"The payload is for another run than '{manifest.run_id}'; join this one again.")
    if header.round != plan.round:
        raise PeerError("round", f"The payload is for round {header.round}, but round {plan.round} is open.")
    if header.parent.hex() != plan.parent:
        raise PeerError("parent", f"The payload starts from other weights than round {plan.round}; fetch the state.")
    if not is_known(header.peer_id):
        raise PeerError("peer", f"Peer {header.peer_id[:8]} is not in this run; join again.")
    if header.shard >= len(manifest.shard_blocks):
        raise PeerError("shard", f"Shard {header.shard} was sent, round {plan.round} has {len(manifest.shard_blocks)}.")
    data = manifest.config.data
    most_tokens = plan.steps * data.batch_size * data.sequence_length
    if header.tokens > most_tokens:
        raise PeerError("tokens", f"{header.tokens} tokens were claimed, {most_tokens} fit in round {plan.round}.")
    if header.steps > plan.steps:
        raise PeerError("steps", f"{header.steps} local steps were taken, round {plan.round} has {plan.steps}.")
    members = manifest.shard_blocks[header.shard]
    low_rank = sum(manifest.blocks[index].is_low_rank for index in members)
    if len(header.kappas) not in (0, low_rank):
        raise PeerError("kappas", f"{len(header.kappas)} blocks were measured, this shard has {low_rank} of low rank.")
    slots = shard_slots(upload_slots(manifest.blocks, plan.due, manifest.config.wire), members)
    check_sections(slots, header.sections)
    return CheckedContribution(header, plan, slots)


def check_published(message: pb.PublishedHeader, *, manifest: Manifest, parent: bytes) -> PublishedHeader:
    """Check the header of a committed round: its bounds, its chain hash on top of ``parent``, its sections.

    parent: chain hash of the round before as this side knows it, empty in round 1. Raises PeerError.
    """
    header = published_from_proto(message, manifest)
    chain = chain_hash(parent, header.plan, header.shard_blocks, header.shards, header.voters)
    if header.plan.parent != parent.hex() or header.chain != chain:
        raise PeerError("chain", f"Round {header.plan.round} does not continue the chain; fetch the state again.")
    for slots, result in zip(published_by_shard(header, manifest), header.shards, strict=True):
        check_sections(slots, result.sections)
    return header


def decode_published(header: PublishedHeader, data: bytes, *, manifest: Manifest) -> dict[Slot, Grid]:
    """Open the bytes of every shard that is not void. Raises PeerError."""
    grids: dict[Slot, Grid] = {}
    start = 0
    for slots, result in zip(published_by_shard(header, manifest), header.shards, strict=True):
        end = start + wire_bytes(result.sections)
        grids |= decode(slots, result.sections, data[start:end])
        start = end
    if start != len(data):
        raise PeerError("length", f"Round {header.plan.round} came with {len(data)} bytes, not {start}.")
    return grids


def void_blocks(header: PublishedHeader) -> frozenset[int]:
    """Blocks of which nothing was published."""
    pairs = zip(header.shard_blocks, header.shards, strict=True)
    return frozenset(index for blocks, result in pairs if result.void for index in blocks)


def max_published_bytes(manifest: Manifest) -> int:
    """An upper bound of one round's published bytes, whatever is due and however it is sharded."""
    low_rank = frozenset(i for i, block in enumerate(manifest.blocks) if block.is_low_rank)
    worst: Counter[int] = Counter()
    of_moments = frozenset(i for i, block in enumerate(manifest.blocks) if block.moment_shape)
    periods, none = manifest.config.periods, frozenset[int]()
    moments = Due(first=of_moments if periods.k_u != 0 else none, second=of_moments if periods.k_v != 0 else none)
    aims = (moments, replace(moments, range=low_rank, project=low_rank), replace(moments, choose=low_rank))
    for due in (*aims, *(replace(due, tangent=low_rank) for due in aims)):
        sizes: Counter[int] = Counter()
        for slot in published_slots(manifest.blocks, due, manifest.config.wire):
            sizes[slot.block] += max_wire_bytes(slot.raw_bytes)  # as if each slot had a frame of its own
        worst |= sizes  # block by block, the larger
    return worst.total()


def published_by_shard(header: PublishedHeader, manifest: Manifest) -> list[tuple[Slot, ...]]:
    """The slots that each shard of a round has published; none of a void one."""
    slots = published_slots(manifest.blocks, header.plan.due, manifest.config.wire, void_blocks(header))
    return [shard_slots(slots, blocks) for blocks in header.shard_blocks]
