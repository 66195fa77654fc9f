"""The four LLaMA shapes of the TSR paper, with the ranks and batches that it trained them at.

TSR-Adam: Dang et al., arXiv 2602.08007, appendix C and table 3. Vocabulary 32000, untied head, sequences of 256.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from tsr_swarm.config.run import ModelConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class LowRanks:
    """Ranks of the low-rank rivals: TSR-Adam's for matrices and for the embedding, GaLore's for matrices."""

    tsr: int
    tsr_embedding: int
    galore: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A published model; ``tokens_per_step`` is the batch of all its workers together."""

    model: ModelConfig
    ranks: LowRanks
    tokens_per_step: int


def low_ranks(hidden: int) -> LowRanks:
    """For a model that is in no table: d/2, d/8 and d/4, as the paper has them for its smallest."""
    return LowRanks(tsr=max(1, hidden // 2), tsr_embedding=max(1, hidden // 8), galore=max(1, hidden // 4))


def _llama(hidden: int, intermediate: int, layers: int, heads: int) -> ModelConfig:
    return ModelConfig(
        vocab_size=32000,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=256,
        tie_word_embeddings=False,
    )


PRESETS: Mapping[str, Preset] = {
    "60M": Preset(
        model=_llama(512, 1376, 8, 8),
        ranks=LowRanks(tsr=256, tsr_embedding=64, galore=128),
        tokens_per_step=262_144,
    ),
    "130M": Preset(
        model=_llama(768, 2048, 12, 12),
        ranks=LowRanks(tsr=384, tsr_embedding=96, galore=256),
        tokens_per_step=262_144,
    ),
    "350M": Preset(
        model=_llama(1024, 2736, 24, 16),
        ranks=LowRanks(tsr=384, tsr_embedding=128, galore=256),
        tokens_per_step=131_072,
    ),
    "1B": Preset(
        model=_llama(2048, 5461, 24, 32),
        ranks=LowRanks(tsr=512, tsr_embedding=256, galore=512),
        tokens_per_step=131_072,
    ),
}
