"""The plan of a round, as the leader announces it: what every peer does in it, and sends."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Due:
    """Which blocks (by index in the manifest) send more than a core this round.

    ``tangent``: the block's displacement goes out as a tangent sketch, which flushes what the core misses.
    ``range``: peers also send a range sketch of their gradient, the first pass of a randomized SVD.
    ``project``: peers also send their gradient's projection on the range that was published the round before, the
    second pass, from which the next basis is made.
    ``choose``: peers send their gradients' energy in each column of a cosine transform; the strongest make the next
    basis.
    ``draw``: pairs (block, number): everybody draws the block's basis of this number from the run's seed; nothing is
    sent for it.
    A block in ``tangent`` alone takes its next basis from the tangent sketch itself.
    ``first``, ``second``: peers also send the block's first or second moment, in the bases of before the round, and all
    go on with the average. Only blocks with moments in shared bases: Block.moment_shape.
    """

    tangent: frozenset[int] = field(default_factory=frozenset)
    range: frozenset[int] = field(default_factory=frozenset)
    project: frozenset[int] = field(default_factory=frozenset)
    choose: frozenset[int] = field(default_factory=frozenset)
    draw: tuple[tuple[int, int], ...] = ()
    first: frozenset[int] = field(default_factory=frozenset)
    second: frozenset[int] = field(default_factory=frozenset)

    @property
    def of_gradients(self) -> frozenset[int]:
        """Blocks whose gradients are measured at the consensus, before the local steps."""
        return self.range | self.project | self.choose

    @property
    def refresh(self) -> frozenset[int]:
        """Blocks whose basis changes when this round is applied."""
        return self.tangent | self.project | self.choose | {block for block, _ in self.draw}


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundPlan:
    """One round's announcement: the step numbers, rates and refreshes, so that no peer needs a clock for them."""

    round: int  # counted from 1
    first_step: int  # global number of this round's first local step, counted from 0
    steps: int  # K_x
    lr_first: float  # rate of the first local step ...
    lr_last: float  # ... and of the last; linear between
    decay: float  # the consensus weights of low-rank blocks are multiplied by this once, before the update
    due: Due
    parent: str  # chain hash (hex) of the round before, "" before round 1
    seed: int = 0  # the run's: of bases that are drawn

    def lr(self, step: int) -> float:
        """Rate of local step ``step`` (0 to steps - 1)."""
        if self.steps <= 1:
            return self.lr_first
        return self.lr_first + (self.lr_last - self.lr_first) * min(step, self.steps - 1) / (self.steps - 1)
