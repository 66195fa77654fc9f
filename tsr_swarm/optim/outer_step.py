"""The outer step: what the reducer computes from a mean before it is published, and what it keeps for the next one.

Letters: D the mean displacement of a block, in core coordinates (P, Q) or, of a dense block, whole (1, N): the outer
gradient of DiLoCo. What a step returns is subtracted from the weights, as D itself would be. Only the reducer needs
this state: other peers apply the published bytes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tsr_swarm.config.blocks import Block
from tsr_swarm.config.layout import Part, Slot
from tsr_swarm.config.run import OptimizerConfig
from tsr_swarm.errors import CheckpointError, RunError
from tsr_swarm.lowrank.basis import Basis
from tsr_swarm.lowrank.grid import Grid
from tsr_swarm.lowrank.sketch import rotate_core, rotate_moments
from tsr_swarm.optim.block_state import core_as_sketch

BETA2 = 0.99  # of outer Adam's second moment, as in FedAdam
ADAPTIVITY = 0.1  # FedAdam's tau, as a share of the RMS of the block's averages


@dataclass(frozen=True, slots=True, eq=False)
class BlockOuter:
    """What the reducer keeps of one block: float32, on the CPU, never written to. None where nothing is kept yet."""

    residual: Tensor | None = None  # what the grid dropped of the last published core, in the block's basis
    first: Tensor | None = None
    second: Tensor | None = None  # outer Adam's
    steps: int = 0  # taken by outer Adam


OuterState = Mapping[int, BlockOuter]  # by block; a block that is not in it keeps nothing


def outer_step(
    mean: Mapping[Slot, Tensor], state: OuterState, optimizer: OptimizerConfig, bases: Mapping[int, Basis]
) -> tuple[dict[Slot, Tensor], dict[int, BlockOuter]]:
    """Return what to publish for ``mean`` (float64, by upload slot), residuals included, and the state after it.

    The old residuals are in the result; ``keep_dropped`` adds the new ones. A tangent sketch takes its block's residual
    C with it, as Y + U C and Z + V C^T, whole, because a refresh loses what leaves the basis. Blocks without
    a mean keep what they have.
    """
    wanted, after = dict(mean), dict(state)
    for slot, numbers in mean.items():
        kept = state.get(slot.block, BlockOuter())
        if slot.part in (Part.CORE, Part.DENSE):
            update, kept = _step(numbers, kept, optimizer)
            wanted[slot] = update if kept.residual is None else update + kept.residual
            after[slot.block] = replace(kept, residual=None)
        elif slot.part in (Part.TANGENT_LEFT, Part.TANGENT_RIGHT) and kept.residual is not None:
            wanted[slot] = numbers + core_as_sketch(kept.residual.double(), slot.part, bases[slot.block])
            after[slot.block] = replace(kept, residual=None)
    return wanted, after


def keep_dropped(state: OuterState, wanted: Mapping[Slot, Tensor], published: Mapping[Slot, Grid]) -> OuterState:
    """Return ``state`` with what the grids of ``published`` cores dropped of what was ``wanted``, by upload slot."""
    cores = {slot.block: numbers for slot, numbers in wanted.items() if slot.part is Part.CORE}
    after = dict(state)
    for slot, grid in published.items():
        if slot.part is Part.CORE:
            dropped = cores[slot.block] - grid.numbers()
            after[slot.block] = replace(after[slot.block], residual=dropped.to(torch.float32))
    return after


def rotate_outer(
    state: OuterState, refreshed: Mapping[int, tuple[Basis, Basis]], optimizer: OptimizerConfig
) -> OuterState:
    """Return the state in the bases that ``Consensus.apply`` made: (old, new) of each block that it ``refreshed``."""
    turned = {
        index: _rotate(state[index], old, new, optimizer) for index, (old, new) in refreshed.items() if index in state
    }
    return {**state, **turned}


def pack_outer(state: OuterState, blocks: Sequence[Block]) -> dict[str, Tensor]:
    """Return the state as flat tensors, fit for safetensors: "residual/<name>" and so on, where there is one."""
    return {
        f"{key}/{blocks[index].name}": tensor
        for index, kept in state.items()
        for key, tensor in _tensors(kept).items()
        if tensor is not None
    }


def unpack_outer(packed: Mapping[str, Tensor], blocks: Sequence[Block]) -> OuterState:
    """Read ``pack_outer``'s dict back. Raises CheckpointError where it is not of these ``blocks``."""
    legal = {f"{key}/{block.name}": _shape(key, block) for block in blocks for key in _tensors(BlockOuter())}
    for name, tensor in packed.items():
        found, wanted = (tuple(tensor.shape), tensor.dtype), legal.get(name)
        if found != wanted:
            raise CheckpointError(
                f"'{name[:80]}' of the reducer's saved state is {found[0]} {found[1]}, which does not fit this run; "
                "restore the run's folder from a copy, or start a new run in another one."
            )
    state = {}
    for index, block in enumerate(blocks):
        tensors = {key: packed.get(f"{key}/{block.name}") for key in _tensors(BlockOuter())}
        if any(tensor is not None for tensor in tensors.values()):
            steps = tensors.pop("steps")
            state[index] = BlockOuter(**tensors, steps=0 if steps is None else int(steps))
    return state


def without_residuals(state: OuterState, but: frozenset[int]) -> OuterState:
    """Return the state after a round whose means are unknown: residuals were sent, save those of blocks ``but``."""
    return {index: kept if index in but else replace(kept, residual=None) for index, kept in state.items()}


def require_finite(state: OuterState) -> None:
    """Raise RunError if a number of the state is not finite: it would spoil every later step."""
    for kept in state.values():
        for tensor in _tensors(kept).values():
            if tensor is not None and not torch.isfinite(tensor).all():
                raise RunError("The outer step's own state is no longer finite; the round is void.")


def nesterov(mean: Tensor, first: Tensor, lr: float, momentum: float) -> tuple[Tensor, Tensor]:
    """DiLoCo's outer step (arXiv 2311.08105, Algorithm 1, OuterOpt). Returns the step, and the momentum b after it."""
    first = momentum * first + mean  # b = mu b + D
    return lr * (mean + momentum * first), first  # lr (D + mu b)


def adam(
    mean: Tensor, first: Tensor, second: Tensor, steps: int, lr: float, momentum: float
) -> tuple[Tensor, Tensor, Tensor]:
    """FedAdam's step number ``steps``, from 1 (arXiv 2003.00295, Algorithm 2). Returns it, and both moments after it.

    m_hat is divided by sqrt(v_hat) + ADAPTIVITY s, the ratio is bounded to [-1, 1] and the step is lr s of it, with
    s = sqrt(mean(v_hat)): no entry moves further than lr times the RMS of the block's averages. Departures: the unit s,
    so that a rate of 1 suits blocks and inner rates of any size; the bound, because a rotated v may be too small for
    its m; and bias correction, which the rotation of moments needs.
    """
    first = momentum * first + (1 - momentum) * mean  # m = beta1 m + (1 - beta1) D
    second = BETA2 * second + (1 - BETA2) * mean.square()  # v = beta2 v + (1 - beta2) D^2
    m, v = first / (1 - momentum**steps), second / (1 - BETA2**steps)
    unit = math.sqrt(float(v.mean()))
    ratio = m / (v.sqrt() + ADAPTIVITY * unit).clamp_min(torch.finfo(v.dtype).tiny)
    return lr * unit * ratio.clamp(-1, 1), first, second


def _step(mean: Tensor, kept: BlockOuter, optimizer: OptimizerConfig) -> tuple[Tensor, BlockOuter]:
    """Return the step for one ``mean``, float64, and the state after it."""
    if optimizer.outer == "average":
        return mean, kept
    lr, momentum = optimizer.outer_lr, optimizer.outer_momentum
    first = _numbers(kept.first, mean)
    if optimizer.outer == "nesterov":
        update, first = nesterov(mean, first, lr, momentum)
        return update, replace(kept, first=first.to(torch.float32))
    steps = kept.steps + 1
    update, first, second = adam(mean, first, _numbers(kept.second, mean), steps, lr, momentum)
    return update, replace(kept, first=first.to(torch.float32), second=second.to(torch.float32), steps=steps)


def _numbers(kept: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if kept is None else kept.to(like.dtype)


def _rotate(kept: BlockOuter, old: Basis, new: Basis, optimizer: OptimizerConfig) -> BlockOuter:
    residual = None if kept.residual is None else rotate_core(kept.residual, old, new)
    if kept.first is None:
        return replace(kept, residual=residual)
    if kept.second is None:
        return replace(kept, residual=residual, first=rotate_core(kept.first, old, new))
    powers = (beta**kept.steps for beta in (optimizer.outer_momentum, BETA2))
    first, second = rotate_moments(kept.first, kept.second, old, new, *powers)
    return replace(kept, residual=residual, first=first, second=second)


def _tensors(kept: BlockOuter) -> dict[str, Tensor | None]:
    steps = torch.tensor(kept.steps, device="cpu") if kept.steps else None
    return {"residual": kept.residual, "first": kept.first, "second": kept.second, "steps": steps}


def _shape(key: str, block: Block) -> tuple[tuple[int, ...], torch.dtype]:
    if key == "steps":
        return (), torch.int64
    return (block.ranks if block.is_low_rank else (block.rows, block.cols)), torch.float32
