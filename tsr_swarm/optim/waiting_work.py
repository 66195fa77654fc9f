"""What becomes of a core's unsent work when its basis changes: all of it waits at full size, in few bits a number, and
goes out as the bases that hold it come round.

Letters: U (M, P), V (N, Q) bases, C (P, Q) the core's displacement, E (M, N) what waits, S0 = U^T E V its share in
the present basis. The core begins with S0, so all unsent work is A = E + U (C - S0) V^T, and a peer's weights are
Wbar - A. E is written anew only when something was averaged or done, never by a change of basis alone: rounding it
again and again would count work twice.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tsr_swarm.config.blocks import Block
from tsr_swarm.lowrank.basis import Basis
from tsr_swarm.lowrank.packed import BUCKET, Packed
from tsr_swarm.lowrank.sketch import core_of, expand
from tsr_swarm.optim.block_state import CAP, CAPPED_SHARE, check_tensors

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
