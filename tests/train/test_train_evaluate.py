"""Held-out loss on fixed windows, and text drawn from a model."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tsr_swarm.config.run import DataConfig, ModelConfig
from tsr_swarm.errors import ConfigError
from tsr_swarm.train.evaluate import generate, held_out_loss, heldout_batches, printable
from tsr_swarm.train.llama import Llama, build_model, initial_weights

MODEL = ModelConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=1, max_position_embeddings=16)


@pytest.fixture(scope="module")
def model() -> Llama:
    return build_model(MODEL, initial_weights(replace(MODEL, initializer_range=0.5), seed=0))


@given(st.integers(9, 400), st.integers(1, 40), st.integers(1, 8))
def test_held_out_windows_are_distinct_and_reach_from_start_to_end(length: int, count: int, batch_size: int) -> None:
    data = DataConfig(sequence_length=8, heldout_sequences=count, batch_size=batch_size)
    batches = heldout_batches(torch.arange(length), data)
    windows = torch.cat(batches)
    starts = windows[:, 0].tolist()
    assert all(len(batch) <= batch_size for batch in batches)
    assert len(set(starts)) == len(starts) == min(count, max(1, (length - 8) // 8))
    assert all(window.tolist() == list(range(start, start + 9)) for window, start in zip(windows, starts, strict=True))
    assert starts[0] == 0
    assert len(starts) == 1 or starts[-1] == length - 9


class MeanOfTokens(torch.nn.Module):
    """A model whose loss is known: the mean of what it is to predict."""

    def loss(self, tokens: Tensor) -> Tensor:
        assert not self.training
        return tokens[:, 1:].double().mean()


def test_held_out_loss_is_the_mean_over_tokens_of_uneven_batches() -> None:
    known = MeanOfTokens()
    batches = torch.arange(35).reshape(7, 5).split(3)
    assert math.isclose(held_out_loss(known, batches), torch.cat(batches)[:, 1:].double().mean().item())
    assert known.training


def test_held_out_loss_of_a_real_model_leaves_no_gradients(model: Llama) -> None:
    tokens = torch.randint(0, 256, (6, 13), generator=torch.Generator().manual_seed(0))
    together, apart = held_out_loss(model, [tokens]), held_out_loss(model, tokens.split(4))
    assert math.isclose(together, apart, rel_tol=1e-5)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("prompt", [b"", b"a", b"a long prompt, longer than the model's positions"])
def test_the_same_seed_continues_any_prompt_alike_beyond_the_models_positions(model: Llama, prompt: bytes) -> None:
    first, again, other = (generate(model, prompt, length=60, seed=seed) for seed in (1, 1, 2))
    assert len(first) == 60
    assert first == again != other


def test_temperature_zero_takes_the_likeliest_byte(model: Llama) -> None:
    with torch.no_grad():
        likeliest = int(model(torch.tensor([list(b"abc")]))[0, -1].argmax())
    assert generate(model, b"abc", length=1, temperature=0) == bytes([likeliest])
    assert generate(model, b"abc", length=9, temperature=1e-30) == generate(model, b"abc", length=9, temperature=0)


@pytest.mark.parametrize(("length", "temperature"), [(0, 1.0), (5, -1.0), (5, math.nan)])
def test_a_value_out_of_range_is_refused(model: Llama, length: int, temperature: float) -> None:
    with pytest.raises(ConfigError, match="is out of range; it must be"):
        generate(model, b"", length=length, temperature=temperature)


@given(st.binary(max_size=60))
def test_printable_text_cannot_control_a_terminal(text: bytes) -> None:
    assert all(char == "\n" or char.isprintable() for char in printable(text))


def test_readable_text_is_shown_as_it_is() -> None:
    assert printable("naïve\n\tx\x1b[31m\0\r".encode() + b"\xff") == "naïve\n    x[31m�"
