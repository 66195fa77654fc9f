"""What a peer has trained and not yet seen counted: its residual, as units of work that are told apart."""

from collections.abc import Sequence

from tsr_swarm.rounds.protocol import ShardDigest

Units = tuple[int, ...]


class Work:
    """Units of training. By shard, a unit is open until a committed round is known to carry it."""

    def __init__(self, shards: int) -> None:
        self.count = 0  # over all lives: no two units have the same number
        self.round = 0  # of the contribution
        self.parent = ""  # and the history it follows
        self.carried: tuple[Units, ...] = ()  # by it, by shard
        self._open: list[list[int]] = [[] for _ in range(shards)]

    def train(self) -> None:
        """Add one unit of training to the residual."""
        self.count += 1
        for units in self._open:
            units.append(self.count)

    def contribute(self, round: int, parent: str) -> None:
        """Make the contribution to ``round``: all that is open."""
        self.round, self.parent = round, parent
        self.carried = tuple(tuple(units) for units in self._open)

    def settle(self, me: str, round: int, results: Sequence[ShardDigest]) -> None:
        """Close what the applied ``round`` carries of this peer: it is not sent again."""
        if round == self.round:
            self._drop([shard for shard, result in enumerate(results) if me in result.included])

    def jump(self, before: int, after: int) -> None:
        """Give up a contribution to a round that was jumped over, since what became of it is unknown."""
        if self.carried and before < self.round <= after:
            self._drop(range(len(self._open)))

    def forget(self) -> None:
        """Lose the residual, as when the process dies."""
        self.round, self.carried = 0, ()
        self._open = [[] for _ in self._open]

    def _drop(self, shards: Sequence[int]) -> None:
        for shard in shards:
            carried = set(self.carried[shard])
            self._open[shard] = [unit for unit in self._open[shard] if unit not in carried]
