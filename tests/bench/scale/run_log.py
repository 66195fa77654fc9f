"""The log of a rehearsed leader, and the voters that copy it, as node/events/run_log.py does."""

import hashlib
from functools import partial
from typing import TYPE_CHECKING

from tsr_swarm.node.events.run_log import PACE_SECONDS
from tsr_swarm.rounds.raft_state import RoundRecord
from tsr_swarm.rounds.state import Node
from tsr_swarm.telemetry import events
from tsr_swarm.telemetry.log import NEWEST, EventLog

if TYPE_CHECKING:
    from tests.bench.scale.swarm import HomeSwarm

REPORTS_SECONDS = 5.0  # that a leader waits for reports


class RunLog:
    """The leader's log, without the progress of peers: no monitor watches, so no node copies it."""

    def __init__(self, swarm: "HomeSwarm") -> None:
        self._swarm = swarm
        self._log = EventLog(lambda: 1.7e9 + swarm.clock.now)
        self._readers: set[str] = set()
        self._reported: set[tuple[int, str]] = set()
        self._closed = 0

    # --- readers ----------------------------------------------------------------------------------------------------

    def committed(self, record: RoundRecord) -> None:
        """A round is committed, and names the voters: new ones begin to copy the log."""
        self.explained(record.round, "apply", None, "committed: fetch, apply, report")
        self._swarm.clock.after(REPORTS_SECONDS, partial(self._close, record.round))
        for voter in sorted({*record.voters} - self._readers - {self._swarm.leading}):
            self._readers.add(voter)
            self._copy(voter, NEWEST, partial(self._read, voter, 0))

    def _read(self, voter: str, after: int) -> None:
        _, last = self._log.since(after, with_progress=False)
        pause = partial(self._swarm.clock.after, PACE_SECONDS, partial(self._read, voter, last))
        self._copy(voter, after, pause)

    def _copy(self, voter: str, after: int, then: "partial[None]") -> None:
        swarm, sizer = self._swarm, self._swarm.sizer
        lines, last = self._log.since(after, with_progress=False)
        answer = partial(swarm.carry, swarm.leading, voter, sizer.watch_reply(lines, last), then)
        swarm.carry(voter, swarm.leading, sizer.watch(after), answer)

    # --- events -------------------------------------------------------------------------------------------------

    def stepped(self, before: Node, after: Node) -> None:
        """Log the contributions that came with a step."""
        if after.leader_role is None:
            return
        state, known = (
            after.leader_role.state,
            before.leader_role.state.arrivals if before.leader_role is not None else {},
        )
        if len(state.arrivals) > len(known):
            self._swarm.rounds[state.round].arrived = self._swarm.clock.now
            for peer in state.arrivals.keys() - known.keys():
                self._log.append(
                    events.PayloadReceived(
                        round=state.round,
                        peer=peer,
                        name=self._swarm.names[peer],
                        seconds=round(state.arrivals[peer], 3),
                        wire_bytes=1_131_072,
                        local_loss=3.2101230621337890,
                    )
                )

    def opened(self, round: int, reducers: list[str]) -> None:
        names = ",".join(self._swarm.names[node] for node in dict.fromkeys(reducers))
        peers = len(self._swarm.peers)
        self._log.append(events.RoundOpened(round=round, peers=peers, steps=20, lr=0.03, refresh=58, reducers=names))
        self.explained(round, "train", None, "peers take their local steps")

    def explained(self, round: int, phase: str, deadline: float | None, reason: str) -> None:
        self._log.append(events.PhaseChanged(round=round, phase=phase, deadline=deadline, reason=reason))

    def reported(self, round: int, peer: str) -> None:
        """A peer has reported its digest and its bytes."""
        self._reported.add((round, peer))
        digest = hashlib.blake2b(f"{round}".encode(), digest_size=32).hexdigest()
        self._log.append(events.DigestReported(round=round, peer=peer, name=self._swarm.names[peer], digest=digest))
        if all((round, other) in self._reported for other in self._swarm.peers):
            self._close(round)

    def _close(self, round: int) -> None:
        """Log the end of a round: all peers have reported, or should have."""
        if round <= self._closed:
            return
        self._closed, peers = round, len(self._swarm.peers)
        count = {"core": 1_091_072, "dense": 32_268, "control": 222_222}
        traffic: events.PeerTraffic = {"sent": count, "received": count, "overhead": 123_456}
        self._log.append(
            events.RoundClosed(
                round=round,
                peers=peers,
                included=peers,
                late=0,
                loss=3.2101230621337890,
                local_loss=3.2101230621337890,
                tokens=655_360 * peers,
                seconds=33.333,
                wire_bytes={"sent": count, "received": count},
                per_peer={self._swarm.names[peer]: traffic for peer in self._swarm.peers},
                raw_bytes={"sent": 2 * 10**6 * peers, "received": 2 * 10**6 * peers},
                dense_bytes=20 * peers * 2 * 4 * 58 * 10**6,
                digest="0" * 64,
            )
        )
