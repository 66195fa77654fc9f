"""The one legal content of an upload and of a publication, slot by slot, and its bytes before compression.

The manifest and the plan of the round fix every slot's shape and bits, so a payload has exactly one legal length.
Optimizer, wire and reducer all go through these lists in this order.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from tsr_swarm.config.blocks import Block
from tsr_swarm.config.round_plan import Due
from tsr_swarm.config.run import RunConfig, WireConfig
from tsr_swarm.errors import ConfigError

KB = 1000
ENERGY_BITS = 16
COLUMN_BITS = 2
MOMENT_BITS = 16  # a second moment spans twice the orders of magnitude that its gradients do
DENSE_BITS = 32  # not an integer grid: little-endian float32
FEW_BITS = 6  # up to here a power-of-two step would waste too much of the range: a mantissa refines it
RUNS_BELOW = 0.5  # density: from here on run lengths cost more than they save
_NO_REFRESH = Due()


class PayloadKind(StrEnum):
    """How bytes are counted and shown."""

    CORE = "core"
    SKETCH = "sketch"  # of displacements
    GRADIENT = "gradient"
    MOMENT = "moment"
    DENSE = "dense"
    BASIS = "basis"
    STATE = "state"
    CONTROL = "control"


class Part(StrEnum):
    """What a slot holds. LEFT belongs to U and has the block's rows, RIGHT belongs to V and has its columns.

    Sketches and what is made of them lie across: a row is a direction, and has a scale of its own. Those of gradients G
    have l rows, the width of the sketch, see lowrank/randomized_svd.py; those of a displacement A have one a direction.
    """

    CORE = "core"  # p x q, the ranks of U and V
    TANGENT_LEFT = "tangent_left"  # Y^T = (A V)^T, q x rows
    TANGENT_RIGHT = "tangent_right"  # Z^T = U^T A, p x cols
    RANGE = "range"  # sent: (G [V, Omega])^T, published: a basis Q^T of its range; l x rows
    PROJECTION = "projection"  # Q^T G, l x cols
    ENERGY_LEFT = "energy_left"  # |row i of C^T G|^2 for the cosine transform C of the rows, 1 x rows
    ENERGY_RIGHT = "energy_right"  # |column j of G C|^2, 1 x cols
    MOMENT_FIRST = "moment_first"  # bias-corrected: of a core p x q, LoRDO's rank x the longer side
    MOMENT_SECOND = "moment_second"  # the same
    DENSE = "dense"  # the displacement itself
    SINGULAR_LEFT = "singular_left"  # left singular vectors of Q^T G, which turn Q into U; p x l, only published
    SINGULAR_RIGHT = "singular_right"  # its right ones, the new V; q x cols, only published
    COLUMNS_LEFT = "columns_left"  # 1 for each column of the transform that is in the new U, 1 x rows, only published
    COLUMNS_RIGHT = "columns_right"  # the same for V, 1 x cols, only published

    @property
    def kind(self) -> PayloadKind:
        head = self.value.partition("_")[0]
        return _KINDS.get(head) or PayloadKind(head)


_KINDS = {
    "tangent": PayloadKind.SKETCH,
    "range": PayloadKind.GRADIENT,
    "projection": PayloadKind.GRADIENT,
    "energy": PayloadKind.GRADIENT,
    "singular": PayloadKind.BASIS,
    "columns": PayloadKind.BASIS,
}


@dataclass(frozen=True, slots=True)
class Slot:
    """One matrix in a payload: ``rows`` x ``cols`` integers of ``bits``, scaled by ``exponents`` powers of two.

    ``exponents`` is ``rows`` (one a row), 1 (one for the slot) or 0 (the scale is fixed, or float32).
    ``mantissas`` refine the steps to multiples of the powers of two: ``rows``, 1, or 0 (the step is the power itself).
    ``density`` below 1 is the share of numbers that a dead zone leaves; 1 is a linear grid, rounded to the nearest
    step or, where ``stochastic``, to one of the two neighbours by chance.
    """

    block: int
    part: Part
    rows: int
    cols: int
    bits: int
    exponents: int
    mantissas: int = 0
    density: float = 1.0
    stochastic: bool = False

    @property
    def size(self) -> int:
        return self.rows * self.cols

    @property
    def has_runs(self) -> bool:
        """Whether zeros travel as run lengths, see wire/packing.py."""
        return self.density < RUNS_BELOW

    @property
    def raw_bytes(self) -> int:
        """Length before compression: exponents as int8, mantissas as uint8, then the packed values."""
        body = runs_bytes(self.size, self.bits) if self.has_runs else packed_bytes(self.size, self.bits)
        return self.exponents + self.mantissas + body


SlotsOf = Callable[[Sequence[Block], Due, WireConfig], Sequence[Slot]]  # upload_slots, or published_slots


def packed_bytes(count: int, bits: int) -> int:
    """Length of ``count`` packed values of ``bits``, see wire/packing.py."""
    if bits <= FEW_BITS:
        return -(-count // digits_per_byte(levels(bits)))
    return (count * bits + 7) // 8


def runs_bytes(count: int, bits: int) -> int:
    """Length set aside for ``count`` values as runs and levels, see wire/packing.py: enough for any number of zeros."""
    return count + 1 + -(-count // digits_per_byte(levels(bits) - 1))


def levels(bits: int) -> int:
    """How many integers of ``bits`` are legal: those of magnitude up to 2**(bits - 1) - 1."""
    return int(2**bits - 1)


def digits_per_byte(base: int) -> int:
    """How many digits of ``base`` (2 to 256) fit a byte: floor(log_base 256)."""
    digits, reach = 0, base
    while reach <= 256:
        digits, reach = digits + 1, reach * base
    return digits


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
    m, n, (p, q) = block.rows, block.cols, block.ranks
    if not block.is_low_rank:
        yield Slot(index, Part.DENSE, m, n, DENSE_BITS, 0)
        return
    if index in due.tangent:
        yield _linear(Slot(index, Part.TANGENT_LEFT, q, m, wire.sketch_bits, q), wire)
        yield _linear(Slot(index, Part.TANGENT_RIGHT, p, n, wire.sketch_bits, p), wire)
    else:
        yield _core(Slot(index, Part.CORE, p, q, wire.core_bits, p), wire.core_density, wire)
    width = block.sketch_width
    if index in due.range:
        yield _linear(Slot(index, Part.RANGE, width, m, wire.sketch_bits, width), wire)
    if index in due.project:
        yield _linear(Slot(index, Part.PROJECTION, width, n, wire.sketch_bits, width), wire)
    if index in due.choose:
        yield Slot(index, Part.ENERGY_LEFT, 1, m, ENERGY_BITS, 1)
        yield Slot(index, Part.ENERGY_RIGHT, 1, n, ENERGY_BITS, 1)
    yield from _moments(index, block, due)


def _published_block(index: int, block: Block, due: Due, wire: WireConfig) -> Iterator[Slot]:
    """One exponent a slot, which the exact lift asks for; moments, which are not lifted, have one a row.

    A tangent sketch never has fewer bits than the uploads it is of. Of directions only the span counts: no scale.
    """
    m, n, (p, q) = block.rows, block.cols, block.ranks
    if not block.is_low_rank:
        yield Slot(index, Part.DENSE, m, n, DENSE_BITS, 0)
        return
    if index in due.tangent:
        bits = max(wire.published_bits, wire.sketch_bits)
        yield _linear(Slot(index, Part.TANGENT_LEFT, q, m, bits, 1), wire)
        yield _linear(Slot(index, Part.TANGENT_RIGHT, p, n, bits, 1), wire)
    else:
        yield _core(Slot(index, Part.CORE, p, q, wire.published_bits, 1), wire.published_density, wire)
    if index in due.range:
        yield Slot(index, Part.RANGE, block.sketch_width, m, wire.sketch_bits, 0)
    if index in due.project:
        yield Slot(index, Part.SINGULAR_LEFT, p, block.sketch_width, wire.sketch_bits, 0)
        yield Slot(index, Part.SINGULAR_RIGHT, q, n, wire.sketch_bits, 0)
    elif index in due.choose:
        yield Slot(index, Part.COLUMNS_LEFT, 1, m, COLUMN_BITS, 0)
        yield Slot(index, Part.COLUMNS_RIGHT, 1, n, COLUMN_BITS, 0)
    yield from _moments(index, block, due)


def _moments(index: int, block: Block, due: Due) -> Iterator[Slot]:
    """The same up and down. Dense blocks keep theirs: they are few numbers, and would cost much at 32 bits."""
    if block.moment_shape is None:
        return
    rows, cols = block.moment_shape
    for part, due_blocks in ((Part.MOMENT_FIRST, due.first), (Part.MOMENT_SECOND, due.second)):
        if index in due_blocks:
            yield Slot(index, part, rows, cols, MOMENT_BITS, rows)


def _core(slot: Slot, density: float, wire: WireConfig) -> Slot:
    """A core behind a dead zone has one step for all its rows: what is sent is what is largest in the whole core."""
    if density < 1:
        return replace(slot, exponents=1, mantissas=1, density=density)
    return _linear(slot, wire)


def _linear(slot: Slot, wire: WireConfig) -> Slot:
    if slot.bits > FEW_BITS:
        return slot
    return replace(slot, mantissas=slot.rows, stochastic=wire.rounding == "stochastic")


def block_bytes(
    blocks: Sequence[Block], wire: WireConfig, due: Due = _NO_REFRESH, slots_of: SlotsOf = upload_slots
) -> tuple[int, ...]:
    """Bytes of each block in an upload, or a publication, by default of a round without refreshes."""
    sizes = [0] * len(blocks)
    for slot in slots_of(blocks, due, wire):
        sizes[slot.block] += slot.raw_bytes
    return tuple(sizes)


def split_blocks(sizes: Sequence[int], shards: int) -> tuple[tuple[int, ...], ...]:
    """Deal whole blocks into at most ``shards`` sets of about equal size; every block is in exactly one."""
    bins: list[tuple[int, list[int]]] = [(0, []) for _ in range(min(shards, len(sizes)))]
    for index in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        lightest = min(range(len(bins)), key=lambda b: (bins[b][0], b))
        load, members = bins[lightest]
        bins[lightest] = (load + sizes[index], [*members, index])
    return tuple(tuple(sorted(members)) for _, members in bins)


def core_upload(blocks: Sequence[Block], wire: WireConfig, due: Due = _NO_REFRESH) -> int:
    """Bytes of an upload without any sketch, but with the moments that are ``due``."""
    return sum(block_bytes(blocks, wire, Due(first=due.first, second=due.second)))


def sketch_costs(blocks: Sequence[Block], wire: WireConfig) -> dict[int, int]:
    """Bytes that a tangent sketch has more than a core, for each low-rank block.

    Below 0 where few bits of a sketch meet many of a core at nearly full rank.
    """
    low_rank = [index for index, block in enumerate(blocks) if block.is_low_rank]
    cores, sketches = block_bytes(blocks, wire), block_bytes(blocks, wire, Due(tangent=frozenset(low_rank)))
    return {index: sketches[index] - cores[index] for index in low_rank}


def check_budget(config: RunConfig, blocks: Sequence[Block]) -> None:
    """Raise ConfigError unless any one block, at least, can send a sketch in a round: else its basis would stay."""
    budget = config.round.budget_kb
    if not budget:
        return
    cores, costs = core_upload(blocks, config.wire), sketch_costs(blocks, config.wire)
    dearest = max(costs.values(), default=0)
    if budget * KB < cores + max(0, dearest):
        raise ConfigError(
            f"round.budget_kb = {budget} is too little: cores and dense blocks take {cores / KB:.1f} kB of an upload "
            f"and the largest sketch {dearest / KB:.1f} kB more; set it to {math.ceil((cores + dearest) / KB)} or "
            "more, or to 0."
        )
