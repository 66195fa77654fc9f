"""Held-out loss on a fixed set of windows, so that the number is comparable over rounds and runs."""

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor

from tsr_swarm.config.run import DataConfig, RunConfig
from tsr_swarm.optim.consensus import Consensus
from tsr_swarm.train.corpus import Warn
from tsr_swarm.train.data import heldout_tokens
from tsr_swarm.train.llama import Llama


class LossModel(Protocol):
    """Any module with a mean loss in nats a token for ``tokens`` (B, T+1)."""

    training: bool

    def loss(self, tokens: Tensor) -> Tensor: ...
    def train(self, mode: bool = True) -> Any: ...


def heldout_batches(tokens: Tensor, data: DataConfig) -> tuple[Tensor, ...]:
    """Batch ``heldout_sequences`` windows, evenly spaced over ``tokens``; fewer if they would overlap much."""
    length = data.sequence_length
    positions = tokens.numel() - length  # a window has one token more than it predicts
    count = min(data.heldout_sequences, max(1, positions // length))
    starts = torch.tensor([(positions - 1) * index // max(1, count - 1) for index in range(count)])
    windows = tokens[starts[:, None] + torch.arange(length + 1)].long()
    return torch.split(windows, data.batch_size)


def held_out_loss(model: LossModel, batches: Iterable[Tensor]) -> float:
    """Mean loss in nats a token over ``batches``, on their device. The model's mode stays as it was."""
    was_training = model.training
    model.train(False)
    nats, tokens = 0.0, 0
    with torch.no_grad():
        for batch in batches:
            predicted = batch.shape[0] * (batch.shape[1] - 1)
            nats += model.loss(batch).item() * predicted
            tokens += predicted
    model.train(was_training)
    return nats / tokens


def make_evaluate(config: RunConfig, warn: Warn) -> Callable[[Consensus], float]:
    """Make a function that gives the held-out loss of a consensus in nats a token. Reads the data now.

    ``warn`` is called with sentences about text that cannot be read. Raises ConfigError if there is none.
    """
    batches = heldout_batches(heldout_tokens(config.data, warn), config.data)
    model = Llama(config.model)

    def evaluate(consensus: Consensus) -> float:
        model.load_state_dict(dict(consensus.weights))
        return held_out_loss(model, batches)

    return evaluate
