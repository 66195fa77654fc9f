"""The baselines, simulated: a method of tsr_swarm/baselines, and the gradients it asks for."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from tsr_swarm.baselines.registry import make_method
from tsr_swarm.config.run import RunConfig
from tsr_swarm.optim.periods import learning_rate
from tsr_swarm.simulate.own_method import Stream, Task, decoder_task
from tsr_swarm.simulate.result import ExchangeResult
from tsr_swarm.simulate.run_spec import RunSpec
from tsr_swarm.train.llama import initial_weights


class BaselineSwarm:
    """The peers of a baseline, with our data, first weights, clipping and schedule. By default of a decoder_task."""

    def __init__(self, spec: RunSpec, config: RunConfig, streams: Sequence[Stream], task: Task | None = None) -> None:
        task = decoder_task(config) if task is None else task
        self._method = make_method(spec.method, task.weights, spec.peers, spec.settings)
        self._model, self._streams, self._optimizer = task.make_model(), streams, config.optimizer
        self._parameters = dict(self._model.named_parameters())
        self._tokens, self._losses = 0, list[float]()  # of the present period
        self.period = self._method.period

    @property
    def weights(self) -> Mapping[str, Tensor]:
        return self._method.weights

    def advance(self, first_step: int, work: Mapping[int, int]) -> ExchangeResult:
        """Train one period of the method and exchange."""
        rates = [learning_rate(self._optimizer, first_step + step) for step in range(self.period)]
        self._tokens, self._losses = 0, []
        traffic = self._method.advance(first_step, rates, self._gradient, work)
        return ExchangeResult(traffic=traffic, tokens=self._tokens, losses=tuple(filter(math.isfinite, self._losses)))

    def _gradient(self, peer: int, step: int, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the gradient of ``peer``'s batch of global ``step``, by name; zero if it is not finite."""
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(weights[name])
        batch = self._streams[peer].batch(step)
        self._model.zero_grad(set_to_none=True)
        loss = self._model.loss(batch)  # type: ignore[operator]
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self._model.parameters(), self._optimizer.clip)
        self._tokens += batch.shape[0] * (batch.shape[1] - 1)
        self._losses.append(float(loss.detach()))
        is_finite = bool(torch.isfinite(norm))
        return {
            name: parameter.grad if is_finite and parameter.grad is not None else torch.zeros_like(parameter)
            for name, parameter in self._parameters.items()
        }


def period_of(spec: RunSpec) -> int:
    """Local steps between two exchanges of a baseline. Raises ConfigError for settings it cannot have."""
    config = spec.fitted()
    return make_method(spec.method, initial_weights(config.model, 0), 1, spec.settings).period
