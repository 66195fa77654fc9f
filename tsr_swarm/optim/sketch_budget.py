"""Which blocks of a full-space run send a tangent sketch within a byte budget: those whose cores would miss most.

A core U^T A V takes kappa = |U^T A V|^2 / |A|^2 of a displacement's energy; a tangent sketch takes more and re-aims the
basis, but has more bytes. Peers measure kappa and |A|^2, the leader announces who sends what (``round.budget_kb``).
Not from a paper: TSR-Adam (Dang et al., arXiv 2602.08007) refreshes all matrices by one period. Here a block whose
period is over comes before all others.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tsr_swarm.config.blocks import Block
from tsr_swarm.config.layout import KB, core_upload, sketch_costs
from tsr_swarm.config.round_plan import RoundPlan
from tsr_swarm.config.run import RunConfig
from tsr_swarm.lowrank.sketch import Captured
from tsr_swarm.optim.periods import refresh_rounds


@dataclass(frozen=True, slots=True)
class RefreshState:
    """What the leader knows of each low-rank block. A new leader begins with periods, and is told the rest again."""

    refreshed: Mapping[int, int]  # the round that made its basis
    captured: Mapping[int, Captured] = field(default_factory=dict)  # the newest mean over peers


def begin_refresh_state(config: RunConfig, blocks: Sequence[Block], round: int) -> RefreshState:
    """Return a leader's state before ``round``: nothing measured, all blocks refreshed by their periods."""
    refreshed = {}
    for index, block in enumerate(blocks):
        if block.is_low_rank:
            period = refresh_rounds(config, block)
            refreshed[index] = 1 + (round - 2) // period * period  # rounds 1, 1 + period, ...; below 1: never yet
    return RefreshState(refreshed)


def after_round(
    known: RefreshState, plan: RoundPlan, void: frozenset[int], measured: Mapping[int, Captured]
) -> RefreshState:
    """Return the state after ``plan``'s round is committed. Blocks in ``void`` have kept their bases."""
    refreshed = dict.fromkeys(plan.due.tangent - void, plan.round)
    return RefreshState({**known.refreshed, **refreshed}, {**known.captured, **measured})


def within_budget(plan: RoundPlan, config: RunConfig, blocks: Sequence[Block], known: RefreshState) -> RoundPlan:
    """Return ``plan`` with the sketches that a budget allows instead of those of the periods; unchanged without one.

    The upload stays within the budget, if it does so without any sketch: see config/layout.py.
    """
    if not config.round.budget_kb:
        return plan
    costs = sketch_costs(blocks, config.wire)
    room = config.round.budget_kb * KB - core_upload(blocks, config.wire, plan.due)
    periods = {index: refresh_rounds(config, blocks[index]) for index in costs}
    tangent = choose_tangents(preference(known, periods, costs, plan.round), costs, room)
    return replace(plan, due=replace(plan.due, tangent=tangent))


def preference(
    known: RefreshState, periods: Mapping[int, int], costs: Mapping[int, int], round: int
) -> tuple[int, ...]:
    """Return the blocks that should send a sketch in ``round``, the most important first.

    Those whose period (in rounds) is over, the oldest basis first; then the others, by the energy that their cores
    would miss for each further byte, (1 - kappa) |A|^2 / cost. Blocks re-aimed in the last round come last: they were
    measured in their old bases, before work was flushed. A block of no gain is left out.
    """
    due = {index for index, period in periods.items() if round - known.refreshed[index] >= period}
    gains = {index: (1 - seen.kappa) * seen.energy for index, seen in known.captured.items() if index not in due}
    others = [index for index, gain in gains.items() if gain > 0]
    return (
        *sorted(due, key=lambda index: (known.refreshed[index], index)),
        *sorted(
            others,
            # a sketch that costs nothing is as good as one of a byte
            key=lambda index: (known.refreshed[index] == round - 1, -gains[index] / max(1, costs[index]), index),
        ),
    )


def choose_tangents(order: Iterable[int], costs: Mapping[int, int], room: int) -> frozenset[int]:
    """Choose blocks in ``order`` as long as their ``costs`` fit what is left of ``room`` bytes; others are passed over.

    For costs of 0 and more: a set that fits and has a block that this one lacks, lacks one that comes before it in
    ``order``. Where that is by gain a byte, this set's gain falls short of the best one's by less than the gain of the
    first block passed over (the greedy bound of the knapsack problem), and by nothing where all costs are equal.
    """
    chosen = set()
    for index in order:
        if costs[index] <= room:
            chosen.add(index)
            room -= costs[index]
    return frozenset(chosen)


def mean_captured(parts: Iterable[tuple[int, Mapping[int, Captured]]]) -> dict[int, Captured]:
    """Average over pairs (tokens, what a peer measured), weighted by tokens, by block over peers that measured it."""
    sums: dict[int, tuple[int, float, float]] = {}
    for tokens, captured in parts:
        for index, seen in captured.items():
            weight, kappa, energy = sums.get(index, (0, 0.0, 0.0))
            sums[index] = weight + tokens, kappa + tokens * seen.kappa, energy + tokens * seen.energy
    return {index: Captured(kappa / weight, energy / weight) for index, (weight, kappa, energy) in sums.items()}
