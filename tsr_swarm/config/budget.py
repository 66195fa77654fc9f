"""What tangent sketches add to an upload, and whether ``round.budget_kb`` has room for them. Pure arithmetic."""

import math
from collections.abc import Sequence

from tsr_swarm.config.blocks import Block
from tsr_swarm.config.layout import upload_slots
from tsr_swarm.config.round_plan import Due
from tsr_swarm.config.run import RunConfig, WireConfig
from tsr_swarm.errors import ConfigError

KB = 1000


def core_upload(blocks: Sequence[Block], wire: WireConfig) -> int:
    """Bytes, before compression, of an upload without any sketch."""
    return sum(slot.raw_bytes for slot in upload_slots(blocks, Due(), wire))


def sketch_costs(blocks: Sequence[Block], wire: WireConfig) -> dict[int, int]:
    """Bytes that a tangent sketch has more than a core, before compression, for each low-rank block.

    Below 0 where few bits of a sketch meet many of a core at nearly full rank.
    """
    costs = {index: 0 for index, block in enumerate(blocks) if block.is_low_rank}
    for sign, due in ((1, Due(tangent=frozenset(costs))), (-1, Due())):
        for slot in upload_slots(blocks, due, wire):
            if slot.block in costs:
                costs[slot.block] += sign * slot.raw_bytes
    return costs


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
