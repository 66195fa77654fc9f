"""One parameter moved at full size: every block of a full-space peer, the dense ones of a core peer."""

import torch
from torch import Tensor, nn

from tsr_swarm.optim.block_state import zero_state
from tsr_swarm.optim.consensus import Consensus
from tsr_swarm.optim.inner_optimizer import InnerOptimizer


class FullBlock:
    """W_i = Wbar - A, with A the displacement in ``state``. Weight decay belongs to the consensus, not to this."""

    def __init__(self, name: str, parameter: nn.Parameter, inner: InnerOptimizer) -> None:
        self.state = zero_state(parameter, inner.moments)
        self._name = name
        self._parameter = parameter
        self._inner = inner
        self._base = torch.zeros(0, device=parameter.device)

    def begin(self, consensus: Consensus) -> None:
        """Write Wbar - A into the parameter."""
        # on the CPU this is the consensus' own tensor, which is replaced by the next one, never written to
        self._base = consensus.weights[self._name].to(self._parameter.device)
        self._write()

    def step(self, lr: float) -> None:
        """One step from ``parameter.grad``; no gradient counts as one of zero."""
        state = self.state
        state.steps += 1
        direction = self._inner.direction(self._gradient(), state.first, state.second, [state.steps])
        state.displacement.add_(direction, alpha=lr)  # A += lr D
        self._write()

    def _gradient(self) -> Tensor:
        gradient = self._parameter.grad
        return torch.zeros_like(self.state.first) if gradient is None else gradient.float()

    def _write(self) -> None:
        if self._parameter.dtype == torch.float32:
            torch.sub(self._base, self.state.displacement, out=self._parameter)  # without a copy of full size
        else:
            self._parameter.copy_(self._base - self.state.displacement)
