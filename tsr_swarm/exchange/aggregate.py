"""The weighted mean of contributions. The result depends on who is included, never on who came first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tsr_swarm.config.layout import Slot
from tsr_swarm.lowrank.grid import Grid


@dataclass(frozen=True, slots=True)
class WeightedPayload:
    """One peer's decoded payload. ``tokens`` is its weight; ``number`` fixes its place in the sum."""

    number: int
    tokens: int
    grids: Mapping[Slot, Grid]


def weighted_mean(contributions: Sequence[WeightedPayload], slots: Sequence[Slot]) -> dict[Slot, Tensor]:
    """Mean by tokens of every slot, float64 (rows, cols). Summed in the order of peer numbers.

    ``contributions`` must not be empty, and each must hold every slot.
    """
    ordered = sorted(contributions, key=lambda contribution: contribution.number)
    total = sum(contribution.tokens for contribution in ordered)
    means = {}
    for slot in slots:
        # mean = sum_i w_i x_i / sum_i w_i
        sums = torch.zeros(slot.rows, slot.cols, dtype=torch.float64)
        for contribution in ordered:
            sums += contribution.grids[slot].numbers() * contribution.tokens
        means[slot] = sums / total
    return means
