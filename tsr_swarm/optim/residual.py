"""What becomes of a core's unsent work when its basis changes: what the new basis holds goes on as its core, the rest
waits at full size, in 4 bits a number, until a basis comes that holds it.

Letters: U (M, P), V (N, Q) bases, C (P, Q) the core's displacement, E (M, N) the residual; all unsent work is
A = U C V^T + E, and its weights are Wbar - A.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from tsr_swarm.config.blocks import Block
from tsr_swarm.lowrank.basis import Basis
from tsr_swarm.lowrank.packed import BUCKET, Packed
from tsr_swarm.lowrank.sketch import core_of, expand
from tsr_swarm.optim.block_state import check_tensors

RESIDUAL = "residual/"  # of the keys of a saved state
_NOTHING = 1e-12  # of the squared norm: what is left of numbers that were never there


def carry(core: Tensor, residual: Packed | None, old: Basis, new: Basis) -> tuple[Tensor, Packed | None]:
    """C and E in the ``new`` basis: C' = U'^T A V' and E' = A - U' C' V'^T, for A = U C V^T + E."""
    if residual is None and not core.any():
        return torch.zeros_like(core), None
    u, v = (side.to(core.device) for side in (old.left_float(), old.right_float()))
    work = expand(core, u, v)
    if residual is not None:
        work += residual.numbers()
    u, v = (side.to(core.device) for side in (new.left_float(), new.right_float()))
    turned = core_of(work, u, v)
    rest = work - expand(turned, u, v)
    energy = float(rest.square().sum())
    return turned, Packed.of(rest) if energy > _NOTHING * float(work.square().sum()) else None


def pack_residuals(residuals: Mapping[str, Packed]) -> dict[str, Tensor]:
    """As flat CPU tensors, by the names of their blocks."""
    return {
        f"{RESIDUAL}{part}/{name}": tensor.cpu()
        for name, packed in residuals.items()
        for part, tensor in (("codes", packed.codes), ("scales", packed.scales))
    }


def unpack_residual(block: Block, device: torch.device, saved: Mapping[str, Tensor]) -> Packed | None:
    """The residual of ``block`` out of ``pack_residuals``' tensors; None if it has none. Raises CheckpointError."""
    keys = {part: f"{RESIDUAL}{part}/{block.name}" for part in ("codes", "scales")}
    if not keys.values() & saved.keys():
        return None
    buckets = -(-block.size // BUCKET)
    shapes = {keys["codes"]: ((buckets, BUCKET // 2), torch.uint8), keys["scales"]: ((buckets, 1), torch.float32)}
    check_tensors({key: saved[key] for key in shapes if key in saved}, shapes)
    codes, scales = (saved[key].to(device, copy=True) for key in shapes)
    return Packed(codes, scales, (block.rows, block.cols))
