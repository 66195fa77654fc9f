"""Apply several rounds to a state drawn from integers and print the digests as JSON. Run as a program by its test.

Prints {"threads", "capability", "exact", "float32"}: "exact" is the same on every machine, "float32" is a control that
need not be. Nothing here is made by an operation whose bits depend on the machine: randint, and powers of two.
"""

import json
import math

import torch
from torch import Tensor

from tsr_swarm.config.blocks import Block, BlockRole
from tsr_swarm.config.layout import Part, Slot, published_slots
from tsr_swarm.config.round_plan import Due, RoundPlan
from tsr_swarm.config.run import WireConfig
from tsr_swarm.lowrank.basis import Basis
from tsr_swarm.lowrank.grid import Grid
from tsr_swarm.optim.consensus import Consensus

BLOCKS = (
    Block(name="embed_tokens.weight", rows=1000, cols=96, rank=48, role=BlockRole.EMBEDDING),
    Block(name="up.weight", rows=257, cols=129, rank=97, role=BlockRole.MATRIX),
    Block(name="wide.weight", rows=300, cols=290, rank=280, role=BlockRole.MATRIX),  # high enough a rank to shift
    Block(name="norm.weight", rows=1, cols=129, rank=0, role=BlockRole.DENSE),
)
# a core round, an aimed round, a flush with a factor, a flush that is aimed, and cores in the bases that came of it
DUES = (
    Due(),
    Due(aim=frozenset({0, 1, 2})),
    Due(tangent=frozenset({0, 1, 2})),
    Due(tangent=frozenset({1, 2}), aim=frozenset({1})),
    Due(),
)


def draw(shape: tuple[int, int], limit: int, generator: torch.Generator) -> Tensor:
    return torch.randint(-limit, limit + 1, shape, generator=generator)


def draw_consensus(generator: torch.Generator, lift: str) -> Consensus:
    weights = {b.name: draw((b.rows, b.cols), 2**23, generator).float() * 2.0**-27 for b in BLOCKS}
    bases = {i: _draw_basis(b, generator) for i, b in enumerate(BLOCKS) if b.is_low_rank}
    return Consensus(BLOCKS, weights, bases, lift)


def _draw_basis(block: Block, generator: torch.Generator) -> Basis:
    left, right = (draw((size, block.rank), 400, generator).to(torch.int16) for size in (block.rows, block.cols))
    return Basis(left, right)


def draw_grid(slot: Slot, generator: torch.Generator) -> Grid:
    shape = (slot.rows, slot.cols)
    if slot.part is Part.DENSE:
        return Grid(draw(shape, 2**23, generator).float() * 2.0**-30, torch.empty(0, dtype=torch.int32))
    if slot.part.value.startswith("basis"):
        return Grid(draw(shape, 400, generator).int(), torch.empty(0, dtype=torch.int32))
    if slot.part.value.startswith("factor"):
        # a 16-bit sketch of exponent -30 times this, summed over the rank, fills about 12 bits of 2**-11
        exponent = -10 - round(math.log2(slot.rows) / 2)
        return Grid(draw(shape, 2**23 - 1, generator).int(), torch.tensor([exponent], dtype=torch.int32))
    return Grid(draw(shape, 32767, generator).int(), torch.tensor([-30], dtype=torch.int32))


def apply_rounds(lift: str) -> str:
    """The digest after all rounds, in hexadecimal."""
    generator = torch.Generator().manual_seed(20)
    consensus = draw_consensus(generator, lift)
    for number, due in enumerate(DUES, start=1):
        plan = RoundPlan(
            round=number, first_step=0, steps=1, lr_first=0.1, lr_last=0.1, decay=0.9997, due=due, parent=""
        )
        slots = published_slots(BLOCKS, due, WireConfig(core_bits=8, published_bits=16))
        consensus.apply(plan, {slot: draw_grid(slot, generator) for slot in slots})
    return consensus.digest().hex()


def report() -> dict[str, str | int]:
    return {
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "exact": apply_rounds("exact"),
        "float32": apply_rounds("float32"),
    }


if __name__ == "__main__":
    print(json.dumps(report()))
