"""Which rates are tried: those listed, and further ones until the best has a worse neighbour on either side. Pure."""

from collections.abc import Callable, Mapping, Sequence

LOWEST, HIGHEST = 1e-5, 1.0
LossAt = Callable[[float], float | None]  # of a rate; infinite for a run that diverged, None while it is not done


def beyond(losses: Mapping[float, float]) -> float | None:
    """Return the rate to try next, beyond the edge at which the lowest of ``losses`` by rate lies.

    It is as many times the edge as the edge is its neighbour. None where the best is inside, or the next would be
    outside of LOWEST to HIGHEST.
    """
    rates = sorted(losses)
    best = min(rates, key=lambda rate: losses[rate])
    steps = {rates[0]: rates[0] / rates[1], rates[-1]: rates[-1] / rates[-2]}
    if best not in steps:
        return None
    following = float(f"{best * steps[best]:.2g}")
    return following if LOWEST <= following <= HIGHEST and following not in losses else None


def rates_to_try(listed: Sequence[float], loss_at: LossAt) -> tuple[float, ...]:
    """Return ``listed`` and, where they are all done and more than one, those beyond an edge up to the next to be done.

    One rate alone is not a search, and is not widened.
    """
    rates = list(listed)
    while True:
        losses = {rate: loss for rate in rates if (loss := loss_at(rate)) is not None}
        if len(rates) == 1 or len(losses) < len(rates):
            return tuple(sorted(rates))
        following = beyond(losses)
        if following is None:
            return tuple(sorted(rates))
        rates.append(following)


def is_at_edge(losses: Mapping[float, float]) -> bool:
    """Return whether the lowest loss lies at the lowest or highest of several rates."""
    return len(losses) > 1 and min(losses, key=lambda rate: losses[rate]) in (min(losses), max(losses))
