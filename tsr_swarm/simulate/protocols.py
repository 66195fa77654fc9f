"""What the engine drives: simulated peers that train one period and exchange."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class ExchangeResult:
    """One period and the exchange after it."""

    sent: Mapping[str, float]  # wire bytes of one peer, mean over those that took part, by payload kind
    received: Mapping[str, float]
    round_trips: int
    extra_steps: int = 0  # what a peer computes beside its local steps, in times of one step
    tokens: int  # of all peers
    losses: tuple[float, ...]  # of local steps, nats a token; only finite ones
    digest: str = ""  # of the consensus after it, where there is one


class SimulatedSwarm(Protocol):
    """All peers of one run, in one process. Deterministic: the same calls, the same bits."""

    @property
    def period(self) -> int:
        """Local steps between two exchanges."""
        ...

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """What is evaluated: the consensus, by parameter name."""
        ...

    def advance(self, first_step: int, work: Mapping[int, int]) -> ExchangeResult:
        """Train one period from global step ``first_step`` and exchange. ``work``: steps by peer that takes part."""
        ...
