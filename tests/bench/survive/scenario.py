"""A scenario: what happens to a swarm, as flags of ``tsr-swarm local`` by seed, and what must hold. Pure."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

PEERS = 4  # with the coordinator five voters: two may be missing
DAWDLE = 8  # of every peer: a step takes that many times as long as it has to
PHASES = ("train", "exchange", "commit", "apply")
Flags = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """``what``: happens, in words. The limits of a run that is well follow it."""

    name: str
    what: str
    flags: Callable[[int], Flags]  # by seed
    rounds: int = 12
    peers: int = PEERS
    lost: int = 0  # rounds, at most
    seconds: float = 20.0  # from a fault to the next round that stands, at most
    back: float = 30.0  # from its end until who was hurt has caught up, at most
    back_rounds: int | None = None  # from its end until work of who was hurt is in a round, at most
    slow: Mapping[int, float] | None = None  # peers that are slower than the others, and how much
    says_minority: bool = False  # somebody who is cut off from the majority says so
    most_seconds: float = 300.0  # of a run; several times as long as one takes
    crash_round: Callable[[int], int] | None = None  # when every process is killed, and the run resumed


def arguments(scenario: Scenario, seed: int) -> list[str]:
    """All of ``tsr-swarm local`` that depends on the scenario and its seed."""
    slow = scenario.slow or {}
    paces = {who: DAWDLE * slow.get(who, 1.0) for who in range(1, scenario.peers + 1)}
    dawdling = [part for who, pace in paces.items() for part in ("--slow", f"{who}:{pace:g}")]
    size = ["--peers", str(scenario.peers), "--rounds", str(scenario.rounds), "--set", f"run.seed={seed}"]
    return [*size, *dawdling, *scenario.flags(seed)]
