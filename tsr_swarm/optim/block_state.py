"""What a peer keeps of one block between rounds, and the one rule for what becomes of work that was not averaged."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tsr_swarm.config.blocks import Block
from tsr_swarm.config.layout import Part
from tsr_swarm.errors import CheckpointError
from tsr_swarm.lowrank.basis import Basis
from tsr_swarm.lowrank.packed import BUCKET, Packed
from tsr_swarm.lowrank.sketch import core_of, expand

CAP = 4.0  # a residual longer than this many usual displacements ...
CAPPED_SHARE = 0.5  # ... goes on by half
_USUAL_MEMORY = 0.9


@dataclass(slots=True, eq=False)
class BlockState:
    """One block: float32, in core coordinates (r x r) or full size, on the device of its parameter.

    ``displacement`` is ``Wbar - W_i``: all work of this peer that is not in the consensus weights. What an average did
    not take stays there, so a residual needs no tensor of its own. ``sent`` is what the open upload said, dequantised.
    ``usual`` is the running norm of the displacements that were averaged.
    """

    displacement: Tensor
    first: Tensor
    second: Tensor | None  # of inner optimizers that keep one
    steps: int = 0  # Adam's t; never reset by a round or a refresh
    usual: float = 0.0
    sent: dict[Part, Tensor] = field(default_factory=dict)

    def settle(self, averaged: Tensor | None, gamma: float) -> None:
        """Take ``averaged`` out of the displacement (None: nothing was) and close the upload.

        What is left goes on whole, or as ``gamma`` of it where something was averaged. Past CAP usual displacements
        it goes on by half: a peer that misses many rounds keeps its work, but its distance stays below about
        CAP + 1 displacements instead of growing for ever. (What waits of other bases is bounded in residual.py.)
        """
        if averaged is not None or self.usual == 0:
            self.usual = self._running_norm()
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
        """Forget which way the steps went."""
        for moment in (self.first, self.second):
            if moment is not None:
                moment.zero_()
        self.steps = 0

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps, by name; what the inner optimizer does not keep is left out."""
        kept = {"displacement": self.displacement, "first": self.first, "second": self.second}
        return {name: tensor for name, tensor in kept.items() if tensor is not None}

    def _running_norm(self) -> float:
        norm = _norm(self.displacement)
        return _USUAL_MEMORY * self.usual + (1 - _USUAL_MEMORY) * norm if self.usual else norm


def zero_state(like: Tensor, moments: int) -> BlockState:
    """A fresh state of ``like``'s shape and device with one or two moments."""
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
    expected: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
        "steps": ((len(blocks),), torch.int64),
        "usual": ((len(blocks),), torch.float64),
    }
    for index, block in enumerate(blocks):
        state = states[index]
        like = [*_tensors(block, state).items(), *_sent_like(block, state, packed).items()]
        expected |= {key: (tuple(tensor.shape), torch.float32) for key, tensor in like}
    check_tensors(packed, expected)
    for index, block in enumerate(blocks):
        state = states[index]
        for key, tensor in _tensors(block, state).items():
            tensor.copy_(packed[key])
        state.steps, state.usual = int(packed["steps"][index]), float(packed["usual"][index])
        device = state.displacement.device
        keys = {part: _sent_key(block, part) for part in Part}
        state.sent = {part: packed[key].to(device, copy=True) for part, key in keys.items() if key in packed}


def check_tensors(packed: Mapping[str, Tensor], expected: Mapping[str, tuple[tuple[int, ...], torch.dtype]]) -> None:
    """Hold a peer's saved state against what this run expects. Raises CheckpointError."""
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
    return {f"{key}/{block.name}": tensor for key, tensor in state.tensors().items()}


def _sent_key(block: Block, part: Part) -> str:
    return f"sent/{part.value}/{block.name}"


def _sent_like(block: Block, state: BlockState, packed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    shapes = {
        Part.CORE: torch.empty(*block.ranks, device="meta"),
        Part.TANGENT_LEFT: torch.empty(block.rows, block.ranks[1], device="meta"),
        Part.TANGENT_RIGHT: torch.empty(block.cols, block.ranks[0], device="meta"),
        Part.DENSE: state.displacement,
    }
    return {key: like for part, like in shapes.items() if (key := _sent_key(block, part)) in packed}


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()


def _norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor))


RESIDUAL = "residual/"  # of the keys of a saved state
_NOTHING = 1e-4  # of the squared norm that was there before: less is rounding


@dataclass(frozen=True, slots=True, eq=False)
class Waiting:
    """E, and its share in the present basis (P, Q)."""

    work: Packed
    share: Tensor

    def outside(self, basis: Basis) -> Tensor:
        """What of E the core did not begin with: E - U S0 V^T, float32 (M, N)."""
        return self.work.numbers() - expand(self.share, *_sides(basis, self.share))


def averaged(waiting: Waiting, basis: Basis) -> Waiting | None:
    """After a round that took the core: E without its share. None when nothing is left."""
    before = float(waiting.work.numbers().square().sum())
    rest = waiting.outside(basis)
    if float(rest.square().sum()) <= _NOTHING * before:
        return None
    return Waiting(Packed.of(rest, waiting.work.bits), torch.zeros_like(waiting.share))


def turned(
    core: Tensor, waiting: Waiting | None, old: Basis, new: Basis, usual: float, bits: int
) -> tuple[Tensor, Waiting | None]:
    """The core to begin with in the ``new`` basis, and what waits. ``usual``: norm of a usual displacement of the core.
    ``bits``: 4 or 8 a number that waits.

    Work that waits longer than it would take all directions to have their turn goes on by half: see BlockState.settle.
    """
    since = core if waiting is None else core - waiting.share
    if since.any():
        work = expand(since, *_sides(old, core))
        packed = Packed.of(work if waiting is None else work + waiting.work.numbers(), bits)
    elif waiting is None:
        return torch.zeros_like(core), None
    else:
        packed = waiting.work
    rows, cols = packed.shape
    limit = CAP * usual * math.sqrt(rows * cols / core.numel())
    if usual and packed.norm() > limit:
        packed = packed.times(CAPPED_SHARE)
    share = core_of(packed.numbers(), *_sides(new, core))
    return share.clone(), Waiting(packed, share)


def pack_waiting(waiting: Mapping[str, Waiting]) -> dict[str, Tensor]:
    """As flat CPU tensors, by the names of their blocks."""
    return {
        f"{RESIDUAL}{part}/{name}": tensor.cpu().contiguous()
        for name, kept in waiting.items()
        for part, tensor in (("codes", kept.work.codes), ("scales", kept.work.scales), ("share", kept.share))
    }


def unpack_waiting(block: Block, bits: int, device: torch.device, saved: Mapping[str, Tensor]) -> Waiting | None:
    """What waits of ``block``, out of ``pack_waiting``'s tensors; None if nothing does. Raises CheckpointError."""
    keys = [f"{RESIDUAL}{part}/{block.name}" for part in ("codes", "scales", "share")]
    if not saved.keys() & set(keys):
        return None
    buckets = -(-block.size // BUCKET)
    width = BUCKET // 2 if bits == 4 else BUCKET
    kinds = ((buckets, width), torch.uint8), ((buckets, 1), torch.float32), (block.ranks, torch.float32)
    check_tensors({key: saved[key] for key in keys if key in saved}, dict(zip(keys, kinds, strict=True)))
    codes, scales, share = (saved[key].to(device, copy=True) for key in keys)
    return Waiting(Packed(codes, scales, (block.rows, block.cols)), share)


def _sides(basis: Basis, like: Tensor) -> tuple[Tensor, Tensor]:
    return basis.left_float().to(like.device), basis.right_float().to(like.device)
