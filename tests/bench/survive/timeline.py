"""What happened in a run, by what it left behind: which rounds stood when, with whose work, and who was back. Pure."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from tests.bench.survive.evidence import Evidence
from tests.bench.survive.hurts import Hurt, begins, hurts, names_of
from tests.bench.survive.scenario import Scenario
from tsr_swarm.telemetry.events import (
    CheckpointSaved,
    DigestMismatch,
    DigestReported,
    PhaseChanged,
    RoundApplied,
    RoundClosed,
    RoundOpened,
    Stamped,
)

COORDINATOR = "coordinator"
Applied = tuple[float, RoundApplied]


class Facts:
    """Figures of one run. Times are unix seconds, infinite for what did not happen."""

    def __init__(self, scenario: Scenario, evidence: Evidence) -> None:
        self._scenario, self._evidence, self._story = scenario, evidence, evidence.story
        self.faults = begins(self._story)
        self.hurts = hurts(self._story)
        self.applied = {name: _applied(events) for name, events in evidence.own.items() if name != COORDINATOR}
        self.stands = _stands(self._story, self.applied.values())
        self._ids = {name: peer for peer, name in names_of(self._story).items()}

    @property
    def last(self) -> int:
        return max(self.stands, default=0)

    # --- rounds -----------------------------------------------------------------------------------------------------

    def why_lost(self, round: int) -> str:
        """Empty if it is not."""
        expected = self._expected(round)
        shards = next((stood[round].shards for stood in self._evidence.stood.values() if round in stood), None)
        if round not in self.stands:
            return "it never stood"
        if shards is None:
            missing = [name for name in expected if not self._is_included(name, round)]
            return f"no work of {', '.join(missing)}" if missing else ""
        void = sum(not shard for shard in shards)
        if void:
            return f"{void} of {len(shards)} shards are void"
        missing = [name for name in expected if not all(self._ids[name] in shard for shard in shards)]
        return f"not all work of {', '.join(missing)}" if missing else ""

    def _expected(self, round: int) -> list[str]:
        """Peers that were there and well from when it was opened until it stood."""
        opened, stood = self._opened(round), self.stands.get(round, math.inf)
        slow = {f"peer-{who}" for who in self._scenario.slow or {}}
        return [
            name
            for name in sorted(self.applied)
            if name not in slow
            and self._first_work(name, -math.inf)
            < opened  # who joins in mid-round may have a part of its work in that one
            and not any(
                hurt.begun <= stood and opened <= self._first_work(name, hurt.healed)
                for hurt in self.hurts
                if hurt.name == name
            )
        ]

    def _first_work(self, name: str, since: float) -> float:
        """When the first round after ``since`` was opened that has work of ``name``; peers of the start: at once."""
        if since == -math.inf and _number(name) <= self._scenario.peers:
            return since
        works = self.works(name, since)
        return self._opened(min(works)) if works else math.inf

    def works(self, name: str, since: float) -> list[int]:
        """Rounds that stood after ``since`` with work of its own in them."""
        applied = self.applied.get(name, ())
        return [event.round for _, event in applied if event.included and self.stands[event.round] > since]

    def _opened(self, round: int) -> float:
        return min(
            (s.time for s in self._story if isinstance(s.event, RoundOpened) and s.event.round == round),
            default=math.inf,
        )

    def _is_included(self, name: str, round: int) -> bool:
        return any(event.round == round and event.included for _, event in self.applied[name])

    def forks(self) -> dict[int, set[str]]:
        """Rounds with more than one digest, or more than one chain hash, wherever they were found.

        A leader that was restarted closes the newest round of its journal without a digest: it has computed none.
        """
        digests: dict[int, set[str]] = defaultdict(set)
        chains: dict[int, set[str]] = defaultdict(set)
        for stamped in (*self._story, *(s for events in self._evidence.own.values() for s in events)):
            match stamped.event:
                case DigestReported() | RoundClosed() | RoundApplied() | DigestMismatch() if stamped.event.digest:
                    digests[stamped.event.round].add(stamped.event.digest)
        for stood in self._evidence.stood.values():
            for round, found in stood.items():
                chains[round].add(found.chain)
        forked = sorted(round for each in (digests, chains) for round, found in each.items() if len(found) > 1)
        return {round: digests[round] | chains[round] for round in forked}

    # --- recovery ---------------------------------------------------------------------------------------------------

    def seconds(self) -> list[float]:
        """From each fault to the next round that stood."""
        return [
            min((t - begun for t in self.stands.values() if t > begun), default=math.inf) for begun, _ in self.faults
        ]

    def ended(self) -> list[Hurt]:
        """Hurts that ended before the run did, after which the same node was back before it was hurt again."""
        return [
            hurt
            for hurt in self.hurts
            if hurt.healed < self.end
            and not any(
                other.name == hurt.name and hurt.begun < other.begun < hurt.healed + self.back(hurt)
                for other in self.hurts
            )
        ]

    @property
    def end(self) -> float:
        """When the last round was committed: who is called back after that is not waited for."""
        return self.stands.get(self._scenario.rounds, math.inf)

    def newest(self, time: float) -> int:
        """The newest round that stood by then."""
        return max((round for round, stood in self.stands.items() if stood <= time), default=0)

    def back(self, hurt: Hurt) -> float:
        """Seconds from its end until the node had a round that did not stand yet then; infinite: never."""
        newest = self.newest(hurt.healed)
        times = [time for time, round in self._has(hurt.name) if round > newest and time > hurt.healed]
        return min(times, default=math.inf) - hurt.healed

    def rounds_of(self, name: str) -> set[int]:
        """Rounds that were in a node's weights, as far as its events tell."""
        return {round for _, round in self._has(name)}

    def _has(self, name: str) -> Iterator[tuple[float, int]]:
        """Rounds that are in a node's weights, and since when. A coordinator's are told by its checkpoints."""
        for stamped in self._evidence.own.get(name, ()):
            if isinstance(stamped.event, RoundApplied | CheckpointSaved):
                yield stamped.time, stamped.event.round


def _applied(events: Sequence[Stamped]) -> list[Applied]:
    return [(stamped.time, stamped.event) for stamped in events if isinstance(stamped.event, RoundApplied)]


def _stands(story: Sequence[Stamped], applied: Iterable[Sequence[Applied]]) -> Mapping[int, float]:
    """When each round was first known to stand, anywhere."""
    found: dict[int, float] = {}
    told = [
        (stamped.time, stamped.event.round)
        for stamped in story
        if (isinstance(stamped.event, PhaseChanged) and stamped.event.phase == "apply")
        or isinstance(stamped.event, RoundClosed)
    ]
    for time, round in (*told, *((time, event.round) for events in applied for time, event in events)):
        found[round] = min(time, found.get(round, math.inf))
    return found


def _number(name: str) -> int:
    return int(name.removeprefix("peer-"))
