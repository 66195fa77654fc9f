"""Error feedback (Seide et al. 2014; Karimireddy et al., arXiv 1901.09847): what a sender drops, it sends later."""

import torch
from torch import Tensor


class ErrorFeedback:
    """The residuals (N, P) of N senders. Kept in each: sent + new residual = decay * old residual + vector."""

    def __init__(self, senders: int, size: int, decay: float) -> None:
        self.residual = torch.zeros(senders, size)
        self._decay = decay

    def pending(self, vectors: Tensor, rows: slice | list[int]) -> Tensor:
        """decay * residual + vectors, (len(rows), P): what the senders ``rows`` would like to send."""
        return torch.add(vectors, self.residual[rows], alpha=self._decay)

    def keep(self, dropped: Tensor, rows: slice | list[int]) -> None:
        """Set the residuals of ``rows`` to what was not sent. Others keep theirs."""
        self.residual[rows] = dropped
