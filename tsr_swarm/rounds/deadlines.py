"""When does a round close? A pure decision that gives its reason.

The deadline follows the arrivals: once half of the expected payloads are here, the rest have as long again as the
arrivals themselves suggest. Nobody waits for a peer that is far slower than the others, and its work is not lost: it
stays in that peer's residual.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from statistics import median

SPREAD = 5.0  # grace in median absolute deviations ...
SHARE = 0.5  # ... or as a share of the median arrival, whichever is longer


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadlinePolicy:
    """Limits of a round, from the run's configuration."""

    quorum: int
    floor_seconds: float
    ceiling_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Close now or not; the deadline in seconds after the round opened; and why, for people."""

    close: bool
    deadline: float
    reason: str


def decide(
    elapsed: float, expected: Collection[str], arrivals: Mapping[str, float], policy: DeadlinePolicy
) -> Decision:
    """Decide on a round that opened ``elapsed`` seconds ago.

    ``expected`` are the peers whose payload is waited for, ``arrivals`` the seconds at which payloads came. A peer
    that arrived and then left still counts.
    """
    missing = [peer for peer in expected if peer not in arrivals]
    here, wanted = len(arrivals), len(arrivals) + len(missing)
    if elapsed >= policy.ceiling_seconds:
        return Decision(close=True, deadline=policy.ceiling_seconds, reason=f"the ceiling was reached with {here} here")
    if here < policy.quorum:
        return Decision(
            close=False, deadline=policy.ceiling_seconds, reason=f"{here} of a quorum of {policy.quorum} here"
        )
    if not missing:
        return Decision(close=True, deadline=elapsed, reason=f"all {here} payloads are here")
    if 2 * here < wanted:
        return Decision(close=False, deadline=policy.ceiling_seconds, reason=f"waiting for {len(missing)} of {wanted}")
    deadline = min(policy.ceiling_seconds, _deadline(list(arrivals.values()), policy.floor_seconds))
    if elapsed >= deadline:
        return Decision(close=True, deadline=deadline, reason=f"{len(missing)} of {wanted} missed the deadline")
    return Decision(close=False, deadline=deadline, reason=f"waiting for {len(missing)} of {wanted}")


def _deadline(offsets: list[float], floor_seconds: float) -> float:
    """The last arrival plus a grace that grows with how long, and how unevenly, the others took."""
    middle = median(offsets)
    deviation = median(abs(offset - middle) for offset in offsets)
    return max(offsets) + max(floor_seconds, SPREAD * deviation, SHARE * middle)
