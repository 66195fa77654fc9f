"""What happened in a run: which rounds were committed when, with whose work, and which node had caught up. Pure."""

import math
from collections import defaultdict
from collections.abc import Iterator

from tests.bench.survive.artifacts import Artifacts
from tests.bench.survive.outages import Outage, faults, names_by_id, outages
from tests.bench.survive.scenarios import Scenario
from tsr_swarm.telemetry.events import (
    CheckpointSaved,
    DigestMismatch,
    DigestReported,
    PhaseChanged,
    RoundApplied,
    RoundClosed,
    RoundOpened,
)

COORDINATOR = "coordinator"


class Timeline:
    """Figures of one run. Times are unix seconds, infinite for what did not happen."""

    def __init__(self, scenario: Scenario, artifacts: Artifacts) -> None:
        self._scenario, self._artifacts = scenario, artifacts
        self.faults = faults(artifacts.events)
        self.outages = outages(artifacts.events)
        self.applied = {
            name: [(stamped.time, stamped.event) for stamped in events if isinstance(stamped.event, RoundApplied)]
            for name, events in artifacts.own_events.items()
            if name != COORDINATOR
        }
        self.committed = self._first_known()
        self._ids = {name: peer for peer, name in names_by_id(artifacts.events).items()}

    def _first_known(self) -> dict[int, float]:
        """When each round was first known to be committed, anywhere."""
        known = [(time, event.round) for events in self.applied.values() for time, event in events]
        for stamped in self._artifacts.events:
            match stamped.event:
                case PhaseChanged(phase="apply") | RoundClosed():
                    known.append((stamped.time, stamped.event.round))
        found: dict[int, float] = {}
        for time, round in known:
            found[round] = min(time, found.get(round, math.inf))
        return found

    @property
    def last(self) -> int:
        return max(self.committed, default=0)

    # --- rounds -------------------------------------------------------------------------------------------------------

    def why_lost(self, round: int) -> str:
        """Why the round lacks work that it should have; empty if it does not."""
        expected = self._expected(round)
        nodes = self._artifacts.committed.values()
        shards = next((rounds[round].shards for rounds in nodes if round in rounds), None)
        if round not in self.committed:
            return "it was never committed"
        if shards is None:
            missing = [name for name in expected if not self._is_included(name, round)]
            return f"no work of {', '.join(missing)}" if missing else ""
        void = sum(not shard for shard in shards)
        if void:
            return f"{void} of {len(shards)} shards are void"
        missing = [name for name in expected if not all(self._ids[name] in shard for shard in shards)]
        return f"not all work of {', '.join(missing)}" if missing else ""

    def _expected(self, round: int) -> list[str]:
        """Peers that had joined and were up from the opening of the round until it was committed.

        A peer that joins while a round is open may have a part of its work in that round.
        """
        opened, committed = self._opened(round), self.committed.get(round, math.inf)
        slow = {f"peer-{number}" for number in self._scenario.slow or {}}
        return [
            name
            for name in sorted(self.applied)
            if name not in slow
            and self._first_work(name, -math.inf) < opened
            and not any(
                outage.begun <= committed and opened <= self._first_work(name, outage.ended)
                for outage in self.outages
                if outage.name == name
            )
        ]

    def _first_work(self, name: str, since: float) -> float:
        """When the first round after ``since`` was opened that has work of ``name``; peers of the start: at once."""
        if since == -math.inf and int(name.removeprefix("peer-")) <= self._scenario.peers:
            return since
        rounds = self.rounds_with_work(name, since)
        return self._opened(min(rounds)) if rounds else math.inf

    def rounds_with_work(self, name: str, since: float) -> list[int]:
        """Rounds with work of ``name`` in them that were committed after ``since``."""
        applied = self.applied.get(name, ())
        return [event.round for _, event in applied if event.included and self.committed[event.round] > since]

    def _opened(self, round: int) -> float:
        stamps = (s for s in self._artifacts.events if isinstance(s.event, RoundOpened) and s.event.round == round)
        return min((stamped.time for stamped in stamps), default=math.inf)

    def _is_included(self, name: str, round: int) -> bool:
        return any(event.round == round and event.included for _, event in self.applied[name])

    def forks(self) -> dict[int, set[str]]:
        """Rounds with more than one digest, or more than one chain hash, wherever they were found.

        A leader that was restarted closes the newest round of its journal without a digest: it has computed none.
        """
        digests: dict[int, set[str]] = defaultdict(set)
        chains: dict[int, set[str]] = defaultdict(set)
        artifacts = self._artifacts
        for stamped in (*artifacts.events, *(s for events in artifacts.own_events.values() for s in events)):
            match stamped.event:
                case DigestReported() | RoundClosed() | RoundApplied() | DigestMismatch() if stamped.event.digest:
                    digests[stamped.event.round].add(stamped.event.digest)
        for rounds in artifacts.committed.values():
            for round, found in rounds.items():
                chains[round].add(found.chain)
        forked = sorted(round for each in (digests, chains) for round, found in each.items() if len(found) > 1)
        return {round: digests[round] | chains[round] for round in forked}

    # --- recovery -----------------------------------------------------------------------------------------------------

    def recovery_seconds(self) -> list[float]:
        """From each fault to the next round that was committed."""
        times = self.committed.values()
        return [min((time - begun for time in times if time > begun), default=math.inf) for begun, _ in self.faults]

    def ended_outages(self) -> list[Outage]:
        """Outages that ended before the run did, after which the node had caught up before its next one."""
        return [
            outage
            for outage in self.outages
            if outage.ended < self.end
            and not any(
                other.name == outage.name and outage.begun < other.begun < outage.ended + self.seconds_back(outage)
                for other in self.outages
            )
        ]

    @property
    def end(self) -> float:
        """When the last round was committed: a node that is restarted after that is not waited for."""
        return self.committed.get(self._scenario.rounds, math.inf)

    def newest(self, time: float) -> int:
        """The newest round that was committed by then."""
        return max((round for round, committed in self.committed.items() if committed <= time), default=0)

    def seconds_back(self, outage: Outage) -> float:
        """From the end of an outage until the node had a round that was not committed yet then; infinite: never."""
        newest = self.newest(outage.ended)
        times = [time for time, round in self._has(outage.name) if round > newest and time > outage.ended]
        return min(times, default=math.inf) - outage.ended

    def rounds_of(self, name: str) -> set[int]:
        """Rounds that were in a node's weights, as far as its events tell."""
        return {round for _, round in self._has(name)}

    def _has(self, name: str) -> Iterator[tuple[float, int]]:
        """Rounds that are in a node's weights, and since when. A coordinator's are told by its checkpoints."""
        for stamped in self._artifacts.own_events.get(name, ()):
            if isinstance(stamped.event, RoundApplied | CheckpointSaved):
                yield stamped.time, stamped.event.round
