"""From a seed to a swarm and what goes wrong in it."""

from dataclasses import dataclass
from random import Random

from tests.rehearsal.faults import KINDS, Fault
from tests.rehearsal.machine import Pace
from tests.rehearsal.network import Weather
from tests.rehearsal.swarm import PHASES, Layout, Member
from tsr_swarm.rounds.round_phases import RoundPolicy

FIRST = "coordinator"
CEILING_SECONDS = 30.0
LAST_ROUND = 6  # that a fault is placed in


@dataclass(frozen=True, slots=True)
class Schedule:
    layout: Layout
    faults: tuple[Fault, ...]


def draw(chance: Random) -> Schedule:
    """A swarm of one to eight peers, of which any number can be dialled, and one to six faults."""
    count = chance.randint(1, 8)
    dialable = chance.choice((0, count // 2, chance.randint(0, count), chance.randint(min(2, count), count)))
    members = [Member(name=FIRST, trains=False)]
    for number in range(1, count + 1):
        members.append(
            Member(
                name=f"peer-{number}",
                is_dialable=number <= dialable,
                pace=Pace(slowness=0.7 + chance.random() ** 2),
                checkpoint_every=chance.choice((1, 1, 1, 3)),
                joins_at=chance.random() if chance.random() < 0.8 else 6 * chance.random(),
                is_new=chance.random() < 0.2,
            )
        )
    quorum = chance.choice((1, 1, 2)) if count >= 2 else 1
    shards = chance.randint(1, 8)
    return Schedule(
        layout_of(
            tuple(members),
            sizes=tuple(chance.randint(1, 10) for _ in range(shards)),
            quorum=quorum,
            min_peers=chance.randint(1, count),
            weather=Weather(latency=0.02 + 0.1 * chance.random(), loss=chance.choice((0.0, 0.0, 0.01))),
            keeps=chance.choice((3, 8)),
            last_round=chance.randint(7, 12) if chance.random() < 0.1 else 0,
        ),
        tuple(draw_fault(chance) for _ in range(chance.choice((1, 1, 2, 2, 3, 4, 6)))),
    )


def draw_fault(chance: Random) -> Fault:
    return Fault(
        kind=chance.choice(list(KINDS)),
        round=chance.randint(1, LAST_ROUND),
        phase=chance.choice(PHASES),
        delay=chance.random() ** 2 * 3,
        seconds=2 + 28 * chance.random() ** 2,
        pick=chance.random(),
    )


def layout_of(
    members: tuple[Member, ...],
    *,
    sizes: tuple[int, ...] = (4, 3, 2, 2),
    quorum: int = 1,
    min_peers: int = 1,
    weather: Weather | None = None,
    keeps: int = 8,
    last_round: int = 0,
) -> Layout:
    policy = RoundPolicy(
        quorum=quorum,
        floor_seconds=2.0,
        ceiling_seconds=CEILING_SECONDS,
        min_peers=min_peers,
        last_round=last_round,
    )
    return Layout(first=FIRST, members=members, sizes=sizes, policy=policy, weather=weather or Weather(), keeps=keeps)
