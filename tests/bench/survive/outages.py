"""Who was hurt, from when to when, as the faults in a run's story say. Pure."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from tsr_swarm.telemetry.events import FaultPlaced, LeaderChanged, PeerJoined, Stamped

CRASH = "every process is killed"  # our own fault, written into the story as one of the command's
_FAULT = re.compile(r"--(kill|back|stop|partition) (\S+)@\d+/[a-z]+(?::[0-9.e+]+s)?(?: \((.+)\))?")


@dataclass(frozen=True, slots=True)
class Hurt:
    """``name`` was killed, stopped or cut off from the majority at ``begun``; that ended at ``healed``, or never."""

    name: str
    kind: str
    begun: float
    healed: float = math.inf


def begins(story: Sequence[Stamped]) -> list[tuple[float, str]]:
    """When each fault hit, and what it was. Coming back is none."""
    return [
        (stamped.time, stamped.event.fault)
        for stamped in story
        if isinstance(stamped.event, FaultPlaced)
        and not stamped.event.is_over
        and not stamped.event.fault.startswith("--back")
    ]


def hurts(story: Sequence[Stamped]) -> list[Hurt]:
    """Every hurt of every node, in order of time."""
    found: list[Hurt] = []
    for place, stamped in enumerate(story):
        event = stamped.event
        if not isinstance(event, FaultPlaced):
            continue
        kind, names = _whom(event.fault, story[:place])
        if kind == "back" or event.is_over:
            kind = "kill" if kind == "back" else kind
            found = [_healed(hurt, kind, names, stamped.time) for hurt in found]
        else:
            found += [Hurt(name, kind, stamped.time) for name in sorted(names)]
    return found


def _healed(hurt: Hurt, kind: str, names: frozenset[str], time: float) -> Hurt:
    if hurt.kind == kind and hurt.name in names and hurt.healed == math.inf:
        return replace(hurt, healed=time)
    return hurt


def _whom(fault: str, before: Sequence[Stamped]) -> tuple[str, frozenset[str]]:
    """The kind of a fault, and the names of those it hurts."""
    if fault == CRASH:
        return "crash", frozenset({*names_of(before).values()})
    match = _FAULT.fullmatch(fault)
    if match is None:
        raise ValueError(f"{fault!r} is no fault of tsr-swarm local")
    kind, who, role = match.groups()
    if kind == "partition":
        return kind, _minority([frozenset(side.split(",")) for side in who.split("|")], before)
    return kind, frozenset({role or who})


def _minority(sides: Sequence[frozenset[str]], before: Sequence[Stamped]) -> frozenset[str]:
    """The side with fewer of the voters; both, if neither has a majority."""
    names, voters = names_of(before), _voters(before)
    electorate = [names.get(voter, "") for voter in voters]
    return frozenset().union(
        *(side for side in sides if 2 * sum(name in side for name in electorate) <= len(electorate))
    )


def _voters(before: Sequence[Stamped]) -> list[str]:
    told = [s.event.voter_ids for s in before if isinstance(s.event, LeaderChanged) and s.event.voter_ids]
    return told[-1].split(",") if told else []


def names_of(story: Sequence[Stamped]) -> Mapping[str, str]:
    """Name by peer_id, of all that were told of."""
    return dict(_told(story))


def _told(story: Sequence[Stamped]) -> Iterator[tuple[str, str]]:
    for stamped in story:
        if isinstance(stamped.event, PeerJoined | LeaderChanged):
            yield stamped.event.peer, stamped.event.name
