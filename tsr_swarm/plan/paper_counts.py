"""The TSR paper's own byte figures, counted as it counts: matrices without the head, 4 bytes a number, mean over steps.

Dang et al., arXiv 2602.08007, table 3. Beside each stands the same step with the head, which has to travel too.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tsr_swarm.config.blocks import Block, BlockRole
from tsr_swarm.plan.baseline_costs import FLOAT, adamw_ddp, galore, is_head, tsr_adam
from tsr_swarm.plan.costs import MethodCost
from tsr_swarm.plan.presets import LowRanks


@dataclass(frozen=True, slots=True, kw_only=True)
class PaperCount:
    """Mean bytes of one step, one worker and one direction."""

    method: str
    settings: str
    bytes_per_step: float
    with_head: float


def paper_counts(blocks: Sequence[Block], ranks: LowRanks) -> list[PaperCount]:
    """AdamW, GaLore and TSR-Adam, as in table 3. Norms are in neither count, as in the paper."""
    with_head = [block for block in blocks if block.role is not BlockRole.DENSE]
    counted = [block for block in with_head if not is_head(block)]
    return [
        PaperCount(
            method=paper.name,
            settings=whole.settings,
            bytes_per_step=paper.exchange.up,
            with_head=whole.exchange.up,
        )
        for paper, whole in zip(_methods(counted, ranks), _methods(with_head, ranks), strict=True)
    ]


def _methods(blocks: Sequence[Block], ranks: LowRanks) -> list[MethodCost]:
    return [adamw_ddp(blocks, FLOAT), galore(blocks, ranks.galore), tsr_adam(blocks, ranks.tsr, ranks.tsr_embedding)]
