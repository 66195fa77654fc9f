"""What is trained, block by block, and at which rank. Pure arithmetic on names and shapes.

A block is one parameter of the model. Two-dimensional blocks of a usable size are exchanged at low rank;
norms, biases and anything too small are exchanged dense.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from tsr_swarm.config.run import OptimizerConfig
from tsr_swarm.errors import ConfigError

MAX_RANK = 4096  # the exact lift is proven up to here: see lowrank/exact.py


class Role(StrEnum):
    """Why a block is treated the way it is."""

    MATRIX = "matrix"  # low rank, refreshed every k_r steps
    EMBEDDING = "embedding"  # embedding or head: low rank, its own rank and refresh period
    DENSE = "dense"  # norms, biases: sent whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One parameter: ``rows`` x ``cols``, exchanged at ``rank`` (0 for dense; a vector has one row)."""

    name: str
    rows: int
    cols: int
    rank: int
    role: Role

    @property
    def is_low_rank(self) -> bool:
        return self.role is not Role.DENSE

    @property
    def size(self) -> int:
        return self.rows * self.cols


def plan_blocks(shapes: Mapping[str, tuple[int, ...]], optimizer: OptimizerConfig, hidden: int) -> tuple[Block, ...]:
    """Give each named parameter its role and rank, in the order of ``shapes``.

    ``hidden`` is the d of ranks written as ``"d/2"``. Raises ConfigError when a rank does not fit its block.
    """
    return tuple(_plan_block(name, shape, optimizer, hidden) for name, shape in shapes.items())


def _plan_block(name: str, shape: tuple[int, ...], optimizer: OptimizerConfig, hidden: int) -> Block:
    if len(shape) != 2:
        cols = 1
        for size in shape:
            cols *= size
        return Block(name=name, rows=1, cols=cols, rank=0, role=Role.DENSE)
    rows, cols = shape
    is_embedding = name.endswith(("embed_tokens.weight", "lm_head.weight"))
    key = "embedding_rank" if is_embedding else "rank"
    rank = parse_rank(key, getattr(optimizer, key), hidden)
    limit = min(rows, cols, MAX_RANK)
    if rank > limit:
        raise ConfigError(
            f"optimizer.{key} = {rank} is larger than block '{name}' ({rows} x {cols}) allows; "
            f"set it to {limit} or less."
        )
    role = Role.EMBEDDING if is_embedding else Role.MATRIX
    return Block(name=name, rows=rows, cols=cols, rank=rank, role=role)


def parse_rank(key: str, value: int | str, hidden: int) -> int:
    """Read a rank written as a number or as a share of the hidden size, such as ``"d/2"`` or ``"d"``."""
    if isinstance(value, str):
        head, _, divisor = value.partition("/")
        if head != "d" or (divisor and not divisor.isdigit()) or divisor == "0":
            raise ConfigError(f'optimizer.{key} = "{value}" is not a rank; write a number or a share such as "d/2".')
        value = max(1, hidden // int(divisor or 1))
    if value < 1:
        raise ConfigError(f"optimizer.{key} = {value} is out of range; a rank is 1 or more.")
    return value
