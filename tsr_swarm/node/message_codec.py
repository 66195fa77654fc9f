"""Messages between nodes: rounds/protocol.py to protobuf and back. Pure; what comes from the wire is checked.

Who tells it, of which run and from where, is filled in by whoever sends it. What the node adds for itself, such as a
shard's losses or a peer's number in sums, travels beside the message that it belongs to.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from tsr_swarm.config.blocks import Block
from tsr_swarm.config.manifest import Manifest
from tsr_swarm.config.round_plan import RoundPlan
from tsr_swarm.errors import PeerError
from tsr_swarm.lowrank.sketch import Captured
from tsr_swarm.node.round_cache import ReducedShard
from tsr_swarm.rounds import raft_state
from tsr_swarm.rounds.leases import Coverage, Lease
from tsr_swarm.rounds.protocol import (
    Close,
    Goodbye,
    Message,
    OpenRound,
    Poll,
    Redirect,
    ReducerSlot,
    RoundUpdate,
    ShardDone,
)
from tsr_swarm.rounds.raft_state import RoundRecord
from tsr_swarm.wire.checks import check
from tsr_swarm.wire.fields import MAX_REASON, require, require_ascending
from tsr_swarm.wire.messages import plan_from_proto, plan_to_proto, result_from_proto, result_to_proto
from tsr_swarm.wire.roster import Members, from_bits, to_bits
from tsr_swarm.wire.v1 import swarm_pb2 as pb

Rosters = Callable[[bytes], Members | None]
NOT_SENT = (0, 0, 0)  # no plan has this key


class UnknownRosterError(PeerError):
    """Whom a message is about is not known here; everything else about it is as it should be."""

    def __init__(self, digest: bytes) -> None:
        super().__init__("roster", f"The list of peers {digest.hex()[:8]} is not known here; close the round again.")
        self.digest = digest


@dataclass(frozen=True, slots=True)
class DecodedMessage:
    """A message that came in, and what came with it for other parts of the node."""

    message: Message
    members: Members | None = None  # of a Close: who is admitted
    reduced: ReducedShard | None = None  # of a ShardDone


def record_to_proto(record: RoundRecord) -> pb.Record:
    """A round's result by its hashes, which are hexadecimal here and bytes there."""
    chain, parent = bytes.fromhex(record.chain), bytes.fromhex(record.parent)
    return pb.Record(round=record.round, chain=chain, parent=parent, voters=record.voters)


def _record(message: pb.Record) -> RoundRecord:
    return RoundRecord(message.round, message.chain.hex(), message.parent.hex(), tuple(message.voters))


def tell_to_proto(message: raft_state.RaftMessage | Goodbye) -> pb.TellRequest:
    """What needs nothing beside it. Manifest, sender and address are left empty."""
    match message:
        case raft_state.VoteRequest(term, _, (round, tail_term), is_trial):
            vote = pb.VoteRequest(term=term, round=round, tail_term=tail_term, is_trial=is_trial)
            return pb.TellRequest(vote_request=vote)
        case raft_state.VoteReply(term, voter_term, granted, is_trial, reason):
            reply = pb.VoteReply(
                term=term, voter_term=voter_term, granted=granted, is_trial=is_trial, reason=reason[:MAX_REASON]
            )
            return pb.TellRequest(vote_reply=reply)
        case raft_state.Heartbeat(term, base, proposal):
            beat = pb.Beat(
                term=term,
                base=record_to_proto(base),
                proposal=None if proposal is None else record_to_proto(proposal),
            )
            return pb.TellRequest(beat=beat)
        case raft_state.HeartbeatReply(term, round, accepted, reason):
            answer = pb.BeatReply(term=term, round=round, accepted=bytes.fromhex(accepted), reason=reason[:MAX_REASON])
            return pb.TellRequest(beat_reply=answer)
        case Goodbye():
            return pb.TellRequest(goodbye=pb.Goodbye())


def close_to_proto(message: Close, members: Members) -> pb.TellRequest:
    """members: those admitted that have a number; who has none has no work either. The rest is left empty."""
    close = pb.Close(
        term=message.term,
        round=message.round,
        parent=bytes.fromhex(message.parent),
        shards=message.shards,
        roster=members.digest,
    )
    return pb.TellRequest(close=close)


def done_to_proto(message: ShardDone, reduced: ReducedShard, members: Members | None = None) -> pb.TellRequest:
    """A reducer's answer. members: of the Close; None for a void shard. Manifest, sender and address are left empty."""
    captured = [reduced.captured[index] for index in sorted(reduced.captured)]
    done = pb.ShardDone(
        term=message.term,
        round=message.round,
        shard=message.shard,
        result=result_to_proto(reduced.result, () if members is None else members.peers),
        roster=b"" if members is None else members.digest,
        local_loss=reduced.local_loss,
        raw_sent=reduced.raw_sent,
        kappas=[seen.kappa for seen in captured],
        energies=[seen.energy for seen in captured],
    )
    return pb.TellRequest(shard_done=done)


def decode_message(request: pb.TellRequest, manifest: Manifest, known: Rosters) -> DecodedMessage:
    """Read what ``request.sender`` tells; that it is of this run is for the caller to say. Raises PeerError.

    known: finds lists of members by their hash. UnknownRosterError where it does not: nothing else is wrong then.
    """
    check(request)
    message: raft_state.RaftMessage | Goodbye
    match request.WhichOneof("message"):
        case "vote_request":
            vote = request.vote_request
            message = raft_state.VoteRequest(vote.term, request.sender, (vote.round, vote.tail_term), vote.is_trial)
        case "vote_reply":
            reply = request.vote_reply
            message = raft_state.VoteReply(reply.term, reply.voter_term, reply.granted, reply.is_trial, reply.reason)
        case "beat":
            beat = request.beat
            proposal = _record(beat.proposal) if beat.HasField("proposal") else None
            message = raft_state.Heartbeat(beat.term, _record(beat.base), proposal)
        case "beat_reply":
            answer = request.beat_reply
            message = raft_state.HeartbeatReply(answer.term, answer.round, answer.accepted.hex(), answer.reason)
        case "close":
            return _close(request.close, len(manifest.shard_blocks), known)
        case "shard_done":
            return _done(request.shard_done, manifest, known)
        case _:
            message = Goodbye(request.sender)
    return DecodedMessage(message)


def _close(message: pb.Close, shards: int, known: Rosters) -> DecodedMessage:
    require_ascending("shards", message.shards, shards)
    members = _members(message.roster, known)
    parent, asked = message.parent.hex(), tuple(message.shards)
    return DecodedMessage(Close(message.term, message.round, parent, asked, frozenset(members.peers)), members)


def _done(message: pb.ShardDone, manifest: Manifest, known: Rosters) -> DecodedMessage:
    shard_blocks = manifest.shard_blocks
    shards = len(shard_blocks)
    require(message.shard < shards, "shard", message.shard, f"below {shards}")
    low_rank = [index for index in sorted(shard_blocks[message.shard]) if manifest.blocks[index].is_low_rank]
    count = len(message.kappas)
    require(count in (0, len(low_rank)), "kappas", count, f"none, or one for each of {len(low_rank)} low-rank blocks")
    seen = [Captured(kappa, energy) for kappa, energy in zip(message.kappas, message.energies, strict=True)]
    peers = () if message.result.void else _members(message.roster, known).peers
    result = result_from_proto(message.result, peers)
    reduced = ReducedShard(
        replace(result, included=tuple(sorted(result.included))),
        message.local_loss,
        message.raw_sent,
        dict(zip(low_rank, seen, strict=False)),  # nobody may have measured
    )
    return DecodedMessage(ShardDone(message.term, message.round, message.shard, reduced.decided), reduced=reduced)


def _members(digest: bytes, known: Rosters) -> Members:
    members = known(digest)
    if members is None:
        raise UnknownRosterError(digest)
    return members


def poll_to_proto(poll: Poll) -> pb.PollRequest:
    """A node's regular call. Manifest, address and progress are left empty."""
    return pb.PollRequest(
        peer_id=poll.peer,
        incarnation=poll.incarnation,
        applied=poll.applied + 1,  # who has no weights yet is at round -1
        trains=poll.trains,
        sent=None if poll.sent == NOT_SENT else _key_to_proto(poll.sent),
        known=poll.known,
        number=poll.number,
    )


def poll_from_proto(request: pb.PollRequest) -> Poll:
    """Raises PeerError."""
    check(request)
    return Poll(
        peer=request.peer_id,
        incarnation=request.incarnation,
        applied=request.applied - 1,
        trains=request.trains,
        is_dialable=bool(request.address),
        sent=_key(request.sent) if request.HasField("sent") else NOT_SENT,
        known=request.known,
        number=request.number,
    )


def news_to_proto(news: RoundUpdate, plan: RoundPlan | None) -> pb.News:
    """A leader's answer. plan: what to train in ``news.plan``; without that, it is not looked at."""
    places = () if news.plan is None else news.plan.reducers
    lives = {place.node: place for place in places}
    sources = [lives.get(node, ReducerSlot(node, 0)) for node in news.sources]
    indices = {place: index for index, place in enumerate(dict.fromkeys((*places, *sources)))}
    return pb.News(
        term=news.term,
        leader=news.leader,
        version=news.version,
        base=record_to_proto(news.base),
        reducers=[pb.Place(peer_id=bytes.fromhex(p.node), incarnation=p.incarnation) for p in indices],
        sources=[indices[place] for place in sources],
        plan=None if news.plan is None else _open_to_proto(news.plan, plan, indices),
        nodes=news.nodes,
        is_finished=news.is_finished,
        number=news.number,
    )


def news_from_proto(message: pb.News, blocks: Sequence[Block], shards: int) -> tuple[RoundUpdate, RoundPlan | None]:
    """The news, and what to train in the round that is open, which has so many shards. Raises PeerError."""
    check(message)
    reducers = [ReducerSlot(place.peer_id.hex(), place.incarnation) for place in message.reducers]
    announced: OpenRound | None = None
    plan: RoundPlan | None = None
    if message.HasField("plan"):
        plan = plan_from_proto(message.plan.plan, blocks)
        announced = _announced(message.plan, plan, reducers, shards)
    news = RoundUpdate(
        term=message.term,
        leader=message.leader,
        version=message.version,
        base=_record(message.base),
        sources=tuple(reducers[index].node for index in message.sources),
        plan=announced,
        nodes=tuple(message.nodes),
        is_finished=message.is_finished,
        number=message.number,
    )
    return news, plan


def unchanged_to_proto(news: RoundUpdate) -> pb.Unchanged:
    """To who has all of ``news`` but its number."""
    return pb.Unchanged(term=news.term, version=news.version, number=news.number)


def contacts_to_proto(contacts: Iterable[tuple[str, str]]) -> list[pb.Contact]:
    return [pb.Contact(peer_id=peer_id, address=address) for peer_id, address in contacts]


def redirect_to_proto(redirect: Redirect) -> pb.Redirect:
    """The answer of who does not lead."""
    return pb.Redirect(term=redirect.term, leader=redirect.leader, base=record_to_proto(redirect.base))


def redirect_from_proto(message: pb.Redirect) -> Redirect:
    """Raises PeerError."""
    check(message)
    return Redirect(message.term, message.leader, _record(message.base))


def _open_to_proto(announced: OpenRound, plan: RoundPlan | None, indices: Mapping[ReducerSlot, int]) -> pb.OpenPlan:
    assert plan is not None, "what is announced was planned"
    return pb.OpenPlan(
        plan=plan_to_proto(plan),
        key=_key_to_proto(announced.key),
        places=[indices[place] for place in announced.reducers],
    )


def _announced(message: pb.OpenPlan, plan: RoundPlan, reducers: Sequence[ReducerSlot], shards: int) -> OpenRound:
    key, places = message.key, message.places
    require(key.round == plan.round, "key.round", key.round, f"its plan's, {plan.round}")
    require(len(places) == shards, "places", len(places), f"one for each of {shards} shards")
    return OpenRound(key.round, plan.parent, key.term, key.version, tuple(reducers[index] for index in places))


def _key_to_proto(key: tuple[int, int, int]) -> pb.PlanKey:
    return pb.PlanKey(round=key[0], term=key[1], version=key[2])


def _key(message: pb.PlanKey) -> tuple[int, int, int]:
    return message.round, message.term, message.version


def lease_to_proto(lease: Lease | None, tokens: int = 0, size: int = 0) -> pb.DataLease:
    """A lease, or that there is none; tokens and size are its holder's."""
    if lease is None:
        return pb.DataLease()
    return pb.DataLease(epoch=lease.epoch, part=lease.part, tokens=tokens, size=size)


def lease_from_proto(message: pb.DataLease, parts: int) -> Lease | None:
    """None where there is none. Raises PeerError for a part that the data does not have."""
    require(message.part < parts, "lease.part", message.part, f"below {parts}")
    return Lease(message.epoch, message.part) if message.epoch else None


def coverage_to_proto(coverage: Coverage) -> pb.Coverage:
    return pb.Coverage(epoch=coverage.epoch, done=to_bits(coverage.done), ahead=to_bits(coverage.ahead))


def coverage_from_proto(message: pb.Coverage, parts: int) -> Coverage:
    """Raises PeerError for parts that the data does not have."""
    require(message.epoch > 0, "coverage.epoch", message.epoch, "1 or more")
    done, ahead = from_bits(message.done), from_bits(message.ahead)
    last = max(done | ahead, default=0)
    require(last < parts, "coverage", last, f"parts below {parts}")
    return Coverage(message.epoch, done, ahead)
