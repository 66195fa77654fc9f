"""Bytes of what peers send, block by block: how blocks are split into shards, and what a byte budget has room for.

All sizes are before compression. Pure arithmetic on the slots of an upload.
"""

import math
from collections.abc import Sequence

from tsr_swarm.config.blocks import Block
from tsr_swarm.config.layout import upload_slots
from tsr_swarm.config.round_plan import Due
from tsr_swarm.config.run import RunConfig, WireConfig
from tsr_swarm.errors import ConfigError

KB = 1000
_NO_REFRESH = Due()


def block_bytes(blocks: Sequence[Block], wire: WireConfig, due: Due = _NO_REFRESH) -> tuple[int, ...]:
    """Bytes of each block in an upload, by default to a round without refreshes."""
    sizes = [0] * len(blocks)
    for slot in upload_slots(blocks, due, wire):
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


def core_upload(blocks: Sequence[Block], wire: WireConfig) -> int:
    """Bytes of an upload without any sketch."""
    return sum(block_bytes(blocks, wire))


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
