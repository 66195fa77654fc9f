"""The blocks of a model and their ranks. Pure arithmetic on names and shapes.

A block is one parameter of the model. Two-dimensional blocks of a usable size are exchanged at low rank;
norms, biases and anything too small are exchanged dense.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from tsr_swarm.config.auto import AUTO, embedding_rank_for, rank_for
from tsr_swarm.config.run import OptimizerConfig, is_share_of_sides
from tsr_swarm.errors import ConfigError

MAX_RANK = 4096  # the exact lift is proven up to here: see lowrank/exact.py


class BlockRole(StrEnum):
    """Why a block is treated the way it is."""

    MATRIX = "matrix"  # low rank, refreshed every k_r steps
    EMBEDDING = "embedding"  # embedding or head: low rank, its own rank and refresh period
    DENSE = "dense"  # norms, biases: sent whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One parameter: ``rows`` x ``cols``, exchanged at ``rank`` (0 for dense; a vector has one row).

    ``is_proportional``: ``rank`` is that of the shorter side, and the longer side has as many times more directions as
    it is longer; else both sides have ``rank`` directions and the core is square.
    ``oversampling``: columns of a range sketch beyond ``rank``.
    """

    name: str
    rows: int
    cols: int
    rank: int
    role: BlockRole
    is_proportional: bool = False
    oversampling: int = 0
    is_lordo: bool = False  # of a run of LoRDO: see moment_shape

    @property
    def is_low_rank(self) -> bool:
        return self.role is not BlockRole.DENSE

    @property
    def ranks(self) -> tuple[int, int]:
        """Directions of U and of V: the core is ranks[0] x ranks[1]."""
        if not self.is_proportional:
            return self.rank, self.rank
        short = min(self.rows, self.cols)
        return self.rank * self.rows // short, self.rank * self.cols // short

    @property
    def sketch_width(self) -> int:
        """Columns of a range sketch."""
        return self.rank + self.oversampling

    @property
    def core_size(self) -> int:
        return self.ranks[0] * self.ranks[1]

    @property
    def moment_shape(self) -> tuple[int, int] | None:
        """Shape of the moments in shared bases, which peers may average: those of a core, none of a dense block.

        LoRDO's are (rank of the shorter side, longer side), and those of embedding and head are of full size.
        """
        if not self.is_lordo:
            return self.ranks if self.is_low_rank else None
        if self.role is not BlockRole.MATRIX:
            return None
        return self.ranks[self.rows > self.cols], max(self.rows, self.cols)

    @property
    def basis_size(self) -> int:
        """Numbers in U and V together."""
        return self.rows * self.ranks[0] + self.cols * self.ranks[1]

    @property
    def size(self) -> int:
        return self.rows * self.cols


def plan_blocks(shapes: Mapping[str, tuple[int, ...]], optimizer: OptimizerConfig, hidden: int) -> tuple[Block, ...]:
    """Give each named parameter its role and rank, in the order of ``shapes``.

    ``hidden`` is the d of ranks written as ``"d/2"``. Raises ConfigError when a rank does not fit its block.
    """
    return tuple(_plan_block(name, shape, optimizer, hidden) for name, shape in shapes.items())


def _plan_block(name: str, shape: tuple[int, ...], optimizer: OptimizerConfig, hidden: int) -> Block:
    is_lordo = optimizer.inner == "lordo"
    if len(shape) != 2:
        return Block(name=name, rows=1, cols=math.prod(shape), rank=0, role=BlockRole.DENSE, is_lordo=is_lordo)
    rows, cols = shape
    is_embedding = name.endswith(("embed_tokens.weight", "lm_head.weight"))
    key = "embedding_rank" if is_embedding else "rank"
    role = BlockRole.EMBEDDING if is_embedding else BlockRole.MATRIX
    value = embedding_rank(optimizer, hidden, max(shape)) if is_embedding else matrix_rank(optimizer, hidden)
    is_share = is_share_of_sides(value)
    rank = share_of(key, value, min(rows, cols)) if is_share else parse_rank(key, value, hidden)
    block = Block(name=name, rows=rows, cols=cols, rank=rank, role=role, is_proportional=is_share, is_lordo=is_lordo)
    if rank > min(rows, cols) or max(block.ranks) > MAX_RANK:
        raise ConfigError(
            f"optimizer.{key} = {value} is more than block '{name}' ({rows} x {cols}) allows: "
            f"rank {min(rows, cols, MAX_RANK)}, and {MAX_RANK} on its longer side; choose a lower one."
        )
    if optimizer.aim != "gradient":
        return block
    return replace(block, oversampling=min(optimizer.oversampling, min(rows, cols, MAX_RANK) - rank))


def matrix_rank(optimizer: OptimizerConfig, hidden: int) -> int | str:
    """``optimizer.rank`` with "auto" made definite."""
    return rank_for(optimizer.aim, hidden) if optimizer.rank == AUTO else optimizer.rank


def embedding_rank(optimizer: OptimizerConfig, hidden: int, vocabulary: int) -> int | str:
    """``optimizer.embedding_rank`` with "auto" made definite."""
    given = optimizer.embedding_rank
    return embedding_rank_for(optimizer.aim, hidden, vocabulary, optimizer.rank) if given == AUTO else given


def share_of(key: str, value: int | str, short: int) -> int:
    """The rank on the shorter side of a rank written as a share of both, such as ``"1/2"``."""
    match = re.fullmatch(r"1(?:/([1-9][0-9]{0,5}))?", str(value))
    if match is None:
        raise ConfigError(f'optimizer.{key} = "{value}" is not a share of a block\'s sides; write one such as "1/2".')
    return max(1, short // int(match[1] or 1))


def parse_rank(key: str, value: int | str, hidden: int) -> int:
    """Read a rank written as a number or as a share of the hidden size, such as ``"d/2"`` or ``"d"``."""
    if isinstance(value, str):
        head, _, divisor = value.partition("/")
        if head != "d" or (divisor and not divisor.isdigit()) or divisor == "0":
            raise ConfigError(
                f'optimizer.{key} = "{value}" is not a rank; write a number or a share such as "d/2" or "1/2".'
            )
        value = max(1, hidden // int(divisor or 1))
    if value < 1:
        raise ConfigError(f"optimizer.{key} = {value} is out of range; a rank is 1 or more.")
    return value
