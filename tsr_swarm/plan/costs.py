"""What one way of training costs one peer: the bytes of an exchange and the memory that stays in use."""

from collections.abc import Mapping
from dataclasses import dataclass


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


def summed(every: int, sent: Mapping[str, float], largest: float) -> ExchangeCost:
    """An exchange whose payloads are averaged on the way: a peer receives one average, as long as what it sent."""
    kept = {kind: count for kind, count in sent.items() if count}
    return ExchangeCost(every=every, sent=kept, received=kept, largest_sent=largest, largest_received=largest)
