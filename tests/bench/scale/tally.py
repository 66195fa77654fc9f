"""Who sent and received what, round by round."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.bench.scale.letters import Letter


@dataclass
class Traffic:
    """Of one node, by kind of letter for control and in sum for payload."""

    sent: Counter[Letter] = field(default_factory=Counter)
    received: Counter[Letter] = field(default_factory=Counter)


class Tally:
    """What was carried while it counts."""

    def __init__(self) -> None:
        self.nodes: dict[str, Traffic] = {}
        self.is_counting = False

    def count(self, source: str, to: str, letter: Letter) -> None:
        if self.is_counting:
            self.nodes.setdefault(source, Traffic()).sent[letter] += 1
            self.nodes.setdefault(to, Traffic()).received[letter] += 1


def control(letters: Counter[Letter]) -> int:
    return sum(letter.control * count for letter, count in letters.items())


def payload(letters: Counter[Letter]) -> int:
    return sum(sum(letter.payload.values()) * count for letter, count in letters.items())


def by_kind(letters: Counter[Letter]) -> Mapping[str, int]:
    """Bytes of control."""
    counts: Counter[str] = Counter()
    for letter, count in letters.items():
        counts[letter.kind] += letter.control * count
    return counts


def by_field(letters: Counter[Letter]) -> Mapping[str, int]:
    """Bytes of control, by kind of letter and field."""
    counts: Counter[str] = Counter()
    for letter, count in letters.items():
        for name, size in letter.fields.items():
            counts[f"{letter.kind}.{name}"] += size * count
    return counts
