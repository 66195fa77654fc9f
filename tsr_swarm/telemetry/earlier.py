"""Closed rounds into one event: a log that forgets the oldest of them keeps their totals. Pure."""

from collections.abc import Mapping

from tsr_swarm.telemetry.events import EarlierRounds, PeerTraffic, RoundClosed, Traffic

MOST_PEERS = 1000  # whose bytes are kept, the newest: names come from other machines
NONE = EarlierRounds(
    round=0,
    rounds=0,
    wire_bytes={"sent": {}, "received": {}},
    per_peer={},
    raw_bytes={"sent": 0, "received": 0},
    dense_bytes=0,
)


def with_round(earlier: EarlierRounds, closed: RoundClosed) -> EarlierRounds:
    """Add ``closed``. A round that two leaders told counts once, but for the bytes that each was told."""
    is_new = closed.round > earlier.round
    raw, more = earlier.raw_bytes, closed.raw_bytes if is_new else NONE.raw_bytes
    return EarlierRounds(
        round=max(earlier.round, closed.round),
        rounds=earlier.rounds + is_new,
        wire_bytes=_both(earlier.wire_bytes, closed.wire_bytes),
        per_peer=_with_peers(earlier.per_peer, closed.per_peer),
        raw_bytes={"sent": raw["sent"] + more["sent"], "received": raw["received"] + more["received"]},
        dense_bytes=earlier.dense_bytes + (closed.dense_bytes if is_new else 0),
    )


def _both(first: Traffic, second: Traffic) -> Traffic:
    return {"sent": _sum(first["sent"], second["sent"]), "received": _sum(first["received"], second["received"])}


def _sum(first: Mapping[str, int], second: Mapping[str, int]) -> dict[str, int]:
    return {kind: first.get(kind, 0) + second.get(kind, 0) for kind in (*first, *second)}


def _with_peers(earlier: Mapping[str, PeerTraffic], new: Mapping[str, PeerTraffic]) -> dict[str, PeerTraffic]:
    peers = dict(earlier)
    for name, traffic in new.items():
        known = peers.pop(name, PeerTraffic(sent={}, received={}))
        both = _both(known, traffic)
        overhead = known.get("overhead", 0) + traffic.get("overhead", 0)
        peers[name] = {"sent": both["sent"], "received": both["received"], "overhead": overhead}
    return dict(list(peers.items())[-MOST_PEERS:])
