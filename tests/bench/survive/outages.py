"""Which node was down, from when to when, as the faults among a run's events say. Pure."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tsr_swarm.telemetry.events import FaultPlaced, LeaderChanged, PeerJoined, Stamped

CRASH = "every process is killed"  # the bench's own fault, written among the events as one of the command's
_FAULT = re.compile(r"--(kill|back|stop|partition) (\S+)@\d+/[a-z]+(?::[0-9.e+]+s)?(?: \((.+)\))?")


@dataclass(frozen=True, slots=True)
class Outage:
    """``name`` was killed, stopped or cut off from the majority at ``begun``; that ended at ``ended``, or never."""

    name: str
    kind: str
    begun: float
    ended: float = math.inf


def faults(events: Sequence[Stamped]) -> list[tuple[float, str]]:
    """When each fault hit, and what it was. Coming back is none."""
    placed = [(stamped.time, stamped.event) for stamped in events if isinstance(stamped.event, FaultPlaced)]
    return [(time, event.fault) for time, event in placed if not event.is_over and not event.fault.startswith("--back")]


def outages(events: Sequence[Stamped]) -> list[Outage]:
    """Every outage of every node, in order of time. Raises ValueError for a fault that is not known."""
    found: list[Outage] = []
    for place, stamped in enumerate(events):
        event = stamped.event
        if not isinstance(event, FaultPlaced):
            continue
        kind, names = _affected(event.fault, events[:place])
        if kind == "back" or event.is_over:
            kind = "kill" if kind == "back" else kind
            found = [
                replace(outage, ended=stamped.time)
                if outage.kind == kind and outage.name in names and outage.ended == math.inf
                else outage
                for outage in found
            ]
        else:
            found += [Outage(name, kind, stamped.time) for name in sorted(names)]
    return found


def _affected(fault: str, before: Sequence[Stamped]) -> tuple[str, frozenset[str]]:
    """The kind of a fault, and the names of the nodes that it takes down."""
    if fault == CRASH:
        return "crash", frozenset(names_by_id(before).values())
    match = _FAULT.fullmatch(fault)
    if match is None:
        raise ValueError(f"{fault!r} is not a fault of tsr-swarm local")
    kind, who, role = match.groups()
    if kind == "partition":
        return kind, _minority([frozenset(side.split(",")) for side in who.split("|")], before)
    return kind, frozenset({role or who})


def _minority(sides: Sequence[frozenset[str]], before: Sequence[Stamped]) -> frozenset[str]:
    """The side with fewer of the voters; both, if neither has a majority."""
    ids = [s.event.voter_ids for s in before if isinstance(s.event, LeaderChanged) and s.event.voter_ids]
    names = names_by_id(before)
    voters = [names.get(voter, "") for voter in (ids[-1].split(",") if ids else [])]
    return frozenset().union(*(side for side in sides if 2 * sum(name in side for name in voters) <= len(voters)))


def names_by_id(events: Sequence[Stamped]) -> Mapping[str, str]:
    """Name by peer_id, of all nodes that joined or led."""
    told = [stamped.event for stamped in events if isinstance(stamped.event, PeerJoined | LeaderChanged)]
    return {event.peer: event.name for event in told}
