"""What a reducer holds: contributions to its shards, and their averages, which others fetch.

Which contributions count, and when shards are averaged, is decided in rounds/reducer.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tsr_swarm.config.layout import Slot, upload_slots
from tsr_swarm.config.manifest import Manifest
from tsr_swarm.config.round_plan import RoundPlan
from tsr_swarm.errors import PeerError, RunError
from tsr_swarm.exchange.contribution import captured_of
from tsr_swarm.exchange.reduction import WeightedPayload, publish_shard
from tsr_swarm.lowrank.basis import Basis
from tsr_swarm.lowrank.grid import Grid
from tsr_swarm.node.peer_registry import MAX_PEERS
from tsr_swarm.node.round_cache import ReducedShard
from tsr_swarm.optim.outer_step import OuterState, rotate_outer
from tsr_swarm.optim.sketch_budget import mean_captured
from tsr_swarm.wire.codec import Section
from tsr_swarm.wire.gate import CheckedContribution, check_header, shard_slots, void_blocks
from tsr_swarm.wire.messages import ContributionHeader, PublishedHeader

MOST_AVERAGES = 2  # of one shard: a second leader may ask for it over other peers


@dataclass(frozen=True, slots=True)
class HeldContribution:
    """A contribution to one shard that has passed the gate."""

    header: ContributionHeader
    grids: Mapping[Slot, Grid]


@dataclass(frozen=True, slots=True)
class ShardAverage:
    """What a ShardJob came to. ``outer``: of the shard's blocks, in the bases of before the round."""

    plan: RoundPlan
    shard: int
    reduced: ReducedShard
    frames: bytes
    outer: OuterState


@dataclass(frozen=True, slots=True)
class ShardJob:
    """Contributions to average. Nothing in it is written to, so any thread may do it."""

    manifest: Manifest
    plan: RoundPlan
    shard: int
    blocks: tuple[int, ...]
    held: tuple[tuple[int, HeldContribution], ...]  # with their peers' numbers, ascending; empty: void
    outer: OuterState

    def run(self, bases: Mapping[int, Basis]) -> ShardAverage:
        """Average and publish. Heavy. ``bases`` are those that the round starts from."""
        contributions = {
            held.header.peer_id: WeightedPayload(number, held.header.tokens, held.grids) for number, held in self.held
        }
        result, data, outer = publish_shard(self.manifest, self.plan, self.blocks, contributions, bases, self.outer)
        reduced, headers = ReducedShard(result), [held.header for _, held in self.held]
        if not result.void:
            measured = ((each.tokens, captured_of(each, self.manifest, self.blocks)) for each in headers)
            reduced = ReducedShard(
                result,
                local_loss=sum(header.local_loss * header.tokens for header in headers) / result.tokens,
                raw_sent=sum(section.raw_bytes for header in headers for section in header.sections),
                captured=mean_captured(measured),
            )
        return ShardAverage(self.plan, self.shard, reduced, data, outer)


@dataclass(slots=True)
class _Round:
    """What lies here of one round."""

    plan: RoundPlan
    held: dict[str, dict[int, HeldContribution]] = field(default_factory=dict)  # by peer, then by shard
    averages: dict[int, list[ShardAverage]] = field(default_factory=dict)  # by shard, the newest last; none is void


class ContributionStore:
    """What one node holds as a reducer, of the newest round announced and the one before it.

    ``outer`` is what it keeps between rounds, in the bases of the newest applied one, whose chain hash is ``chain``.
    """

    def __init__(self, manifest: Manifest, outer: OuterState, chain: str = "") -> None:
        self.outer, self.chain = outer, chain
        self._manifest = manifest
        self._rounds: dict[int, _Round] = {}
        self.newest = 0  # the newest round that was announced; 0: none

    def open_round(self, plan: RoundPlan) -> None:
        """This round is announced: contributions to it may come. Those to rounds before are not needed any more.

        A new leader announces a round again. What is held of it counts on as long as the new plan asks for the
        same, and is dropped otherwise. An older round than the newest changes nothing.
        """
        if plan.round < self.newest:
            return
        known = self._rounds.get(plan.round)
        if known is not None and _is_alike(known.plan, plan):
            known.plan = plan
            return
        self.newest = plan.round
        self._rounds = {round: kept for round, kept in self._rounds.items() if round == plan.round - 1}
        for kept in self._rounds.values():
            kept.held.clear()  # it stands, or the next one would not be open; averages of it are still fetched
        self._rounds[plan.round] = _Round(plan)

    def check(self, header: ContributionHeader, checked: CheckedContribution | None = None) -> CheckedContribution:
        """Check a contribution before its payload is received, and again, in short, once it is here.

        ``checked``: what the first check returned. The gate is passed a second time only where the round was announced
        otherwise meanwhile.

        Raises PeerError: for reasons see wire/gate.py; "round" too where its round is not announced here or is over,
        and "peer" where too many others contribute.
        """
        known = self._rounds.get(header.round)
        if known is None or header.round < self.newest:
            open_round = f"round {self.newest}" if self.newest else "no round"
            raise PeerError("round", f"The payload is for round {header.round}, but {open_round} is open here.")
        if checked is None or checked.plan != known.plan:
            checked = check_header(
                header,
                manifest=self._manifest,
                plan=known.plan,
                is_known=lambda peer: True,  # only the leader knows who takes part: it says so when it closes the round
            )
        if header.peer_id not in known.held and len(known.held) >= MAX_PEERS:
            raise PeerError("peer", f"{MAX_PEERS} peers contribute to round {header.round}; no more can.")
        return checked

    def add(self, header: ContributionHeader, grids: Mapping[Slot, Grid]) -> None:
        """Hold a contribution that has passed the gate and is new.

        The round may have been announced otherwise since ``check``: then it is of no use, and is not kept.
        """
        known = self._rounds.get(header.round)
        if known is None or header.round < self.newest or header.parent.hex() != known.plan.parent:
            return
        slots = upload_slots(self._manifest.blocks, known.plan.due, self._manifest.config.wire)
        if grids.keys() == set(shard_slots(slots, self._manifest.shard_blocks[header.shard])):
            known.held.setdefault(header.peer_id, {})[header.shard] = HeldContribution(header, grids)

    def job(self, round: int, shard: int, peers: frozenset[str], numbers: Mapping[str, int]) -> ShardJob:
        """Average this shard over ``peers``, all of them; ``numbers`` order the sums.

        It is void where the contribution of one of them is not held any more or has no number: without it there may
        be too few. Raises RunError where the round is not announced here, or starts from other weights than the newest
        applied: what is kept between rounds is of those. Wait until ``chain`` is the plan's parent.
        """
        known = self._rounds.get(round)
        if known is None:
            raise RunError(f"Round {round} is to be averaged, but round {self.newest} is the newest announced here.")
        if known.plan.parent != self.chain:
            raise RunError(
                f"Round {round} is to be averaged, but it starts from other weights than this node's; "
                "round after round has to be applied first."
            )
        is_whole = all(peer in numbers and shard in known.held.get(peer, {}) for peer in peers)
        order = sorted(peers, key=lambda peer: (numbers[peer], peer)) if is_whole else []
        held = tuple((numbers[peer], known.held[peer][shard]) for peer in order)
        blocks = self._manifest.shard_blocks[shard]
        outer = {block: self.outer[block] for block in blocks if block in self.outer}
        return ShardJob(self._manifest, known.plan, shard, blocks, held, outer)

    def keep(self, done: ShardAverage) -> ReducedShard:
        """Have the bytes at hand for whoever fetches them, unless their round is over or was announced otherwise."""
        known = self._rounds.get(done.plan.round)
        if known is not None and _is_alike(known.plan, done.plan) and not done.reduced.result.void:
            others = [each for each in known.averages.get(done.shard, []) if each.reduced.result != done.reduced.result]
            known.averages[done.shard] = [*others, done][-MOST_AVERAGES:]
        return done.reduced

    def frames(self, round: int, shard: int, hashes: Sequence[bytes]) -> tuple[tuple[Section, ...], bytes] | None:
        """The sections of these ``hashes`` and their joined bytes, if they are of an average that was computed here."""
        known = self._rounds.get(round)
        for done in known.averages.get(shard, []) if known is not None else []:
            sections = done.reduced.result.sections
            if [section.hash for section in sections] == list(hashes):
                return sections, done.frames
        return None

    def advance(self, header: PublishedHeader, refreshed: Mapping[int, tuple[Basis, Basis]]) -> None:
        """Go on after a round that was applied: momentum moves on where this node reduced the shard that stands.

        It stays where the shard is void, and is dropped where others reduced it: theirs has moved on.
        ``refreshed``: (old, new) bases as ``Consensus.apply`` returned them.
        """
        after = {block: self.outer[block] for block in void_blocks(header) if block in self.outer}
        known = self._rounds.get(header.plan.round)
        averages = known.averages if known is not None else {}
        for shard, result in enumerate(header.shards):
            after |= next((done.outer for done in averages.get(shard, []) if done.reduced.result == result), {})
        self.outer = rotate_outer(after, refreshed, self._manifest.config.optimizer)
        self.chain = header.chain.hex()

    def restore(self, chain: str) -> None:
        """The weights are a downloaded state, of the round of this ``chain``: what was kept is in bases of others."""
        self.outer, self.chain = {}, chain


def _is_alike(plan: RoundPlan, other: RoundPlan) -> bool:
    """Whether contributions to one are contributions to the other. Leaders' rates may differ in their last bits."""
    return (plan.round, plan.parent, plan.due) == (other.round, other.parent, other.due)
