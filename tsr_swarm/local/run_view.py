"""The events of a run, each once, out of what every process of a local swarm prints: those of the leader. Pure.

Other processes print what concerns themselves, and the coordinator also relays later what a leader has printed already.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from tsr_swarm.local.faults import COORDINATOR, ActingRole, Who, who_of
from tsr_swarm.telemetry import events


@dataclass(frozen=True, slots=True)
class RunView:
    """What is known of a run so far. The coordinator leads until another process says that it does."""

    leader: int = COORDINATOR
    term: int = 0
    voters: tuple[str, ...] = ()  # peer_ids; none: the coordinator alone
    reducers: tuple[int, ...] = ()  # of the open round, beside its leader
    addresses: Mapping[int, str] = field(default_factory=dict)  # by WHO, of those that can be dialled
    numbers: Mapping[str, int] = field(default_factory=dict)  # WHO by peer_id
    is_leaderless: bool = False
    is_finished: bool = False

    def update(self, who: int, event: events.Event, running: Collection[int]) -> tuple["RunView", bool]:
        """The view after an event of process ``who``, and whether the event is news of the run.

        ``running``: the processes that have neither ended nor are suspended. A leader that was suspended or cut off may
        still believe that it leads; its term tells.
        """
        if self.is_finished or isinstance(event, events.OwnEvent):
            return self, False
        match event:
            case events.RunStarted() if who == COORDINATOR:
                return self._with_address(COORDINATOR, event.address), self.leader == COORDINATOR
            case events.LeaderChanged() if who_of(event.name) == who and event.term >= self.term:
                return self._led_by(who, event), True
            case events.LeaderChanged():
                return self, False
            case events.LeaderLost() if not self.is_leaderless and (who == self.leader or self.leader not in running):
                return replace(self, is_leaderless=True), True
            case events.LeaderLost():
                return self, False
        if who != self.leader:
            return self, False
        return self._with_news(event), True

    def _led_by(self, who: int, event: events.LeaderChanged) -> "RunView":
        voters = tuple(event.voter_ids.split(",")) if event.voter_ids else ()
        numbers = {**self.numbers, event.peer: who}
        return replace(self, leader=who, term=event.term, voters=voters, numbers=numbers, is_leaderless=False)

    def _with_news(self, event: events.Event) -> "RunView":
        match event:
            case events.PeerJoined():
                who = who_of(event.name)
                if who is not None:
                    known = replace(self, numbers={**self.numbers, event.peer: who})
                    return known._with_address(who, event.address)
            case events.RoundOpened():
                whos = (who_of(name) for name in event.reducers.split(","))
                return replace(self, reducers=tuple(who for who in whos if who is not None), is_leaderless=False)
            case events.RunFinished():
                return replace(self, is_finished=True)
        return self

    def _with_address(self, who: int, address: str) -> "RunView":
        return replace(self, addresses={**self.addresses, who: address}) if address else self

    def find(self, who: Who, alive: Collection[int]) -> int | None:
        """The node that ``who`` stands for now; None for a role that nobody has."""
        match who:
            case ActingRole.LEADER:
                return self.leader if self.leader in alive else None
            case ActingRole.REDUCER:
                rest = [one for one in self.reducers if one in alive and one not in (self.leader, COORDINATOR)]
                return min(rest, default=None)
        return who

    def contact(self, alive: Collection[int]) -> str:
        """The address at which a new peer can join: the leader's, or else that of a node that is alive."""
        order = sorted(self.addresses, key=lambda who: (who not in alive, who != self.leader, who))
        return self.addresses[order[0]] if order else ""

    def voters_left(self, alive: Collection[int]) -> tuple[int, int]:
        """How many voters may be alive, and how many there are; one that is unknown may be."""
        if not self.voters:
            return int(COORDINATOR in alive), 1
        return sum(self.numbers.get(peer, -1) in {-1, *alive} for peer in self.voters), len(self.voters)

    def can_lead(self, alive: Collection[int]) -> bool:
        """Whether a majority of the voters may be left, to elect a leader and to commit rounds."""
        left, voters = self.voters_left(alive)
        return 2 * left > voters
