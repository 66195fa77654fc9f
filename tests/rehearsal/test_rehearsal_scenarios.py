"""What a swarm promises when machines die, connections break and laptops sleep, on the real decisions."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from random import Random
from statistics import median

import pytest

from tests.rehearsal.machine import Pace
from tests.rehearsal.rehearse import FIRST, layout_of
from tests.rehearsal.swarm import PHASES, Layout, Member, Swarm
from tsr_swarm.rounds import protocol as pt

EIGHT = (4, 3, 2, 2, 4, 3, 2, 2)


def swarm_of(dialable: int, others: int, seed: int = 1, slow: Sequence[str] = (), **settings: object) -> Swarm:
    """A coordinator, ``dialable`` volunteers (peer-1 ...) and ``others`` behind their routers."""
    members = [Member(name=FIRST, trains=False)]
    for number in range(1, dialable + others + 1):
        name = f"peer-{number}"
        members.append(
            Member(name=name, is_dialable=number <= dialable, pace=Pace(slowness=10.0 if name in slow else 1.0))
        )
    layout: Layout = layout_of(tuple(members), min_peers=dialable + others, **settings)  # type: ignore[arg-type]
    return Swarm(layout, Random(seed), keeps_lines=True)


def inject(
    swarm: Swarm, round: int, phase: str, fault: Callable[[], None], seconds: float = 0.0, delay: float = 0.0
) -> list[float]:
    """Begin ``fault`` in this phase. The list gets the time."""
    times: list[float] = []

    def begin() -> None:
        times.append(swarm.clock.now)
        swarm.begin_fault("by hand", seconds)
        fault()

    swarm.when(round, phase, delay, begin)
    return times


def run(swarm: Swarm) -> None:
    swarm.run()
    assert swarm.checker.violations == []


def void_rounds(swarm: Swarm) -> list[int]:
    return [round for round, void in swarm.checker.void_shards.items() if void]


def lost_rounds(swarm: Swarm) -> list[int]:
    shards = len(swarm.layout.sizes)
    return [round for round, void in swarm.checker.void_shards.items() if void == shards]


def included(swarm: Swarm, round: int) -> set[str]:
    """Whose work is in every shard of this round."""
    return set.intersection(*(set(result.included) for result in swarm.checker.results[round].results))


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("dialable", [0, 3])
def test_a_killed_peer_costs_no_round(phase: str, dialable: int) -> None:
    swarm = swarm_of(dialable, 4 - dialable)
    inject(swarm, 3, phase, swarm.machines["peer-4"].kill, delay=0.3)
    run(swarm)
    assert lost_rounds(swarm) == []
    assert all(included(swarm, round) >= {"peer-1", "peer-2", "peer-3"} for round in range(2, swarm.checker.newest))


@pytest.mark.parametrize("phase", PHASES)
def test_a_killed_reducer_costs_no_more_than_its_shards_of_one_round(phase: str) -> None:
    swarm = swarm_of(4, 0, sizes=EIGHT)
    inject(swarm, 3, phase, swarm.machines["peer-2"].kill, delay=0.1)
    run(swarm)
    plans = [machine.node.plan for machine in swarm.machines.values() if machine.node]
    reducers = {node for plan in plans if plan is not None for node in plan.nodes}
    assert "peer-2" not in reducers
    assert len(void_rounds(swarm)) <= 1
    assert lost_rounds(swarm) == []


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_without_the_coordinator_volunteers_go_on_within_fifteen_seconds(phase: str, seed: int) -> None:
    swarm = swarm_of(2, 2, seed)
    times = inject(swarm, 3, phase, swarm.machines[FIRST].kill, delay=0.2)
    run(swarm)
    opened = [(at, who) for at, who, _ in swarm.checker.opened if at > times[0]]
    assert opened[0][1] != FIRST
    assert opened[0][0] - times[0] <= 15.0
    assert swarm.checker.newest >= 6


def test_two_halves_without_a_connection_never_fork_and_agree_again_within_thirty_seconds() -> None:
    swarm = swarm_of(4, 2)
    away = ["peer-3", "peer-4", "peer-5"]
    ways = [way for a in away for b in swarm.machines if b not in away for way in ((a, b), (b, a))]
    behind: list[str] = []

    def look() -> None:
        newest = swarm.checker.newest
        behind.extend(m.name for m in swarm.machines.values() if m.node and m.node.peer.applied < newest - 1)

    def part() -> None:
        swarm.network.cut(ways)
        swarm.clock.after(30.0, lambda: swarm.network.mend(ways))
        swarm.clock.after(60.0, look)
        swarm.begin_fault("kept until everybody was looked at", 61.0)

    inject(swarm, 3, "train", part, delay=1.0)
    run(swarm)
    assert behind == []


@pytest.mark.parametrize("phase", PHASES)
def test_after_everybody_was_killed_the_run_goes_on_where_it_was(phase: str) -> None:
    swarm = swarm_of(2, 2)
    newest: list[int] = []

    def blackout() -> None:
        newest.append(swarm.checker.newest)
        for machine in swarm.machines.values():
            machine.kill()
            swarm.clock.after(20.0, machine.start)

    inject(swarm, 4, phase, blackout, seconds=20.0, delay=0.2)
    run(swarm)
    assert swarm.checker.newest > newest[0] + 3


def test_peers_behind_routers_are_in_every_round() -> None:
    swarm = swarm_of(0, 6)
    inject(swarm, 8, "train", lambda: None)
    run(swarm)
    everybody = {f"peer-{number}" for number in range(1, 7)}
    assert all(included(swarm, round) == everybody for round in range(1, swarm.checker.newest))


def test_a_peer_that_is_ten_times_slower_slows_nobody_beyond_the_grace() -> None:
    def seconds(slow: Sequence[str]) -> float:
        swarm = swarm_of(2, 4, slow=slow)
        inject(swarm, 8, "train", lambda: None)
        run(swarm)
        assert lost_rounds(swarm) == []
        times = sorted(swarm.checker.committed_at.values())
        return median(b - a for a, b in pairwise(times))

    usual = seconds([])
    assert seconds(["peer-6"]) <= usual + 3.0  # half of what the others took, and it takes forty


@pytest.mark.parametrize("phase", PHASES)
def test_a_laptop_that_slept_is_back_within_two_rounds_and_sends_nothing_stale(phase: str) -> None:
    swarm = swarm_of(2, 3)
    laptop, woke, woke_at = swarm.machines["peer-5"], list[int](), list[float]()

    def sleep() -> None:
        laptop.suspend()
        swarm.clock.after(60.0, wake)

    def wake() -> None:
        woke.append(swarm.checker.newest)
        woke_at.append(swarm.clock.now)
        laptop.resume()

    inject(swarm, 3, phase, sleep, seconds=60.0, delay=0.2)
    run(swarm)
    assert woke, "it was suspended in this phase"
    sent = [round for at, name, round in swarm.checker.uploaded if name == "peer-5" and at >= woke_at[0]]
    assert min(sent) > woke[0]
    assert any("peer-5" in included(swarm, round) for round in range(woke[0] + 1, woke[0] + 4))  # one is open


def test_a_volunteer_that_leads_may_leave_and_the_others_go_on() -> None:
    swarm = swarm_of(3, 1)
    inject(swarm, 3, "train", swarm.machines[FIRST].kill)

    def leave() -> None:
        assert swarm.leader is not None
        assert swarm.leader.trains
        swarm.leader.put(pt.Stop())

    inject(swarm, 8, "train", leave, seconds=20.0)  # by then volunteers alone are the voters
    run(swarm)
    assert swarm.checker.newest >= 10


def test_a_round_led_by_a_volunteer_is_as_quick_as_one_of_the_coordinator() -> None:
    swarm = swarm_of(3, 1)
    inject(swarm, 3, "train", swarm.machines[FIRST].kill)
    inject(swarm, 9, "train", lambda: None)
    run(swarm)
    times = swarm.checker.committed_at
    assert times[9] - times[8] <= times[2] - times[1] + 1.5


@pytest.mark.parametrize("dialable", [0, 1, 4])
def test_at_the_end_every_machine_has_the_last_round_and_leaves(dialable: int) -> None:
    swarm = swarm_of(dialable, 4 - dialable, last_round=5)
    inject(swarm, 5, "train", lambda: None)
    run(swarm)
    assert swarm.checker.newest == 5
    assert all(machine.has_left for machine in swarm.machines.values())
    assert all(machine.disk.record and machine.disk.record.round == 5 for machine in swarm.machines.values())


def test_a_machine_that_lost_its_disk_joins_under_a_new_name() -> None:
    swarm = swarm_of(2, 2)

    def replace_it() -> None:
        swarm.machines["peer-4"].kill()
        swarm.add(Member(name="peer-5", is_dialable=False, is_new=True, joins_at=5.0))

    inject(swarm, 3, "exchange", replace_it, seconds=5.0)
    run(swarm)
    assert "peer-5" in included(swarm, swarm.checker.newest)


def test_without_a_majority_no_round_is_committed() -> None:
    swarm = swarm_of(2, 2)

    def two_die() -> None:
        swarm.machines["peer-1"].kill()
        swarm.machines["peer-2"].kill()

    inject(swarm, 4, "train", two_die, delay=0.5)
    run(swarm)
    assert swarm.checker.newest <= 4
