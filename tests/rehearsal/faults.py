"""The faults of a rehearsal. Each kind picks its victims when it begins, and returns how long it lasts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from tests.rehearsal.machine import Machine
from tests.rehearsal.swarm import Member, Swarm
from tsr_swarm.rounds import protocol as pt


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault, which begins in this phase of this round. ``pick`` in [0, 1) chooses among victims."""

    kind: str
    round: int
    phase: str
    delay: float = 0.0
    seconds: float = 10.0
    pick: float = 0.0


Effect = Callable[[Swarm, Fault], float]  # makes the fault happen, and returns the seconds until it is over


def arrange(swarm: Swarm, fault: Fault) -> None:
    """Let ``fault`` begin in its phase."""
    swarm.when(fault.round, fault.phase, fault.delay, partial(_begin, swarm, fault))


def _begin(swarm: Swarm, fault: Fault) -> None:
    swarm.begin_fault(fault.kind, 0.0)
    active = swarm.active_faults[-1]
    active.until += KINDS[fault.kind](swarm, fault)


# --- victims ------------------------------------------------------------------------------------------------------


def _alive(swarm: Swarm) -> list[Machine]:
    return [machine for machine in swarm.machines.values() if machine.is_up and not machine.is_suspended]


def _peers(swarm: Swarm) -> list[Machine]:
    return [machine for machine in _alive(swarm) if machine.trains]


def _choose(machines: Sequence[Machine], fault: Fault) -> list[Machine]:
    return [machines[int(fault.pick * len(machines))]] if machines else []


def _machine(swarm: Swarm, fault: Fault) -> list[Machine]:
    return _choose(_alive(swarm), fault)


def _peer(swarm: Swarm, fault: Fault) -> list[Machine]:
    return _choose(_peers(swarm), fault)


def _leader(swarm: Swarm) -> list[Machine]:
    leader = swarm.leader
    return [leader] if leader is not None and not leader.is_suspended else []


def _reducer(swarm: Swarm, fault: Fault) -> list[Machine]:
    """Return a machine that averages shards now, other than the leader where there is one."""
    leader = swarm.leader
    if leader is None or leader.node is None or leader.node.plan is None:
        return []
    machines = [swarm.machines[name] for name in sorted(set(leader.node.plan.nodes)) if swarm.machines[name].is_up]
    return _choose([machine for machine in machines if machine is not leader] or machines, fault)


def _voters(swarm: Swarm) -> list[Machine]:
    leader = swarm.leader
    if leader is None or leader.node is None:
        return []
    machines = [swarm.machines[name] for name in leader.node.voter.voters]
    return [machine for machine in machines if machine.is_up]


def _voter(swarm: Swarm, fault: Fault) -> list[Machine]:
    return _choose(_voters(swarm), fault)


def _two_voters(swarm: Swarm, fault: Fault) -> list[Machine]:
    voters = _voters(swarm)
    turn = int(fault.pick * len(voters)) if voters else 0
    return [*voters[turn:], *voters[:turn]][:2]


def _coordinator(swarm: Swarm) -> list[Machine]:
    machine = swarm.machines[swarm.layout.first]
    return [machine] if machine.is_up else []


def _all_but_one(swarm: Swarm, fault: Fault) -> list[Machine]:
    spared = _machine(swarm, fault)
    return [machine for machine in _alive(swarm) if machine not in spared]


# --- killed and suspended -----------------------------------------------------------------------------------------


def _kill(machines: Sequence[Machine], restart: float | None) -> float:
    for machine in machines:
        machine.kill()
        if restart is not None:
            machine.swarm.clock.after(restart, partial(_restart, machine))
    return restart or 0.0


def _restart(machine: Machine) -> None:
    if not machine.is_up:
        machine.start()


def _kill_everybody(swarm: Swarm, fault: Fault) -> float:
    machines = [machine for machine in swarm.machines.values() if machine.is_up]
    for count, machine in enumerate(machines):
        _kill([machine], fault.seconds + count * fault.pick)
    return fault.seconds + len(machines) * fault.pick


def _lose_disk(swarm: Swarm, fault: Fault) -> float:
    """Let a machine lose its disk and come back under a new name; the coordinator does not."""
    for machine in _choose([m for m in _peers(swarm) if m.name != swarm.layout.first], fault):
        machine.kill()
        name = f"{machine.name}-new"
        while name in swarm.machines:
            name += "er"
        swarm.add(_newcomer(swarm, name, machine.is_dialable, fault.seconds))
    return fault.seconds


def _suspend(machines: Sequence[Machine], seconds: float) -> float:
    for machine in machines:
        machine.suspend()
        machine.swarm.clock.after(seconds, machine.resume)
    return seconds


# --- connections --------------------------------------------------------------------------------------------------


def _cut(swarm: Swarm, ways: list[tuple[str, str]], seconds: float) -> float:
    swarm.network.cut(ways)
    swarm.clock.after(seconds, partial(swarm.network.mend, ways))
    return seconds


def _between(some: Sequence[str], others: Sequence[str]) -> list[tuple[str, str]]:
    return [way for a in some for b in others if a != b for way in ((a, b), (b, a))]


def _names(swarm: Swarm, but: Sequence[Machine]) -> list[str]:
    without = {machine.name for machine in but}
    return [name for name in swarm.machines if name not in without]


def _isolate(swarm: Swarm, machines: Sequence[Machine], seconds: float) -> float:
    inside = [machine.name for machine in machines]
    return _cut(swarm, _between(inside, _names(swarm, machines)), seconds)


def _split(swarm: Swarm, fault: Fault) -> float:
    machines = list(swarm.machines.values())
    swarm.chance.shuffle(machines)
    return _isolate(swarm, machines[: len(machines) // 2], fault.seconds)


def _bridge(swarm: Swarm, fault: Fault) -> float:
    """Make two halves that reach one node in the middle, and not each other."""
    names = list(swarm.machines)
    swarm.chance.shuffle(names)
    half = (len(names) - 1) // 2
    return _cut(swarm, _between(names[1 : 1 + half], names[1 + half :]), fault.seconds)


def _one_way(swarm: Swarm, fault: Fault) -> float:
    machines = _machine(swarm, fault)
    return _cut(swarm, [(m.name, other) for m in machines for other in _names(swarm, machines)], fault.seconds)


def _deaf(swarm: Swarm, fault: Fault) -> float:
    machines = _machine(swarm, fault)
    return _cut(swarm, [(other, m.name) for m in machines for other in _names(swarm, machines)], fault.seconds)


def _cut_from_reducer(swarm: Swarm, fault: Fault) -> float:
    reducers = _reducer(swarm, fault)
    peers = _choose([machine for machine in _peers(swarm) if machine not in reducers], fault)
    return _cut(swarm, _between([m.name for m in peers], [m.name for m in reducers]), fault.seconds)


# --- settings that change for a while -----------------------------------------------------------------------------


def _weather(swarm: Swarm, seconds: float, what: str, value: float) -> float:
    before = getattr(swarm.layout.weather, what)
    setattr(swarm.network.weather, what, value)
    swarm.clock.after(seconds, partial(setattr, swarm.network.weather, what, before))
    return seconds


def _slow(machines: Sequence[Machine], seconds: float, what: str, factor: float) -> float:
    for machine in machines:
        usual = getattr(machine.pace, what)
        setattr(machine.pace, what, factor)
        machine.swarm.clock.after(seconds, partial(setattr, machine.pace, what, usual))
    return seconds


def _fill(machines: Sequence[Machine], seconds: float) -> float:
    for machine in machines:
        machine.disk.is_full = True
        machine.swarm.clock.after(seconds, partial(setattr, machine.disk, "is_full", False))
    return seconds


def _fail_journal(swarm: Swarm, fault: Fault) -> float:
    for machine in _machine(swarm, fault):
        machine.disk.failures = 1 + int(2 * fault.pick)
    return 5.0


def _fail_journal_then_kill(swarm: Swarm, fault: Fault) -> float:
    """Kill a voter soon after its journal failed: what it said it has written must be there when it is back."""
    for machine in _voter(swarm, fault):
        machine.disk.failures = 1
        swarm.clock.after(3 * fault.pick, machine.kill)
        swarm.clock.after(3 * fault.pick + 1.0, partial(_restart, machine))
    return 5.0


def _skew(machines: Sequence[Machine], rate: float, seconds: float) -> float:
    for machine in machines:
        machine.set_clock(rate)
        machine.swarm.clock.after(seconds, partial(machine.set_clock, 1.0))
    return seconds


def _jump_clock(swarm: Swarm, fault: Fault) -> float:
    for machine in _machine(swarm, fault):
        machine.set_clock(machine.clock.rate, ahead=3 * fault.seconds)
    return 0.0


# --- coming and going ---------------------------------------------------------------------------------------------


def _newcomer(swarm: Swarm, name: str, is_dialable: bool, joins_at: float) -> Member:
    """Return a machine without a state that is told of some that can be dialled."""
    known = tuple(machine.name for machine in _alive(swarm) if machine.is_dialable)[-3:]
    return Member(name=name, is_dialable=is_dialable, joins_at=joins_at, is_new=True, known=known)


def _join(swarm: Swarm, count: int, fault: Fault, prefix: str) -> float:
    for number in range(count):
        is_dialable = (fault.pick * 8 + number) % 2 < 1
        swarm.add(_newcomer(swarm, f"{prefix}-{len(swarm.machines)}", is_dialable, 0.05 * number))
    return 1.0


def _leave(machines: Sequence[Machine], seconds: float) -> float:
    for machine in machines:
        machine.put(pt.Stop())
    return seconds


def _leave_and_return(swarm: Swarm, fault: Fault) -> float:
    machines, seconds = _peer(swarm, fault), 30.0 + fault.seconds
    _leave(machines, seconds)
    for machine in machines:
        swarm.clock.after(seconds, partial(_restart, machine))
    return seconds


def _leader_leaves(swarm: Swarm, fault: Fault) -> float:
    """Let a volunteer that leads leave. The coordinator hands over nothing, so it is killed for a while."""
    leader = _leader(swarm)
    if leader and not leader[0].trains:
        return _kill(leader, 3 * fault.seconds)
    return _leave(leader, 20.0)


KINDS: dict[str, Effect] = {  # drawn by number: a new kind goes to the end, and changes what every seed means
    "kill_peer": lambda swarm, fault: _kill(_peer(swarm, fault), fault.seconds),
    "kill_peer_for_good": lambda swarm, fault: _kill(_peer(swarm, fault), None),
    "kill_peer_unnoticed": lambda swarm, fault: _kill(_peer(swarm, fault), 0.02),
    "kill_reducer": lambda swarm, fault: _kill(_reducer(swarm, fault), fault.seconds),
    "kill_reducer_unnoticed": lambda swarm, fault: _kill(_reducer(swarm, fault), 0.02),
    "kill_leader": lambda swarm, fault: _kill(_leader(swarm), fault.seconds),
    "kill_leader_unnoticed": lambda swarm, fault: _kill(_leader(swarm), 0.02),
    "kill_leader_for_good": lambda swarm, fault: _kill(_leader(swarm), None),
    "kill_coordinator": lambda swarm, fault: _kill(_coordinator(swarm), fault.seconds),
    "kill_coordinator_for_good": lambda swarm, fault: _kill(_coordinator(swarm), None),
    "kill_voter": lambda swarm, fault: _kill(_voter(swarm, fault), fault.seconds),
    "kill_two_voters": lambda swarm, fault: _kill(_two_voters(swarm, fault), fault.seconds),
    "kill_everybody": _kill_everybody,
    "disk_lost": _lose_disk,
    "suspend_briefly": lambda swarm, fault: _suspend(_machine(swarm, fault), min(3.0, fault.seconds)),
    "suspend_long": lambda swarm, fault: _suspend(_peer(swarm, fault), 60.0),
    "suspend_leader": lambda swarm, fault: _suspend(_leader(swarm), 2 * fault.seconds),
    "isolate_peer": lambda swarm, fault: _isolate(swarm, _peer(swarm, fault), fault.seconds),
    "isolate_leader": lambda swarm, fault: _isolate(swarm, _leader(swarm), fault.seconds),
    "split": _split,
    "bridge": _bridge,
    "one_way": _one_way,
    "deaf": _deaf,
    "cut_from_reducer": _cut_from_reducer,
    "slow_line": lambda swarm, fault: _slow(_machine(swarm, fault), fault.seconds, "connection", 20.0),
    "loss": lambda swarm, fault: _weather(swarm, fault.seconds, "loss", 0.05 + 0.25 * fault.pick),
    "doubles": lambda swarm, fault: _weather(swarm, fault.seconds, "doubles", 0.5),
    "disorder": lambda swarm, fault: _weather(swarm, fault.seconds, "jitter", 0.5 + 4 * fault.pick),
    "replays": lambda swarm, fault: _weather(swarm, fault.seconds, "replays", 0.3) + 70.0,
    "slow_peer": lambda swarm, fault: _slow(_peer(swarm, fault), 3 * fault.seconds, "slowness", 10.0),
    "slow_reducer": lambda swarm, fault: _slow(_reducer(swarm, fault), fault.seconds, "reducing", 40.0),
    "disk_full_voter": lambda swarm, fault: _fill(_voter(swarm, fault), fault.seconds),
    "disk_full_leader": lambda swarm, fault: _fill(_leader(swarm), fault.seconds),
    "disk_full_peer": lambda swarm, fault: _fill(_peer(swarm, fault), fault.seconds),
    "journal_fails": _fail_journal,
    "journal_fails_then_killed": _fail_journal_then_kill,
    "clock_fast": lambda swarm, fault: _skew(_machine(swarm, fault), 1.05, 4 * fault.seconds),
    "clock_slow": lambda swarm, fault: _skew(_machine(swarm, fault), 0.95, 4 * fault.seconds),
    "clock_jump": _jump_clock,
    "late_joiner": lambda swarm, fault: _join(swarm, 1, fault, "late"),
    "join_storm": lambda swarm, fault: _join(swarm, 4, fault, "storm"),
    "leave": lambda swarm, fault: _leave(_peer(swarm, fault), 10.0),
    "leave_and_return": _leave_and_return,
    "leader_leaves": _leader_leaves,
    "reboot_all_but_one": lambda swarm, fault: _kill(_all_but_one(swarm, fault), fault.seconds),
}
