"""What a peer keeps of one block between rounds, and what becomes of work that was not averaged."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tsr_swarm.config.blocks import Block
from tsr_swarm.config.layout import Part
from tsr_swarm.errors import CheckpointError
from tsr_swarm.lowrank.basis import Basis
from tsr_swarm.lowrank.packed import BUCKET, Packed, code_width, with_zeros
from tsr_swarm.lowrank.sketch import core_of, expand

CAP = 4.0  # a residual longer than this many usual displacements ...
CAPPED_SHARE = 0.5  # ... is halved
_USUAL_MEMORY = 0.9
_ROUNDING = 1e-4  # of a squared norm: less than this is left by rounding alone
RESIDUAL = "residual/"  # of the keys of a saved state


@dataclass(slots=True, eq=False)
class BlockState:
    """The displacement and the moments of one block, float32, in core coordinates (r x r) or full size.

    LoRDO's moments have rank r on the block's shorter side alone: they are (r, longer side), in a basis that is kept
    beside them. All tensors are on the device of the block's parameter.
    """

    displacement: Tensor  # Wbar - W_i: all work of this peer that no average has taken, residuals included
    first: Tensor
    second: Tensor | None  # of inner optimizers that keep one
    steps: int = 0  # Adam's t; never reset by a round or a refresh
    usual: float = 0.0  # running norm of the displacements that were averaged
    sent: dict[Part, Tensor] = field(default_factory=dict)  # the open upload, dequantised
    projection: Tensor | None = None  # LoRDO's Q (shorter side, r), that of the moments
    error: Tensor | None = None  # LoRDO's E (shorter side, longer side): gradients that no Q has held

    def settle(self, averaged: Tensor | None, gamma: float) -> None:
        """Take ``averaged`` out of the displacement (None: nothing was) and close the upload.

        What is left stays whole, or ``gamma`` of it where something was averaged. Beyond CAP usual displacements it is
        halved: a peer that misses many rounds keeps its work, but its distance stays below about
        CAP + 1 displacements instead of growing for ever. (UnsentWork is bounded in change_basis.)
        """
        if averaged is not None or self.usual == 0:
            norm = _norm(self.displacement)
            self.usual = _USUAL_MEMORY * self.usual + (1 - _USUAL_MEMORY) * norm if self.usual else norm
        share = 1.0
        if averaged is not None:
            self.displacement.sub_(averaged)
            share = gamma
        if _norm(self.displacement) > CAP * self.usual:
            share = min(share, CAPPED_SHARE)
        if share != 1:
            self.displacement.mul_(share)
        self.sent = {}

    def restart_moments(self) -> None:
        """Set the moments and the step count to zero."""
        for moment in (self.first, self.second):
            if moment is not None:
                moment.zero_()
        self.steps = 0


def zero_state(like: Tensor, moments: int) -> BlockState:
    """Return a fresh state of ``like``'s shape and device with one or two moments."""
    displacement, first = (torch.zeros(like.shape, device=like.device) for _ in range(2))
    return BlockState(displacement, first, torch.zeros_like(first) if moments == 2 else None)


def pack_states(blocks: Sequence[Block], states: Mapping[int, BlockState]) -> dict[str, Tensor]:
    """Copy all states into one flat dict of CPU tensors, fit for safetensors."""
    packed = {
        "steps": torch.tensor([states[index].steps for index in range(len(blocks))], device="cpu"),
        "usual": torch.tensor([states[index].usual for index in range(len(blocks))], dtype=torch.float64, device="cpu"),
    }
    for index, block in enumerate(blocks):
        state = states[index]
        for key, tensor in _tensors(block, state).items():
            packed[key] = _copy(tensor)
        for part, tensor in state.sent.items():
            packed[_sent_key(block, part)] = _copy(tensor)
    return packed


def unpack_states(blocks: Sequence[Block], states: Mapping[int, BlockState], packed: Mapping[str, Tensor]) -> None:
    """Read ``pack_states``' dict back, in place. Raises CheckpointError, before any change, where it does not fit."""
    shapes: dict[str, tuple[int, ...]] = {}
    for index, block in enumerate(blocks):
        state = states[index]
        shapes |= {key: tuple(tensor.shape) for key, tensor in _tensors(block, state).items()}
        sent = {
            Part.CORE: block.ranks,
            Part.TANGENT_LEFT: (block.ranks[1], block.rows),
            Part.TANGENT_RIGHT: (block.ranks[0], block.cols),
            Part.DENSE: tuple(state.displacement.shape),
        }
        shapes |= {key: shape for part, shape in sent.items() if (key := _sent_key(block, part)) in packed}
    expected = {key: (shape, torch.float32) for key, shape in shapes.items()}
    counts = {"steps": ((len(blocks),), torch.int64), "usual": ((len(blocks),), torch.float64)}
    check_tensors(packed, counts | expected)
    for index, block in enumerate(blocks):
        state = states[index]
        for key, tensor in _tensors(block, state).items():
            tensor.copy_(packed[key])
        state.steps, state.usual = int(packed["steps"][index]), float(packed["usual"][index])
        device = state.displacement.device
        keys = {part: _sent_key(block, part) for part in Part}
        state.sent = {part: packed[key].to(device, copy=True) for part, key in keys.items() if key in packed}


def check_tensors(packed: Mapping[str, Tensor], expected: Mapping[str, tuple[tuple[int, ...], torch.dtype]]) -> None:
    """Check a peer's saved state against what this run expects. Raises CheckpointError."""
    for key, (shape, dtype) in expected.items():
        if key not in packed:
            raise CheckpointError(f"the peer's saved state lacks '{key}'; it is of another run, start without it.")
        if tuple(packed[key].shape) != shape or packed[key].dtype != dtype:
            found = f"{tuple(packed[key].shape)} {packed[key].dtype}"
            raise CheckpointError(
                f"'{key}' of the peer's saved state is {found}, this run has {shape} {dtype}; start without it."
            )
    unknown = sorted(packed.keys() - expected.keys())
    if unknown:
        raise CheckpointError(f"the peer's saved state has an unknown '{unknown[0]}'; it is of another run.")


def _tensors(block: Block, state: BlockState) -> dict[str, Tensor]:
    """Return what a checkpoint keeps, by name, without what the inner optimizer does not have."""
    names = ("displacement", "first", "second", "projection", "error")
    kept = {name: getattr(state, name) for name in names}
    return {f"{key}/{block.name}": tensor for key, tensor in kept.items() if tensor is not None}


def _sent_key(block: Block, part: Part) -> str:
    return f"sent/{part.value}/{block.name}"


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()


def _norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor))


@dataclass(frozen=True, slots=True, eq=False)
class UnsentWork:
    """Work in other bases than the present one: a core's unsent work when its basis changes.

    All of it is kept at full size, in few bits a number, and is sent when bases that hold it come. Letters: U (M, P),
    V (N, Q) bases, C (P, Q) the core's displacement, E (M, N) this work, S0 = U^T E V its share in the present basis.
    The core begins with S0, so all unsent work is A = E + U (C - S0) V^T, and a peer's weights are Wbar - A. E is
    written anew only when something was averaged or done, never by a change of basis alone: rounding it again and
    again would count work twice.
    """

    work: Packed  # E
    share: Tensor  # S0, float32

    def outside(self, basis: Basis) -> Tensor:
        """Return what of E the core did not begin with: E - U S0 V^T, float32 (M, N)."""
        return self.work.numbers() - expand(self.share, *basis.factors(self.share))

    def after_average(self, basis: Basis) -> "UnsentWork | None":
        """Return what is left after a round that took the core: E without its share. None when nothing is."""
        before = float(self.work.numbers().square().sum())
        rest = self.outside(basis)
        if float(rest.square().sum()) <= _ROUNDING * before:
            return None
        return UnsentWork(Packed.of(rest, self.work.bits), torch.zeros_like(self.share))


def change_basis(
    core: Tensor, unsent: UnsentWork | None, old: Basis, new: Basis, usual: float, bits: int
) -> tuple[Tensor, UnsentWork | None]:
    """Return the core to begin with in the ``new`` basis, and the unsent work.

    ``usual``: norm of a usual displacement of the core. ``bits``: 4 or 8 a number of unsent work. Work that stays
    longer than a whole cycle of bases takes is halved: see BlockState.settle.
    """
    since = core if unsent is None else core - unsent.share
    if since.any():
        work = expand(since, *old.factors(core))
        packed = Packed.of(work if unsent is None else work + unsent.work.numbers(), bits)
    elif unsent is None:
        return torch.zeros_like(core), None
    else:
        packed = unsent.work
    rows, cols = packed.shape
    limit = CAP * usual * math.sqrt(rows * cols / core.numel())
    if usual and packed.norm() > limit:
        packed = packed.times(CAPPED_SHARE)
    share = core_of(packed.numbers(), *new.factors(core))
    return share.clone(), UnsentWork(packed, share)


def pack_unsent(unsent: Mapping[str, UnsentWork]) -> dict[str, Tensor]:
    """Return unsent work, by the names of blocks, as flat CPU tensors."""
    return {
        f"{RESIDUAL}{part}/{name}": tensor.cpu().contiguous()
        for name, kept in unsent.items()
        for part, tensor in (("codes", kept.work.codes), ("scales", kept.work.scales), ("share", kept.share))
    }


def unpack_unsent(block: Block, bits: int, device: torch.device, saved: Mapping[str, Tensor]) -> UnsentWork | None:
    """Return the unsent work of ``block`` from ``pack_unsent``'s tensors, if there is any. Raises CheckpointError."""
    keys = [f"{RESIDUAL}{part}/{block.name}" for part in ("codes", "scales", "share")]
    if not saved.keys() & set(keys):
        return None
    buckets = -(-block.size // BUCKET)
    if keys[0] in saved:
        saved = {**saved, keys[0]: with_zeros(saved[keys[0]])}
    kinds = ((buckets, code_width(bits)), torch.uint8), ((buckets, 1), torch.float32), (block.ranks, torch.float32)
    check_tensors({key: saved[key] for key in keys if key in saved}, dict(zip(keys, kinds, strict=True)))
    codes, scales, share = (saved[key].to(device, copy=True) for key in keys)
    return UnsentWork(Packed(codes, scales, (block.rows, block.cols)), share)


def core_as_sketch(core: Tensor, part: Part, basis: Basis) -> Tensor:
    """Return a core (P, Q) as one side of the tangent sketch of A = U C V^T: (A V)^T = (U C)^T, or U^T A = C V^T."""
    left, right = basis.factors(core)
    return (left @ core).mT.contiguous() if part is Part.TANGENT_LEFT else core @ right.mT
