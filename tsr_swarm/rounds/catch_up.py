"""How a peer catches up: by which way, whom it asks for a round's header, and for which chunks of a state.

The header of a new round spreads as in a tree, from a few of the nodes that reduced its shards to the others, and from
them to the peers. The tree follows the order of hashes, and is another one in every round.

The chunks of a state come from several donors at once, each of which is asked for one range at a time. Ranges are long
while much is left and short towards the end. Once every chunk has been asked for, a donor that is done is asked for the
far half of what another one still has to give, so that nobody waits for the slowest. No chunk is asked of more than two
donors at a time.
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tsr_swarm.telemetry.text import bytes_text

MOST_HEADER_DONORS = 2  # nodes that are asked for a header before any other that may have it
BRANCHES = 4  # nodes to which one of those that reduced shards gives the header
MAX_CHUNKS = 16  # in one request


@dataclass(frozen=True, slots=True)
class Way:
    """The way to catch up, and the reason."""

    takes_state: bool
    reason: str


def choose_way(applied: int, *, round_bytes: int, state_round: int, state_bytes: int, rest_bytes: int) -> Way:
    """Choose to replay the rounds after ``applied``, or to take the state and replay those after it: the fewer bytes.

    round_bytes: of all missed rounds; 0 where not all are kept. rest_bytes: of the rounds since the state.
    """
    with_state = state_bytes + rest_bytes
    rounds, state = f"{bytes_text(round_bytes)} of rounds", f"{bytes_text(with_state)} with the state"
    if not round_bytes:
        return Way(True, "not all of those rounds are kept any more")
    if state_round <= applied:
        return Way(False, f"{rounds}, and no newer state is served")
    if round_bytes <= with_state:
        return Way(False, f"{rounds} instead of {state}")
    return Way(True, f"{state} instead of {rounds}")


def donors_of_header(peer: str, chain: str, sources: Sequence[str]) -> list[str]:
    """Return the nodes that ``peer`` asks for the header of the round with this chain hash.

    sources: the nodes that reduced its shards. The first few of them in the tree ask elsewhere, so theirs is empty.
    """
    nodes = set(sources)
    if peer not in nodes:
        return sorted(nodes, key=lambda node: _order(f"{chain}/{peer}/{node}"))[:MOST_HEADER_DONORS]
    tree = sorted(nodes, key=lambda node: _order(f"{chain}/{node}"))
    index = tree.index(peer)
    return [tree[index // BRANCHES - 1]] if index >= BRANCHES else []


def _order(text: str) -> bytes:
    return hashlib.blake2b(text.encode()).digest()


@dataclass(frozen=True, slots=True)
class ChunkSchedule:
    """Which chunks are missing, and which were asked from whom."""

    missing: frozenset[int]
    donors: frozenset[str] = frozenset()  # that have not failed
    asked: Mapping[str, range] = field(default_factory=dict)  # by donor, while its answer lasts

    @property
    def is_complete(self) -> bool:
        return not self.missing

    def due_from(self, donor: str) -> frozenset[int]:
        """Chunks that this donor was asked for and nobody has given yet."""
        return self.missing.intersection(self.asked.get(donor, ()))

    def add_donor(self, donor: str) -> "ChunkSchedule":
        return replace(self, donors=self.donors | {donor})

    def next_range(self, donor: str) -> tuple["ChunkSchedule", range | None]:
        """Ask an idle donor for a range; None: for nothing until something changes."""
        assert donor in self.donors, "it has not failed"
        assert donor not in self.asked, "one request at a time"
        free = self.missing.difference(*self.asked.values())
        wanted = _first_range(free, len(self.donors)) if free else self._far_half()
        return (self, None) if wanted is None else (replace(self, asked={**self.asked, donor: wanted}), wanted)

    def add_chunk(self, chunk: int) -> "ChunkSchedule":
        """Note that a chunk is here and right."""
        return replace(self, missing=self.missing - {chunk})

    def end_answer(self, donor: str) -> "ChunkSchedule":
        """Note that a donor's answer has ended. What it was asked for and did not give is free again."""
        return replace(self, asked={other: wanted for other, wanted in self.asked.items() if other != donor})

    def drop_donor(self, donor: str) -> "ChunkSchedule":
        return replace(self.end_answer(donor), donors=self.donors - {donor})

    def _far_half(self) -> range | None:
        """Return the far half of what is left to the donor with the most that nobody else was asked for."""
        left: frozenset[int] = frozenset()
        for donor in sorted(self.asked):
            others = [wanted for other, wanted in self.asked.items() if other != donor]
            left = max(left, self.due_from(donor).difference(*others), key=len)
        if not left:
            return None
        end = first = max(left)
        while first - 1 in left and end - first + 1 < (len(left) + 1) // 2:
            first -= 1
        return range(first, end + 1)


def _first_range(free: Collection[int], donors: int) -> range:
    first = last = min(free)
    length = max(1, min(MAX_CHUNKS, len(free) // (2 * donors)))
    while last + 1 in free and last + 1 - first < length:
        last += 1
    return range(first, last + 1)
