"""What this run's own peers send and keep: its real slots over its real schedule of refreshes, compressed as measured.

What compression leaves of a payload is found by sending one: rounded, averaged, published and encoded. The numbers are
drawn from a normal distribution, and those of a run are spread otherwise. The quick start kept 0.89 of the raw bytes of
its 8-bit cores and 0.61 of those of its 16-bit means of three; this says 0.88 and 0.54.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from tsr_swarm.config.blocks import Block, BlockRole, matrix_rank, plan_blocks
from tsr_swarm.config.layout import Part, Slot, SlotsOf, published_slots, upload_slots
from tsr_swarm.config.round_plan import Due
from tsr_swarm.config.run import RunConfig, WireConfig
from tsr_swarm.lowrank.basis import random_basis
from tsr_swarm.lowrank.grid import Grid, dense_grid
from tsr_swarm.lowrank.packed import packed_bytes
from tsr_swarm.optim.inner_optimizer import inner_optimizer
from tsr_swarm.optim.periods import cycle_rounds, due_blocks
from tsr_swarm.optim.publish import publish
from tsr_swarm.optim.quantise import quantise_slot
from tsr_swarm.optim.turns import MOST_ROUNDS
from tsr_swarm.plan.baseline_costs import FLOAT, numbers
from tsr_swarm.plan.costs import ExchangeCost, Memory, MethodCost
from tsr_swarm.train.llama import parameter_shapes
from tsr_swarm.wire.codec import encode

_BASIS = 2  # bytes of the int16 that a basis is kept in


@dataclass(frozen=True, slots=True)
class Shares:
    """Wire bytes for each raw byte, by payload kind."""

    sent: Mapping[str, float]
    received: Mapping[str, float]


def blocks_of(config: RunConfig) -> tuple[Block, ...]:
    """Plan the blocks of a run; its model is not allocated. Raises ConfigError where a rank does not fit a block."""
    return plan_blocks(parameter_shapes(config.model), config.optimizer, config.model.hidden_size)


def own_method(config: RunConfig, blocks: Sequence[Block], shares: Shares) -> MethodCost:
    """Return the cost of a run with ``config``, compressed as ``shares`` say."""
    optimizer, periods, wire = config.optimizer, config.periods, config.wire
    return MethodCost(
        name="tsr",
        settings=f"this run: {optimizer.local_space} {optimizer.inner}, "
        f"rank {matrix_rank(optimizer, config.model.hidden_size)} "
        f"({optimizer.embedding_rank}), every {periods.k_x}, bases by {optimizer.aim} every "
        f"{config.refresh_rounds * periods.k_x} ({config.refresh_rounds_embedding * periods.k_x})",
        source=f"its own layout; bits of core, sketch and mean {wire.core_bits}/{wire.sketch_bits}/"
        f"{wire.published_bits}, density {wire.core_density:g}/{wire.published_density:g}",
        exchange=own_exchange(config, blocks, shares),
        memory=own_memory(config, blocks),
    )


def own_exchange(config: RunConfig, blocks: Sequence[Block], shares: Shares) -> ExchangeCost:
    """Return wire bytes of one peer: raw bytes of every slot times the share that compression leaves of its kind."""
    rounds = cycle(config, blocks)
    sent, received = (raw_bytes(blocks, config.wire, rounds, slots_of) for slots_of in (upload_slots, published_slots))
    return ExchangeCost(
        every=config.periods.k_x,
        sent=_scaled(mean_bytes(sent), shares.sent),
        received=_scaled(mean_bytes(received), shares.received),
        largest_sent=max(sum(_scaled(kinds, shares.sent).values()) for kinds in sent),
        largest_received=max(sum(_scaled(kinds, shares.received).values()) for kinds in received),
    )


def raw_bytes(
    blocks: Sequence[Block], wire: WireConfig, rounds: Sequence[Due], slots_of: SlotsOf
) -> list[Mapping[str, int]]:
    """Return the bytes of each of ``rounds`` by payload kind, before compression."""
    by_due = {due: _by_kind(slots_of(blocks, due, wire)) for due in dict.fromkeys(rounds)}
    return [by_due[due] for due in rounds]


def cycle(config: RunConfig, blocks: Sequence[Block]) -> list[Due]:
    """Return what is due in each round of one common period of refreshes and moments.

    The second one: the first round of a run still lacks what ends a refresh. Periods without a common multiple up to
    turns.MOST_ROUNDS are taken over the first so many rounds.
    """
    window = cycle_rounds(config, blocks)
    first = 1 if window == MOST_ROUNDS else window + 1
    return [due_blocks(config, blocks, round) for round in range(first, first + window)]


def mean_bytes(rounds: Sequence[Mapping[str, int]]) -> dict[str, float]:
    """Return the mean of a round by payload kind."""
    totals = Counter[str]()
    for kinds in rounds:
        totals.update(kinds)
    return {kind: total / len(rounds) for kind, total in totals.items()}


def own_memory(config: RunConfig, blocks: Sequence[Block]) -> Memory:
    """Return the bytes of weights (consensus and model), moments, bases (int16, for cores float32 too) and unsent work.

    Where both kinds of peer may join it is that of a full one, which needs more. A core peer's residual is counted as
    it is after the first refresh. A LoRDO peer keeps moments of rank r, their basis, and error feedback of full size.
    Bases have the most ranges with them that wait for their projection at once.
    """
    optimizer = config.optimizer
    is_core = optimizer.local_space == "core"
    moments = displacement = residual = projections = 0
    for block in blocks:
        if block.is_lordo and block.moment_shape:
            rank, long = block.moment_shape
            moments += 2 * rank * long
            projections += rank * min(block.rows, block.cols)
            displacement += 2 * block.size  # and the error feedback
            continue
        in_core = is_core and block.is_low_rank
        size = block.core_size if in_core else block.size
        is_matrix = in_core or block.role is BlockRole.MATRIX
        moments += size * inner_optimizer(optimizer, is_matrix).moments
        displacement += size
        bits = optimizer.residual_bits
        residual += packed_bytes(block.size, bits) if in_core and bits else 0
    return Memory(
        weights=2 * numbers(blocks) * FLOAT,
        optimizer=moments * FLOAT,
        bases=_basis_numbers(blocks) * (_BASIS + (FLOAT if is_core else 0))
        + projections * FLOAT
        + _most_pending(config, blocks) * _BASIS,
        residual=displacement * FLOAT + residual,
    )


def state_bytes(config: RunConfig, blocks: Sequence[Block]) -> int:
    """Return what a peer downloads when it joins: weights, and bases that it cannot draw, before compression.

    The ranges of refreshes that are under way just then are not counted.
    """
    bases = 0 if config.optimizer.aim == "seed" else _basis_numbers(blocks)
    return numbers(blocks) * FLOAT + bases * _BASIS


def _basis_numbers(blocks: Sequence[Block]) -> int:
    return sum(block.basis_size for block in blocks if block.is_low_rank)


def _most_pending(config: RunConfig, blocks: Sequence[Block]) -> int:
    """Return the numbers of the published ranges that are kept for the next round, the most at once."""
    sizes = [block.sketch_width * block.rows for block in blocks]
    return max(sum(sizes[index] for index in due.range) for due in cycle(config, blocks))


def _by_kind(slots: Sequence[Slot]) -> Mapping[str, int]:
    counts = Counter[str]()
    for slot in slots:
        counts[slot.part.kind.value] += slot.raw_bytes
    return counts


def _scaled(kinds: Mapping[str, float], shares: Mapping[str, float]) -> dict[str, float]:
    return {kind: count * shares[kind] for kind, count in kinds.items()}


_SAMPLE = (
    Block(name="sample.weight", rows=512, cols=512, rank=128, role=BlockRole.MATRIX),
    Block(name="sample.norm.weight", rows=1, cols=4096, rank=0, role=BlockRole.DENSE),
)
_MOST_PEERS = 8  # a mean of more looks no different


def wire_shares(config: RunConfig, peers: int) -> Shares:
    """Measure the share of every payload kind that a run sends, in a round where all is due and in one without."""
    generator = torch.Generator().manual_seed(0)
    sent: dict[str, float] = {}
    received: dict[str, float] = {}
    for due in dict.fromkeys((_all_due(cycle(config, _SAMPLE)), Due())):
        uploads = upload_slots(_SAMPLE, due, config.wire)
        peer_grids = [_draw(uploads, generator) for _ in range(min(peers, _MOST_PEERS))]
        mean = {slot: torch.stack([grids[slot].numbers() for grids in peer_grids]).mean(0) for slot in uploads}
        slots = published_slots(_SAMPLE, due, config.wire)
        bases = {0: random_basis(_SAMPLE[0].rows, _SAMPLE[0].cols, _SAMPLE[0].rank, 0, 0)}
        sent |= _shares(uploads, peer_grids[0], config.wire)
        received |= _shares(slots, publish(mean, slots, _SAMPLE, bases), config.wire)
    return Shares(sent, received)


def _all_due(rounds: Sequence[Due]) -> Due:
    """Return a round in which peers send all that they do in any of ``rounds``."""
    none = frozenset[int]()
    return Due(
        tangent=none.union(*(due.tangent for due in rounds)),
        range=none.union(*(due.range for due in rounds)),
        project=none.union(*(due.project for due in rounds)),
        choose=none.union(*(due.choose for due in rounds)),
        first=none.union(*(due.first for due in rounds)),
        second=none.union(*(due.second for due in rounds)),
    )


def _draw(slots: Sequence[Slot], generator: torch.Generator) -> dict[Slot, Grid]:
    grids = {}
    for slot in slots:
        numbers = torch.randn(slot.rows, slot.cols, generator=generator)
        if slot.part is Part.MOMENT_SECOND:
            numbers = numbers.square()
        grids[slot] = dense_grid(numbers) if slot.part is Part.DENSE else quantise_slot(numbers, slot)
    return grids


def _shares(slots: Sequence[Slot], grids: Mapping[Slot, Grid], wire: WireConfig) -> dict[str, float]:
    sections, _ = encode(slots, grids, wire.zstd_level)
    return {section.kind: section.wire_bytes / section.raw_bytes for section in sections}
