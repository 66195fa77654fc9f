"""What each round asks of all peers: rates, weight decay, which bases are refreshed, whether moments are averaged.

Moments have DES-LOC's periods K_u and K_v (Iacob et al., arXiv 2505.22549, section 2). Bases of a run with
``optimizer.aim = "seed"`` follow from the seed and the round, and are never sent. Pure.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache

from tsr_swarm.config.blocks import Block, BlockRole
from tsr_swarm.config.layout import published_slots, upload_slots
from tsr_swarm.config.manifest import Manifest
from tsr_swarm.config.round_plan import Due, RoundPlan
from tsr_swarm.config.run import OptimizerConfig, RunConfig, WireConfig
from tsr_swarm.lowrank.basis import Basis
from tsr_swarm.lowrank.dct import drawn_basis
from tsr_swarm.optim.inner_optimizer import MOMENTUM

MOST_OFFSETS = 2048  # rounds that are levelled: periods without a common multiple up to here only nearly


def plan_round(config: RunConfig, blocks: Sequence[Block], round: int, parent: str) -> RoundPlan:
    """Return the announcement of ``round`` (from 1); ``parent`` is the chain hash (hex) of the round before.

    Steps are counted as round * K_x, however many a peer has done. The leader announces the numbers, because two
    machines may differ in a cosine's last bit.
    """
    steps = config.periods.k_x
    first_step = (round - 1) * steps
    lr_first = learning_rate(config.optimizer, first_step)
    lr_last = learning_rate(config.optimizer, first_step + steps - 1)
    return RoundPlan(
        round=round,
        first_step=first_step,
        steps=steps,
        lr_first=lr_first,
        lr_last=lr_last,
        decay=(1 - (lr_first + lr_last) / 2 * config.optimizer.weight_decay) ** steps,
        due=due_blocks(config, blocks, round),
        parent=parent,
        seed=config.run.seed,
    )


def follows_manifest(plan: RoundPlan, manifest: Manifest) -> bool:
    """Return whether the manifest allows an announced plan. Rates may differ in their last bits.

    Where bases follow displacements the leader may choose whose sketches it asks for (see sketch_budget.py), no more.
    """
    legal = plan_round(manifest.config, manifest.blocks, plan.round, plan.parent)
    low_rank = {index for index, block in enumerate(manifest.blocks) if block.is_low_rank}
    if manifest.config.optimizer.aim == "displacement" and plan.due.tangent <= low_rank:
        legal = replace(legal, due=replace(legal.due, tangent=plan.due.tangent))
    rates = zip((plan.lr_first, plan.lr_last, plan.decay), (legal.lr_first, legal.lr_last, legal.decay), strict=True)
    exact = [(p.first_step, p.steps, p.due, p.seed) for p in (plan, legal)]
    return exact[0] == exact[1] and all(math.isclose(a, b, rel_tol=1e-9) for a, b in rates)


def learning_rate(optimizer: OptimizerConfig, step: int) -> float:
    """Return the rate of global ``step``, from 0: linear warm-up, then constant, or a cosine down to a tenth of lr."""
    after = step - optimizer.warmup_steps
    if after < 0:
        return optimizer.peak_rate * (step + 1) / optimizer.warmup_steps
    if not optimizer.decay_steps:
        return optimizer.peak_rate
    progress = min(1.0, after / optimizer.decay_steps)
    return optimizer.peak_rate * (0.1 + 0.45 * (1 + math.cos(math.pi * progress)))


def due_blocks(config: RunConfig, blocks: Sequence[Block], round: int) -> Due:
    """Return which blocks send a sketch or draw their next basis in ``round``, and which moments are averaged.

    Moments are averaged in rounds whose last step is a multiple of their period.

    A randomized SVD takes two rounds, a range sketch and a projection, and blocks have it in turn, each once a period.
    Other refreshes by what peers send begin in round 1, because first bases are random. A drawn basis would be
    no better, so the first draw is a period later. Tangent sketches are for work outside the bases: runs of core peers
    alone have none, and drawn bases go through all directions in time. They go out when the basis changes.
    """
    aim, none = config.optimizer.aim, frozenset[int]()
    periods = {index: refresh_rounds(config, block) for index, block in enumerate(blocks) if block.is_low_rank}
    offsets = refresh_offsets(tuple(blocks), config) if aim == "gradient" else {}

    def due(counted: int) -> frozenset[int]:
        """Blocks whose turn it is when so many rounds are counted; below 0: none."""
        turns = {index: counted - offsets.get(index, 0) for index in periods if counted >= 0}
        return frozenset(index for index, turn in turns.items() if turn % periods[index] == 0)

    project = due(round - 2) if aim == "gradient" else none
    refresh = project if aim == "gradient" else due(round if aim == "seed" else round - 1)
    first, second = (period > 0 and round * config.periods.k_x % period == 0 for period in own_moment_periods(config))
    no_flush = config.optimizer.local_space == "core" or aim == "seed"
    return Due(
        tangent=none if no_flush else refresh,
        range=due(round - 1) if aim == "gradient" else none,
        project=project,
        choose=refresh if aim == "dct" else none,
        draw=tuple((index, basis_number(config, blocks[index], round)) for index in sorted(refresh))
        if aim == "seed"
        else (),
        first=first,
        second=second,
    )


def refresh_rounds(config: RunConfig, block: Block) -> int:
    """Return the rounds between two refreshes of a low-rank block."""
    return config.refresh_rounds_embedding if block.role is BlockRole.EMBEDDING else config.refresh_rounds


@lru_cache(maxsize=32)
def refresh_offsets(blocks: tuple[Block, ...], config: RunConfig) -> Mapping[int, int]:
    """Return the round, from 0, in which each low-rank block's first range sketch is sent; its projection is the next.

    Level in bytes up and down: largest blocks first, each where the largest of its rounds is least full.
    """
    low_rank = frozenset(index for index, block in enumerate(blocks) if block.is_low_rank)
    passes = [_block_bytes(blocks, due, config.wire) for due in (Due(range=low_rank), Due(project=low_rank))]
    base = _block_bytes(blocks, Due(), config.wire)
    costs = {index: [max(0, sizes[index] - base[index]) for sizes in passes] for index in low_rank}
    window = min(MOST_OFFSETS, math.lcm(*(refresh_rounds(config, blocks[index]) for index in low_rank)))
    load, offsets = [0] * window, {}
    for index in sorted(low_rank, key=lambda index: (-sum(costs[index]), index)):
        period = min(window, refresh_rounds(config, blocks[index]))

        def after(offset: int, index: int = index, period: int = period) -> dict[int, int]:
            """Return the load of the block's rounds if its first one were ``offset``."""
            rounds: dict[int, int] = {}
            for first in range(offset, window, period):
                for later, cost in enumerate(costs[index]):
                    at = (first + later) % window
                    rounds[at] = rounds.get(at, load[at]) + cost
            return rounds

        offset = min(range(period), key=lambda offset: (max(after(offset).values()), offset))
        for at, loaded in after(offset).items():
            load[at] = loaded
        offsets[index] = offset
    return offsets


def _block_bytes(blocks: Sequence[Block], due: Due, wire: WireConfig) -> list[int]:
    """Return the bytes of each block up and down, before compression."""
    sizes = [0] * len(blocks)
    for slot in (*upload_slots(blocks, due, wire), *published_slots(blocks, due, wire)):
        sizes[slot.block] += slot.raw_bytes
    return sizes


def basis_number(config: RunConfig, block: Block, round: int) -> int:
    """Return the number of the drawn basis that a low-rank block has after ``round`` rounds, from 0."""
    return round // refresh_rounds(config, block)


def own_moment_periods(config: RunConfig) -> tuple[int, int]:
    """Return K_u and K_v of a run's cores in steps; 0: never."""
    periods, optimizer = config.periods, config.optimizer
    return moment_periods(periods.k_u, periods.k_v, periods.k_x, optimizer.inner, optimizer.betas)


def moment_periods(k_u: int | str, k_v: int | str, k_x: int, inner: str, betas: tuple[float, float]) -> tuple[int, int]:
    """Return K_u and K_v in steps as they are set, or for "auto" the half-life of the moment that ``inner`` keeps."""
    beta1 = MOMENTUM if inner == "muon" else betas[0]
    first = half_life(beta1, k_x) if isinstance(k_u, str) else k_u
    second = half_life(betas[1], k_x) if isinstance(k_v, str) else k_v
    return first, second


def half_life(beta: float, k_x: int) -> int:
    """Return the half-life of a moment, ln 2 / -ln(beta) steps, in whole periods k_x, at least one."""
    steps = math.log(2) / -math.log(beta) if beta else 0.0
    return max(1, round(steps / k_x)) * k_x


def are_drawn(manifest: Manifest) -> bool:
    return manifest.config.optimizer.aim == "seed"


def drawn_bases(manifest: Manifest, round: int) -> Mapping[int, Basis]:
    """Draw the bases of all low-rank blocks after ``round`` rounds."""
    bases = {}
    for index, block in enumerate(manifest.blocks):
        if block.is_low_rank:
            number = basis_number(manifest.config, block, round)
            seed = manifest.config.run.seed
            bases[index] = drawn_basis(block.rows, block.cols, block.ranks, seed=seed, block=index, number=number)
    return bases
