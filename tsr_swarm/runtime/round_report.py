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
    """A committed round and what became of it at the leader."""

    result: Published
    reduction: Reduction
    seconds: float  # from its announcement to its commit
    members: int  # peers that took part in the run when it was committed
    loss: float | None  # held-out, nats a token
    digest: str
    checkpoint: str  # "" when none was due


def closed_event(outcome: Outcome, everyone: Iterable[Peer], reports: int, parameters: int) -> events.RoundClosed:
    """Sum up a round. Takes the peers' reported traffic: each byte is in one round's event."""
    plan, reduction = outcome.reduction.plan, outcome.reduction
    included = outcome.result.included()
    headers = [reduction.headers[peer] for peer in included if peer in reduction.headers]
    tokens = sum(header.tokens for header in headers)
    weighed = sum(header.local_loss * header.tokens for header in headers)
    per_peer = {peer.name: _take(peer) for peer in everyone if any(peer.traffic.values())}
    return events.RoundClosed(
        round=plan.round,
        peers=outcome.members,
        included=len(included),
        late=max(0, outcome.members - len(included)),
        loss=outcome.loss,
        local_loss=weighed / tokens if tokens else None,
        tokens=tokens,
        seconds=round(outcome.seconds, 3),
        wire_bytes={
            "sent": _sum(traffic["sent"] for traffic in per_peer.values()),
            "received": _sum(traffic["received"] for traffic in per_peer.values()),
        },
        per_peer=per_peer,
        raw_bytes={"sent": reduction.raw_bytes, "received": outcome.result.raw_bytes * reports},
        # Data-parallel training moves every gradient up and every mean down, in fp32, at every step.
        dense_bytes=plan.steps * len(included) * 2 * 4 * parameters,
        digest=outcome.digest,
    )


def _take(peer: Peer) -> events.PeerTraffic:
    overhead = max(0, peer.overhead - peer.overhead_counted)
    peer.overhead_counted = peer.overhead
    sent, received = (dict(peer.traffic[direction]) for direction in (Direction.SENT, Direction.RECEIVED))
    for counts in peer.traffic.values():
        counts.clear()
    return {"sent": sent, "received": received, "overhead": overhead}


def _sum(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(total)
