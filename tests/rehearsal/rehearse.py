"""One rehearsal: from a seed to a swarm and its faults, run to its end, and what came of it."""

from dataclasses import dataclass
from random import Random

from tests.rehearsal.faults import KINDS, Fault, arrange
from tests.rehearsal.machine import Pace
from tests.rehearsal.network import Weather
from tests.rehearsal.swarm import PHASES, Layout, Member, Swarm
from tsr_swarm.rounds.round_phases import RoundPolicy

FIRST = "coordinator"
CEILING_SECONDS = 30.0
LAST_ROUND = 6  # that a fault begins in


@dataclass(frozen=True, slots=True)
class FaultCount:
    """What one fault cost."""

    kind: str
    lost_rounds: int  # of the three after it: those that were committed with nobody's work in them
    seconds: float | None  # until a round was committed again


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one rehearsal."""

    seed: int
    digest: str  # of the trace
    seconds: float  # virtual
    rounds: int
    steps: int
    fault_counts: tuple[FaultCount, ...]
    violations: tuple[str, ...]
    trace: tuple[str, ...]


def rehearse(seed: int, keeps_trace: bool = False) -> Outcome:
    """Run the rehearsal of this seed. The same seed gives the same outcome, in any process."""
    chance = Random(seed)
    layout, faults = draw(chance)
    swarm = Swarm(layout, chance, keeps_trace)
    for fault in faults:
        arrange(swarm, fault)
    swarm.run()
    void, shards = swarm.checker.void_shards, len(layout.sizes)
    fault_counts = tuple(
        FaultCount(
            fault.kind,
            sum(void.get(round) == shards for round in range(fault.first_round, fault.first_round + 3)),
            fault.recovered,
        )
        for fault in swarm.active_faults
    )
    return Outcome(
        seed=seed,
        digest=swarm.trace.digest,
        seconds=swarm.clock.now,
        rounds=swarm.checker.newest,
        steps=swarm.steps,
        fault_counts=fault_counts,
        violations=tuple(swarm.checker.violations),
        trace=tuple(swarm.trace.lines),
    )


def draw(chance: Random) -> tuple[Layout, list[Fault]]:
    """Draw a swarm of one to eight peers, of which any number can be dialled, and one to six faults."""
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
    layout = layout_of(
        tuple(members),
        sizes=tuple(chance.randint(1, 10) for _ in range(shards)),
        quorum=quorum,
        min_peers=chance.randint(1, count),
        weather=Weather(latency=0.02 + 0.1 * chance.random(), loss=chance.choice((0.0, 0.0, 0.01))),
        keeps=chance.choice((3, 8)),
        last_round=chance.randint(7, 12) if chance.random() < 0.1 else 0,
    )
    return layout, [_draw_fault(chance) for _ in range(chance.choice((1, 1, 2, 2, 3, 4, 6)))]


def _draw_fault(chance: Random) -> Fault:
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
    """Make a layout with the limits of rehearsals."""
    policy = RoundPolicy(
        quorum=quorum,
        floor_seconds=2.0,
        ceiling_seconds=CEILING_SECONDS,
        min_peers=min_peers,
        last_round=last_round,
    )
    return Layout(first=FIRST, members=members, sizes=sizes, policy=policy, weather=weather or Weather(), keeps=keeps)
