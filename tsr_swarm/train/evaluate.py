"""What a model has learnt: its loss on fixed held-out windows, comparable over rounds and runs, and text it draws."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from tsr_swarm.config.run import DataConfig, RunConfig
from tsr_swarm.errors import ConfigError
from tsr_swarm.optim.consensus import Consensus
from tsr_swarm.train.corpus import Warn
from tsr_swarm.train.data import END_OF_DOCUMENT, heldout_tokens
from tsr_swarm.train.llama import KeyValue, Llama


def heldout_batches(tokens: Tensor, data: DataConfig) -> tuple[Tensor, ...]:
    """Batch ``heldout_sequences`` windows, evenly spaced over ``tokens``; fewer if they would overlap much."""
    length = data.sequence_length
    positions = tokens.numel() - length  # a window has one token more than it predicts
    count = min(data.heldout_sequences, max(1, positions // length))
    starts = torch.tensor([(positions - 1) * index // max(1, count - 1) for index in range(count)])
    windows = tokens[starts[:, None] + torch.arange(length + 1)].long()
    return torch.split(windows, data.batch_size)


def held_out_loss(model: nn.Module, batches: Iterable[Tensor]) -> float:
    """Mean of ``model.loss`` in nats a token over ``batches`` (B, T+1), on their device. Its mode stays as it was."""
    was_training = model.training
    model.train(False)
    nats, tokens = 0.0, 0
    with torch.no_grad():
        for batch in batches:
            predicted = batch.shape[0] * (batch.shape[1] - 1)
            nats += model.loss(batch).item() * predicted  # type: ignore[operator]
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


def generate(model: Llama, prompt: bytes, *, length: int, temperature: float = 0.8, seed: int = 0) -> bytes:
    """Draw ``length`` bytes that follow ``prompt``. The same arguments give the same bytes on one machine.

    ``temperature`` 0 takes the likeliest byte. When the model's positions are used up, the later half of the text is
    its new prompt. Raises ConfigError for a value out of range.
    """
    for name, value, low, high in (("length", length, 1, 10**6), ("temperature", temperature, 0, 100)):
        if not low <= value <= high:
            raise ConfigError(f"{name} = {value} is out of range; it must be {low} to {high}.")
    generator = torch.Generator().manual_seed(seed)
    positions = model.config.max_position_embeddings
    device = next(model.parameters()).device
    text = bytearray(prompt or [END_OF_DOCUMENT])
    cache: list[KeyValue] = []
    fresh = text[-positions:]
    with torch.inference_mode():
        for _ in range(length):
            logits = model(torch.tensor([list(fresh)], device=device), cache)[0, -1, :256]
            text.append(_draw(logits.float().cpu(), temperature, generator))
            fresh = text[-1:]
            if cache[0][0].shape[2] == positions:
                cache, fresh = [], text[-max(1, positions // 2) :]
    return bytes(text[-length:])


def printable(text: bytes) -> str:
    """Decode for a screen: wrong UTF-8 becomes U+FFFD; control characters except newline and tab are removed.

    A sample is data of unknown origin: an escape sequence in it must not reach a terminal.
    """
    decoded = text.decode("utf-8", "replace").replace("\t", "    ")
    return "".join(char for char in decoded if char == "\n" or char.isprintable())


def _draw(logits: Tensor, temperature: float, generator: torch.Generator) -> int:
    if temperature == 0:
        return int(logits.argmax())
    # minus the maximum first, so that a tiny temperature cannot overflow
    probabilities = torch.softmax((logits - logits.max()) / temperature, 0)
    return int(torch.multinomial(probabilities, 1, generator=generator))
