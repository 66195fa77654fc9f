"""The four LLaMA shapes of the TSR paper, with the ranks and batches that it trained them at.

TSR-Adam: Dang et al., arXiv 2602.08007, appendix C and table 3. Vocabulary 32000, untied head, sequences of 256.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from tsr_swarm.config.run import ModelConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class LowRanks:
    """Ranks of the low-rank baselines: TSR-Adam's for matrices and for the embedding, GaLore's for matrices."""

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
    """Return the ranks of a model in no table: d/2, d/8 and d/4, as the paper has them for its smallest."""
    return LowRanks(tsr=max(1, hidden // 2), tsr_embedding=max(1, hidden // 8), galore=max(1, hidden // 4))


def _preset(hidden: int, intermediate: int, layers: int, heads: int, tokens_per_step: int, **ranks: int) -> Preset:
    model = ModelConfig(
        vocab_size=32000,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=256,
        tie_word_embeddings=False,
    )
    return Preset(model=model, ranks=LowRanks(**ranks), tokens_per_step=tokens_per_step)


PRESETS: Mapping[str, Preset] = {
    "60M": _preset(512, 1376, 8, 8, 262_144, tsr=256, tsr_embedding=64, galore=128),
    "130M": _preset(768, 2048, 12, 12, 262_144, tsr=384, tsr_embedding=96, galore=256),
    "350M": _preset(1024, 2736, 24, 16, 131_072, tsr=384, tsr_embedding=128, galore=256),
    "1B": _preset(2048, 5461, 24, 32, 131_072, tsr=512, tsr_embedding=256, galore=512),
}
