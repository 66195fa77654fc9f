"""The seam between a rival and whatever drives it: gradients in, consensus weights and wire bytes out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class Gradient(Protocol):
    """Where gradients come from. It keeps the losses, too."""

    def __call__(self, peer: int, step: int, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Gradient of ``peer``'s batch of the global ``step`` at ``weights``, clipped, float32, by parameter name."""
        ...


@dataclass(frozen=True, slots=True)
class ExchangeBytes:
    """Wire bytes of one peer in one exchange, mean over the peers that took part, by payload kind."""

    sent: Mapping[str, float]
    received: Mapping[str, float]
    round_trips: int = 1  # sequential network round trips of the exchange


class Method(Protocol):
    """Simulated peers that train by one rule. Deterministic: the same calls, the same bits."""

    @property
    def period(self) -> int:
        """Local steps between two exchanges; 1 for a method that exchanges at every step."""
        ...

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """The consensus, which is evaluated, by parameter name. Views: the next ``advance`` changes them."""
        ...

    def advance(
        self, first_step: int, rates: Sequence[float], gradient: Gradient, work: Mapping[int, int]
    ) -> ExchangeBytes:
        """Train ``period`` steps from the global ``first_step``, one of ``rates`` each, and exchange.

        ``work`` says by peer, from 0, how many of the steps it manages: the first ones. Who is not in it, or manages
        none, is absent: it returns later with the consensus weights and with what private state it had. A peer's
        weight in a mean is the steps it took. With nobody there nothing happens and nothing is sent.
        Raises RunError when training has diverged.
        """
        ...


def both_ways(payloads: Mapping[str, float], round_trips: int = 1) -> ExchangeBytes:
    """An average by all-reduce or by a reducer: a peer uploads its payload and downloads the mean, of the same size.

    Kinds without bytes are left out.
    """
    payloads = {kind: size for kind, size in payloads.items() if size}
    return ExchangeBytes(payloads, payloads, round_trips)
