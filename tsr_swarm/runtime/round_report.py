"""What a closed round was, for people and records: losses, tokens, and bytes by kind, direction and peer."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from tsr_swarm.runtime.reduction import Published, Reduction
from tsr_swarm.runtime.roster import Peer
from tsr_swarm.telemetry import events
from tsr_swarm.telemetry.ledger import Direction


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
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
    result: Published, reduction: Reduction, expected: frozenset[str], members: int, seconds: float
) -> Outcome:
    """Take down what a round was, as it is committed."""
    included = result.included()
    headers = [reduction.headers[peer] for peer in included if peer in reduction.headers]
    tokens = sum(header.tokens for header in headers)
    weighed = sum(header.local_loss * header.tokens for header in headers)
    return Outcome(
        round=reduction.plan.round,
        steps=reduction.plan.steps,
        included=included,
        expected=expected,
        members=members,
        tokens=tokens,
        local_loss=weighed / tokens if tokens else None,
        raw_sent=reduction.raw_bytes,
        raw_received=result.raw_bytes * members,
        seconds=seconds,
    )


def closed_event(
    outcome: Outcome, everyone: Iterable[Peer], parameters: int, loss: float | None, digest: str
) -> events.RoundClosed:
    """Sum up a round. Takes the peers' reported traffic: each byte is in one round's event."""
    per_peer: dict[str, events.PeerTraffic] = {}
    totals: dict[Direction, Counter[str]] = {direction: Counter() for direction in Direction}
    for peer in everyone:
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
