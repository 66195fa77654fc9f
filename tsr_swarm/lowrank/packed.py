"""A full-size residual in 4 or 8 bits a number, as MicroAdam keeps its error feedback in 4.

MicroAdam: arXiv 2405.15593, section 3. Buckets of 64 numbers share one scale, so a packed matrix takes 0.5625 or 1.0625
bytes a number. Departures: the scale is symmetric, max|x| / 7 or / 127, so that zero stays zero; rounding is to the
nearest. Each packing of four bits moves a matrix by about a tenth of its norm, which what is packed again and again
cannot bear; of eight bits by a hundredth. Local to one peer: its bits need not agree with anybody's.
"""

import math
from dataclasses import dataclass, replace
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

BUCKET = 64


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """codes: uint8 (buckets, 32), two numbers a byte, or (buckets, 64); scales: float32 (buckets, 1)."""

    codes: Tensor
    scales: Tensor
    shape: tuple[int, ...]

    @classmethod
    def of(cls, x: Tensor, bits: int) -> Self:
        """Pack finite ``x`` of any shape. No number moves by more than half a step of its bucket."""
        limit = 2 ** (bits - 1) - 1
        flat = x.detach().to(torch.float32).flatten()
        buckets = F.pad(flat, (0, -flat.numel() % BUCKET)).view(-1, BUCKET)
        scales = buckets.abs().amax(1, keepdim=True) / limit
        steps = torch.round(buckets / scales.clamp_min(torch.finfo(torch.float32).tiny))
        codes = (steps.clamp_(-limit, limit) + limit).to(torch.uint8)
        return cls(codes[:, 0::2] | codes[:, 1::2] << 4 if bits == 4 else codes, scales, tuple(x.shape))

    @property
    def bits(self) -> int:
        return 4 if self.codes.shape[1] < BUCKET else 8

    def numbers(self) -> Tensor:
        """What was packed, rounded, float32."""
        codes = self.codes
        if self.bits == 4:
            codes = torch.stack((codes & 15, codes >> 4), dim=2).flatten(1)
        numbers: Tensor = (codes.to(torch.float32) - (2 ** (self.bits - 1) - 1)) * self.scales
        return numbers.flatten()[: math.prod(self.shape)].view(self.shape)

    def norm(self) -> float:
        """Frobenius norm."""
        return float(torch.linalg.vector_norm(self.numbers()))

    def times(self, factor: float) -> Self:
        """All numbers times ``factor``, without rounding them again."""
        return replace(self, scales=self.scales * factor)


def packed_bytes(count: int, bits: int) -> int:
    return -(-count // BUCKET) * (BUCKET * bits // 8 + 4)
