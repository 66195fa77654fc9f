"""The cores of low-rank blocks of one shape, stacked, and the products that project gradients and lift steps.

Letters: W (M, N) a parameter, G its gradient, U (M, P), V (N, Q) its bases, C (P, Q) the displacement in core
coordinates: W = Wbar - U C V^T. The two products with a whole matrix are done block by block, without copies: a copy
into a stack makes both more than half as expensive again. All else is one operation a stack.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from tsr_swarm.config.blocks import Block
from tsr_swarm.config.run import OptimizerConfig
from tsr_swarm.optim.block_state import BlockState, UnsentWork
from tsr_swarm.optim.consensus import Consensus
from tsr_swarm.optim.inner_optimizer import core_update_scale, inner_optimizer

STACK_NUMBERS = 1 << 24  # most numbers of a stack's largest product, 64 MiB; beyond, stacking saves nothing


class CoreStack:
    """Cores (B, P, Q), their moments, and the bases in float32, of B blocks. It keeps nothing of full size."""

    def __init__(
        self, indices: Sequence[int], block: Block, parameters: Sequence[nn.Parameter], optimizer: OptimizerConfig
    ) -> None:
        self.inner = inner_optimizer(optimizer, is_matrix=True)
        self._scale = optimizer.update_scale or core_update_scale(block.rows, block.cols, *block.ranks)
        self._parameters = parameters
        # steps are added to a float32 parameter; a shorter type would lose small ones, so it is written anew
        self._adds = all(parameter.dtype == torch.float32 for parameter in parameters)
        self._base: list[Tensor] = []  # the consensus weights, for writing anew only
        device, count = parameters[0].device, len(indices)
        p, q = block.ranks
        self._left = torch.zeros(count, block.rows, p, device=device)
        self._right = torch.zeros(count, block.cols, q, device=device)
        self._core, self._first = (torch.zeros(count, p, q, device=device) for _ in range(2))
        self._second = torch.zeros_like(self._first) if self.inner.moments == 2 else None
        seconds = [None] * count if self._second is None else self._second
        views = zip(indices, self._core, self._first, seconds, strict=True)  # a block's state is a view of the stacks
        self.states = {index: BlockState(core, first, second) for index, core, first, second in views}

    def begin(self, consensus: Consensus, unsent: Mapping[int, UnsentWork]) -> None:
        """Take the bases and write W = Wbar - U C V^T, less unsent work in other bases."""
        for position, index in enumerate(self.states):
            basis = consensus.bases[index]
            self._left[position].copy_(basis.left_float())
            self._right[position].copy_(basis.right_float())
        weights = [consensus.weights[consensus.blocks[index].name] for index in self.states]
        on_device = [weight.to(p.device) for weight, p in zip(weights, self._parameters, strict=True)]
        for position, index in enumerate(self.states):
            if (kept := unsent.get(index)) is not None:
                on_device[position] = on_device[position] - kept.outside(consensus.bases[index])
        self._write(on_device)
        # on the CPU these are the consensus' own tensors, which are replaced by the next ones, never written to
        self._base = [] if self._adds else on_device

    def step(self, lr: float) -> None:
        """Take one step of the inner optimizer on every core, and move the parameters with it."""
        gradient = project([p.grad for p in self._parameters], self._left, self._right)
        for state in self.states.values():
            state.steps += 1
        steps = [state.steps for state in self.states.values()]
        move = self.inner.direction(gradient, self._first, self._second, steps).mul_(lr * self._scale)
        self._core.add_(move)  # C += lr scale D, which is S -= lr scale D
        if self._adds:
            subtract_lifted(self._parameters, move, self._left, self._right)
        else:
            self._write(self._base)

    def _write(self, weights: Sequence[Tensor]) -> None:
        """Write Wbar - U C V^T from ``weights``, Wbar, with one copy of a block at a time."""
        for position, (parameter, weight) in enumerate(zip(self._parameters, weights, strict=True)):
            written = weight.clone()
            at = slice(position, position + 1)
            subtract_lifted([written], self._core[at], self._left[at], self._right[at])
            parameter.copy_(written)


def stacks(
    blocks: Sequence[Block], parameters: Mapping[str, nn.Parameter], optimizer: OptimizerConfig
) -> Iterator[CoreStack]:
    """Stack all low-rank blocks, those of one shape, rank, device and type together."""
    alike: dict[tuple[int, int, tuple[int, int], torch.device, torch.dtype], list[int]] = {}
    for index, block in enumerate(blocks):
        if block.is_low_rank:
            parameter = parameters[block.name]
            key = (block.rows, block.cols, block.ranks, parameter.device, parameter.dtype)
            alike.setdefault(key, []).append(index)
    for indices in alike.values():
        block = blocks[indices[0]]
        most = max(1, STACK_NUMBERS // (max(block.ranks) * min(block.rows, block.cols)))
        for start in range(0, len(indices), most):
            chosen = indices[start : start + most]
            yield CoreStack(chosen, block, [parameters[blocks[index].name] for index in chosen], optimizer)


def project(gradients: Sequence[Tensor | None], left: Tensor, right: Tensor) -> Tensor:
    """Return C = U^T G V of every block (B, P, Q), in the bases' dtype; a missing gradient (M, N) counts as zero."""
    rows_first = _rows_first(left, right)
    first, second = (left, right) if rows_first else (right, left)
    half = left.new_empty(len(gradients), first.shape[2], second.shape[1])  # U^T G, or (G V)^T
    for gradient, out, u, v in zip(gradients, half, left, right, strict=True):
        if gradient is None:
            out.zero_()
        elif rows_first:
            torch.mm(u.mT, gradient.to(u.dtype), out=out)
        else:
            torch.mm(v.mT, gradient.to(v.dtype).mT, out=out)
    return half @ right if rows_first else left.mT @ half.mT


def subtract_lifted(weights: Sequence[Tensor], core: Tensor, left: Tensor, right: Tensor) -> None:
    """Subtract U C V^T from W of every block, in place. ``core`` is (B, P, Q); W may be of a shorter dtype."""
    if _rows_first(left, right):
        right = right @ core.mT  # U (C V^T)
    else:
        left = left @ core  # (U C) V^T
    for weight, u, v in zip(weights, left, right, strict=True):
        if weight.dtype == u.dtype:
            weight.addmm_(u, v.mT, alpha=-1)
        else:
            weight.sub_(u @ v.mT)


def _rows_first(left: Tensor, right: Tensor) -> bool:
    """Return whether (U^T G) V and U (C V^T) take fewer multiplications, N P (M + Q), than U^T (G V) and (U C) V^T."""
    (rows, p), (cols, q) = left.shape[1:], right.shape[1:]
    return cols * p * (rows + q) <= rows * q * (cols + p)
