"""Local training on full-size weights, exchanged through the same slots as a core peer's.

Letters: A (M, N) = Wbar - W_i the displacement, U (M, R), V (N, R) the shared bases. What of A an average did not take
stays in the peer's own weights: W_i = Wbar_new - gamma E, with E = A - its part of the average.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from tsr_swarm.config.blocks import Block, BlockRole
from tsr_swarm.config.layout import Part, PayloadKind, Slot, upload_slots
from tsr_swarm.config.round_plan import RoundPlan
from tsr_swarm.config.run import OptimizerConfig, WireConfig
from tsr_swarm.lowrank.basis import Basis
from tsr_swarm.lowrank.grid import Grid, dense_grid
from tsr_swarm.lowrank.sketch import Captured, core_of, expand, measure_captured
from tsr_swarm.optim.block_state import BlockState, pack_states, unpack_states, zero_state
from tsr_swarm.optim.consensus import Consensus
from tsr_swarm.optim.inner_optimizer import InnerOptimizer, inner_optimizer
from tsr_swarm.optim.local_space import LocalSpace
from tsr_swarm.optim.lordo import add_step, leading, take_held, turn_moments, wide
from tsr_swarm.optim.quantise import GradientSketches, gradient_grid, moment_grid, quantise_slot, take_moment


class FullSpace(LocalSpace):
    """The local space ``full``. See LocalSpace for what each method is for."""

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], blocks: Sequence[Block], optimizer: OptimizerConfig
    ) -> None:
        self._blocks = tuple(blocks)
        self._full = [_full_block(block, parameters[block.name], optimizer) for block in self._blocks]
        self._projected = {
            index: full
            for index, full in enumerate(self._full)
            if isinstance(full, LoRDOBlock) and optimizer.projection == "global"
        }
        self._inner = inner_optimizer(optimizer, is_matrix=True)  # whose moments are averaged, if any are
        self._states = {index: full.state for index, full in enumerate(self._full)}
        # drawn bases hold a direction once in a cycle: a residual that shrank every round until then would be lost
        self._gamma = 1.0 if optimizer.aim == "seed" else optimizer.gamma
        # the leader then chooses whose sketches are sent: see sketch_budget.py
        self._measures_captured = optimizer.aim == "displacement"

    @torch.no_grad()
    def begin(self, consensus: Consensus) -> None:
        for full in self._full:
            full.begin(consensus)
        self._project(consensus.bases)

    @torch.no_grad()
    def step(self, lr: float) -> None:
        for full in self._full:
            full.step(lr)

    @torch.no_grad()
    def captured(self, consensus: Consensus) -> Mapping[int, Captured]:
        """Measure kappa = |U^T A V|^2 / |A|^2 and |A|^2 of low-rank blocks, where the bases follow displacements."""
        if not self._measures_captured:
            return {}
        measured = {}
        for index, basis in consensus.bases.items():
            displacement = self._states[index].displacement
            measured[index] = measure_captured(displacement, *basis.factors(displacement))
        return measured

    @torch.no_grad()
    def upload(
        self, consensus: Consensus, plan: RoundPlan, wire: WireConfig, gradients: GradientSketches
    ) -> dict[Slot, Grid]:
        """Return cores U^T A V, tangent sketches A V and A^T U, dense displacements, moments, given gradient sketches.

        Of these only displacements are remembered.
        """
        grids: dict[Slot, Grid] = {}
        for state in self._states.values():
            state.sent = {}
        for slot in upload_slots(self._blocks, plan.due, wire):
            if slot.part.kind is PayloadKind.GRADIENT:
                grids[slot] = gradient_grid(slot, gradients)
                continue
            state = self._states[slot.block]
            if slot.part.kind is PayloadKind.MOMENT:
                grids[slot] = moment_grid(slot, state, self._inner)
                continue
            grids[slot] = grid = _measure(slot, state.displacement, consensus.bases.get(slot.block))
            numbers = grid.numbers().to(torch.float32).to(state.displacement.device)
            state.sent[slot.part] = numbers.reshape_as(state.displacement) if slot.part is Part.DENSE else numbers
        return grids

    @torch.no_grad()
    def settle(self, consensus: Consensus, included: frozenset[int]) -> None:
        """Keep gamma of E = A - its part of the average for included blocks; others keep A whole."""
        for index, state in self._states.items():
            averaged = None
            if index in included and state.sent:
                averaged = _part(state.sent, consensus.bases.get(index))
            # what a dense block sent was exact: anything left of it is work done since
            state.settle(averaged, self._gamma if self._blocks[index].is_low_rank else 1.0)

    @torch.no_grad()
    def take_moments(self, published: Mapping[Slot, Grid]) -> None:
        for slot, grid in published.items():
            if slot.part.kind is PayloadKind.MOMENT:
                take_moment(slot, grid, self._states[slot.block], self._inner)

    @torch.no_grad()
    def rotate(self, refreshed: Mapping[int, tuple[Basis, Basis]]) -> None:
        self._project({index: new for index, (_, new) in refreshed.items()})

    def _project(self, bases: Mapping[int, Basis]) -> None:
        """Carry LoRDO's moments to the blocks' present bases; they know the ones that they are in."""
        for index, full in self._projected.items():
            if index in bases:
                full.project(bases[index])

    @torch.no_grad()
    def rebase(self, consensus: Consensus) -> None:
        """Keep moments and displacements, but not the displacement of a block whose upload was never settled.

        Which part of it was sent is unknown without the bases of that time.
        """
        for index, state in self._states.items():
            if state.sent and self._blocks[index].is_low_rank:
                state.displacement.zero_()
                state.sent = {}
            elif state.sent:
                state.settle(state.sent[Part.DENSE], gamma=1.0)
        self._project(consensus.bases)

    def state_dict(self) -> dict[str, Tensor]:
        return pack_states(self._blocks, self._states)

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        unpack_states(self._blocks, self._states, state)


def _measure(slot: Slot, displacement: Tensor, basis: Basis | None) -> Grid:
    """Return the slot's share of a displacement, on its grid. A dense block has no basis and is sent whole."""
    if basis is None:
        return dense_grid(displacement)
    u, v = basis.factors(displacement)
    if slot.part is Part.TANGENT_LEFT:
        return quantise_slot((displacement @ v).mT.contiguous(), slot)
    if slot.part is Part.TANGENT_RIGHT:
        return quantise_slot(u.mT @ displacement, slot)
    return quantise_slot(core_of(displacement, u, v), slot)


def _part(sent: Mapping[Part, Tensor], basis: Basis | None) -> Tensor:
    """Return what an average takes of this peer's displacement: the lift of what it sent, in plain float32."""
    if basis is None:
        return sent[Part.DENSE]
    u, v = basis.factors(next(iter(sent.values())))
    if Part.CORE in sent:
        return expand(sent[Part.CORE], u, v)
    y, z = sent[Part.TANGENT_LEFT].mT, sent[Part.TANGENT_RIGHT].mT
    return u @ z.mT + (y - u @ (u.mT @ y)) @ v.mT  # U Z^T + (I - U U^T) Y V^T


def _full_block(block: Block, parameter: nn.Parameter, optimizer: OptimizerConfig) -> "FullBlock":
    """Make one parameter's block. Muon and LoRDO are for matrices that map hidden states.

    Rows of embedding and head are vectors of their own.
    """
    is_matrix = block.role is BlockRole.MATRIX
    if is_matrix and optimizer.inner == "lordo":
        return LoRDOBlock(block, parameter, optimizer)
    return FullBlock(block.name, parameter, inner_optimizer(optimizer, is_matrix))


class FullBlock:
    """One parameter moved at full size: W_i = Wbar - A, with A the displacement in ``state``.

    Every block of a full-space peer, the dense ones of a core peer. Weight decay is applied to the consensus only.
    """

    def __init__(
        self, name: str, parameter: nn.Parameter, inner: InnerOptimizer, state: BlockState | None = None
    ) -> None:
        self.state = zero_state(parameter, inner.moments) if state is None else state
        self._name = name
        self._parameter = parameter
        self._inner = inner
        self._base = torch.zeros(0, device=parameter.device)

    def begin(self, consensus: Consensus) -> None:
        """Write Wbar - A into the parameter."""
        # on the CPU this is the consensus' own tensor, which is replaced by the next one, never written to
        self._base = consensus.weights[self._name].to(self._parameter.device)
        self._write()

    def step(self, lr: float) -> None:
        """Take one step from ``parameter.grad``; no gradient counts as zero."""
        gradient = self._parameter.grad
        self._move(torch.zeros_like(self.state.displacement) if gradient is None else gradient.float(), lr)
        self._write()

    def _move(self, gradient: Tensor, lr: float) -> None:
        state = self.state
        state.steps += 1
        direction = self._inner.direction(gradient, state.first, state.second, [state.steps])
        state.displacement.add_(direction, alpha=lr)  # A += lr D

    def _write(self) -> None:
        if self._parameter.dtype == torch.float32:
            torch.sub(self._base, self.state.displacement, out=self._parameter)  # without a copy of full size
        else:
            self._parameter.copy_(self._base - self.state.displacement)


class LoRDOBlock(FullBlock):
    """A matrix moved at full size by LoRDO's steps, with moments of rank r: see lordo.py.

    The basis Q is the consensus' one of the shorter side, or with ``projection = "local"`` the leading directions of
    this peer's own first gradient after ``begin``, with error feedback.
    """

    def __init__(self, block: Block, parameter: nn.Parameter, optimizer: OptimizerConfig) -> None:
        self._options = optimizer
        self._is_tall = block.rows > block.cols
        assert block.moment_shape is not None, "a matrix of a run of LoRDO has one"
        self._rank, long = block.moment_shape
        short = min(block.rows, block.cols)
        shapes = (block.moment_shape, block.moment_shape, (short, self._rank), (short, long))
        displacement = torch.zeros(parameter.shape, device=parameter.device)
        first, self._second, self._basis, self._error = (displacement.new_zeros(shape) for shape in shapes)
        state = BlockState(displacement, first, self._second, projection=self._basis, error=self._error)
        super().__init__(block.name, parameter, inner_optimizer(optimizer, is_matrix=True), state)
        self._aims = False

    def begin(self, consensus: Consensus) -> None:
        super().begin(consensus)
        self._aims = self._options.projection == "local"

    def project(self, basis: Basis) -> None:
        """Carry the moments to the shorter side's factor of ``basis``."""
        self._turn(basis.factors(self._basis)[self._is_tall])

    def _move(self, gradient: Tensor, lr: float) -> None:
        state, given = self.state, wide(gradient)
        self._error.add_(given)
        if self._aims and (own := leading(self._error, self._rank)) is not None:
            self._turn(own)
            self._aims = False
        state.steps += 1
        low = take_held(self._error, self._basis)
        moments = state.first, self._second
        add_step(wide(state.displacement), given, low, self._basis, *moments, state.steps, lr, self._options)

    def _turn(self, new: Tensor) -> None:
        if not torch.equal(new, self._basis):  # 12 bits make it orthonormal only nearly: R would not be the identity
            turn = new.mT @ self._basis
            turn_moments(self.state.first, self._second, turn, self.state.steps, self._options.betas)
            self._basis.copy_(new)
