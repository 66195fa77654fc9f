"""All scenarios. Pure."""

import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from tests.bench.survive.mixture import mixed
from tests.bench.survive.scenario import PEERS, PHASES, Flags, Scenario

KILLS = 25  # one after the other


def peer(seed: int) -> int:
    return 1 + seed % PEERS


def moment(seed: int) -> int:
    """The round in which it happens. By then there are five voters."""
    return 4 + seed % 3


def _kill(who: str, phase: str) -> Callable[[int], Flags]:
    return lambda seed: ("--kill", f"{who}@{moment(seed)}/{phase}")


def _kill_behind_nat(phase: str) -> Callable[[int], Flags]:
    """Whoever can be dialled may reduce: a peer that does nothing but train cannot be."""
    return lambda seed: ("--nat", f"{peer(seed)}", "--kill", f"{peer(seed)}@{moment(seed)}/{phase}")


def _by_phase(name: str, what: str, flags: Callable[[str], Callable[[int], Flags]], **limits: Any) -> list[Scenario]:
    return [
        Scenario(name=f"{name}-{phase}", what=f"{what} is killed as {phase} begins", flags=flags(phase), **limits)
        for phase in PHASES
    ]


def _phase(seed: int) -> str:
    return PHASES[seed % len(PHASES)]


def _frozen(who: str, seed: int) -> Flags:
    return "--stop", f"{who}@{moment(seed)}/{_phase(seed)}:20s"


def _leaders(seed: int) -> Flags:
    return "--kill", f"leader@{moment(seed)}/{_phase(seed)}", "--kill", f"leader@{moment(seed) + 4}/{_phase(seed + 1)}"


def _minority_leads(seed: int) -> Flags:
    with_it = peer(seed)
    rest = ",".join(str(who) for who in range(1, PEERS + 1) if who != with_it)
    return "--partition", f"coordinator,{with_it}|{rest}@{moment(seed)}/{_phase(seed)}:30s"


def _minority_follows(seed: int) -> Flags:
    cut = sorted({peer(seed), peer(seed + 1)})
    rest = [str(who) for who in range(1, PEERS + 1) if who not in cut]
    sides = f"coordinator,{','.join(rest)}|{','.join(map(str, cut))}"
    return "--partition", f"{sides}@{moment(seed)}/{_phase(seed)}:30s"


def _coordinator_back(seed: int) -> Flags:
    moment_killed = f"coordinator@{moment(seed)}/{_phase(seed)}"
    return "--kill", moment_killed, "--back", f"coordinator@{moment(seed) + 2}"


def _killed_with_a_state(seed: int) -> Flags:
    """Two peers go on until one of them alone decides. New bases in every round make a state less than the rounds."""
    back = moment(seed) + 22
    kills = (f"coordinator@{moment(seed)}/{_phase(seed)}", f"coordinator@{back}/state")
    backs = (f"coordinator@{back}", f"coordinator@{back + 6}")
    faults = [part for kill, again in zip(kills, backs, strict=True) for part in ("--kill", kill, "--back", again)]
    keys = ("optimizer.aim=gradient", "optimizer.inner=adam", "periods.k_r=40", "periods.k_r_embedding=40")
    return (*faults, *(part for key in keys for part in ("--set", key)), "--set", "checkpoint.every=5")


def _killed_in_a_row(seed: int) -> Flags:
    """Some of the kills come while it starts."""
    chance, round, faults = random.Random(f"kills {seed}"), moment(seed), list[str]()
    for _ in range(KILLS):
        faults += ["--kill", f"coordinator@{round}/{chance.choice(PHASES)}", "--back", f"coordinator@{round + 1}"]
        round += chance.randint(2, 5)
    return tuple(faults)


def _peer_back(seed: int) -> Flags:
    return "--kill", f"{peer(seed)}@{moment(seed)}/{_phase(seed)}", "--back", f"{peer(seed)}@{moment(seed) + 2}"


def _thin(seed: int) -> Flags:
    return "--up", "all:2mbit", "--down", "all:10mbit", "--rtt", "all:60ms", "--loss", "all:2%"


ALONE: Sequence[Scenario] = (
    *_by_phase("peer", "a peer that does not reduce", _kill_behind_nat, lost=0),
    *_by_phase("reducer", "a reducer", partial(_kill, "reducer"), lost=1),
    *_by_phase("coordinator", "the coordinator", partial(_kill, "coordinator"), lost=1, seconds=15.0),
    Scenario(
        name="coordinator-back",
        what="the coordinator is killed, and comes back two rounds later",
        flags=_coordinator_back,
        rounds=16,
        lost=1,
        seconds=15.0,
    ),
    Scenario(
        name="killed-with-a-state",
        what="the coordinator comes back after two peers went on, takes a state, and is killed right then",
        flags=_killed_with_a_state,
        peers=2,
        rounds=44,
        lost=2,
        seconds=15.0,
    ),
    Scenario(
        name="killed-in-a-row",
        what=f"the coordinator is killed {KILLS} times in a row, each time brought back",
        flags=_killed_in_a_row,
        rounds=110,
        lost=5,
        seconds=20.0,
        most_seconds=900.0,
    ),
    Scenario(
        name="peer-back",
        what="a peer is killed, and comes back two rounds later",
        flags=_peer_back,
        rounds=16,
        lost=1,
    ),
    Scenario(
        name="leaders-killed",
        what="the leader is killed, and four rounds later the one that took over",
        flags=_leaders,
        rounds=14,
        lost=2,
        seconds=15.0,
    ),
    Scenario(
        name="partition-leader",
        what="30 s partition: the leader and a peer on one side, three voters on the other",
        flags=_minority_leads,
        rounds=32,
        lost=1,
        says_minority=True,
    ),
    Scenario(
        name="partition-peers",
        what="30 s partition: two peers on one side, the leader and two voters on the other",
        flags=_minority_follows,
        rounds=32,
        lost=1,
        says_minority=True,
    ),
    Scenario(
        name="peer-frozen",
        what="a peer sleeps for 20 s, as a closed laptop does",
        flags=lambda seed: _frozen(str(peer(seed)), seed),
        rounds=20,
        lost=1,
        back_rounds=2,
    ),
    Scenario(
        name="leader-frozen",
        what="the leader sleeps for 20 s",
        flags=lambda seed: _frozen("leader", seed),
        rounds=20,
        lost=1,
        seconds=15.0,
    ),
    Scenario(
        name="peer-slow",
        what="a peer is ten times slower than the others",
        flags=lambda seed: (),
        rounds=10,
        slow={2: 10.0},
    ),
    Scenario(
        name="late-joiner",
        what="a further peer joins late",
        flags=lambda seed: ("--join-at", str(moment(seed) + 2)),
        rounds=16,
    ),
    Scenario(
        name="behind-nat",
        what="two of four peers stand behind NAT, and the coordinator is killed",
        flags=lambda seed: ("--nat", "3", "--nat", "4", "--kill", f"coordinator@{moment(seed)}/{_phase(seed)}"),
        lost=1,
        seconds=15.0,
    ),
    Scenario(
        name="thin-lines",
        what="lines of 2 and 10 Mbit/s, 60 ms and 2 % of packets lost each; a peer is killed",
        flags=lambda seed: (*_thin(seed), "--kill", f"{peer(seed)}@{moment(seed)}/{_phase(seed)}"),
        lost=1,
    ),
    Scenario(
        name="everybody-killed",
        what="every process is killed at once, and the run resumed from what is on the disks",
        flags=lambda seed: (),
        lost=1,
        seconds=60.0,
        back=60.0,
        crash_round=moment,
    ),
)

MIXED = Scenario(
    name="mixture",
    what="two or three of these in one run, drawn by its seed",
    flags=mixed,
    rounds=22,
    lost=3,
    seconds=30.0,
)
SCENARIOS: Mapping[str, Scenario] = {scenario.name: scenario for scenario in (*ALONE, MIXED)}
