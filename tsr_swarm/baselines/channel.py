"""The way of dense vectors: each sender's up to a reducer, their mean down, in 32, 16, 8, 4, 3 or 2 bits a number.

32 bits are float32 and 16 are bfloat16, as they are. Fewer are integers with a scale a row and error feedback, an idea
of Streaming DiLoCo and MuLoCo (arXiv 2501.18512, 2505.23725): what rounding drops stays with its sender and is added to
what it sends next, and the reducer does the same with the mean that it publishes. Of 4 and 8 bits a scale is the row's
largest magnitude over the highest integer; of 2 and 3, where that would round most numbers of a row to zero, it is one
of least squared error.
"""

import math
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from tsr_swarm.baselines.method import ActivePeers, ErrorFeedback, FlatParameters, as_floats
from tsr_swarm.wire.compression import compress, compress_digits
from tsr_swarm.wire.packing import pack

WIDTHS = (32, 16, 8, 4, 3, 2)  # bits of a number
ZSTD_LEVEL = 3  # as on our own wire
# The best step of a uniform quantiser of 3 or 7 levels for normal numbers of deviation 1 (after Max, IRE Trans. Inf.
# Theory 6, 1960), by bits: where the search for a row's own begins.
FIRST_STEPS = {2: 1.22, 3: 0.65}
REFINEMENTS = 3  # of such a step


class HasWidth(Protocol):
    """Settings with the bits of a number."""

    @property
    def bits(self) -> int: ...

    def require(self, is_legal: bool, key: str, limit: str) -> None: ...


def require_width(settings: HasWidth) -> None:
    """Raise a ConfigError unless numbers can travel in ``settings.bits``."""
    settings.require(settings.bits in WIDTHS, "bits", "32, 16, 8, 4, 3 or 2")


class DenseChannel:
    """A link that carries dense vectors of N senders, with a residual for each where numbers have under 16 bits."""

    def __init__(self, flat: FlatParameters, senders: int, bits: int) -> None:
        self._flat = flat
        self._bits = bits
        self.feedback = ErrorFeedback(senders if bits < 16 else 0, flat.size, decay=1.0)

    def send(self, vectors: Tensor, rows: slice | list[int]) -> tuple[Tensor, float]:
        """Return what arrives of ``vectors`` (len(rows), P), one a sender of ``rows``, and mean wire bytes of one."""
        if self._bits >= 16:
            return as_floats(vectors, self._bits), self._bits / 8 * self._flat.size
        pending = self.feedback.pending(vectors, rows)
        numbers, size = quantise(self._flat, pending, self._bits)
        self.feedback.keep(pending.sub_(numbers), rows)
        return numbers, size


class MeanChannel:
    """The way of a mean: N peers send to a reducer, which publishes at the same bits."""

    def __init__(self, flat: FlatParameters, peers: int, bits: int) -> None:
        self.up = DenseChannel(flat, peers, bits)
        self.down = DenseChannel(flat, 1, bits)

    def mean(self, vectors: Tensor, active: ActivePeers) -> tuple[Tensor, float, float]:
        """Return the published mean (P,) of ``vectors`` (len(active.peers), P), and a peer's bytes up and down."""
        arrived, up = self.up.send(vectors, active.rows)
        published, down = self.down.send(active.mean(arrived)[None], slice(None))
        return published[0], up, down


def quantise(flat: FlatParameters, vectors: Tensor, bits: int) -> tuple[Tensor, float]:
    """Round ``vectors`` (S, P) row by row. Returns the numbers that arrive, (S, P), and mean wire bytes of a sender.

    Scales travel as bfloat16; a vector is one row. With 4 or 8 bits the error of a number is at most half a scale, and
    a 256th of the row's largest magnitude more where the scale was rounded down; with 2 or 3 it is that of a clamped
    number, too. Integers and scales are packed and compressed in one frame, by matches or by digits, as is shorter.
    """
    limit = 2 ** (bits - 1) - 1
    integers = torch.empty_like(vectors)
    numbers = torch.empty_like(vectors)
    scales: list[Tensor] = []
    parts = zip(flat.shapes.values(), flat.parts(vectors), flat.parts(integers), flat.parts(numbers), strict=True)
    for shape, given, rounded, arriving in parts:
        rows, out, back = (x.view(len(vectors), -1, shape[-1]) for x in (given, rounded, arriving))
        scale = _least_error(rows, bits) if bits in FIRST_STEPS else rows.abs().amax(dim=-1) / limit
        scale = scale.to(torch.bfloat16)
        step = scale.to(torch.float32).unsqueeze(-1)
        _round(rows, step, limit, out)
        torch.mul(out, step, out=back)
        scales.append(scale)
    return numbers, _wire_bytes(integers, torch.cat(scales, dim=-1), bits)


def _round(rows: Tensor, step: Tensor, limit: int, out: Tensor) -> None:
    """Write the nearest multiples of ``step`` (..., 1) to ``out``, as integers of magnitude up to ``limit``."""
    torch.div(rows, torch.where(step == 0, 1, step), out=out)
    out.round_().clamp_(-limit, limit)


def _least_error(rows: Tensor, bits: int) -> Tensor:
    """Return a step for each of ``rows`` (S, R, C), (S, R): the better of two local minima of the squared error.

    Lloyd's iteration (IEEE Trans. Inf. Theory 28, 1982): integers q of the step s, then s = x . q / q . q. It starts
    from the best step for normal numbers, and from the largest magnitude, which it can only improve on.
    """
    limit = 2 ** (bits - 1) - 1
    integers = torch.empty_like(rows)
    best, least = torch.zeros_like(rows[..., :1]), rows.square().sum(dim=-1, keepdim=True)
    normal = FIRST_STEPS[bits] * rows.square().mean(dim=-1, keepdim=True).sqrt()
    for step in (normal, rows.abs().amax(dim=-1, keepdim=True) / limit):
        for _ in range(REFINEMENTS):
            _round(rows, step, limit, integers)
            size = integers.square().sum(dim=-1, keepdim=True)
            step = (rows * integers).sum(dim=-1, keepdim=True) / size.clamp_min(1)
        _round(rows, step, limit, integers)
        error = torch.addcmul(rows, integers, step, value=-1).square_().sum(dim=-1, keepdim=True)
        best, least = torch.where(error < least, step, best), torch.minimum(error, least)
    return best.squeeze(-1)


def _wire_bytes(integers: Tensor, scales: Tensor, bits: int) -> float:
    values = integers.to(torch.int32).numpy()
    raw_scales = scales.contiguous().view(torch.int16).numpy()
    sizes = [
        _frame_bytes([pack(np.ascontiguousarray(row), bits), scale.tobytes()])
        for row, scale in zip(values, raw_scales, strict=True)
    ]
    return math.fsum(sizes) / len(sizes)


def _frame_bytes(parts: list[bytes]) -> int:
    return min(len(compress(b"".join(parts), ZSTD_LEVEL)), len(compress_digits(parts)))
