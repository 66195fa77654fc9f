"""What one way of training costs one peer: bytes of an exchange, memory that stays in use, and time on a link."""

from collections.abc import Mapping
from dataclasses import dataclass

from tsr_swarm.config.link import Link

OPERATIONS_PER_SECOND = 1e13  # what a consumer GPU sustains in training: a third of about 30 TFLOP/s
_OPERATIONS_PER_WEIGHT = 6  # a token's forward and backward pass: Kaplan et al., arXiv 2001.08361, section 2.1


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
