"""The built-in model: a LLaMA-style decoder with RMSNorm, RoPE, SwiGLU and grouped-query attention.

Names, shapes and numbers are those of transformers' ``LlamaForCausalLM``, so a trained model loads there unchanged.
Touvron et al. 2023 (LLaMA), Su et al. 2021 (RoPE), Shazeer 2020 (SwiGLU), Ainslie et al. 2023 (GQA).
Legend: B sequences, T tokens, H query heads, K key-value heads, D numbers a head, d hidden size.
"""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tsr_swarm.config.run import ModelConfig
from tsr_swarm.errors import ConfigError

KeyValue = tuple[Tensor, Tensor]  # keys and values of the tokens so far, each (B, K, T, D)


class Llama(nn.Module):
    """A decoder-only language model. Its weights are NOT initialised here: load them, or see ``build_model``."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = _Decoder(config)
        self.lm_head = None if config.tie_word_embeddings else _Linear(config.hidden_size, config.vocab_size)

    def forward(self, tokens: Tensor, cache: list[KeyValue] | None = None) -> Tensor:
        """Logits (B, T, vocab) of the token after each of ``tokens`` (B, T).

        ``cache`` holds one entry a layer and is filled in place: pass an empty list with the first tokens, then
        the same list with ONE token at a time.
        """
        head = self.model.embed_tokens if self.lm_head is None else self.lm_head
        return F.linear(self.model(tokens, cache), head.weight)

    def loss(self, tokens: Tensor) -> Tensor:
        """Mean negative log-likelihood in nats of tokens 1..T given those before, for ``tokens`` (B, T+1)."""
        return F.cross_entropy(self.forward(tokens[:, :-1]).flatten(0, 1).float(), tokens[:, 1:].flatten())


class _Linear(nn.Linear):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def reset_parameters(self) -> None:
        """Draw no weights from the global generator, only for them to be overwritten."""


class _Embedding(nn.Embedding):
    def reset_parameters(self) -> None:
        """As ``_Linear``."""


class _Decoder(nn.Module):
    cos: Tensor  # (positions, 1, D): broadcasts over the heads of (B, T, heads, D)
    sin: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = _Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        cos, sin = _rope_tables(config)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, tokens: Tensor, cache: list[KeyValue] | None) -> Tensor:
        start = cache[0][0].shape[2] if cache else 0
        cos, sin = (table[start : start + tokens.shape[1]] for table in (self.cos, self.sin))
        x = self.embed_tokens(tokens)
        fresh: list[KeyValue] = []
        for index, layer in enumerate(self.layers):
            x, key_value = layer(x, cos, sin, cache[index] if cache else None)
            if cache is not None:
                fresh.append(key_value)
        if cache is not None:
            cache[:] = fresh
        out: Tensor = self.norm(x)
        return out


class _Layer(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.self_attn = _Attention(config)
        self.mlp = _SwiGLU(config)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, past: KeyValue | None) -> tuple[Tensor, KeyValue]:
        attended, key_value = self.self_attn(self.input_layernorm(x), cos, sin, past)
        x = x + attended
        return x + self.mlp(self.post_attention_layernorm(x)), key_value


class _Attention(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d, self.heads, self.kv_heads = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
        self.head_size = d // self.heads
        self.q_proj = _Linear(d, d)
        self.k_proj = _Linear(d, self.kv_heads * self.head_size)
        self.v_proj = _Linear(d, self.kv_heads * self.head_size)
        self.o_proj = _Linear(d, d)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, past: KeyValue | None) -> tuple[Tensor, KeyValue]:
        q = _rotate(self.q_proj(x).unflatten(-1, (self.heads, self.head_size)), cos, sin).transpose(1, 2)
        k = _rotate(self.k_proj(x).unflatten(-1, (self.kv_heads, self.head_size)), cos, sin).transpose(1, 2)
        v = self.v_proj(x).unflatten(-1, (self.kv_heads, self.head_size)).transpose(1, 2)
        if past is not None:  # one new token, which may look at all before it
            k, v = torch.cat((past[0], k), 2), torch.cat((past[1], v), 2)
        group = self.heads // self.kv_heads
        keys, values = (k, v) if group == 1 else (k.repeat_interleave(group, 1), v.repeat_interleave(group, 1))
        attended = F.scaled_dot_product_attention(q, keys, values, is_causal=past is None)
        return self.o_proj(attended.transpose(1, 2).flatten(2)), (k, v)


class _SwiGLU(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = _Linear(config.hidden_size, config.intermediate_size)
        self.up_proj = _Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = _Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


def _rope_tables(config: ModelConfig) -> tuple[Tensor, Tensor]:
    """Cosines and sines (positions, 1, D); both halves of a head turn by the same angles."""
    size = config.hidden_size // config.num_attention_heads
    cpu = torch.device("cpu")  # also under the meta device, whose arithmetic takes a second to import
    frequencies = 1.0 / config.rope_theta ** (torch.arange(0, size, 2, device=cpu).float() / size)
    angles = torch.outer(torch.arange(config.max_position_embeddings, device=cpu).float(), frequencies)
    angles = torch.cat((angles, angles), -1)[:, None]
    return angles.cos(), angles.sin()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (i, i + D/2) of each head by the angle of its position: x cos + (-x2, x1) sin."""
    first, second = x.chunk(2, -1)
    return x * cos.to(x.dtype) + torch.cat((-second, first), -1) * sin.to(x.dtype)


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter in the model's own order, without allocating any."""
    with torch.device("meta"):
        return {name: tuple(parameter.shape) for name, parameter in Llama(config).named_parameters()}


def parameter_count(config: ModelConfig) -> int:
    """How many numbers the model has, without allocating any."""
    return sum(math.prod(shape) for shape in parameter_shapes(config).values())


def initial_weights(config: ModelConfig, seed: int) -> dict[str, Tensor]:
    """Draw the first weights: normal with deviation ``initializer_range``, norms at one.

    ``randn`` differs between CPU types, so ONE party draws them and ships the bytes.
    """
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.ones(shape)
        if len(shape) == 1
        else torch.randn(shape, generator=generator).mul_(config.initializer_range)
        for name, shape in parameter_shapes(config).items()
    }


def build_model(config: ModelConfig, weights: Mapping[str, Tensor]) -> Llama:
    """A model with a copy of ``weights``. Raises ConfigError when they are not those of ``config``."""
    expected, found = parameter_shapes(config), {name: tuple(t.shape) for name, t in weights.items()}
    if found != expected:
        wrong = next(name for name in [*expected, *found] if found.get(name) != expected.get(name))
        raise ConfigError(
            f"Weight '{wrong}' has shape {found.get(wrong)}, the model section says {expected.get(wrong)}; "
            "use the configuration that the weights were trained with."
        )
    model = Llama(config)
    model.load_state_dict(dict(weights))
    return model
