"""A full-size residual in 4 bits a number, as MicroAdam keeps its error feedback (arXiv 2405.15593, section 3).

Buckets of 64 numbers share one scale, so a packed matrix takes 0.5625 bytes a number. Departures: the scale is
symmetric, max|x| / 7 with codes -7 .. 7, so that zero stays zero; rounding is to the nearest. Local to one peer: its
bits need not agree with anybody's.
"""

import math
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

BUCKET = 64
_LEVELS = 7


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """codes: uint8 (buckets, 32), two numbers a byte; scales: float32 (buckets, 1). On the device of what came in."""

    codes: Tensor
    scales: Tensor
    shape: tuple[int, ...]

    @classmethod
    def of(cls, x: Tensor) -> Self:
        """Pack finite ``x`` of any shape. No number moves by more than 1/14 of the largest in its bucket."""
        flat = x.detach().to(torch.float32).flatten()
        buckets = F.pad(flat, (0, -flat.numel() % BUCKET)).view(-1, BUCKET)
        scales = buckets.abs().amax(1, keepdim=True) / _LEVELS
        steps = torch.round(buckets / scales.clamp_min(torch.finfo(torch.float32).tiny))
        codes = (steps.clamp_(-_LEVELS, _LEVELS) + _LEVELS).to(torch.uint8)
        return cls(codes[:, 0::2] | codes[:, 1::2] << 4, scales, tuple(x.shape))

    def numbers(self) -> Tensor:
        """What was packed, to 4 bits, float32."""
        codes = torch.stack((self.codes & 15, self.codes >> 4), dim=2).flatten(1)
        numbers = (codes.to(torch.float32) - _LEVELS) * self.scales
        return numbers.flatten()[: math.prod(self.shape)].view(self.shape)

    @property
    def bytes(self) -> int:
        return self.codes.numel() + 4 * self.scales.numel()
