"""What a peer has trained and not yet seen counted: its residual, as units of work that are told apart."""

from collections.abc import Sequence

from tsr_swarm.rounds.gather import ShardDigest

Units = tuple[int, ...]


class Work:
    """Every training makes one unit. By shard, a unit is open until a round that stands is known to carry it."""

    def __init__(self, shards: int) -> None:
        self.made = 0  # over all lives: no two units have the same number
        self.round = 0  # of the contribution
        self.parent = ""  # and the history it follows
        self.carried: tuple[Units, ...] = ()  # by it, by shard
        self._open: list[list[int]] = [[] for _ in range(shards)]

    def train(self) -> None:
        """A training has ended; what it did is in the residual."""
        self.made += 1
        for units in self._open:
            units.append(self.made)

    def contribute(self, round: int, parent: str) -> None:
        """Make the contribution to ``round``: all that is open."""
        self.round, self.parent = round, parent
        self.carried = tuple(tuple(units) for units in self._open)

    def settle(self, me: str, round: int, results: Sequence[ShardDigest]) -> None:
        """``round`` was applied: what it carries of this peer is not sent again."""
        if round == self.round:
            self._drop([shard for shard, result in enumerate(results) if me in result.included])

    def jump(self, before: int, after: int) -> None:
        """Rounds were jumped over: what became of a contribution to one of them is unknown, so it is given up."""
        if self.carried and before < self.round <= after:
            self._drop(range(len(self._open)))

    def forget(self) -> None:
        """The process died, and its residual with it."""
        self.round, self.carried = 0, ()
        self._open = [[] for _ in self._open]

    def _drop(self, shards: Sequence[int]) -> None:
        for shard in shards:
            carried = set(self.carried[shard])
            self._open[shard] = [unit for unit in self._open[shard] if unit not in carried]
