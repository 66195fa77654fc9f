"""Held-out loss on a fixed set of windows, so that the number is comparable over rounds and runs."""

from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor

from tsr_swarm.config.run import DataConfig


class LossModel(Protocol):
    """What is scored: any module with a mean loss in nats a token for ``tokens`` (B, T+1)."""

    training: bool

    def loss(self, tokens: Tensor) -> Tensor: ...
    def train(self, mode: bool = True) -> Any: ...


def heldout_batches(tokens: Tensor, data: DataConfig) -> tuple[Tensor, ...]:
    """``heldout_sequences`` windows evenly spaced over ``tokens``, fewer if they would overlap much, in batches."""
    length = data.sequence_length
    places = tokens.numel() - length  # a window has one token more than it predicts
    count = min(data.heldout_sequences, max(1, places // length))
    starts = torch.tensor([(places - 1) * index // max(1, count - 1) for index in range(count)])
    windows = tokens[starts[:, None] + torch.arange(length + 1)].long()
    return torch.split(windows, data.batch_size)


def held_out_loss(model: LossModel, batches: Iterable[Tensor]) -> float:
    """Mean loss in nats a token over ``batches``, on the batches' device. Leaves the model's mode as it was."""
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
