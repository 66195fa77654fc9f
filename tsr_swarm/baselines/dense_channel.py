"""A link that carries dense vectors at a number of bits; whoever sends few bits keeps what they drop."""

import torch
from torch import Tensor

from tsr_swarm.baselines.error_feedback import ErrorFeedback
from tsr_swarm.baselines.flat_parameters import FlatParameters
from tsr_swarm.baselines.int_quantise import quantise

WIDTHS = (32, 16, 8, 4)


class DenseChannel:
    """N senders at 32 (float32), 16 (bfloat16), 8 or 4 bits (integers with row scales and error feedback)."""

    def __init__(self, flat: FlatParameters, senders: int, bits: int) -> None:
        self._flat = flat
        self._bits = bits
        self.feedback = ErrorFeedback(senders if bits < 16 else 0, flat.size, decay=1.0)

    def send(self, vectors: Tensor, rows: slice | list[int]) -> tuple[Tensor, float]:
        """What arrives of ``vectors`` (len(rows), P), one of each sender of ``rows``; and mean wire bytes of one."""
        if self._bits == 32:
            return vectors, 4.0 * self._flat.size
        if self._bits == 16:
            return vectors.to(torch.bfloat16).to(torch.float32), 2.0 * self._flat.size
        pending = self.feedback.pending(vectors, rows)
        numbers, size = quantise(self._flat, pending, self._bits)
        self.feedback.keep(pending.sub_(numbers), rows)
        return numbers, size
