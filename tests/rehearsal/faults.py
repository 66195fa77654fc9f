"""What goes wrong in a rehearsal. Each kind picks its victims when it is placed, and says how long it lasts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from tests.rehearsal.machine import Machine, Pace
from tests.rehearsal.swarm import Member, Swarm
from tsr_swarm.rounds import protocol as pt


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that goes wrong, in this phase of this round. ``pick`` in [0, 1) chooses among victims."""

    kind: str
    round: int
    phase: str
    delay: float = 0.0
    seconds: float = 10.0
    pick: float = 0.0


Place = Callable[[Swarm, Fault], float]  # -> seconds until it is over
KINDS: dict[str, Place] = {}


def arrange(swarm: Swarm, fault: Fault) -> None:
    """Have ``fault`` placed in its time."""
    swarm.when(fault.round, fault.phase, fault.delay, partial(_place, swarm, fault))


def _place(swarm: Swarm, fault: Fault) -> None:
    swarm.begin_fault(fault.kind, 0.0)
    placed = swarm.active_faults[-1]
    placed.until += KINDS[fault.kind](swarm, fault)


def _kind(place: Place) -> Place:
    KINDS[place.__name__.removeprefix("_")] = place
    return place


# --- victims ----------------------------------------------------------------------------------------------------------


def _alive(swarm: Swarm) -> list[Machine]:
    return [machine for machine in swarm.machines.values() if machine.is_up and not machine.is_suspended]


def _peers(swarm: Swarm) -> list[Machine]:
    return [machine for machine in _alive(swarm) if machine.trains]


def _choose(machines: Sequence[Machine], fault: Fault) -> list[Machine]:
    return [machines[int(fault.pick * len(machines))]] if machines else []


def _peer(swarm: Swarm, fault: Fault) -> list[Machine]:
    return _choose(_peers(swarm), fault)


def _leader(swarm: Swarm) -> list[Machine]:
    leader = swarm.leader
    return [leader] if leader is not None and not leader.is_suspended else []


def _reducer(swarm: Swarm, fault: Fault) -> list[Machine]:
    """Somebody who averages shards now, other than the leader where there is one."""
    leader = swarm.leader
    if leader is None or leader.node is None or leader.node.plan is None:
        return []
    names = sorted(set(leader.node.plan.nodes))
    machines = [swarm.machines[name] for name in names if swarm.machines[name].is_up]
    return _choose([machine for machine in machines if machine is not leader] or machines, fault)


def _voters(swarm: Swarm) -> list[Machine]:
    leader = swarm.leader
    if leader is None or leader.node is None:
        return []
    machines = [swarm.machines[name] for name in leader.node.voter.voters]
    return [machine for machine in machines if machine.is_up]


def _first(swarm: Swarm) -> list[Machine]:
    machine = swarm.machines[swarm.layout.first]
    return [machine] if machine.is_up else []


# --- killed -----------------------------------------------------------------------------------------------------------


def _kill(swarm: Swarm, machines: Sequence[Machine], restart: float | None) -> float:
    for machine in machines:
        machine.kill()
        if restart is not None:
            swarm.clock.after(restart, partial(_restart, machine))
    return restart or 0.0


def _restart(machine: Machine) -> None:
    if not machine.is_up:
        machine.start()


@_kind
def _kill_peer(swarm: Swarm, fault: Fault) -> float:
    return _kill(swarm, _peer(swarm, fault), fault.seconds)


@_kind
def _kill_peer_for_good(swarm: Swarm, fault: Fault) -> float:
    return _kill(swarm, _peer(swarm, fault), None)


@_kind
def _kill_peer_unnoticed(swarm: Swarm, fault: Fault) -> float:
    return _kill(swarm, _peer(swarm, fault), 0.02)


@_kind
def _kill_reducer(swarm: Swarm, fault: Fault) -> float:
    return _kill(swarm, _reducer(swarm, fault), fault.seconds)


@_kind
def _kill_reducer_unnoticed(swarm: Swarm, fault: Fault) -> float:
    return _kill(swarm, _reducer(swarm, fault), 0.02)


@_kind
def _kill_leader(swarm: Swarm, fault: Fault) -> float:
    return _kill(swarm, _leader(swarm), fault.seconds)


@_kind
def _kill_leader_unnoticed(swarm: Swarm, fault: Fault) -> float:
    return _kill(swarm, _leader(swarm), 0.02)


@_kind
def _kill_leader_for_good(swarm: Swarm, fault: Fault) -> float:
    return _kill(swarm, _leader(swarm), None)


@_kind
def _kill_coordinator(swarm: Swarm, fault: Fault) -> float:
    return _kill(swarm, _first(swarm), fault.seconds)


@_kind
def _kill_coordinator_for_good(swarm: Swarm, fault: Fault) -> float:
    return _kill(swarm, _first(swarm), None)


@_kind
def _kill_voter(swarm: Swarm, fault: Fault) -> float:
    return _kill(swarm, _choose(_voters(swarm), fault), fault.seconds)


@_kind
def _kill_two_voters(swarm: Swarm, fault: Fault) -> float:
    voters = _voters(swarm)
    turn = int(fault.pick * len(voters)) if voters else 0
    return _kill(swarm, [*voters[turn:], *voters[:turn]][:2], fault.seconds)


@_kind
def _kill_everybody(swarm: Swarm, fault: Fault) -> float:
    machines = [machine for machine in swarm.machines.values() if machine.is_up]
    for count, machine in enumerate(machines):
        _kill(swarm, [machine], fault.seconds + count * fault.pick)
    return fault.seconds + len(machines) * fault.pick


@_kind
def _disk_lost(swarm: Swarm, fault: Fault) -> float:
    """A machine that lost its disk comes back as somebody new; the coordinator does not."""
    for machine in _choose([m for m in _peers(swarm) if m.name != swarm.layout.first], fault):
        machine.kill()
        name = f"{machine.name}-new"
        while name in swarm.machines:
            name += "er"
        swarm.add(
            Member(
                name=name,
                is_dialable=machine.is_dialable,
                joins_at=fault.seconds,
                is_new=True,
                known=_invitation(swarm),
            )
        )
    return fault.seconds


# --- suspended --------------------------------------------------------------------------------------------------------


def _suspend(swarm: Swarm, machines: Sequence[Machine], seconds: float) -> float:
    for machine in machines:
        machine.suspend()
        swarm.clock.after(seconds, machine.resume)
    return seconds


@_kind
def _suspend_briefly(swarm: Swarm, fault: Fault) -> float:
    return _suspend(swarm, _choose(_alive(swarm), fault), min(3.0, fault.seconds))


@_kind
def _suspend_long(swarm: Swarm, fault: Fault) -> float:
    return _suspend(swarm, _peer(swarm, fault), 60.0)


@_kind
def _suspend_leader(swarm: Swarm, fault: Fault) -> float:
    return _suspend(swarm, _leader(swarm), 2 * fault.seconds)


# --- lines ------------------------------------------------------------------------------------------------------------


def _cut(swarm: Swarm, ways: list[tuple[str, str]], seconds: float) -> float:
    swarm.network.cut(ways)
    swarm.clock.after(seconds, partial(swarm.network.mend, ways))
    return seconds


def _between(some: Sequence[str], others: Sequence[str]) -> list[tuple[str, str]]:
    return [way for a in some for b in others if a != b for way in ((a, b), (b, a))]


def _names(swarm: Swarm, but: Sequence[Machine] = ()) -> list[str]:
    without = {machine.name for machine in but}
    return [name for name in swarm.machines if name not in without]


def _isolate(swarm: Swarm, machines: Sequence[Machine], seconds: float) -> float:
    inside = [machine.name for machine in machines]
    return _cut(swarm, _between(inside, _names(swarm, machines)), seconds)


@_kind
def _isolate_peer(swarm: Swarm, fault: Fault) -> float:
    return _isolate(swarm, _peer(swarm, fault), fault.seconds)


@_kind
def _isolate_leader(swarm: Swarm, fault: Fault) -> float:
    return _isolate(swarm, _leader(swarm), fault.seconds)


@_kind
def _split(swarm: Swarm, fault: Fault) -> float:
    machines = list(swarm.machines.values())
    swarm.chance.shuffle(machines)
    return _isolate(swarm, machines[: len(machines) // 2], fault.seconds)


@_kind
def _bridge(swarm: Swarm, fault: Fault) -> float:
    """Two halves that see one node in the middle, and not each other."""
    names = list(swarm.machines)
    swarm.chance.shuffle(names)
    half = (len(names) - 1) // 2
    return _cut(swarm, _between(names[1 : 1 + half], names[1 + half :]), fault.seconds)


@_kind
def _one_way(swarm: Swarm, fault: Fault) -> float:
    machines = _choose(_alive(swarm), fault)
    return _cut(swarm, [(m.name, other) for m in machines for other in _names(swarm, machines)], fault.seconds)


@_kind
def _deaf(swarm: Swarm, fault: Fault) -> float:
    machines = _choose(_alive(swarm), fault)
    return _cut(swarm, [(other, m.name) for m in machines for other in _names(swarm, machines)], fault.seconds)


@_kind
def _cut_from_reducer(swarm: Swarm, fault: Fault) -> float:
    reducers = _reducer(swarm, fault)
    peers = [machine for machine in _peers(swarm) if machine not in reducers]
    peers = _choose(peers, fault)
    return _cut(swarm, _between([m.name for m in peers], [m.name for m in reducers]), fault.seconds)


@_kind
def _slow_line(swarm: Swarm, fault: Fault) -> float:
    return _pace(swarm, _choose(_alive(swarm), fault), fault.seconds, "line", 20.0)


# --- weather ----------------------------------------------------------------------------------------------------------


def _weather(swarm: Swarm, seconds: float, what: str, value: float) -> float:
    before = getattr(swarm.layout.weather, what)
    setattr(swarm.network.weather, what, value)
    swarm.clock.after(seconds, partial(setattr, swarm.network.weather, what, before))
    return seconds


@_kind
def _loss(swarm: Swarm, fault: Fault) -> float:
    return _weather(swarm, fault.seconds, "loss", 0.05 + 0.25 * fault.pick)


@_kind
def _doubles(swarm: Swarm, fault: Fault) -> float:
    return _weather(swarm, fault.seconds, "doubles", 0.5)


@_kind
def _disorder(swarm: Swarm, fault: Fault) -> float:
    return _weather(swarm, fault.seconds, "jitter", 0.5 + 4 * fault.pick)


@_kind
def _replays(swarm: Swarm, fault: Fault) -> float:
    return _weather(swarm, fault.seconds, "replays", 0.3) + 70.0


# --- slow -------------------------------------------------------------------------------------------------------------


def _pace(swarm: Swarm, machines: Sequence[Machine], seconds: float, what: str, factor: float) -> float:
    for machine in machines:
        usual = getattr(machine.pace, what)
        setattr(machine.pace, what, factor)
        swarm.clock.after(seconds, partial(setattr, machine.pace, what, usual))
    return seconds


@_kind
def _slow_peer(swarm: Swarm, fault: Fault) -> float:
    return _pace(swarm, _peer(swarm, fault), 3 * fault.seconds, "slowness", 10.0)


@_kind
def _slow_reducer(swarm: Swarm, fault: Fault) -> float:
    return _pace(swarm, _reducer(swarm, fault), fault.seconds, "reducing", 40.0)


# --- disks ------------------------------------------------------------------------------------------------------------


def _fill(swarm: Swarm, machines: Sequence[Machine], seconds: float) -> float:
    for machine in machines:
        machine.disk.is_full = True
        swarm.clock.after(seconds, partial(setattr, machine.disk, "is_full", False))
    return seconds


@_kind
def _disk_full_voter(swarm: Swarm, fault: Fault) -> float:
    return _fill(swarm, _choose(_voters(swarm), fault), fault.seconds)


@_kind
def _disk_full_leader(swarm: Swarm, fault: Fault) -> float:
    return _fill(swarm, _leader(swarm), fault.seconds)


@_kind
def _disk_full_peer(swarm: Swarm, fault: Fault) -> float:
    return _fill(swarm, _peer(swarm, fault), fault.seconds)


@_kind
def _journal_fails(swarm: Swarm, fault: Fault) -> float:
    for machine in _choose(_alive(swarm), fault):
        machine.disk.failures = 1 + int(2 * fault.pick)
    return 5.0


@_kind
def _journal_fails_then_killed(swarm: Swarm, fault: Fault) -> float:
    """What a voter said it has written must be there when it is back."""
    for machine in _choose(_voters(swarm), fault):
        machine.disk.failures = 1
        swarm.clock.after(3 * fault.pick, machine.kill)
        swarm.clock.after(3 * fault.pick + 1.0, partial(_restart, machine))
    return 5.0


# --- clocks -----------------------------------------------------------------------------------------------------------


def _set_rate(machine: Machine, rate: float) -> None:
    """The clock goes on from where it is, faster or slower."""
    clock = machine.clock
    clock.ahead += machine.swarm.clock.now * (clock.rate - rate)
    clock.rate = rate
    machine.reset_timer()


def _skew(swarm: Swarm, machines: Sequence[Machine], rate: float, seconds: float) -> float:
    for machine in machines:
        _set_rate(machine, rate)
        swarm.clock.after(seconds, partial(_set_rate, machine, 1.0))
    return seconds


@_kind
def _clock_fast(swarm: Swarm, fault: Fault) -> float:
    return _skew(swarm, _choose(_alive(swarm), fault), 1.05, 4 * fault.seconds)


@_kind
def _clock_slow(swarm: Swarm, fault: Fault) -> float:
    return _skew(swarm, _choose(_alive(swarm), fault), 0.95, 4 * fault.seconds)


@_kind
def _clock_jump(swarm: Swarm, fault: Fault) -> float:
    for machine in _choose(_alive(swarm), fault):
        machine.clock.ahead += 3 * fault.seconds
        machine.reset_timer()
    return 0.0


# --- coming and going -------------------------------------------------------------------------------------------------


def _join(swarm: Swarm, count: int, fault: Fault, prefix: str) -> float:
    for number in range(count):
        name = f"{prefix}-{len(swarm.machines)}"
        is_dialable = (fault.pick * 8 + number) % 2 < 1
        swarm.add(
            Member(
                name=name,
                is_dialable=is_dialable,
                joins_at=0.05 * number,
                is_new=True,
                known=_invitation(swarm),
            )
        )
    return 1.0


def _invitation(swarm: Swarm) -> tuple[str, ...]:
    """Whom a newcomer is told of: some that can be dialled."""
    return tuple(machine.name for machine in _alive(swarm) if machine.is_dialable)[-3:]


@_kind
def _late_joiner(swarm: Swarm, fault: Fault) -> float:
    return _join(swarm, 1, fault, "late")


@_kind
def _join_storm(swarm: Swarm, fault: Fault) -> float:
    return _join(swarm, 4, fault, "storm")


@_kind
def _leave(swarm: Swarm, fault: Fault) -> float:
    for machine in _peer(swarm, fault):
        machine.put(pt.Stop())
    return 10.0


@_kind
def _leave_and_return(swarm: Swarm, fault: Fault) -> float:
    for machine in _peer(swarm, fault):
        machine.put(pt.Stop())
        swarm.clock.after(30.0 + fault.seconds, partial(_restart, machine))
    return 30.0 + fault.seconds


@_kind
def _leader_leaves(swarm: Swarm, fault: Fault) -> float:
    """A volunteer who leads goes; a leader that is the coordinator hands over nothing, so it is killed for a while."""
    for machine in _leader(swarm):
        if not machine.trains:
            return _kill(swarm, [machine], 3 * fault.seconds)
        machine.put(pt.Stop())
    return 20.0


@_kind
def _reboot_all_but_one(swarm: Swarm, fault: Fault) -> float:
    """A power cut that one laptop survives."""
    machines = _alive(swarm)
    spared = _choose(machines, fault)
    return _kill(swarm, [machine for machine in machines if machine not in spared], fault.seconds)


def pace_of(slowness: float) -> Pace:
    return replace(Pace(), slowness=slowness)
