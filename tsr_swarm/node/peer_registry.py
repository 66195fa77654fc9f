"""Who takes part, as people see it: numbers, names, and the bytes each peer reported."""

import re
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from tsr_swarm.errors import RefusedError
from tsr_swarm.telemetry.byte_counter import Direction
from tsr_swarm.wire.v1 import swarm_pb2 as pb

MAX_PEERS = 10_000
KEPT_REPORTS = 16  # of which a second copy is known; a peer has no more than a few under way
_NUMBERED = re.compile(r"-([1-9][0-9]{0,4})$")


@dataclass(slots=True)
class Peer:
    """One admitted node. ``traffic`` is what it reported since the last round was closed.

    ``number`` is its place in sums, from 1; 0: it does not train, and is in none.
    """

    peer_id: str
    name: str
    number: int
    is_here: bool = True
    traffic: dict[Direction, Counter[str]] = field(default_factory=lambda: {d: Counter() for d in Direction})
    overhead: int = 0  # bytes beyond the counted ones that it reported since the last round was closed
    progress_shown: float = 0.0  # when its progress, or a refusal, was last made an event
    refusal_shown: float = 0.0
    progress: pb.Progress = field(default_factory=pb.Progress)  # as it said last
    applied: int = -1  # the newest round of which it reported the right digest
    reported: deque[int] = field(default_factory=lambda: deque(maxlen=KEPT_REPORTS))  # rounds, the newest last

    @property
    def trains(self) -> bool:
        return self.number > 0


class Roster:
    """Peers by id. Nobody who is here has the number or the name of another; one who returns gets its own if free."""

    def __init__(self, reserved: Mapping[str, int] | None = None) -> None:
        """``reserved``: numbers by peer_id of those that took part under the leader before, and may come yet."""
        self._peers: dict[str, Peer] = {}
        self._reserved = dict(reserved or {})

    def admit(self, peer_id: str, name: str, *, trains: bool = True, number: int = 0) -> Peer:
        """Admit or welcome back. Raises RefusedError when the roster is full of peers that are here.

        ``number``: the one that an earlier leader gave it, 0 for none. It keeps that if nobody else here has it.
        """
        known = self._peers.pop(peer_id, None)
        if known is None and len(self._peers) >= MAX_PEERS:
            self._forget_one()
        reserved = self._reserved.pop(peer_id, 0)
        numbered = _NUMBERED.search(name)  # as "peer-3"
        wish = (known.number if known is not None else 0) or number or reserved or int(numbered[1] if numbered else 0)
        number = self._free_number(wish) if trains else 0
        is_taken = name in {peer.name for peer in self._peers.values() if peer.is_here}
        peer = Peer(peer_id, f"{name[:26]}-{number}" if is_taken else name, number)
        if known is not None:
            peer.traffic, peer.overhead = known.traffic, known.overhead  # reported, not yet shown
            peer.reported = known.reported
        self._peers[peer_id] = peer
        return peer

    def give_up(self) -> None:
        """Whoever has a number reserved does not come."""
        self._reserved.clear()

    def get(self, peer_id: str) -> Peer | None:
        return self._peers.get(peer_id)

    def here(self) -> list[Peer]:
        """Peers that take part now, by number."""
        return sorted((peer for peer in self._peers.values() if peer.is_here), key=lambda peer: peer.number)

    def everyone(self) -> list[Peer]:
        """Peers of the whole run, by number."""
        return sorted(self._peers.values(), key=lambda peer: peer.number)

    def _free_number(self, wish: int) -> int:
        """The number wished for, 0 for none, or else the lowest; never one that somebody here has."""
        taken = {peer.number for peer in self._peers.values() if peer.is_here} | set(self._reserved.values())
        if wish and wish not in taken:
            return wish
        return next(number for number in range(1, len(taken) + 2) if number not in taken)

    def _forget_one(self) -> None:
        gone = next((peer.peer_id for peer in self._peers.values() if not peer.is_here), None)
        if gone is None:
            raise RefusedError(f"The run is full: {MAX_PEERS} peers are taking part; try again when some have left.")
        del self._peers[gone]
