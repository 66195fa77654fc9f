"""Several faults in one run, drawn by its seed. Pure."""

import random
from collections.abc import Callable, Sequence

from tests.bench.survive.scenario import PEERS, PHASES, Flags

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
    """Two or three different things one after the other, on different nodes; at most two are gone for good.

    A reducer is killed last: nobody knows beforehand who that is.
    """
    chance = random.Random(f"survive {seed}")
    nodes = chance.sample(["coordinator", *map(str, range(1, PEERS + 1))], 3)
    parts = chance.sample(range(len(_PARTS)), chance.randint(2, 3))
    flags: Flags = ("--rtt", f"all:{chance.randint(5, 60)}ms") if chance.random() < 0.3 else ()
    for place, (part, who) in enumerate(zip(sorted(parts), nodes, strict=False)):
        flags += _PARTS[part](chance, who, 4 + 4 * place + chance.randint(0, 1))
    return flags
