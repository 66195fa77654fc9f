"""What each round asks of all peers: rates, weight decay, which bases are refreshed, which moments are averaged.

Moments have DES-LOC's periods K_u and K_v (Iacob et al., arXiv 2505.22549, section 2), but blocks have them in turn.
Bases of a run with ``optimizer.aim = "seed"`` follow from the seed and the round, and are never sent. Pure.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Literal

from tsr_swarm.config.blocks import Block, BlockRole
from tsr_swarm.config.layout import block_bytes, published_slots, upload_slots
from tsr_swarm.config.manifest import Manifest
from tsr_swarm.config.round_plan import Due, RoundPlan
from tsr_swarm.config.run import OptimizerConfig, RunConfig, WireConfig
from tsr_swarm.lowrank.basis import Basis
from tsr_swarm.lowrank.dct import drawn_basis
from tsr_swarm.optim.inner_optimizer import MOMENTUM
from tsr_swarm.optim.turns import Bytes, Load, Turn, common_period, level

_Key = tuple[Literal["refresh", "first", "second"], int]  # what has a turn, and of which block


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
    """Return which blocks send a sketch or draw their next basis in ``round``, and which send moments.

    Each once a period, in turn, so that rounds are about equally long.

    A randomized SVD takes two rounds, a range sketch and a projection. Other refreshes by what peers send begin in the
    first period too, because first bases are random. A drawn basis would be no better, so the first draw is a period
    later. Tangent sketches are for work outside the bases: runs of core peers alone have none, and drawn bases go
    through all directions in time. They go out when the basis changes.
    """
    aim, none = config.optimizer.aim, frozenset[int]()
    turns = _turns(config, tuple(blocks))

    def begun(what: str, round: int) -> frozenset[int]:
        """Return the blocks whose turn begins in ``round``, counted from 1."""
        return frozenset(index for (kind, index), turn in turns.items() if kind == what and turn.is_in(round - 1))

    refresh = begun("refresh", round - 1 if aim == "gradient" else round)
    return Due(
        tangent=refresh if _flushes(config) else none,
        range=begun("refresh", round) if aim == "gradient" else none,
        project=refresh if aim == "gradient" else none,
        choose=refresh if aim == "dct" else none,
        draw=tuple((index, basis_number(config, blocks[index], round)) for index in sorted(refresh))
        if aim == "seed"
        else (),
        first=begun("first", round),
        second=begun("second", round),
    )


def cycle_rounds(config: RunConfig, blocks: Sequence[Block]) -> int:
    """Return the rounds after which the same blocks are due again, as far as turns.py looks ahead."""
    return common_period(turn.period for turn in _turns(config, tuple(blocks)).values())


@lru_cache(maxsize=32)
def _turns(config: RunConfig, blocks: tuple[Block, ...]) -> Mapping[_Key, Turn]:
    return level(_loads(config, blocks))


def _loads(config: RunConfig, blocks: Sequence[Block]) -> Mapping[_Key, Load]:
    """Return what blocks send beyond their cores: refreshes, which would rather begin early, and moments, late.

    A block alone then averages its moments as in DES-LOC, when their period is over. Refreshes that follow
    displacements have no turns: they begin in round 1.
    """
    aim, wire = config.optimizer.aim, config.wire
    low_rank = frozenset(index for index, block in enumerate(blocks) if block.is_low_rank)
    with_moments = frozenset(index for index, block in enumerate(blocks) if block.moment_shape)
    tangent = low_rank if _flushes(config) else frozenset[int]()
    passes = {
        "gradient": (Due(range=low_rank), Due(project=low_rank, tangent=tangent)),
        "dct": (Due(choose=low_rank, tangent=tangent),),
        "displacement": (Due(tangent=tangent),),
        "seed": (Due(),),
    }[aim]
    sizes = list(zip(*(_extra_bytes(blocks, due, wire) for due in passes), strict=True))
    loads: dict[_Key, Load] = {}
    for index in sorted(low_rank):
        period = refresh_rounds(config, blocks[index])
        offsets = {"displacement": range(1), "seed": range(period - 1, period)}.get(aim, range(period))
        loads["refresh", index] = Load(period, sizes[index], offsets)
    first, second = (steps // config.periods.k_x for steps in own_moment_periods(config))
    sizes = [(size,) for size in _extra_bytes(blocks, Due(first=with_moments), wire)]  # those of second ones too
    for index in sorted(with_moments):
        if first:
            loads["first", index] = Load(first, sizes[index], range(first)[::-1])
        if second:
            loads["second", index] = Load(second, sizes[index], range(second)[::-1])
    return loads


def _extra_bytes(blocks: Sequence[Block], due: Due, wire: WireConfig) -> list[Bytes]:
    """Return the bytes of each block up and down beyond those of a round with nothing due, before compression."""
    ways = []
    for slots_of in (upload_slots, published_slots):
        sizes = (block_bytes(blocks, wire, content, slots_of) for content in (due, Due()))
        ways.append([max(0, size - usual) for size, usual in zip(*sizes, strict=True)])
    return list(zip(*ways, strict=True))


def _flushes(config: RunConfig) -> bool:
    """Return whether bases that change take a tangent sketch along."""
    return config.optimizer.local_space != "core" and config.optimizer.aim != "seed"


def refresh_rounds(config: RunConfig, block: Block) -> int:
    """Return the rounds between two refreshes of a low-rank block."""
    return config.refresh_rounds_embedding if block.role is BlockRole.EMBEDDING else config.refresh_rounds


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
