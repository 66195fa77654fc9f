"""A machine's disk, which survives when the process is killed. It can be full, and refuse to write the journal."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from tsr_swarm.rounds.protocol import ShardDigest
from tsr_swarm.rounds.raft_state import HardState, RoundRecord


@dataclass(frozen=True, slots=True)
class Published:
    """A round's bytes: its record and what was made of every shard."""

    record: RoundRecord
    results: tuple[ShardDigest, ...]


@dataclass(slots=True)
class Disk:
    """Journal, rounds and checkpoint. Every ``save`` returns whether it worked."""

    keeps: int  # rounds; older ones are thrown away
    hard_state: HardState
    record: RoundRecord | None = None  # of the checkpoint, None: no state yet
    rounds: dict[int, dict[str, Published]] = field(default_factory=dict)
    is_full: bool = False
    failures: int = 0  # of the next writes to the journal

    def save_hard_state(self, hard_state: HardState) -> bool:
        if self.failures > 0:
            self.failures -= 1
            return False
        if self.is_full:
            return False
        self.hard_state = hard_state
        return True

    def save_round(self, published: Published) -> bool:
        if self.is_full:
            return False
        self.rounds.setdefault(published.record.round, {})[published.record.chain] = published
        return True

    def save_checkpoint(self, record: RoundRecord) -> bool:
        if self.is_full:
            return False
        self.record = record
        for old in [round for round in self.rounds if round <= record.round - self.keeps]:
            del self.rounds[old]
        return True

    def find(self, round: int, chain: str) -> Published | None:
        return self.rounds.get(round, {}).get(chain)

    def chain_of(self, round: int, known: Sequence[tuple[int, str]]) -> str:
        """Return the chain hash of a round, followed back from ``known`` committed ones; "" where none leads there."""
        for newer, chain in known:
            at = newer
            while at > round:
                published = self.find(at, chain)
                if published is None:
                    break
                at, chain = at - 1, published.record.parent
            if at == round:
                return chain
        return ""


def new_disk(keeps: int, first: str, is_new: bool) -> Disk:
    """Make the disk of a machine that has the first state, or that ``is_new`` and has nothing."""
    genesis = RoundRecord(voters=(first,))
    return Disk(keeps=keeps, hard_state=HardState(genesis), record=None if is_new else genesis)
