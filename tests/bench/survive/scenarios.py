"""The scenarios: faults in a swarm, as flags of ``tsr-swarm local`` by seed, and the limits that a sound run keeps."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any

PEERS = 4  # with the coordinator five voters: two may be missing
SLOWDOWN = 8  # of every peer's steps, so that all processes fit on a few cores
PHASES = ("train", "exchange", "commit", "apply")
KILLS = 25  # of the coordinator, one after the other
Flags = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Scenario:
    """What happens to a swarm, and the limits of a sound run."""

    name: str
    description: str
    flags: Callable[[int], Flags]  # by seed
    _: KW_ONLY
    rounds: int = 12
    peers: int = PEERS
    max_lost: int = 1  # rounds
    max_seconds: float = 20.0  # from a fault to the next committed round
    max_back: float = 30.0  # seconds from the end of a node's outage until it has caught up
    max_back_rounds: int | None = None  # from the end of a peer's outage until its work is in a round
    slow: Mapping[int, float] | None = None  # peers that are slower than the others, and how much
    reports_minority: bool = False  # a node that is cut off from the majority reports it
    timeout: float = 300.0  # seconds; several times as long as a run takes
    crash_round: Callable[[int], int] | None = None  # when every process is killed, and the run resumed


def arguments(scenario: Scenario, seed: int) -> list[str]:
    """Return all arguments of ``tsr-swarm local`` that depend on the scenario and its seed."""
    slow = scenario.slow or {}
    factors = {number: SLOWDOWN * slow.get(number, 1.0) for number in range(1, scenario.peers + 1)}
    slowed = [part for number, factor in factors.items() for part in ("--slow", f"{number}:{factor:g}")]
    size = ["--peers", str(scenario.peers), "--rounds", str(scenario.rounds), "--set", f"run.seed={seed}"]
    return [*size, *slowed, *scenario.flags(seed)]


# --- flags by seed ----------------------------------------------------------------------------------------------------


def peer(seed: int) -> int:
    return 1 + seed % PEERS


def moment(seed: int) -> int:
    """The round in which it happens. By then there are five voters."""
    return 4 + seed % 3


def phase(seed: int) -> str:
    return PHASES[seed % len(PHASES)]


def when(seed: int) -> str:
    return f"{moment(seed)}/{phase(seed)}"


def _kill(who: str, phase: str) -> Callable[[int], Flags]:
    return lambda seed: ("--kill", f"{who}@{moment(seed)}/{phase}")


def _kill_behind_nat(phase: str) -> Callable[[int], Flags]:
    """Whoever can be dialled may reduce: a peer that does nothing but train cannot be."""
    return lambda seed: ("--nat", f"{peer(seed)}", "--kill", f"{peer(seed)}@{moment(seed)}/{phase}")


def _kill_and_restart(who: str, seed: int) -> Flags:
    return "--kill", f"{who}@{when(seed)}", "--back", f"{who}@{moment(seed) + 2}"


def _suspend(who: str, seed: int) -> Flags:
    return "--stop", f"{who}@{when(seed)}:20s"


def _kill_two_leaders(seed: int) -> Flags:
    return "--kill", f"leader@{when(seed)}", "--kill", f"leader@{moment(seed) + 4}/{phase(seed + 1)}"


def _partition(side: Sequence[object], rest: Sequence[object], seed: int) -> Flags:
    return "--partition", f"{','.join(map(str, side))}|{','.join(map(str, rest))}@{when(seed)}:30s"


def _leader_in_minority(seed: int) -> Flags:
    rest = [number for number in range(1, PEERS + 1) if number != peer(seed)]
    return _partition(["coordinator", peer(seed)], rest, seed)


def _leader_in_majority(seed: int) -> Flags:
    cut = sorted({peer(seed), peer(seed + 1)})
    rest = [number for number in range(1, PEERS + 1) if number not in cut]
    return _partition(["coordinator", *rest], cut, seed)


def _kill_with_a_state(seed: int) -> Flags:
    """Two peers go on until one of them alone decides. New bases in every round make a state less than the rounds."""
    back = moment(seed) + 22
    kills = (f"coordinator@{when(seed)}", f"coordinator@{back}/state")
    backs = (f"coordinator@{back}", f"coordinator@{back + 6}")
    faults = [part for kill, again in zip(kills, backs, strict=True) for part in ("--kill", kill, "--back", again)]
    keys = ("optimizer.aim=gradient", "optimizer.inner=adam", "periods.k_r=40", "periods.k_r_embedding=40")
    return (*faults, *(part for key in keys for part in ("--set", key)), "--set", "checkpoint.every=5")


def _kill_in_a_row(seed: int) -> Flags:
    """Some of the kills come while the coordinator starts."""
    chance, round, faults = random.Random(f"kills {seed}"), moment(seed), list[str]()
    for _ in range(KILLS):
        faults += ["--kill", f"coordinator@{round}/{chance.choice(PHASES)}", "--back", f"coordinator@{round + 1}"]
        round += chance.randint(2, 5)
    return tuple(faults)


def _none(seed: int) -> Flags:
    return ()


def _slow_links(seed: int) -> Flags:
    links = ("--up", "all:2mbit", "--down", "all:10mbit", "--rtt", "all:60ms", "--loss", "all:2%")
    return (*links, "--kill", f"{peer(seed)}@{when(seed)}")


_PARTS: Sequence[Callable[[random.Random, str, int], Flags]] = (
    lambda chance, who, round: ("--kill", f"{who}@{round}/{chance.choice(PHASES)}"),
    lambda chance, who, round: (
        *("--kill", f"{who}@{round}/{chance.choice(PHASES)}"),
        *("--back", f"{who}@{round + chance.randint(2, 4)}"),
    ),
    lambda chance, who, round: ("--stop", f"{who}@{round}/{chance.choice(PHASES)}:{chance.randint(4, 14)}s"),
    lambda chance, who, round: ("--join-at", str(round)),
    lambda chance, who, round: ("--kill", f"reducer@{round}/{chance.choice(PHASES[1:])}"),
)


def mixed(seed: int) -> Flags:
    """Two or three different faults one after the other, on different nodes; at most two nodes are gone for good.

    A reducer is killed last: which node that is cannot be known beforehand.
    """
    chance = random.Random(f"survive {seed}")
    nodes = chance.sample(["coordinator", *map(str, range(1, PEERS + 1))], 3)
    parts = chance.sample(range(len(_PARTS)), chance.randint(2, 3))
    flags: Flags = ("--rtt", f"all:{chance.randint(5, 60)}ms") if chance.random() < 0.3 else ()
    for place, (part, who) in enumerate(zip(sorted(parts), nodes, strict=False)):
        flags += _PARTS[part](chance, who, 4 + 4 * place + chance.randint(0, 1))
    return flags


# --- the scenarios ----------------------------------------------------------------------------------------------------


def _by_phase(name: str, who: str, flags: Callable[[str], Callable[[int], Flags]], **limits: Any) -> list[Scenario]:
    return [
        Scenario(f"{name}-{phase}", f"{who} is killed as {phase} begins", flags(phase), **limits) for phase in PHASES
    ]


_ALL = (
    *_by_phase("peer", "a peer that does not reduce", _kill_behind_nat, max_lost=0),
    *_by_phase("reducer", "a reducer", partial(_kill, "reducer")),
    *_by_phase("coordinator", "the coordinator", partial(_kill, "coordinator"), max_seconds=15.0),
    Scenario(
        "coordinator-back",
        "the coordinator is killed, and comes back two rounds later",
        partial(_kill_and_restart, "coordinator"),
        rounds=16,
        max_seconds=15.0,
    ),
    Scenario(
        "killed-with-a-state",
        "the coordinator comes back after two peers went on, takes a state, and is killed right then",
        _kill_with_a_state,
        peers=2,
        rounds=44,
        max_lost=2,
        max_seconds=15.0,
    ),
    Scenario(
        "killed-in-a-row",
        f"the coordinator is killed {KILLS} times in a row, each time brought back",
        _kill_in_a_row,
        rounds=110,
        max_lost=5,
        timeout=900.0,
    ),
    Scenario(
        "peer-back",
        "a peer is killed, and comes back two rounds later",
        lambda seed: _kill_and_restart(f"{peer(seed)}", seed),
        rounds=16,
    ),
    Scenario(
        "leaders-killed",
        "the leader is killed, and four rounds later the one that took over",
        _kill_two_leaders,
        rounds=14,
        max_lost=2,
        max_seconds=15.0,
    ),
    Scenario(
        "partition-leader",
        "30 s partition: the leader and a peer on one side, three voters on the other",
        _leader_in_minority,
        rounds=32,
        reports_minority=True,
    ),
    Scenario(
        "partition-peers",
        "30 s partition: two peers on one side, the leader and two voters on the other",
        _leader_in_majority,
        rounds=32,
        reports_minority=True,
    ),
    Scenario(
        "peer-frozen",
        "a peer sleeps for 20 s, as a closed laptop does",
        lambda seed: _suspend(f"{peer(seed)}", seed),
        rounds=20,
        max_back_rounds=2,
    ),
    Scenario("leader-frozen", "the leader sleeps for 20 s", partial(_suspend, "leader"), rounds=20, max_seconds=15.0),
    Scenario("peer-slow", "a peer is ten times slower than the others", _none, rounds=10, slow={2: 10.0}, max_lost=0),
    Scenario(
        "late-joiner",
        "a further peer joins late",
        lambda seed: ("--join-at", str(moment(seed) + 2)),
        rounds=16,
        max_lost=0,
    ),
    Scenario(
        "behind-nat",
        "two of four peers stand behind NAT, and the coordinator is killed",
        lambda seed: ("--nat", "3", "--nat", "4", "--kill", f"coordinator@{when(seed)}"),
        max_seconds=15.0,
    ),
    Scenario(
        "thin-lines", "lines of 2 and 10 Mbit/s, 60 ms and 2 % of packets lost each; a peer is killed", _slow_links
    ),
    Scenario(
        "everybody-killed",
        "every process is killed at once, and the run resumed from what is on the disks",
        _none,
        max_seconds=60.0,
        max_back=60.0,
        crash_round=moment,
    ),
    Scenario(
        "mixture", "two or three of these in one run, drawn by its seed", mixed, rounds=22, max_lost=3, max_seconds=30.0
    ),
)
SCENARIOS: Mapping[str, Scenario] = {scenario.name: scenario for scenario in _ALL}
SMOKE = Scenario(  # the shortest that has a fault; not among the published ones
    "smoke",
    "every process is killed as the second round opens, and the run resumed",
    _none,
    rounds=3,
    peers=2,
    max_seconds=60.0,
    max_back=60.0,
    crash_round=lambda seed: 2,
)
