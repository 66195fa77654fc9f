"""Machines that differ in threads and instruction sets end with the same bits.

Run as a program, this applies several rounds to a state drawn from integers and prints the digests as JSON: {"threads",
"capability", "exact", "float32"}. "exact" is the same on every machine, "float32" is a control that need not be.
Nothing here is made by an operation whose bits depend on the machine: randint, and powers of two.
"""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.fixtures import round_plan
from tsr_swarm.config.blocks import Block, BlockRole
from tsr_swarm.config.layout import Part, Slot, published_slots
from tsr_swarm.config.round_plan import Due
from tsr_swarm.config.run import WireConfig
from tsr_swarm.lowrank.basis import Basis, unscaled_grid
from tsr_swarm.lowrank.grid import Grid, integer_limit
from tsr_swarm.optim.consensus import Consensus

ROOT = Path(__file__).parents[2]
# Of several rounds with every kind of refresh. It may change only together with the wire's version: peers of one run
# would drift apart.
DIGEST = "59902d64ae1c0eb0e595d38574904159b9d57416f546084fa5896ebd2d1516e0"
BLOCKS = (
    Block(name="embed_tokens.weight", rows=1000, cols=96, rank=48, role=BlockRole.EMBEDDING),
    Block(name="up.weight", rows=257, cols=129, rank=97, role=BlockRole.MATRIX),
    Block(name="wide.weight", rows=300, cols=290, rank=280, role=BlockRole.MATRIX),  # high enough a rank to shift
    Block(name="norm.weight", rows=1, cols=129, rank=0, role=BlockRole.DENSE),
)
# a core round, both passes of a randomized SVD, a tangent round, one with a range that was void, and cores again
DUES = (
    Due(),
    Due(range=frozenset({0, 1, 2})),
    Due(range=frozenset({2}), project=frozenset({0, 1, 2})),
    Due(tangent=frozenset({0, 1, 2})),
    Due(tangent=frozenset({1, 2}), project=frozenset({1})),
    Due(),
)


def draw(shape: tuple[int, int], limit: int, generator: torch.Generator) -> Tensor:
    return torch.randint(-limit, limit + 1, shape, generator=generator)


def draw_consensus(generator: torch.Generator, lift: str) -> Consensus:
    weights = {b.name: draw((b.rows, b.cols), 2**23, generator).float() * 2.0**-27 for b in BLOCKS}
    bases = {
        i: Basis(*(draw((size, b.rank), 400, generator).to(torch.int16) for size in (b.rows, b.cols)))
        for i, b in enumerate(BLOCKS)
        if b.is_low_rank
    }
    return Consensus(BLOCKS, weights, bases, lift)


def draw_grid(slot: Slot, generator: torch.Generator) -> Grid:
    shape = (slot.rows, slot.cols)
    if slot.part is Part.DENSE:
        return Grid(draw(shape, 2**23, generator).float() * 2.0**-30, torch.empty(0, dtype=torch.int32))
    if slot.part in (Part.RANGE, Part.SINGULAR_LEFT, Part.SINGULAR_RIGHT):
        return unscaled_grid(draw(shape, integer_limit(slot.bits), generator))
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
        plan = round_plan(number, decay=0.9997, due=due)
        slots = published_slots(BLOCKS, due, WireConfig(core_bits=8, sketch_bits=8, published_bits=16))
        consensus.apply(plan, {slot: draw_grid(slot, generator) for slot in slots})
    return consensus.digest().hex()


def test_the_digest_of_a_fixed_history_does_not_change() -> None:
    assert apply_rounds("exact") == DIGEST


@pytest.mark.parametrize(
    ("environment", "shows"),
    [
        ({"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}, ("threads", 1)),
        ({"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}, ("threads", 2)),
        ({"ATEN_CPU_CAPABILITY": "default", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"}, ("capability", "DEFAULT")),
    ],
    ids=["one thread", "two threads", "no vector instructions"],
)
def test_all_machines_end_with_the_same_digest(environment: dict[str, str], shows: tuple[str, str | int]) -> None:
    command, variables = [sys.executable, "-m", "tests.lowrank.test_lowrank_digest"], os.environ | environment
    done = subprocess.run(command, env=variables, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found[shows[0]] == shows[1]  # the setting was taken
    assert found["exact"] == DIGEST


if __name__ == "__main__":
    machine = {"threads": torch.get_num_threads(), "capability": torch.backends.cpu.get_cpu_capability()}
    print(json.dumps(machine | {lift: apply_rounds(lift) for lift in ("exact", "float32")}))
