"""What one way of training costs one peer: bytes of an exchange, memory that stays in use, and time on a link.

And who trains: a scene, and the four LLaMA shapes of the TSR paper, with the ranks and batches that it trained them at
(TSR-Adam: Dang et al., arXiv 2602.08007, appendix C and table 3; vocabulary 32000, untied head, sequences of 256).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from tsr_swarm.config.link import Link
from tsr_swarm.config.run import ModelConfig

OPERATIONS_PER_SECOND = 1e13  # what a consumer GPU sustains in training: a third of about 30 TFLOP/s
_OPERATIONS_PER_WEIGHT = 6  # a token's forward and backward pass: Kaplan et al., arXiv 2001.08361, section 2.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """Who trains together, on what link, and how fast."""

    model: str
    peers: int
    link: Link  # without the time of a step
    tokens: int  # of one step of all peers together
    step_seconds: float | None = None  # None: default_step_seconds

    @property
    def peer_tokens(self) -> float:
        return self.tokens / self.peers


@dataclass(frozen=True, slots=True, kw_only=True)
class ExchangeCost:
    """Bytes of one peer every ``every`` steps: the mean by payload kind, and the largest single exchange."""

    every: int
    sent: Mapping[str, float]
    received: Mapping[str, float]
    largest_sent: float
    largest_received: float

    @property
    def up(self) -> float:
        return sum(self.sent.values())

    @property
    def down(self) -> float:
        return sum(self.received.values())

    def seconds(self, link: Link) -> float:
        """Return the time of a mean exchange on ``link``."""
        return link.line_seconds(self.up, self.down)

    def busy_share(self, link: Link) -> float:
        """Return the share of a round's time, 0 to 1, that its exchange takes: no peer trains meanwhile."""
        busy = self.seconds(link)
        return busy / (busy + self.every * link.step_seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes that stay in use between steps. Gradients and activations are the same for every method and left out."""

    weights: float
    optimizer: float = 0.0  # moments, and what an outer step keeps
    bases: float = 0.0
    residual: float = 0.0  # work that has not been sent yet

    @property
    def total(self) -> float:
        return self.weights + self.optimizer + self.bases + self.residual


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodCost:
    """One row of the tables. ``settings`` says in a few words what is counted, ``source`` where the rule is from."""

    name: str
    settings: str
    source: str
    exchange: ExchangeCost
    memory: Memory


def averaged(every: int, sent: Mapping[str, float], largest: float) -> ExchangeCost:
    """Return an exchange of payloads that are averaged: a peer receives one average, as long as what it sent."""
    kept = {kind: count for kind, count in sent.items() if count}
    return ExchangeCost(every=every, sent=kept, received=kept, largest_sent=largest, largest_received=largest)


def default_step_seconds(parameters: int, tokens: float) -> float:
    """Return the time of a local step of ``tokens`` tokens: 6 operations a parameter and token at 10 TFLOP/s."""
    return _OPERATIONS_PER_WEIGHT * parameters * tokens / OPERATIONS_PER_SECOND


@dataclass(frozen=True, slots=True, kw_only=True)
class LowRanks:
    """Ranks of the low-rank baselines: TSR-Adam's for matrices and for the embedding, GaLore's for matrices."""

    tsr: int
    tsr_embedding: int
    galore: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSize:
    """A published model; ``tokens_per_step`` is the batch of all its workers together."""

    model: ModelConfig
    ranks: LowRanks
    tokens_per_step: int


def low_ranks(hidden: int) -> LowRanks:
    """Return the ranks of a model in no table: d/2, d/8 and d/4, as the paper has them for its smallest."""
    return LowRanks(tsr=max(1, hidden // 2), tsr_embedding=max(1, hidden // 8), galore=max(1, hidden // 4))


def _model_size(
    hidden: int, intermediate: int, layers: int, heads: int, tokens_per_step: int, **ranks: int
) -> ModelSize:
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
    return ModelSize(model=model, ranks=LowRanks(**ranks), tokens_per_step=tokens_per_step)


MODEL_SIZES: Mapping[str, ModelSize] = {
    "60M": _model_size(512, 1376, 8, 8, 262_144, tsr=256, tsr_embedding=64, galore=128),
    "130M": _model_size(768, 2048, 12, 12, 262_144, tsr=384, tsr_embedding=96, galore=256),
    "350M": _model_size(1024, 2736, 24, 16, 131_072, tsr=384, tsr_embedding=128, galore=256),
    "1B": _model_size(2048, 5461, 24, 32, 131_072, tsr=512, tsr_embedding=256, galore=512),
}
