"""One rehearsal: a seed, or a schedule made by hand, run to its end and judged."""

from dataclasses import dataclass, replace
from random import Random

from tests.rehearsal.faults import arrange
from tests.rehearsal.schedule import Schedule, draw
from tests.rehearsal.swarm import Member, Swarm


@dataclass(frozen=True, slots=True)
class FaultCount:
    """What one fault cost."""

    kind: str
    lost_rounds: int  # of the three after it: those that stand with nobody's work in them
    seconds: float | None  # until a round stood again


@dataclass(frozen=True, slots=True)
class Outcome:
    seed: int
    digest: str  # of the trace
    seconds: float  # virtual
    rounds: int
    steps: int
    fault_counts: tuple[FaultCount, ...]
    violations: tuple[str, ...]
    trace: tuple[str, ...] = ()


def rehearse(seed: int, keeps_trace: bool = False) -> Outcome:
    """Run the schedule of this seed. The same seed gives the same outcome, in any process."""
    chance = Random(seed)
    swarm = prepare(draw(chance), chance, keeps_trace)
    swarm.run()
    return outcome(seed, swarm)


def prepare(schedule: Schedule, chance: Random, keeps_trace: bool = False) -> Swarm:
    # weather and paces change while the swarm runs: the schedule stays as it is
    layout = replace(schedule.layout, members=tuple(_own(member) for member in schedule.layout.members))
    swarm = Swarm(layout, chance, keeps_trace)
    for fault in schedule.faults:
        arrange(swarm, fault)
    return swarm


def outcome(seed: int, swarm: Swarm) -> Outcome:
    void, shards = swarm.checker.void_shards, len(swarm.layout.sizes)
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


def _own(member: Member) -> Member:
    return replace(member, pace=replace(member.pace))
