"""Let a byte-level model go on from a prompt."""

import torch
from torch import Tensor

from tsr_swarm.errors import ConfigError
from tsr_swarm.train.data import END_OF_DOCUMENT
from tsr_swarm.train.llama import KeyValue, Llama


def generate(
    model: Llama, prompt: bytes, *, length: int, temperature: float = 0.8, top_k: int = 0, seed: int = 0
) -> bytes:
    """Draw ``length`` bytes that follow ``prompt``. The same arguments give the same bytes on one machine.

    ``temperature`` 0 takes the likeliest byte; ``top_k`` above 0 draws among that many. When the model's positions
    are used up it goes on from the later half of its text. Raises ConfigError for a value out of range.
    """
    _check(length, temperature, top_k)
    generator = torch.Generator().manual_seed(seed)
    positions = model.config.max_position_embeddings
    device = next(model.parameters()).device
    text = bytearray(prompt or [END_OF_DOCUMENT])
    cache: list[KeyValue] = []
    fresh = text[-positions:]
    with torch.inference_mode():
        for _ in range(length):
            logits = model(torch.tensor([list(fresh)], device=device), cache)[0, -1, :256]
            text.append(_draw(logits.float().cpu(), temperature, top_k, generator))
            fresh = text[-1:]
            if cache[0][0].shape[2] == positions:
                cache, fresh = [], text[-max(1, positions // 2) :]
    return bytes(text[-length:])


def printable(text: bytes) -> str:
    """Decode for a screen: wrong UTF-8 becomes a replacement character; control characters but newline and tab go.

    A sample is a stranger's data: an escape sequence in it must not reach a terminal.
    """
    decoded = text.decode("utf-8", "replace").replace("\t", "    ")
    return "".join(char for char in decoded if char == "\n" or char.isprintable())


def _draw(logits: Tensor, temperature: float, top_k: int, generator: torch.Generator) -> int:
    if temperature == 0:
        return int(logits.argmax())
    if top_k:
        logits = logits.masked_fill(logits < logits.topk(min(top_k, logits.numel())).values[-1], float("-inf"))
    # minus the maximum first, so that a tiny temperature cannot overflow
    probabilities = torch.softmax((logits - logits.max()) / temperature, 0)
    return int(torch.multinomial(probabilities, 1, generator=generator))


def _check(length: int, temperature: float, top_k: int) -> None:
    limits = {"length": (length, 1, 10**6), "temperature": (temperature, 0, 100), "top_k": (top_k, 0, 256)}
    for name, (value, low, high) in limits.items():
        if not low <= value <= high:
            raise ConfigError(f"{name} = {value} is out of range; it must be {low} to {high}.")
