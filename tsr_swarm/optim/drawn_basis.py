"""Bases that follow from the run's seed and the number of the round: they are never sent, not even to who joins."""

from collections.abc import Mapping

from tsr_swarm.config.manifest import Manifest
from tsr_swarm.lowrank.basis import Basis
from tsr_swarm.lowrank.dct import drawn_basis
from tsr_swarm.optim.periods import basis_number


def are_drawn(manifest: Manifest) -> bool:
    """Whether the bases of this run are drawn."""
    return manifest.config.optimizer.aim == "seed"


def drawn_bases(manifest: Manifest, round: int) -> Mapping[int, Basis]:
    """The bases of all low-rank blocks after ``round`` rounds of a run whose bases are drawn."""
    config = manifest.config
    return {
        index: drawn_basis(
            block.rows,
            block.cols,
            block.ranks,
            seed=config.run.seed,
            block=index,
            number=basis_number(config.periods, block, round),
        )
        for index, block in enumerate(manifest.blocks)
        if block.is_low_rank
    }
