"""The reducer at work: contributions in, published bytes out. Decisions are made in rounds/reducer.py."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tsr_swarm.config.layout import Slot, published_slots, upload_slots
from tsr_swarm.config.manifest import Manifest
from tsr_swarm.config.plan import RoundPlan
from tsr_swarm.errors import PeerError, RunError
from tsr_swarm.lowrank.basis import Basis
from tsr_swarm.lowrank.grid import Grid
from tsr_swarm.lowrank.sketch import Captured
from tsr_swarm.optim.exchange import mean_captured
from tsr_swarm.optim.outer import OuterState
from tsr_swarm.optim.periods import follows_manifest
from tsr_swarm.optim.publish import publish_step
from tsr_swarm.rounds.aggregate import Contribution, weighted_mean
from tsr_swarm.rounds.reducer import ReducerState, Verdict, close, included, is_complete, offer
from tsr_swarm.runtime.contribution import captured_of
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
        return frozenset(peer for result in self.header.shards for peer in result.included)

    def included_blocks(self, peer_id: str) -> frozenset[int]:
        """Blocks in whose average this peer's contribution is."""
        pairs = zip(self.header.shard_blocks, self.header.shards, strict=True)
        return frozenset(index for blocks, result in pairs if peer_id in result.included for index in blocks)


class Reduction:
    """Contributions to one round, whose blocks are split into shards of ``shard_blocks``."""

    def __init__(self, manifest: Manifest, plan: RoundPlan, shard_blocks: Sequence[tuple[int, ...]]) -> None:
        self.plan = plan
        self.shard_blocks = tuple(shard_blocks)
        self.state = ReducerState(plan.round, len(self.shard_blocks))
        self.headers: dict[str, ContributionHeader] = {}  # by peer, of complete contributions
        self.raw_bytes = 0
        self._manifest = manifest
        self._held: dict[tuple[str, int], Contribution] = {}
        self._captured: dict[tuple[int, int], tuple[int, Mapping[int, Captured]]] = {}  # by number and shard

    def offer(self, header: ContributionHeader, number: int, grids: Mapping[Slot, Grid]) -> Verdict:
        """Take a contribution that has passed the gate. ``number`` gives its peer's place in the sums."""
        self.state, verdict = offer(self.state, header.round, header.peer_id, header.shard, header.tokens)
        if verdict.is_new:
            self._held[header.peer_id, header.shard] = Contribution(number, header.tokens, grids)
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
        grids: dict[Slot, Grid] = {}
        results, data = [], []
        for index in range(len(self.shard_blocks)):
            peers = included(self.state, index, quorum)
            if not peers:
                results.append(ShardResult(void=True))
                continue
            try:
                averaged, kept, result, frames = self._reduce_shard(index, peers, bases, kept)
            except RunError:  # one peer's absurd but legal numbers may cost a round, not the run
                results.append(ShardResult(void=True))
                continue
            grids |= averaged
            results.append(result)
            data.append(frames)
        chain = chain_hash(bytes.fromhex(self.plan.parent), self.plan, self.shard_blocks, results)
        header = PublishedHeader(self.plan, self.shard_blocks, tuple(results), chain)
        return Published(header, b"".join(data), grids, kept)

    def _reduce_shard(
        self, index: int, peers: frozenset[str], bases: Mapping[int, Basis], kept: OuterState
    ) -> tuple[dict[Slot, Grid], OuterState, ShardResult, bytes]:
        blocks, due, config = self._manifest.blocks, self.plan.due, self._manifest.config
        wire = config.wire
        members = self.shard_blocks[index]
        held = {peer: self._held[peer, index] for peer in peers}
        mean = weighted_mean(list(held.values()), shard_slots(upload_slots(blocks, due, wire), members))
        slots = shard_slots(published_slots(blocks, due, wire), members)
        grids, kept = publish_step(mean, slots, blocks, bases, config.optimizer, kept)
        sections, frames = encode(slots, grids, wire.zstd_level)
        order = tuple(sorted(peers, key=lambda peer: held[peer].number))
        tokens = sum(contribution.tokens for contribution in held.values())
        return grids, kept, ShardResult(included=order, tokens=tokens, sections=sections), frames


def open_published(manifest: Manifest, message: pb.PublishedHeader, data: bytes, parent: str) -> Published:
    """Check and open the round that follows chain hash ``parent``, from the wire or from disk. Raises PeerError."""
    header = check_published(message, manifest=manifest, parent=bytes.fromhex(parent))
    if not follows_manifest(header.plan, manifest):
        raise PeerError("plan", f"Round {header.plan.round} was not planned as the run's manifest says; it is refused.")
    return Published(header, data, decode_published(header, data, manifest=manifest))
