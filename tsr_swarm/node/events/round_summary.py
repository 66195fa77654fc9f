"""What a closed round was, for people and records: losses, tokens, and bytes by kind, direction and peer."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tsr_swarm.node.peer_registry import Peer
from tsr_swarm.node.round_cache import ReducedShard
from tsr_swarm.telemetry import events
from tsr_swarm.telemetry.byte_counter import Direction
from tsr_swarm.wire.messages import PublishedHeader


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundSummary:
    """The figures of a committed round. Small: the payloads themselves are not kept."""

    round: int
    steps: int
    included: frozenset[str]
    expected: frozenset[str]  # peers that were here when it closed and had been asked to take part
    members: int
    tokens: int
    local_loss: float | None
    raw_sent: int
    raw_received: int
    seconds: float  # from its announcement to its commit


def outcome_of(
    header: PublishedHeader,
    made: Sequence[ReducedShard | None],
    expected: frozenset[str],
    members: int,
    seconds: float,
) -> RoundSummary:
    """Take down what a round was, as it is committed.

    made: by shard, what its reducer said of it; None where it said so to another leader, and nothing is known of its
    losses and of the bytes that were sent.
    """
    known = [shard for shard in made if shard is not None and not shard.result.void]
    weight = sum(shard.result.tokens for shard in known)
    weighed = sum(shard.local_loss * shard.result.tokens for shard in known)
    return RoundSummary(
        round=header.plan.round,
        steps=header.plan.steps,
        included=header.contributors,
        expected=expected,
        members=members,
        # Whoever is in a shard has told the tokens of its whole payload.
        tokens=max((result.tokens for result in header.shards), default=0),
        local_loss=weighed / weight if weight else None,
        raw_sent=sum(shard.raw_sent for shard in made if shard is not None),
        raw_received=members * sum(section.raw_bytes for result in header.shards for section in result.sections),
        seconds=seconds,
    )


def closed_event(
    outcome: RoundSummary, everyone: Iterable[Peer], parameters: int, loss: float | None, digest: str
) -> events.RoundClosed:
    """Sum up a round. Takes the peers' reported traffic: each byte is in one round's event.

    Nodes that do not train are left out: what they send and receive is counted at the peers' ends.
    """
    per_peer: dict[str, events.PeerTraffic] = {}
    totals: dict[Direction, Counter[str]] = {direction: Counter() for direction in Direction}
    for peer in everyone:
        if not peer.trains:
            continue
        for direction in Direction:
            totals[direction].update(peer.traffic[direction])
        if any(peer.traffic.values()):
            # Two peers of one name, one after the other, are two lines.
            name = peer.name if peer.name not in per_peer else f"{peer.name}/{peer.peer_id[:6]}"
            per_peer[name] = _take(peer)
    return events.RoundClosed(
        round=outcome.round,
        peers=outcome.members,
        included=len(outcome.included),
        late=len(outcome.expected - outcome.included),
        loss=loss,
        local_loss=outcome.local_loss,
        tokens=outcome.tokens,
        seconds=round(outcome.seconds, 3),
        wire_bytes={"sent": dict(totals[Direction.SENT]), "received": dict(totals[Direction.RECEIVED])},
        per_peer=per_peer,
        raw_bytes={"sent": outcome.raw_sent, "received": outcome.raw_received},
        # Data-parallel training moves every gradient up and every mean down, in fp32, at every step.
        dense_bytes=outcome.steps * len(outcome.included) * 2 * 4 * parameters,
        digest=digest,
    )


def _take(peer: Peer) -> events.PeerTraffic:
    overhead, peer.overhead = peer.overhead, 0
    sent, received = (dict(peer.traffic[direction]) for direction in (Direction.SENT, Direction.RECEIVED))
    for counts in peer.traffic.values():
        counts.clear()
    return {"sent": sent, "received": received, "overhead": overhead}
