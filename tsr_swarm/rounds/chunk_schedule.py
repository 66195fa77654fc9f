"""Who fetches which chunks of a state: several donors at once, each one range at a time. Pure.

Ranges are long while much is left and short towards the end. Once every chunk has been asked for, a donor that is done
is asked for the far half of what another still has to give, so that nobody waits for the slowest. No chunk is asked of
more than two donors at a time.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

MAX_CHUNKS = 16  # in one request


@dataclass(frozen=True, slots=True)
class Sharing:
    """What is still to come, and from whom."""

    missing: frozenset[int]
    donors: frozenset[str] = frozenset()  # that have not failed
    asked: Mapping[str, range] = field(default_factory=dict)  # by donor, while its answer lasts

    @property
    def is_complete(self) -> bool:
        return not self.missing

    def due_from(self, donor: str) -> frozenset[int]:
        """Chunks that this donor was asked for and nobody has given yet."""
        return self.missing.intersection(self.asked.get(donor, ()))


def with_donor(state: Sharing, donor: str) -> Sharing:
    """One more to ask."""
    return replace(state, donors=state.donors | {donor})


def ask(state: Sharing, donor: str) -> tuple[Sharing, range | None]:
    """The next range for a donor that has nothing to do; None: nothing for now, look again when something changes."""
    assert donor in state.donors, "it has not failed"
    assert donor not in state.asked, "one request at a time"
    free = state.missing.difference(*state.asked.values())
    wanted = _next_free(free, len(state.donors)) if free else _stolen(state, donor)
    return (state, None) if wanted is None else (replace(state, asked={**state.asked, donor: wanted}), wanted)


def arrived(state: Sharing, chunk: int) -> Sharing:
    """A right chunk is here, whoever gave it."""
    return replace(state, missing=state.missing - {chunk})


def answered(state: Sharing, donor: str) -> Sharing:
    """A donor's answer has ended. What it was asked for and did not give is free again."""
    return replace(state, asked={other: wanted for other, wanted in state.asked.items() if other != donor})


def failed(state: Sharing, donor: str) -> Sharing:
    """A donor is not asked any more."""
    return replace(answered(state, donor), donors=state.donors - {donor})


def _next_free(free: Collection[int], donors: int) -> range:
    first = last = min(free)
    length = max(1, min(MAX_CHUNKS, len(free) // (2 * donors)))
    while last + 1 in free and last + 1 - first < length:
        last += 1
    return range(first, last + 1)


def _stolen(state: Sharing, thief: str) -> range | None:
    """The far half, at least one, of what the donor with the most left alone has left."""
    alone = {donor: _asked_of_nobody_else(state, donor) for donor in sorted(state.asked)}
    victim = max(alone, key=lambda donor: len(alone[donor]), default="")
    left = alone.get(victim)
    if not left:
        return None
    end = first = max(left)
    while first - 1 in left and end - first + 1 < (len(left) + 1) // 2:
        first -= 1
    return range(first, end + 1)


def _asked_of_nobody_else(state: Sharing, donor: str) -> frozenset[int]:
    others = [wanted for other, wanted in state.asked.items() if other != donor]
    return state.due_from(donor).difference(*others)
