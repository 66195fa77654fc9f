"""A full-size residual in 4 or 8 bits a number, as MicroAdam keeps its error feedback in 4.

MicroAdam: arXiv 2405.15593, section 3. Buckets of 64 numbers share one scale, so a packed matrix takes 0.578 or 1.0625
bytes a number. In 4 bits the grid reaches from a bucket's least number to its largest. Departures: it is shifted so
that zero stays zero, which takes a byte a bucket, and rounding is to the nearest; in 8 bits it is symmetric. Each
packing of four bits moves a matrix by about a tenth of its norm, which what is packed again and again cannot bear; of
eight bits by a hundredth. Local to one peer: its bits need not agree with anybody's.
"""

import math
from dataclasses import dataclass, replace
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

BUCKET = 64
_ZERO8 = 127  # the code of zero in 8 bits
_OLD_ZERO4 = 7  # and in 4 bits, where a saved bucket has no byte for it


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """codes: uint8 (buckets, 33), two numbers a byte, then zero; or (buckets, 64). scales: float32 (buckets, 1)."""

    codes: Tensor
    scales: Tensor
    shape: tuple[int, ...]

    @classmethod
    def of(cls, x: Tensor, bits: int) -> Self:
        """Pack finite ``x`` of any shape. No number moves by more than half a step of its bucket."""
        flat = x.detach().to(torch.float32).flatten()
        buckets = F.pad(flat, (0, -flat.numel() % BUCKET)).view(-1, BUCKET)
        if bits == 4:
            top = 15
            low, high = buckets.amin(1, keepdim=True).clamp(max=0), buckets.amax(1, keepdim=True).clamp(min=0)
        else:
            top = 2 * _ZERO8
            high = buckets.abs().amax(1, keepdim=True)
            low = -high
        scales = high / top - low / top
        steps = scales.clamp_min(torch.finfo(torch.float32).tiny)
        zeros = torch.round(-low / steps)
        # shifting the grid by less than half a step leaves the ends no more than half a step outside
        codes = (torch.round(buckets / steps) + zeros).clamp_(0, top).to(torch.uint8)
        if bits == 4:
            codes = torch.cat((codes[:, 0::2] | codes[:, 1::2] << 4, zeros.to(torch.uint8)), dim=1)
        return cls(codes, scales, tuple(x.shape))

    @property
    def bits(self) -> int:
        return 4 if self.codes.shape[1] < BUCKET else 8

    def numbers(self) -> Tensor:
        """What was packed, rounded, float32."""
        codes, zeros = self.codes, torch.full_like(self.scales, _ZERO8)
        if self.bits == 4:
            codes, zeros = codes[:, :-1], codes[:, -1:].to(torch.float32)
            codes = torch.stack((codes & 15, codes >> 4), dim=2).flatten(1)
        numbers: Tensor = (codes.to(torch.float32) - zeros) * self.scales
        return numbers.flatten()[: math.prod(self.shape)].view(self.shape)

    def norm(self) -> float:
        """Frobenius norm."""
        return float(torch.linalg.vector_norm(self.numbers()))

    def times(self, factor: float) -> Self:
        """All numbers times ``factor``, without rounding them again."""
        return replace(self, scales=self.scales * factor)


def code_width(bits: int) -> int:
    """Bytes of a bucket's codes."""
    return BUCKET // 2 + 1 if bits == 4 else BUCKET


def packed_bytes(count: int, bits: int) -> int:
    return -(-count // BUCKET) * (code_width(bits) + 4)


def with_zeros(codes: Tensor) -> Tensor:
    """Return saved ``codes`` as they are, or with zero's code where they were saved without, on a symmetric grid."""
    is_old = codes.dim() == 2 and codes.shape[1] == BUCKET // 2 and codes.dtype == torch.uint8
    return F.pad(codes, (0, 1), value=_OLD_ZERO4) if is_old else codes
