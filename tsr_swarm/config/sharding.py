"""How a run's blocks are split into shards, which are reduced and published each on its own."""

from collections.abc import Sequence

from tsr_swarm.config.blocks import Block
from tsr_swarm.config.layout import upload_slots
from tsr_swarm.config.round_plan import Due
from tsr_swarm.config.run import WireConfig


def block_bytes(blocks: Sequence[Block], wire: WireConfig) -> tuple[int, ...]:
    """By block: raw bytes of a contribution to a round without refreshes. Large blocks may send no more than small."""
    sizes = [0] * len(blocks)
    for slot in upload_slots(blocks, Due(), wire):
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
