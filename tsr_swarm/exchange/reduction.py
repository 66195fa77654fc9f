"""The reducer at work: contributions in, published bytes out. Decisions are made in rounds/reducer.py."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tsr_swarm.config.layout import Slot, published_slots, upload_slots
from tsr_swarm.config.manifest import Manifest
from tsr_swarm.config.round_plan import RoundPlan
from tsr_swarm.errors import PeerError, RunError
from tsr_swarm.exchange.aggregate import WeightedPayload, weighted_mean
from tsr_swarm.exchange.contribution import captured_of
from tsr_swarm.lowrank.basis import Basis
from tsr_swarm.lowrank.grid import Grid
from tsr_swarm.lowrank.sketch import Captured
from tsr_swarm.optim.outer_step import OuterState
from tsr_swarm.optim.periods import follows_manifest
from tsr_swarm.optim.publish import publish_step
from tsr_swarm.optim.sketch_budget import mean_captured
from tsr_swarm.rounds.protocol import Verdict
from tsr_swarm.rounds.reducer import choose_included, close, is_complete, offer
from tsr_swarm.rounds.state import ReducerState
from tsr_swarm.wire.codec import encode
from tsr_swarm.wire.gate import check_published, decode_published, shard_slots, void_blocks
from tsr_swarm.wire.messages import ContributionHeader, PublishedHeader, ShardResult, chain_hash
from tsr_swarm.wire.v1 import swarm_pb2 as pb


@dataclass(frozen=True, slots=True)
class Published:
    """A round's result: what travels, what it says, and what its reducer keeps once it is applied.

    ``outer`` is written in the bases of before the round; it is empty where the round was only read.
    """

    header: PublishedHeader
    data: bytes
    grids: Mapping[Slot, Grid]
    outer: OuterState = field(default_factory=dict)

    @property
    def void(self) -> frozenset[int]:
        """Blocks nothing was published for."""
        return void_blocks(self.header)

    @property
    def raw_bytes(self) -> int:
        return sum(section.raw_bytes for result in self.header.shards for section in result.sections)

    def included(self) -> frozenset[str]:
        """Peers that are in the average of any shard."""
        return self.header.contributors

    def included_blocks(self, peer_id: str) -> frozenset[int]:
        """Blocks in whose average this peer's contribution is."""
        pairs = zip(self.header.shard_blocks, self.header.shards, strict=True)
        return frozenset(index for blocks, result in pairs if peer_id in result.included for index in blocks)


@dataclass(frozen=True, slots=True)
class PublishedShard:
    """The same of one shard. ``outer`` is of its blocks alone; a void one has nothing but ``result``."""

    result: ShardResult
    data: bytes = b""
    grids: Mapping[Slot, Grid] = field(default_factory=dict)
    outer: OuterState = field(default_factory=dict)


_VOID = PublishedShard(ShardResult(void=True))


class Reduction:
    """Contributions to one round, whose blocks are split into shards of ``shard_blocks``."""

    def __init__(self, manifest: Manifest, plan: RoundPlan, shard_blocks: Sequence[tuple[int, ...]]) -> None:
        self.plan = plan
        self.shard_blocks = tuple(shard_blocks)
        self.state = ReducerState(plan.round, len(self.shard_blocks))
        self.headers: dict[str, ContributionHeader] = {}  # by peer, of complete contributions
        self.raw_bytes = 0
        self._manifest = manifest
        self._held: dict[tuple[str, int], WeightedPayload] = {}
        self._captured: dict[tuple[int, int], tuple[int, Mapping[int, Captured]]] = {}  # by number and shard

    def offer(self, header: ContributionHeader, number: int, grids: Mapping[Slot, Grid]) -> Verdict:
        """Take a contribution that has passed the gate. ``number`` gives its peer's place in the sums."""
        self.state, verdict = offer(self.state, header.round, header.peer_id, header.shard, header.tokens)
        if verdict.is_new:
            self._held[header.peer_id, header.shard] = WeightedPayload(number, header.tokens, grids)
            captured = captured_of(header, self._manifest, self.shard_blocks[header.shard])
            self._captured[number, header.shard] = header.tokens, captured
            self.raw_bytes += sum(section.raw_bytes for section in header.sections)
            if self.is_complete(header.peer_id):
                self.headers[header.peer_id] = header
        return verdict

    def is_complete(self, peer_id: str) -> bool:
        """Whether all shards of this peer's contribution are here."""
        return is_complete(self.state, peer_id)

    def close(self) -> None:
        """Take nothing more; what comes now is late."""
        self.state = close(self.state)

    def captured(self) -> dict[int, Captured]:
        """How much the bases hold of what the peers that are here have moved, in the mean; summed by their numbers."""
        return mean_captured(self._captured[key] for key in sorted(self._captured))

    def result(self, bases: Mapping[int, Basis], quorum: int, outer: OuterState | None = None) -> Published:
        """Average, publish and hash. Heavy: call it on a worker thread, after ``close``.

        ``outer`` is what the reducer kept of the rounds before, None for nothing. It is left as it is: what is kept
        after this round is in the result, and counts only if the round is committed and applied. Blocks of a void
        shard keep what they had. A shard whose mean, or the step from it, is not finite is void.
        """
        kept: OuterState = {} if outer is None else outer
        made = []
        for shard, blocks in enumerate(self.shard_blocks):
            peers = choose_included(self.state, shard, quorum)
            contributions = {peer: self._held[peer, shard] for peer in peers}
            made.append(publish_shard(self._manifest, self.plan, blocks, contributions, bases, kept))
        header = seal(self.plan, self.shard_blocks, [part.result for part in made])
        grids = {slot: grid for part in made for slot, grid in part.grids.items()}
        after = {**kept, **{block: state for part in made for block, state in part.outer.items()}}
        return Published(header, b"".join(part.data for part in made), grids, after)


def publish_shard(
    manifest: Manifest,
    plan: RoundPlan,
    blocks: Sequence[int],
    contributions: Mapping[str, WeightedPayload],
    bases: Mapping[int, Basis],
    outer: OuterState,
) -> PublishedShard:
    """Average the ``contributions`` (by peer) to a shard of ``blocks``, and publish the step from them. Heavy.

    The bytes depend on who is in it, on their numbers and on ``outer``, which is left as it is, and on nothing else.
    Void without contributions, and where the mean or the step from it is not finite.
    """
    if not contributions:
        return _VOID
    config, due = manifest.config, plan.due
    order = sorted(contributions, key=lambda peer: (contributions[peer].number, peer))
    mine = {block: outer[block] for block in blocks if block in outer}
    slots = shard_slots(published_slots(manifest.blocks, due, config.wire), blocks)
    uploaded = shard_slots(upload_slots(manifest.blocks, due, config.wire), blocks)
    try:
        mean = weighted_mean([contributions[peer] for peer in order], uploaded)
        grids, after = publish_step(mean, slots, manifest.blocks, bases, config.optimizer, mine)
        sections, data = encode(slots, grids, config.wire.zstd_level)
    except RunError:  # one peer's absurd but legal numbers may cost a round, not the run
        return _VOID
    tokens = sum(contribution.tokens for contribution in contributions.values())
    return PublishedShard(
        ShardResult(included=tuple(sorted(order)), tokens=tokens, sections=sections), data, grids, after
    )


def seal(
    plan: RoundPlan,
    shard_blocks: Sequence[tuple[int, ...]],
    results: Sequence[ShardResult],
    voters: Sequence[str] = (),
) -> PublishedHeader:
    """Put a round's shards together under its chain hash. ``voters`` decide about the next round; ascending."""
    chain = chain_hash(bytes.fromhex(plan.parent), plan, shard_blocks, results, voters)
    return PublishedHeader(plan, tuple(shard_blocks), tuple(results), chain, tuple(voters))


def open_published(manifest: Manifest, message: pb.PublishedHeader, data: bytes, parent: str) -> Published:
    """Check and open the round that follows chain hash ``parent``, from the wire or from disk. Raises PeerError."""
    header = check_published(message, manifest=manifest, parent=bytes.fromhex(parent))
    if not follows_manifest(header.plan, manifest):
        raise PeerError("plan", f"Round {header.plan.round} was not planned as the run's manifest says; it is refused.")
    return Published(header, data, decode_published(header, data, manifest=manifest))
