"""What could be sent instead, and what each change would save. Sizes of what does not exist yet are worked out here."""

import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from scaling.costs import Cost
from scaling.letters import RELAYED, Letter

HASH = 34  # bytes of a hash of 32, with its tag and length


@dataclass(frozen=True)
class Mend:
    """A change of the wire. ``size``: bytes of what is sent in place of ``fields``, of a letter of these kinds."""

    name: str
    kinds: tuple[str, ...]
    fields: tuple[str, ...]  # names, or how they begin with "*" at the end
    size: Callable[[int, int], int]  # of peers and shards

    def __call__(self, letter: Letter, peers: int, shards: int) -> Letter:
        if letter.kind not in self.kinds:
            return letter
        kept = {name: size for name, size in letter.fields.items() if not self._is_replaced(name)}
        if len(kept) == len(letter.fields):
            return letter
        return replace(letter, fields={**kept, self.name: self.size(peers, shards)})

    def _is_replaced(self, name: str) -> bool:
        return any(name.startswith(f[:-1]) if f.endswith("*") else name == f for f in self.fields)


MENDS = (
    Mend("the log goes to voters only, until somebody watches", (RELAYED,), ("*",), lambda peers, shards: 0),
    Mend(
        "in the log for voters no progress, and neither arrivals nor digests one by one",
        ("WatchReply",),
        ("peer_progress", "phase_changed", "payload_received", "digest_reported"),
        lambda peers, shards: 0,
    ),
    Mend(
        "in a round's header one hash a shard and its length: kinds and raw lengths follow from the layout",
        ("PublishedPart",),
        ("header.shards.sections*",),
        lambda peers, shards: shards * (HASH + 4),
    ),
)


@dataclass
class Mended:
    """All of ``mends`` at once. A letter is mended once, and stays the same letter then."""

    mends: Sequence[Mend]
    peers: int
    shards: int
    _known: dict[Letter, Letter] = field(default_factory=dict)

    def __call__(self, letter: Letter) -> Letter:
        if letter not in self._known:
            mended = letter
            for mend in self.mends:
                mended = mend(mended, self.peers, self.shards)
            self._known[letter] = mended
        return self._known[letter]


@dataclass(frozen=True)
class Gain:
    """Bytes that a change would save, a round: of all nodes, of the leader, and of the median peer of either kind."""

    name: str
    all: float
    leader: float
    dialable: float
    others: float


def gains(cost: Cost, rounds: int) -> list[Gain]:
    """Each change by itself, the largest first. Of a peer and of the leader, both directions count."""

    def saved(mend: Mend, letters: Counter[Letter]) -> float:
        return sum(
            (letter.control - mend(letter, cost.peers, cost.shards).control) * count / rounds
            for letter, count in letters.items()
        )

    found = []
    leader = next(node for node in cost.traffic if node not in {*cost.groups["dialable"], *cost.groups["others"]})
    for mend in MENDS:
        sent = {node: saved(mend, traffic.sent) for node, traffic in cost.traffic.items()}
        both = {node: sent[node] + saved(mend, traffic.received) for node, traffic in cost.traffic.items()}
        middle = {name: statistics.median(both[node] for node in nodes) for name, nodes in cost.groups.items()}
        found.append(Gain(mend.name, sum(sent.values()), both[leader], middle["dialable"], middle["others"]))
    return sorted(found, key=lambda gain: -gain.all)
