"""DiLoCo: peers train alone, and an outer optimizer uses their mean displacement as a gradient.

Douillard et al., arXiv 2311.08105, Algorithm 1, with outer Nesterov (rate 0.7, momentum 0.9), or plain averaging
(McMahan et al., arXiv 1602.05629, FedAvg). Displacements of 16 bits are OpenDiLoCo's (arXiv 2407.07852, there float16);
8 and 4 bits are an idea of Streaming DiLoCo and MuLoCo (arXiv 2501.18512, 2505.23725), here integers with a scale a
row, error feedback at each peer, and the mean published at the same bits by a reducer with a residual of its own.
Departures: a mean weighted by steps. Moments and residual are private: an absent peer keeps its own.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from tsr_swarm.baselines.inner_optimizer import StackedOptimizer
from tsr_swarm.baselines.method import ActivePeers, ErrorFeedback, ExchangeBytes, FlatParameters, LocalMethod, Settings
from tsr_swarm.wire.compression import compress
from tsr_swarm.wire.packing import pack

WIDTHS = (32, 16, 8, 4)  # bits of a number
ZSTD_LEVEL = 3  # as on our own wire
PUBLISHED_RATE = {"nesterov": 0.7, "average": 1.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class DiLoCoSettings(Settings):
    """The outer step, and the bits of a number on the wire."""

    method: ClassVar[str] = "diloco"
    outer: str = "nesterov"  # nesterov | average
    outer_lr: float = 0.0  # 0: as published, 0.7 for nesterov and 1 for average
    outer_momentum: float = 0.9  # nesterov's
    bits: int = 32  # 32 (float32), 16 (bfloat16), 8 or 4, up and down

    def __post_init__(self) -> None:
        Settings.__post_init__(self)
        self.require(self.outer in PUBLISHED_RATE, "outer", '"nesterov" or "average"')
        self.require(0 <= self.outer_lr <= 10, "outer_lr", "0 (as published) to 10")
        self.require(0 <= self.outer_momentum < 1, "outer_momentum", "from 0 to below 1")
        self.require(self.bits in WIDTHS, "bits", "32, 16, 8 or 4")


class DiLoCo(LocalMethod):
    """Local AdamW or Muon with an outer step."""

    def __init__(self, weights: Mapping[str, Tensor], peers: int, settings: DiLoCoSettings) -> None:
        super().__init__(weights, peers, settings.k_x)
        self.inner: StackedOptimizer = StackedOptimizer(self.flat, peers, settings)
        self.up = DenseChannel(self.flat, peers, settings.bits)
        self.down = DenseChannel(self.flat, 1, settings.bits)
        self._rate = settings.outer_lr or PUBLISHED_RATE[settings.outer]
        self._momentum = settings.outer_momentum if settings.outer == "nesterov" else 0.0
        self._velocity = torch.zeros(self.flat.size)

    def exchange(self, active: ActivePeers, step: int) -> ExchangeBytes:
        """Take one outer step along the published mean displacement."""
        arrived, up = self.up.send(self.displacements(active), active.rows)
        published, down = self.down.send(active.mean(arrived)[None], slice(None))
        gradient = published[0]
        if self._momentum:  # v = mu v + g;  W <- W - lr (g + mu v)
            self._velocity.mul_(self._momentum).add_(gradient)
            gradient = gradient.add(self._velocity, alpha=self._momentum)
        self.consensus.sub_(gradient, alpha=self._rate)
        return ExchangeBytes({"displacement": up}, {"displacement": down})


class DenseChannel:
    """A link that carries dense vectors of N senders at 32 (float32), 16 (bfloat16), 8 or 4 bits a number.

    8 and 4 bits are integers with row scales and error feedback.
    """

    def __init__(self, flat: FlatParameters, senders: int, bits: int) -> None:
        self._flat = flat
        self._bits = bits
        self.feedback = ErrorFeedback(senders if bits < 16 else 0, flat.size, decay=1.0)

    def send(self, vectors: Tensor, rows: slice | list[int]) -> tuple[Tensor, float]:
        """Return what arrives of ``vectors`` (len(rows), P), one a sender of ``rows``, and mean wire bytes of one."""
        if self._bits == 32:
            return vectors, 4.0 * self._flat.size
        if self._bits == 16:
            return vectors.to(torch.bfloat16).to(torch.float32), 2.0 * self._flat.size
        pending = self.feedback.pending(vectors, rows)
        numbers, size = quantise(self._flat, pending, self._bits)
        self.feedback.keep(pending.sub_(numbers), rows)
        return numbers, size


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
