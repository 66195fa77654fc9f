"""What a peer keeps of one block between rounds, and the one rule for what becomes of work that was not averaged."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tsr_swarm.config.blocks import Block
from tsr_swarm.config.layout import Part
from tsr_swarm.errors import CheckpointError

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
