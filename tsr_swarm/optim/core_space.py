"""TSR-Adam in the core: between rounds a peer moves only an r x r matrix per block, so nothing it keeps is full size.

Letters: U (M, R), V (N, R) the shared bases, S (R, R) the core with W_i = Wbar + U S V^T. What is stored is the
displacement C = -S, which is also what goes on the wire. TSR-Adam: Dang et al., arXiv 2602.08007, Algorithm 1.
Dense blocks (norms, biases) are moved by plain Adam.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from tsr_swarm.config.blocks import Block
from tsr_swarm.config.layout import Part, PayloadKind, Slot, upload_slots
from tsr_swarm.config.plan import RoundPlan
from tsr_swarm.config.run import OptimizerConfig, WireConfig
from tsr_swarm.errors import RunError
from tsr_swarm.lowrank.basis import Basis
from tsr_swarm.lowrank.grid import Grid, dense_grid, quantise_rows
from tsr_swarm.lowrank.rotate import rotate_core, rotate_moments
from tsr_swarm.lowrank.sketch import core_of
from tsr_swarm.optim.adam import adam_direction, core_update_scale, stacked_corrections
from tsr_swarm.optim.block_state import BlockState, check_tensors, pack_states, unpack_states
from tsr_swarm.optim.consensus import Consensus
from tsr_swarm.optim.full_block import FullBlock
from tsr_swarm.optim.local_space import gradient_grid

_STACK_NUMBERS = 1 << 24  # most numbers of a stack: 64 MiB; beyond, batching saves nothing and the copies cost memory
_MARK_BYTES = 16


class CoreSpace:
    """The local space ``core``. See LocalSpace for what each method is for."""

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], blocks: Sequence[Block], optimizer: OptimizerConfig
    ) -> None:
        self._blocks = tuple(blocks)
        self._betas = optimizer.betas
        self._groups = list(_group(self._blocks, parameters, optimizer))
        self._dense = {
            index: FullBlock(block.name, parameters[block.name], optimizer)
            for index, block in enumerate(self._blocks)
            if not block.is_low_rank
        }
        self._states = {index: full.state for index, full in self._dense.items()}
        for group in self._groups:
            self._states |= group.states
        self._low_rank = [index for index, block in enumerate(self._blocks) if block.is_low_rank]
        self._bases: dict[int, Basis] = {}  # those that the cores are written in ...
        self._marks: dict[int, bytes] = {}  # ... and their hashes, which a checkpoint keeps

    @torch.no_grad()
    def begin(self, consensus: Consensus) -> None:
        """Write Wbar + U S V^T. Raises RunError where a core is of another basis than the consensus has."""
        for index in self._low_rank:
            basis = consensus.bases[index]
            if not self._is_of(index, basis):
                raise RunError(
                    f"the core of block '{self._blocks[index].name}' is of another basis than the consensus has at "
                    "this round; replay the rounds between, or rebase."
                )
            self._adopt(index, basis)
        for group in self._groups:
            group.begin(consensus)
        for full in self._dense.values():
            full.begin(consensus)

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """One TSR-Adam step on every core, one Adam step on every dense block."""
        for group in self._groups:
            group.step(lr)
        for full in self._dense.values():
            full.step(lr)

    @torch.no_grad()
    def upload(
        self,
        consensus: Consensus,
        plan: RoundPlan,
        wire: WireConfig,
        gradients: Mapping[int, tuple[Tensor, Tensor]],
    ) -> dict[Slot, Grid]:
        """Cores (C = -S), dense displacements, and the gradient sketches that were passed in."""
        grids: dict[Slot, Grid] = {}
        for slot in upload_slots(self._blocks, plan.due, wire):
            state = self._states[slot.block]
            if slot.part.kind is PayloadKind.GRADIENT:
                grids[slot] = gradient_grid(slot, gradients)
            elif slot.part is Part.DENSE:
                grids[slot] = dense_grid(state.displacement)
                state.sent = {Part.DENSE: state.displacement.clone()}
            else:
                grids[slot] = grid = quantise_rows(self._stand_in(slot), slot.bits)
                self._remember(slot, grid)
        return grids

    def _stand_in(self, slot: Slot) -> Tensor:
        """The core, or what stands in for it in a flush: Y = U C = A V and Z = V C^T = A^T U for A = U C V^T."""
        core, basis = self._states[slot.block].displacement.cpu(), self._bases[slot.block]
        if slot.part is Part.TANGENT_LEFT:
            return basis.left_float() @ core
        if slot.part is Part.TANGENT_RIGHT:
            return basis.right_float() @ core.mT
        return core

    def _remember(self, slot: Slot, grid: Grid) -> None:
        """Note what ``grid`` takes out of the core if it is averaged.

        The tangent update U Z^T + (I - U U^T) Y V^T, seen in the old basis, is U^T (..) V = Z^T V: what Y says of the
        inside of the basis, Z says too, and of the outside a core knows nothing.
        """
        state = self._states[slot.block]
        if slot.part is Part.TANGENT_LEFT:
            return
        numbers = grid.numbers()
        if slot.part is Part.TANGENT_RIGHT:
            numbers = numbers.mT @ self._bases[slot.block].right_float(torch.float64)
        state.sent = {Part.CORE: numbers.to(torch.float32).to(state.displacement.device)}

    @torch.no_grad()
    def settle(self, consensus: Consensus, included: frozenset[int]) -> None:
        """S += what was sent, for included blocks: the error of its quantisation stays and goes out next round."""
        for index, state in self._states.items():
            averaged = next(iter(state.sent.values()), None) if index in included else None
            state.settle(averaged, gamma=1.0)

    @torch.no_grad()
    def rotate(self, refreshed: Mapping[int, tuple[Basis, Basis]]) -> None:
        """Cores and moments to the new bases. A core loses what leaves the basis.

        That is some of the rounding where its work was averaged, and some of the work itself where it was not.
        """
        for index, (old, new) in refreshed.items():
            state = self._states[index]
            beta1_t, beta2_t = (beta**state.steps for beta in self._betas)
            first, second = rotate_moments(state.first, state.second, old, new, beta1_t, beta2_t)
            state.displacement.copy_(rotate_core(state.displacement, old, new))
            state.first.copy_(first)
            state.second.copy_(second)
            self._adopt(index, new)

    @torch.no_grad()
    def rebase(self, consensus: Consensus) -> None:
        """Keep cores and moments of blocks whose bases are bit for bit the same; others start from nothing."""
        for index, state in self._states.items():
            if state.sent:
                state.settle(next(iter(state.sent.values())), gamma=1.0)
            if index in self._dense:
                continue
            if not self._is_of(index, consensus.bases[index]):
                state.restart()
            self._adopt(index, consensus.bases[index])

    def state_dict(self) -> dict[str, Tensor]:
        """Displacements, moments, step counts, what was sent, and the hash of the bases that all this is written in."""
        marks = {
            self._mark_key(index): torch.frombuffer(bytearray(mark), dtype=torch.uint8)
            for index, mark in self._marks.items()
        }
        return pack_states(self._blocks, self._states) | marks

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Read ``state_dict`` back. Raises CheckpointError, before any change."""
        keys = {self._mark_key(index): index for index in self._low_rank}
        saved = {key: value for key, value in state.items() if key in keys}
        check_tensors(saved, dict.fromkeys(saved, ((_MARK_BYTES,), torch.uint8)))
        unpack_states(self._blocks, self._states, {key: value for key, value in state.items() if key not in keys})
        self._marks, self._bases = {keys[key]: bytes(value.tolist()) for key, value in saved.items()}, {}

    def _mark_key(self, index: int) -> str:
        return f"basis/{self._blocks[index].name}"

    def _is_of(self, index: int, basis: Basis) -> bool:
        """Whether this block's core is written in ``basis``, or in none yet."""
        if self._bases.get(index) is basis or index not in self._marks:
            return True
        return self._marks[index] == _mark(basis)

    def _adopt(self, index: int, basis: Basis) -> None:
        if self._bases.get(index) is not basis:
            self._bases[index], self._marks[index] = basis, _mark(basis)


class _CoreGroup:
    """Low-rank blocks of one shape and device, stacked, so that a step is a few batched products for all of them."""

    def __init__(
        self, indices: Sequence[int], block: Block, parameters: Sequence[nn.Parameter], optimizer: OptimizerConfig
    ) -> None:
        self._betas, self._eps = optimizer.betas, optimizer.eps
        self._scale = optimizer.update_scale or core_update_scale(block.rows, block.cols, block.rank)
        self._parameters = parameters
        device = parameters[0].device
        shape = (len(indices), block.rank, block.rank)
        self._core, self._first, self._second = (torch.zeros(shape, device=device) for _ in range(3))
        self._base = torch.zeros(len(indices), block.rows, block.cols, device=device)
        self._left = torch.zeros(len(indices), block.rows, block.rank, device=device)
        self._right = torch.zeros(len(indices), block.cols, block.rank, device=device)
        # a block's state is a view of the stacks
        self.states = {
            index: BlockState(self._core[place], self._first[place], self._second[place])
            for place, index in enumerate(indices)
        }

    def begin(self, consensus: Consensus) -> None:
        for place, index in enumerate(self.states):
            basis = consensus.bases[index]
            self._base[place].copy_(consensus.weights[consensus.blocks[index].name])
            self._left[place].copy_(basis.left_float())
            self._right[place].copy_(basis.right_float())
        self._write()

    def step(self, lr: float) -> None:
        core_gradient = core_of(self._gradients(), self._left, self._right)
        for state in self.states.values():
            state.steps += 1
        steps = [state.steps for state in self.states.values()]
        corrections = stacked_corrections(self._betas, steps, core_gradient.device)
        direction = adam_direction(core_gradient, self._first, self._second, corrections, self._betas, self._eps)
        self._core.add_(direction, alpha=lr * self._scale)  # C += lr scale D, which is S -= lr scale D
        self._write()

    def _gradients(self) -> Tensor:
        zero = torch.zeros_like(self._base[0])  # not written to, so all blocks without a gradient can share it
        return torch.stack([zero if p.grad is None else p.grad.float() for p in self._parameters])

    def _write(self) -> None:
        # W_i = Wbar + U S V^T = Wbar - U C V^T
        weights = torch.baddbmm(self._base, self._left @ self._core, self._right.mT, alpha=-1)
        for parameter, weight in zip(self._parameters, weights, strict=True):
            parameter.copy_(weight)


def _group(
    blocks: Sequence[Block], parameters: Mapping[str, nn.Parameter], optimizer: OptimizerConfig
) -> Iterator[_CoreGroup]:
    alike: dict[tuple[int, int, int, torch.device], list[int]] = {}
    for index, block in enumerate(blocks):
        if block.is_low_rank:
            key = (block.rows, block.cols, block.rank, parameters[block.name].device)
            alike.setdefault(key, []).append(index)
    for indices in alike.values():
        block = blocks[indices[0]]
        most = max(1, _STACK_NUMBERS // block.size)
        for start in range(0, len(indices), most):
            chosen = indices[start : start + most]
            yield _CoreGroup(chosen, block, [parameters[blocks[index].name] for index in chosen], optimizer)


def _mark(basis: Basis) -> bytes:
    digest = hashlib.blake2b(digest_size=_MARK_BYTES)
    for factor in (basis.left, basis.right):
        digest.update(factor.contiguous().numpy().tobytes())
    return digest.digest()
