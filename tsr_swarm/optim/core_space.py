"""TSR-Adam in the core: between rounds a peer moves only an r x r matrix per block and keeps nothing of full size.

Letters: U (M, R), V (N, R) the shared bases, S (R, R) the core with W_i = Wbar + U S V^T. What is stored is the
displacement C = -S, which is also what is sent. TSR-Adam: Dang et al., arXiv 2602.08007, Algorithm 1.
Dense blocks (norms, biases) are moved by plain Adam. With ``inner = "muon"`` the core takes Muon's steps instead.
"""

import hashlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from tsr_swarm.config.blocks import Block
from tsr_swarm.config.layout import Part, PayloadKind, Slot, upload_slots
from tsr_swarm.config.round_plan import RoundPlan
from tsr_swarm.config.run import OptimizerConfig, WireConfig
from tsr_swarm.errors import RunError
from tsr_swarm.lowrank.basis import Basis
from tsr_swarm.lowrank.grid import Grid, dense_grid
from tsr_swarm.lowrank.sketch import rotate_core
from tsr_swarm.optim.block_state import (
    RESIDUAL,
    UnsentWork,
    change_basis,
    check_tensors,
    core_as_sketch,
    pack_states,
    pack_unsent,
    unpack_states,
    unpack_unsent,
)
from tsr_swarm.optim.consensus import Consensus
from tsr_swarm.optim.core_stack import stacks
from tsr_swarm.optim.full_space import FullBlock
from tsr_swarm.optim.inner_optimizer import inner_optimizer
from tsr_swarm.optim.local_space import LocalSpace
from tsr_swarm.optim.quantise import GradientSketches, gradient_grid, moment_grid, quantise_slot, take_moment

_MARK_BYTES = 16


class CoreSpace(LocalSpace):
    """The local space ``core``. See LocalSpace for what each method is for."""

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], blocks: Sequence[Block], optimizer: OptimizerConfig
    ) -> None:
        self._blocks = tuple(blocks)
        self._stacks = list(stacks(self._blocks, parameters, optimizer))
        self._dense = {
            index: FullBlock(block.name, parameters[block.name], inner_optimizer(optimizer, is_matrix=False))
            for index, block in enumerate(self._blocks)
            if not block.is_low_rank
        }
        self._states = {index: full.state for index, full in self._dense.items()}
        for stack in self._stacks:
            self._states |= stack.states
        self._inner = {index: stack.inner for stack in self._stacks for index in stack.states}
        self._low_rank = [index for index, block in enumerate(self._blocks) if block.is_low_rank]
        self._bases: dict[int, Basis] = {}  # those of the cores ...
        self._marks: dict[int, bytes] = {}  # ... and their hashes, which a checkpoint keeps
        self._unsent: dict[int, UnsentWork] = {}  # in other bases
        self._unsent_bits = optimizer.residual_bits
        self._feedback = optimizer.feedback

    @torch.no_grad()
    def begin(self, consensus: Consensus) -> None:
        """Write Wbar + U S V^T. Raises RunError where a core is in another basis than the consensus has."""
        for index in self._low_rank:
            basis = consensus.bases[index]
            if not self._is_of(index, basis):
                raise RunError(
                    f"the core of block '{self._blocks[index].name}' is of another basis than the consensus has at "
                    "this round; replay the rounds between, or rebase."
                )
            self._adopt(index, basis)
        for stack in self._stacks:
            stack.begin(consensus, self._unsent)
        for full in self._dense.values():
            full.begin(consensus)

    @torch.no_grad()
    def step(self, lr: float) -> None:
        for stack in self._stacks:
            stack.step(lr)
        for full in self._dense.values():
            full.step(lr)

    @torch.no_grad()
    def upload(
        self, consensus: Consensus, plan: RoundPlan, wire: WireConfig, gradients: GradientSketches
    ) -> dict[Slot, Grid]:
        """Return cores (C = -S), their moments, dense displacements, and the gradient sketches that were passed in."""
        grids: dict[Slot, Grid] = {}
        for slot in upload_slots(self._blocks, plan.due, wire):
            state = self._states[slot.block]
            if slot.part.kind is PayloadKind.GRADIENT:
                grids[slot] = gradient_grid(slot, gradients)
            elif slot.part.kind is PayloadKind.MOMENT:
                grids[slot] = moment_grid(slot, state, self._inner[slot.block])
            elif slot.part is Part.DENSE:
                grids[slot] = dense_grid(state.displacement)
                state.sent = {Part.DENSE: state.displacement.clone()}
            else:
                core = state.displacement.cpu()
                is_core = slot.part is Part.CORE
                sent = core if is_core else core_as_sketch(core, slot.part, self._bases[slot.block])
                grids[slot] = grid = quantise_slot(sent, slot)
                self._remember(slot, grid)
        return grids

    def _remember(self, slot: Slot, grid: Grid) -> None:
        """Remember what ``grid`` takes out of the core if it is averaged: itself, or without feedback the whole core.

        The tangent update U Z^T + (I - U U^T) Y V^T, seen in the old basis, is U^T (..) V = Z^T V: Z has all of
        Y's part inside the basis, and a core has none outside.
        """
        state = self._states[slot.block]
        if slot.part is Part.TANGENT_LEFT:
            return
        if not self._feedback:
            state.sent = {Part.CORE: state.displacement.clone()}
            return
        numbers = grid.numbers()
        if slot.part is Part.TANGENT_RIGHT:
            numbers = numbers @ self._bases[slot.block].right_float(torch.float64)
        state.sent = {Part.CORE: numbers.to(torch.float32).to(state.displacement.device)}

    @torch.no_grad()
    def settle(self, consensus: Consensus, included: frozenset[int]) -> None:
        """Add what was sent to S of included blocks. The error of its quantisation stays and is sent next round."""
        for index, state in self._states.items():
            sent = next(iter(state.sent.values()), None) if index in included else None
            state.settle(sent, gamma=1.0)
            if sent is not None:
                self._settle_unsent(index)

    @torch.no_grad()
    def take_moments(self, published: Mapping[Slot, Grid]) -> None:
        for slot, grid in published.items():
            if slot.part.kind is PayloadKind.MOMENT:
                take_moment(slot, grid, self._states[slot.block], self._inner[slot.block])

    @torch.no_grad()
    def rotate(self, refreshed: Mapping[int, tuple[Basis, Basis]]) -> None:
        """Carry cores and moments to the new bases. Unsent work that leaves the basis is kept for later ones.

        That is the work itself where it was not and with feedback the rounding where it was.
        """
        for index, (old, new) in refreshed.items():
            self._turn(index, old, new)
            self._inner[index].rotate(self._states[index], old, new)
            self._adopt(index, new)

    def _turn(self, index: int, old: Basis, new: Basis) -> None:
        state = self._states[index]
        if self._unsent_bits:
            before = self._unsent.pop(index, None)
            core, unsent = change_basis(state.displacement, before, old, new, state.usual, self._unsent_bits)
            if unsent is not None:
                self._unsent[index] = unsent
        else:
            core = rotate_core(state.displacement, old, new)
        state.displacement.copy_(core)

    def _settle_unsent(self, index: int) -> None:
        """Take what an average took of the core out of the unsent work, too. Without its basis all is dropped."""
        unsent = self._unsent.pop(index, None)
        if unsent is not None and index in self._bases and (left := unsent.after_average(self._bases[index])):
            self._unsent[index] = left

    @torch.no_grad()
    def rebase(self, consensus: Consensus) -> None:
        """Keep unsent work, and the moments of blocks whose bases are bit for bit the same; other moments restart.

        After a restart the old basis may be lost, and the work in it too.
        """
        for index, state in self._states.items():
            if state.sent:
                state.settle(next(iter(state.sent.values())), gamma=1.0)
                self._settle_unsent(index)
        for index in self._low_rank:
            new, old = consensus.bases[index], self._bases.get(index)
            if not self._is_of(index, new):
                state = self._states[index]
                if old is None:  # the basis of the core is not known
                    unsent = self._unsent.get(index)
                    state.displacement.copy_(torch.zeros_like(state.displacement) if unsent is None else unsent.share)
                self._turn(index, old or new, new)
                state.restart_moments()
            self._adopt(index, new)

    def state_dict(self) -> dict[str, Tensor]:
        """Return displacements, moments, step counts, what was sent, and the hash of the bases of all this."""
        marks = {
            self._mark_key(index): torch.frombuffer(bytearray(mark), dtype=torch.uint8)
            for index, mark in self._marks.items()
        }
        unsent = {self._blocks[index].name: kept for index, kept in self._unsent.items()}
        return pack_states(self._blocks, self._states) | marks | pack_unsent(unsent)

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        keys = {self._mark_key(index): index for index in self._low_rank}
        saved = {key: value for key, value in state.items() if key in keys}
        check_tensors(saved, dict.fromkeys(saved, ((_MARK_BYTES,), torch.uint8)))
        unsent = {}
        for index in self._low_rank:
            device = self._states[index].displacement.device
            if kept := unpack_unsent(self._blocks[index], self._unsent_bits, device, state):
                unsent[index] = kept
        rest = {key: value for key, value in state.items() if key not in keys and not key.startswith(RESIDUAL)}
        unpack_states(self._blocks, self._states, rest)
        self._unsent = unsent
        self._marks, self._bases = {keys[key]: bytes(value.tolist()) for key, value in saved.items()}, {}

    def _mark_key(self, index: int) -> str:
        return f"basis/{self._blocks[index].name}"

    def _is_of(self, index: int, basis: Basis) -> bool:
        """Return whether this block's core is in ``basis``, or in none yet."""
        if self._bases.get(index) is basis or index not in self._marks:
            return True
        return self._marks[index] == _mark(basis)

    def _adopt(self, index: int, basis: Basis) -> None:
        if self._bases.get(index) is not basis:
            self._bases[index], self._marks[index] = basis, _mark(basis)


def _mark(basis: Basis) -> bytes:
    digest = hashlib.blake2b(digest_size=_MARK_BYTES)
    for factor in (basis.left, basis.right):
        digest.update(factor.contiguous().numpy().tobytes())
    return digest.digest()
