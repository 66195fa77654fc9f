"""How long a home line is busy, and for what share of the time: pure arithmetic, in seconds and bits a second."""

from dataclasses import dataclass

from tsr_swarm.plan.costs import ExchangeCost

OPERATIONS_PER_SECOND = 1e13  # what a consumer GPU sustains in training: a third of about 30 TFLOP/s
_OPERATIONS_PER_WEIGHT = 6  # a token's forward and backward pass: Kaplan et al., arXiv 2001.08361, section 2.1


@dataclass(frozen=True, slots=True)
class Link:
    """A line's rates in bits a second."""

    up: float
    down: float

    def seconds(self, sent: float, received: float) -> float:
        """To send and then receive so many bytes: the average only exists when everybody has sent."""
        return 8 * sent / self.up + 8 * received / self.down


def default_step_seconds(parameters: int, tokens: float) -> float:
    """Of one local step of ``tokens`` tokens: 6 operations a parameter and token at 10 TFLOP/s."""
    return _OPERATIONS_PER_WEIGHT * parameters * tokens / OPERATIONS_PER_SECOND


def line_seconds(link: Link, exchange: ExchangeCost) -> float:
    """Of a mean exchange of one peer."""
    return link.seconds(exchange.up, exchange.down)


def line_share(link: Link, exchange: ExchangeCost, step_seconds: float) -> float:
    """Of a round's time that its exchange takes, 0 to 1. Nobody trains meanwhile: exchange follows training."""
    busy = line_seconds(link, exchange)
    return busy / (busy + exchange.every * step_seconds)
