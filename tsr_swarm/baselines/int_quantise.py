"""Rounding to integers of few bits with one scale a row, and the bytes they really need."""

import math

import numpy as np
import torch
from torch import Tensor

from tsr_swarm.baselines.flat_parameters import FlatParameters
from tsr_swarm.wire.compression import compress
from tsr_swarm.wire.packing import pack

ZSTD_LEVEL = 3  # as on our own wire


def quantise(flat: FlatParameters, vectors: Tensor, bits: int) -> tuple[Tensor, float]:
    """Round ``vectors`` (S, P) row by row. Returns the numbers that arrive, (S, P), and mean wire bytes of a sender.

    A row's scale is its largest magnitude over 2**(bits-1) - 1, as bfloat16; a vector is one row. The error of a number
    is at most half a scale, and a 256th of the row's largest magnitude more where the scale was rounded down. Integers
    and scales are packed and compressed in one frame.
    """
    limit = 2 ** (bits - 1) - 1
    integers = torch.empty_like(vectors)
    numbers = torch.empty_like(vectors)
    scales: list[Tensor] = []
    parts = zip(flat.shapes.values(), flat.parts(vectors), flat.parts(integers), flat.parts(numbers), strict=True)
    for shape, given, rounded, arriving in parts:
        rows, out, back = (x.view(len(vectors), -1, shape[-1]) for x in (given, rounded, arriving))
        scale = (rows.abs().amax(dim=-1) / limit).to(torch.bfloat16)
        step = scale.to(torch.float32).unsqueeze(-1)
        torch.div(rows, torch.where(step == 0, 1, step), out=out)
        out.round_().clamp_(-limit, limit)
        torch.mul(out, step, out=back)
        scales.append(scale)
    return numbers, _wire_bytes(integers, torch.cat(scales, dim=-1), bits)


def _wire_bytes(integers: Tensor, scales: Tensor, bits: int) -> float:
    values = integers.to(torch.int32).numpy()
    raw_scales = scales.contiguous().view(torch.int16).numpy()
    frames = (
        compress(pack(np.ascontiguousarray(row), bits) + scale.tobytes(), ZSTD_LEVEL)
        for row, scale in zip(values, raw_scales, strict=True)
    )
    return math.fsum(map(len, frames)) / len(values)
