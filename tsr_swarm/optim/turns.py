"""Whose turn it is in which round: what comes once in a period is spread over it, so that rounds carry about alike."""

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

MOST_ROUNDS = 2048  # that are levelled: periods without a common multiple up to here only nearly

Bytes = tuple[int, int]  # up and down
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Load:
    """What comes every ``period`` rounds: ``passes`` are the bytes of its rounds, one after the other.

    ``offsets``: the rounds of a period, from 0, in which it may begin; where all are as full, in the first of them.
    """

    period: int
    passes: Sequence[Bytes]
    offsets: Sequence[int]


@dataclass(frozen=True, slots=True)
class Turn:
    """Rounds, from 0: ``offset``, and every ``period`` after it."""

    period: int
    offset: int

    def is_in(self, round: int) -> bool:
        return round >= 0 and round % self.period == self.offset


def common_period(periods: Iterable[int]) -> int:
    """Return the rounds after which all turns come again, at most MOST_ROUNDS; 1 without any period."""
    return min(MOST_ROUNDS, math.lcm(*periods))


def level(loads: Mapping[Key, Load]) -> dict[Key, Turn]:
    """Return when each load begins: those without a choice first, then the largest, where it is least full.

    That is where the fullest of a load's own rounds is least full with it.

    A round is as full as its share of all bytes up or of all bytes down, whichever is larger. Shares are compared as
    integers, so that every machine finds the same. Of equal loads the first of ``loads`` is laid first.
    """
    window = common_period(load.period for load in loads.values())
    totals = [0, 0]
    for load in loads.values():
        for way in (0, 1):
            totals[way] += max(1, window // load.period) * sum(sizes[way] for sizes in load.passes)
    up, down = (max(1, total) for total in totals)
    # a share of all bytes up times all bytes up and down, and the same for down
    shares = {key: [(sent * down, received * up) for sent, received in load.passes] for key, load in loads.items()}
    filled: list[Bytes] = [(0, 0)] * window
    placed = {}
    for key in sorted(loads, key=lambda key: (len(loads[key].offsets) > 1, -sum(map(sum, shares[key])))):
        load = loads[key]
        choices = ((offset, _filled_after(filled, load.period, shares[key], offset)) for offset in load.offsets)
        offset, after = min(choices, key=lambda choice: max(map(max, choice[1].values())))
        for at, full in after.items():
            filled[at] = full
        placed[key] = Turn(load.period, offset)
    return {key: placed[key] for key in loads}


def _filled_after(filled: Sequence[Bytes], period: int, passes: Sequence[Bytes], offset: int) -> dict[int, Bytes]:
    """Return how full a load's rounds are with it, if it begins in ``offset``."""
    window, after = len(filled), dict[int, Bytes]()
    for turn in range(max(1, window // period)):
        for later, (sent, received) in enumerate(passes):
            at = (offset + turn * period + later) % window
            up, down = after.get(at, filled[at])
            after[at] = up + sent, down + received
    return after
