"""The step of TSRAdam between two refreshes, of a stack of parameters of one shape: products and Adam's formula alone.

Everything happens in place, no device is waited for, and ``torch.compile`` takes it as one graph. Letters: G (M, N) a
gradient, U (M, R), V (N, R) bases, C (R, R) cores, B parameters in the stack. A stack of one copies nothing.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tsr_swarm.lowrank.basis import Basis
from tsr_swarm.optim.core_stack import project, subtract_lifted
from tsr_swarm.optim.inner_optimizer import Correction, adam_direction, bias_corrections, core_update_scale

_MOST = 0.3  # a gradient's entries are at most this power of the largest number: 4e11 in float32
State = dict[str, Any]


class StepOptions(NamedTuple):
    """Of a parameter group, what the step needs."""

    lr: float | Tensor
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    scale: float
    maximize: bool


class Stack(NamedTuple):
    """Parameters (B) of one shape, dtype and group, their gradients, and what the optimizer keeps of each."""

    weights: Sequence[Tensor]
    gradients: Sequence[Tensor]
    states: Sequence[State]
    options: StepOptions


def step_stacks(stacks: Sequence[Stack]) -> None:
    """Take one step of every parameter."""
    for stack in stacks:
        (_step_cores if "left" in stack.states[0] else _step_dense)(*stack)


def _step_cores(
    weights: Sequence[Tensor], gradients: Sequence[Tensor], states: Sequence[State], options: StepOptions
) -> None:
    """W <- (1 - lr decay) W - lr scale U D V^T, D being Adam's direction of C = U^T G V."""
    factors = Basis(_stacked(states, "left"), _stacked(states, "right")).factors(states[0]["exp_avg"])
    sizes = torch.stack([torch.linalg.vector_norm(gradient, math.inf) for gradient in gradients])
    # half of the bound on either side: whichever product comes first stays finite
    bound = _bound(sizes.to(factors[0].dtype)).sqrt_()[:, None, None]
    core = project(gradients, *(factor * bound for factor in factors))
    move = _adam(core, states, options)
    (rows, cols), rank = weights[0].shape, core.shape[-1]
    scale = options.scale or core_update_scale(rows, cols, rank, rank)
    _decay(weights, options)
    subtract_lifted(weights, move.mul_(scale * options.lr), *factors)


def _step_dense(
    weights: Sequence[Tensor], gradients: Sequence[Tensor], states: Sequence[State], options: StepOptions
) -> None:
    """Plain Adam: W <- (1 - lr decay) W - lr D, D being Adam's direction of G."""
    dtype = states[0]["exp_avg"].dtype
    gradient = (gradients[0][None] if len(gradients) == 1 else torch.stack(list(gradients))).to(dtype)
    move = _adam(bounded(gradient, gradient.abs()), states, options).mul_(options.lr)
    _decay(weights, options)
    for weight, moved in zip(weights, move, strict=True):
        weight.sub_(moved)


def bounded(gradient: Tensor, size: Tensor) -> Tensor:
    """Make ``gradient`` smaller where the square of its ``size``, one number or each entry's, could overflow.

    No other gradient changes by a bit, and no device is synchronized. What is not finite becomes NaN.
    """
    return gradient * _bound(size)


def _bound(size: Tensor) -> Tensor:
    most: float = torch.finfo(size.dtype).max ** _MOST
    bound: Tensor = (most / size).clamp_(max=1)
    return bound


def _adam(gradient: Tensor, states: Sequence[State], options: StepOptions) -> Tensor:
    """Update the moments of all states by ``gradient`` (B, ...) and return the directions to subtract."""
    if options.maximize:
        gradient = -gradient
    first, second = _stacked(states, "exp_avg"), _stacked(states, "exp_avg_sq")
    corrections = _corrections(states, options.betas, gradient)
    direction = adam_direction(gradient, first, second, corrections, options.betas, options.eps)
    if len(states) > 1:
        for key, stack in (("exp_avg", first), ("exp_avg_sq", second)):
            for state, moment in zip(states, stack, strict=True):
                state[key].copy_(moment)
    return direction


def _corrections(states: Sequence[State], betas: tuple[float, float], like: Tensor) -> tuple[Correction, Correction]:
    """1 - beta**t of both moments: t is one number for all, or each state's own tensor."""
    if not isinstance(states[0]["step"], Tensor):
        return bias_corrections(betas, states[0]["step"])
    steps = torch.stack([state["step"] for state in states]).to(like.dtype).view(-1, *[1] * (like.dim() - 1))
    # -expm1(t ln beta): 1 - 0.999 in float32 would have lost four digits
    one, two = (-torch.expm1(steps * (math.log(beta) if beta else -math.inf)) for beta in betas)
    return one, two


def _decay(weights: Sequence[Tensor], options: StepOptions) -> None:
    if options.weight_decay:
        for weight in weights:
            weight.mul_(1 - options.lr * options.weight_decay)


def _stacked(states: Sequence[State], key: str) -> Tensor:
    tensors: list[Tensor] = [state[key] for state in states]
    return tensors[0][None] if len(tensors) == 1 else torch.stack(tensors)
