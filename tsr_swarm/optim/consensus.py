"""The state that is the same for every peer, bit for bit: weights and bases, and how a published round changes them.

Only plain mul and sub touch a weight, as separate operations: their results do not depend on the machine.
"""

import hashlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from tsr_swarm.config.blocks import Block
from tsr_swarm.config.layout import Part, Slot, published_slots
from tsr_swarm.config.round_plan import Due, RoundPlan
from tsr_swarm.config.run import WireConfig
from tsr_swarm.errors import RunError
from tsr_swarm.lowrank.basis import BASIS_LIMIT, Basis
from tsr_swarm.lowrank.dct import chosen_basis, drawn_basis
from tsr_swarm.lowrank.exact import lift, lift_float32, lift_tangent, lift_tangent_float32
from tsr_swarm.lowrank.grid import Grid, exact_integers, integer_limit
from tsr_swarm.lowrank.orthogonal_iteration import range_of
from tsr_swarm.lowrank.randomized_svd import RANGE_BITS, known_range, left_basis, right_basis

_Grids = Mapping[tuple[int, Part], Grid]


class Consensus:
    """Weights (float32, the model's shapes) and bases (by block, low-rank blocks only) of a run. On the CPU.

    A basis holds the range that was published for it from one round to the next, in which it is projected on.

    Tensors are replaced, never written to, so that a state that is being sent stays as it is.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        weights: Mapping[str, Tensor],
        bases: Mapping[int, Basis],
        lift: str = "exact",
    ) -> None:
        """Take copies of ``weights`` by name. ``lift`` is "exact", or "float32" for the control that drifts apart."""
        self.blocks = tuple(blocks)
        copies = {b.name: weights[b.name].detach().to("cpu", torch.float32, copy=True) for b in self.blocks}
        self.weights = {name: weight.contiguous() for name, weight in copies.items()}
        self.bases = {i: bases[i] for i, b in enumerate(self.blocks) if b.is_low_rank}
        self.lift = lift
        self._lift, self._lift_tangent = _LIFTS[lift]

    def apply(
        self, plan: RoundPlan, published: Mapping[Slot, Grid], void: frozenset[int] = frozenset()
    ) -> dict[int, tuple[Basis, Basis]]:
        """Apply one round. Returns (old, new) bases of the blocks whose basis changed.

        Each block not ``void``: decay (low-rank blocks), subtract the published displacement lifted in the OLD basis,
        then change the basis. A void block keeps its weight, and its basis unless that is drawn, which depends on the
        round alone. A range that was published before is gone, void or not. Moments that are due must be there, but are
        the peers' own and change nothing here. Nothing changes when RunError is raised.
        """
        grids: dict[tuple[int, Part], Grid] = {(slot.block, slot.part): grid for slot, grid in published.items()}
        self._require_complete(plan.due, grids, void)
        weights, bases = dict(self.weights), dict(self.bases)
        refreshed: dict[int, tuple[Basis, Basis]] = {}
        drawn = {index for index, _ in plan.due.draw}
        for index, block in enumerate(self.blocks):
            if index not in void:
                weight = weights[block.name]
                if block.is_low_rank:
                    weight = weight * torch.tensor(plan.decay, dtype=torch.float32, device="cpu")
                weights[block.name] = weight - self._displacement(index, plan.due, grids).reshape(weight.shape)
            if index in drawn or index in plan.due.refresh - void:
                old, new = bases[index], self._next_basis(index, plan, grids)
                if not (torch.equal(old.left, new.left) and torch.equal(old.right, new.right)):
                    bases[index] = new
                    refreshed[index] = (old, new)
            if block.is_low_rank:
                bases[index] = self._with_range(bases[index], index, plan.due.range - void, grids)
        self.weights, self.bases = weights, bases
        return refreshed

    def _displacement(self, index: int, due: Due, grids: _Grids) -> Tensor:
        """Return what a block moves by, float32 (rows, cols)."""
        if not self.blocks[index].is_low_rank:
            return grids[index, Part.DENSE].values
        basis = self.bases[index]
        if index in due.tangent:
            return self._lift_tangent(basis, grids[index, Part.TANGENT_LEFT], grids[index, Part.TANGENT_RIGHT])
        return self._lift(basis, grids[index, Part.CORE])

    def _next_basis(self, index: int, plan: RoundPlan, grids: _Grids) -> Basis:
        """Return the basis as drawn, chosen or made from what is published; a side that gets zeros stays."""
        old, block = self.bases[index], self.blocks[index]
        if (number := dict(plan.due.draw).get(index)) is not None:
            return drawn_basis(block.rows, block.cols, block.ranks, seed=plan.seed, block=index, number=number)
        if index in plan.due.project:
            left, right = grids[index, Part.SINGULAR_LEFT].values, grids[index, Part.SINGULAR_RIGHT].values
            new_left, new_right = left_basis(known_range(old, block.sketch_width), left), right_basis(right)
            return _replace_sides(old, new_left, new_right)
        if index in plan.due.choose:
            p, q = block.ranks
            left, right = grids[index, Part.COLUMNS_LEFT].values, grids[index, Part.COLUMNS_RIGHT].values
            return chosen_basis(block.rows, block.cols, _columns(left, p, block), _columns(right, q, block))
        new_left = range_of(grids[index, Part.TANGENT_LEFT], old.left)
        new_right = range_of(grids[index, Part.TANGENT_RIGHT], old.right)
        return _replace_sides(old, new_left, new_right)

    def _with_range(self, basis: Basis, index: int, due: frozenset[int], grids: _Grids) -> Basis:
        """Return ``basis`` with the range that the round publishes for it; the same object where both have none."""
        if index in due:
            published = exact_integers(grids[index, Part.RANGE].values, RANGE_BITS).to(torch.int16)
            return replace(basis, range=published)
        return basis if basis.range is None else replace(basis, range=None)

    def _require_complete(self, due: Due, grids: _Grids, void: frozenset[int]) -> None:
        for slot in published_slots(self.blocks, due, WireConfig(), void):  # any bits: only the shapes count here
            grid = grids.get((slot.block, slot.part))
            if grid is None or tuple(grid.values.shape) != (slot.rows, slot.cols):
                found = "nothing" if grid is None else f"shape {tuple(grid.values.shape)}"
                raise RunError(
                    f"The round publishes {found} as '{slot.part}' of block '{self.blocks[slot.block].name}', "
                    f"not {slot.rows} x {slot.cols}; fetch the round again."
                )

    def digest(self) -> bytes:
        """Hash names, shapes, dtypes and little-endian bytes by BLAKE2b-256, in the manifest's order, weights first."""
        hasher = hashlib.blake2b(digest_size=32)
        for name, tensor in self.tensors().items():
            header = f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}".encode()
            hasher.update(len(header).to_bytes(8, "little") + header)
            hasher.update(little_endian(tensor))
        return hasher.digest()

    def tensors(self) -> dict[str, Tensor]:
        """Return all state as it is stored and sent: "weight/<name>", then "left/<name>" and "right/<name>".

        And "range/<name>" of a block that is projected on it in the next round.
        """
        state = self.weight_tensors()
        for index, basis in self.bases.items():
            state[f"left/{self.blocks[index].name}"] = basis.left
            state[f"right/{self.blocks[index].name}"] = basis.right
            if basis.range is not None:
                state[f"range/{self.blocks[index].name}"] = basis.range
        return state

    def weight_tensors(self) -> dict[str, Tensor]:
        """Return the weights alone, named as in ``tensors()``."""
        return {f"weight/{block.name}": self.weights[block.name] for block in self.blocks}

    @classmethod
    def from_tensors(
        cls,
        blocks: Sequence[Block],
        tensors: Mapping[str, Tensor],
        lift: str = "exact",
        bases: Mapping[int, Basis] | None = None,
    ) -> "Consensus":
        """Build from what ``tensors()`` gave, here or at another peer. Raises RunError for invalid tensors.

        ``bases``: those of the state, if ``tensors`` are from ``weight_tensors()``.
        """
        checks = {name: check for block in blocks for name, check in _checks(block, with_bases=bases is None)}
        checks = {name: check for name, check in checks.items() if name in tensors or not name.startswith("range/")}
        if unknown := sorted(tensors.keys() ^ checks.keys()):
            raise RunError(
                f"The state and the manifest differ in {len(unknown)} names, the first is '{unknown[0][:80]}'; "
                "fetch the state of this run."
            )
        for name, check in checks.items():
            if problem := check(tensors[name]):
                raise RunError(f"'{name}' of the state {problem}; fetch the state again.")
        weights = {block.name: tensors[f"weight/{block.name}"] for block in blocks}
        if bases is None:
            bases = {index: _basis(tensors, block) for index, block in enumerate(blocks) if block.is_low_rank}
        return cls(blocks, weights, bases, lift)


_LIFTS = {"exact": (lift, lift_tangent), "float32": (lift_float32, lift_tangent_float32)}


def little_endian(tensor: Tensor) -> memoryview:
    """Return the numbers of a tensor, row by row, as bytes that are the same on every machine."""
    array = tensor.contiguous().numpy().reshape(-1)
    return (array if sys.byteorder == "little" else array.byteswap()).data


def _replace_sides(old: Basis, left: Tensor | None, right: Tensor | None) -> Basis:
    """Return ``old`` with the sides that there are new ones of."""
    return Basis(old.left if left is None else left, old.right if right is None else right)


def _basis(tensors: Mapping[str, Tensor], block: Block) -> Basis:
    known = tensors.get(f"range/{block.name}")
    left, right = tensors[f"left/{block.name}"].clone(), tensors[f"right/{block.name}"].clone()
    return Basis(left, right, None if known is None else known.clone())


def _columns(flags: Tensor, rank: int, block: Block) -> Tensor:
    """Return the indices of the flagged columns. Raises RunError unless they are ``rank``."""
    chosen = flags.flatten().nonzero().flatten()
    if len(chosen) != rank or int(flags.min()) < 0:
        raise RunError(
            f"The round publishes {len(chosen)} columns for block '{block.name}', not {rank}; fetch the round again."
        )
    return chosen


def _checks(block: Block, with_bases: bool) -> Iterator[tuple[str, Callable[[Tensor], str]]]:
    """Yield the name of each tensor of a block, and a function that says what is wrong with it, "" if nothing."""
    yield f"weight/{block.name}", lambda tensor: _weight_problem(tensor, block)
    if with_bases and block.is_low_rank:
        yield f"left/{block.name}", lambda tensor: _factor_problem(tensor, (block.rows, block.ranks[0]))
        yield f"right/{block.name}", lambda tensor: _factor_problem(tensor, (block.cols, block.ranks[1]))
        shape = block.sketch_width, block.rows
        yield f"range/{block.name}", lambda tensor: _factor_problem(tensor, shape, integer_limit(RANGE_BITS))


def _weight_problem(weight: Tensor, block: Block) -> str:
    shape = tuple(weight.shape)
    if weight.dtype != torch.float32:
        return f"is {weight.dtype}, not float32"
    if weight.numel() != block.size or (block.is_low_rank and shape != (block.rows, block.cols)):
        return f"has shape {shape}, the manifest says {block.rows} x {block.cols}"
    return "" if torch.isfinite(weight).all() else "has numbers that are not finite"


def _factor_problem(factor: Tensor, shape: tuple[int, int], limit: int = BASIS_LIMIT) -> str:
    if factor.dtype != torch.int16:
        return f"is {factor.dtype}, not int16"
    if tuple(factor.shape) != shape:
        return f"has shape {tuple(factor.shape)}, the manifest says {shape[0]} x {shape[1]}"
    low, high = torch.aminmax(factor)
    return "" if int(low) >= -limit and int(high) <= limit else f"has integers beyond {limit}"
