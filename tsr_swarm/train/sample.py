"""Draw text from a byte-level model."""

import torch
from torch import Tensor

from tsr_swarm.errors import ConfigError
from tsr_swarm.train.data import END_OF_DOCUMENT
from tsr_swarm.train.llama import KeyValue, Llama


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
