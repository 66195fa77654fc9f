"""What the published baselines would send and keep, by the formulas of their papers.

Letters: P all parameters, M x N one matrix, r a rank, b bytes a number. Every block is counted, head and norms
included; averages travel once up and once down, as they do here (a ring moves 2 (n-1)/n of P each way instead).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tsr_swarm.baselines.positions import code_bits
from tsr_swarm.config.blocks import Block, BlockRole
from tsr_swarm.plan.costs import ExchangeCost, LowRanks, Memory, MethodCost, averaged

FLOAT = 4  # bytes of the numbers that stay in memory, and on the wire where nothing else is said
BFLOAT = 2

GALORE_REFRESH = 200
TSR_REFRESH, TSR_REFRESH_EMBEDDING, TSR_OVERSAMPLING = 100, 2, 5
K_X, K_U, K_V = 32, 96, 192  # DES-LOC's practical rule: K_u = 3 K_x, K_v = 6 K_x
DILOCO_STEPS = 500
SPARSE_STEPS, SPARSE_CHUNK, SPARSE_KEPT = 30, 4096, 64
SPARSE_BITS, SPARSE_SCALES = 2, 8  # of a value; bytes of two fp32 scales a chunk


def baselines(blocks: Sequence[Block], ranks: LowRanks, hidden: int, peers: int) -> list[MethodCost]:
    """Return the cost of each, dense training first. Of ``blocks`` only names, shapes and roles matter."""
    return [
        adamw_ddp(blocks, FLOAT),
        adamw_ddp(blocks, BFLOAT),
        galore(blocks, ranks.galore),
        tsr_adam(blocks, ranks.tsr, ranks.tsr_embedding),
        des_loc(blocks),
        lordo(blocks, max(1, hidden // 4)),
        diloco(blocks, FLOAT),
        diloco(blocks, BFLOAT),
        sparseloco(blocks, peers),
    ]


def adamw_ddp(blocks: Sequence[Block], number: int) -> MethodCost:
    """Count the gradient of every parameter, every step: P b."""
    size = numbers(blocks)
    return MethodCost(
        name="ddp" if number == FLOAT else "ddp bf16",
        settings=f"the whole gradient every step, {_type(number)}",
        source="data-parallel AdamW",
        exchange=averaged(1, {"gradient": size * number}, size * number),
        memory=Memory(weights=size * FLOAT, optimizer=2 * size * FLOAT),
    )


def galore(blocks: Sequence[Block], rank: int) -> MethodCost:
    """One-sided cores, b sum r max(M, N), and every K-th step the whole gradient for the SVD; no low-rank embedding."""
    low = [block for block in blocks if block.role is BlockRole.MATRIX]
    core, basis = _one_sided(low, rank)
    rest = numbers(blocks) - numbers(low)
    sent = {
        "core": core * (1 - 1 / GALORE_REFRESH) * FLOAT,
        "gradient": (numbers(low) / GALORE_REFRESH + rest) * FLOAT,
    }
    return MethodCost(
        name="galore",
        settings=f"rank {rank}, refresh every {GALORE_REFRESH}, embedding and head dense, every step, fp32",
        source="arXiv 2403.03507",
        exchange=averaged(1, sent, numbers(blocks) * FLOAT),
        memory=Memory(weights=numbers(blocks) * FLOAT, optimizer=2 * (core + rest) * FLOAT, bases=basis * FLOAT),
    )


def tsr_adam(blocks: Sequence[Block], rank: int, embedding_rank: int) -> MethodCost:
    """b [sum r^2 + sum (M + N)(r + p) / K] every step: algorithm 1, with K_emb = 2 and p = 5 as its scripts have them.

    The head is dense, as in the released code; the paper's own figures leave it out.
    """
    low = [(block, min(rank, block.rows, block.cols)) for block in blocks if block.role is BlockRole.MATRIX]
    embedded = [
        (block, min(embedding_rank, block.rows, block.cols))
        for block in blocks
        if block.role is BlockRole.EMBEDDING and not is_head(block)
    ]
    rest = numbers(blocks) - numbers(block for block, _ in low + embedded)
    core = sum(r * r for _, r in low + embedded)
    sketches = [_sketch(low), _sketch(embedded)]
    sent = {
        "core": core * FLOAT,
        "sketch": (sketches[0] / TSR_REFRESH + sketches[1] / TSR_REFRESH_EMBEDDING) * FLOAT,
        "gradient": rest * FLOAT,
    }
    return MethodCost(
        name="tsr-adam-paper",
        settings=f"rank {rank} (embedding {embedding_rank}), refresh every {TSR_REFRESH} "
        f"({TSR_REFRESH_EMBEDDING}), head dense, every step, fp32",
        source="arXiv 2602.08007, algorithm 1",
        exchange=averaged(1, sent, (core + sum(sketches) + rest) * FLOAT),
        memory=Memory(
            weights=numbers(blocks) * FLOAT,
            optimizer=2 * (core + rest) * FLOAT,
            bases=sum((block.rows + block.cols) * r for block, r in low + embedded) * FLOAT,
        ),
    )


def des_loc(blocks: Sequence[Block]) -> MethodCost:
    """P b (1 + K_x / K_u + K_x / K_v) every K_x steps: weights and both moments, each at its own period."""
    size = numbers(blocks) * FLOAT
    return MethodCost(
        name="des-loc",
        settings=f"weights every {K_X}, first moment every {K_U}, second every {K_V}, fp32",
        source="arXiv 2505.22549",
        exchange=averaged(K_X, {"weights": size, "moments": size * (K_X / K_U + K_X / K_V)}, 3 * size),
        memory=Memory(weights=size, optimizer=2 * size),
    )


def lordo(blocks: Sequence[Block], rank: int) -> MethodCost:
    """b [P + (K_x / K_u + K_x / K_v) sum r max(M, N)] every K_x steps: only the moments are low rank.

    The projection follows from the averaged displacement, which all peers have, and is not sent. A peer keeps the
    weights of the last exchange to form it, and the error feedback of its projection.
    """
    low = [block for block in blocks if block.role is BlockRole.MATRIX]
    core, basis = _one_sided(low, rank)
    moment = numbers(blocks) - numbers(low) + core
    size = numbers(blocks) * FLOAT
    return MethodCost(
        name="lordo-paper",
        settings=f"rank {rank}, weights every {K_X}, moments every {K_U} and {K_V}, fp32",
        source="arXiv 2602.04396",
        exchange=averaged(
            K_X, {"weights": size, "moments": moment * FLOAT * (K_X / K_U + K_X / K_V)}, size + 2 * moment * FLOAT
        ),
        memory=Memory(
            weights=2 * size,
            optimizer=2 * moment * FLOAT,
            bases=basis * FLOAT,
            residual=numbers(low) * FLOAT,
        ),
    )


def diloco(blocks: Sequence[Block], number: int) -> MethodCost:
    """P b every H steps; a peer keeps the weights of the last exchange and the outer momentum beside AdamW's."""
    size = numbers(blocks)
    return MethodCost(
        name="diloco" if number == FLOAT else "diloco bf16",
        settings=f"the displacement every {DILOCO_STEPS}, outer Nesterov, {_type(number)}",
        source="arXiv 2311.08105",
        exchange=averaged(DILOCO_STEPS, {"displacement": size * number}, size * number),
        memory=Memory(weights=2 * size * FLOAT, optimizer=3 * size * FLOAT),
    )


def sparseloco(blocks: Sequence[Block], peers: int) -> MethodCost:
    """The largest 64 of every 4,096 numbers, with 2 bits of value and their positions as one integer, every 30 steps.

    Sparse payloads of unlike indices do not add up to a short one: a peer receives those of all others. Two scales a
    chunk are counted, or the values could not be read; positions take 7.4 bits an entry where the paper counts 12.
    """
    sent = float(sum(_sparse_bytes(block.size) for block in blocks))
    received = sent * (peers - 1)
    size = numbers(blocks) * FLOAT
    return MethodCost(
        name="sparseloco",
        settings=f"the largest {SPARSE_KEPT} of every {SPARSE_CHUNK} numbers every {SPARSE_STEPS}, 2 bits a value, "
        "all-gather",
        source="arXiv 2508.15706",
        exchange=ExchangeCost(
            every=SPARSE_STEPS,
            sent={"sparse": sent},
            received={"sparse": received},
            largest_sent=sent,
            largest_received=received,
        ),
        memory=Memory(weights=2 * size, optimizer=2 * size, residual=size),
    )


def numbers(blocks: Iterable[Block]) -> int:
    """Return how many parameters ``blocks`` have."""
    return sum(block.size for block in blocks)


def is_head(block: Block) -> bool:
    """Return whether a block is the head, by the name that transformers gives it."""
    return block.name.endswith("lm_head.weight")


def _one_sided(low: Sequence[Block], rank: int) -> tuple[int, int]:
    """Return the numbers of all cores, sum r max(M, N), and of their bases, sum r min(M, N)."""
    ranks = [(block, min(rank, block.rows, block.cols)) for block in low]
    core = sum(r * max(block.rows, block.cols) for block, r in ranks)
    return core, sum(r * min(block.rows, block.cols) for block, r in ranks)


def _sketch(low: Sequence[tuple[Block, int]]) -> float:
    return sum((block.rows + block.cols) * (rank + TSR_OVERSAMPLING) for block, rank in low)


def _sparse_bytes(size: int) -> int:
    """Return a tensor's wire bytes. A shorter last chunk keeps the same share, at least one entry."""
    whole, rest = divmod(size, SPARSE_CHUNK)
    last = math.ceil(rest * SPARSE_KEPT / SPARSE_CHUNK)
    positions = whole * code_bits(SPARSE_CHUNK, SPARSE_KEPT) + (code_bits(rest, last) if rest else 0)
    values = (whole * SPARSE_KEPT + last) * SPARSE_BITS
    return math.ceil((positions + values) / 8) + (whole + (rest > 0)) * SPARSE_SCALES


def _type(number: int) -> str:
    return "fp32" if number == FLOAT else "bf16"


@dataclass(frozen=True, slots=True)
class PaperCount:
    """Mean bytes of one step, one worker and one direction, counted as in the TSR paper and with the head.

    Dang et al., arXiv 2602.08007, table 3, counts matrices without the head, 4 bytes a number. The head has to travel
    too.
    """

    method: str
    settings: str
    bytes_per_step: float
    with_head: float


def paper_counts(blocks: Sequence[Block], ranks: LowRanks) -> list[PaperCount]:
    """Count AdamW, GaLore and TSR-Adam, as table 3 does. Norms are in neither count, as in the paper."""
    with_head = [block for block in blocks if block.role is not BlockRole.DENSE]
    counted = [block for block in with_head if not is_head(block)]
    return [
        PaperCount(paper.name, whole.settings, bytes_per_step=paper.exchange.up, with_head=whole.exchange.up)
        for paper, whole in zip(_methods(counted, ranks), _methods(with_head, ranks), strict=True)
    ]


def _methods(blocks: Sequence[Block], ranks: LowRanks) -> list[MethodCost]:
    return [adamw_ddp(blocks, FLOAT), galore(blocks, ranks.galore), tsr_adam(blocks, ranks.tsr, ranks.tsr_embedding)]
