"""The one legal content of an upload and of a publication, slot by slot.

Manifest and announcement fix every slot's shape and bits, so a payload has exactly one legal length. Optimizer,
wire and reducer all walk these lists in this order.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from tsr_swarm.config.blocks import Block
from tsr_swarm.config.plan import Due
from tsr_swarm.config.run import WireConfig

BASIS_BITS = 12
FACTOR_BITS = 24
DENSE_BITS = 32  # not an integer grid: little-endian float32


class PayloadKind(StrEnum):
    """How bytes are counted and shown."""

    CORE = "core"
    TANGENT = "tangent"
    GRADIENT = "gradient"
    DENSE = "dense"
    BASIS = "basis"
    STATE = "state"
    CONTROL = "control"


class Part(StrEnum):
    """What a slot holds. LEFT belongs to U and has the block's rows, RIGHT belongs to V and has its columns."""

    CORE = "core"  # r x r
    TANGENT_LEFT = "tangent_left"  # Y = A V, rows x r
    TANGENT_RIGHT = "tangent_right"  # Z = A^T U, cols x r
    GRADIENT_LEFT = "gradient_left"  # G V, rows x r
    GRADIENT_RIGHT = "gradient_right"  # G^T U, cols x r
    DENSE = "dense"  # the displacement itself
    BASIS_LEFT = "basis_left"  # new U, rows x r, only published
    BASIS_RIGHT = "basis_right"  # new V, cols x r, only published
    FACTOR_LEFT = "factor_left"  # T with new U = round12(Ybar T), r x r, only published
    FACTOR_RIGHT = "factor_right"  # T with new V = round12(Zbar T), r x r, only published

    @property
    def kind(self) -> PayloadKind:
        head = self.value.partition("_")[0]
        return PayloadKind.BASIS if head == "factor" else PayloadKind(head)


@dataclass(frozen=True, slots=True)
class Slot:
    """One matrix in a payload: ``rows`` x ``cols`` integers of ``bits``, scaled by ``exponents`` powers of two.

    ``exponents`` is ``rows`` (one a row), 1 (one for the slot) or 0 (the scale is fixed, or float32).
    """

    block: int
    part: Part
    rows: int
    cols: int
    bits: int
    exponents: int

    @property
    def raw_bytes(self) -> int:
        """Length before compression: the exponents as int8, then the packed values."""
        return self.exponents + (self.rows * self.cols * self.bits + 7) // 8


def upload_slots(blocks: Sequence[Block], due: Due, wire: WireConfig) -> tuple[Slot, ...]:
    """What a peer sends this round, in order."""
    return tuple(slot for index, block in enumerate(blocks) for slot in _upload_block(index, block, due, wire))


def published_slots(
    blocks: Sequence[Block], due: Due, wire: WireConfig, void: frozenset[int] = frozenset()
) -> tuple[Slot, ...]:
    """What the reducers publish this round, in order; ``void`` blocks are left out."""
    return tuple(
        slot
        for index, block in enumerate(blocks)
        if index not in void
        for slot in _published_block(index, block, due, wire)
    )


def _upload_block(index: int, block: Block, due: Due, wire: WireConfig) -> Iterator[Slot]:
    m, n, r = block.rows, block.cols, block.rank
    if not block.is_low_rank:
        yield Slot(index, Part.DENSE, m, n, DENSE_BITS, 0)
        return
    if index in due.tangent:
        yield Slot(index, Part.TANGENT_LEFT, m, r, wire.sketch_bits, m)
        yield Slot(index, Part.TANGENT_RIGHT, n, r, wire.sketch_bits, n)
    else:
        yield Slot(index, Part.CORE, r, r, wire.core_bits, r)
    if index in due.aim:
        yield Slot(index, Part.GRADIENT_LEFT, m, r, wire.sketch_bits, m)
        yield Slot(index, Part.GRADIENT_RIGHT, n, r, wire.sketch_bits, n)


def _published_block(index: int, block: Block, due: Due, wire: WireConfig) -> Iterator[Slot]:
    m, n, r = block.rows, block.cols, block.rank
    if not block.is_low_rank:
        yield Slot(index, Part.DENSE, m, n, DENSE_BITS, 0)
        return
    if index in due.tangent:
        yield Slot(index, Part.TANGENT_LEFT, m, r, wire.published_bits, 1)
        yield Slot(index, Part.TANGENT_RIGHT, n, r, wire.published_bits, 1)
    else:
        yield Slot(index, Part.CORE, r, r, wire.published_bits, 1)
    if index in due.aim:
        yield Slot(index, Part.BASIS_LEFT, m, r, BASIS_BITS, 0)
        yield Slot(index, Part.BASIS_RIGHT, n, r, BASIS_BITS, 0)
    elif index in due.tangent:
        yield Slot(index, Part.FACTOR_LEFT, r, r, FACTOR_BITS, 1)
        yield Slot(index, Part.FACTOR_RIGHT, r, r, FACTOR_BITS, 1)
