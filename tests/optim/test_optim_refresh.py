"""How much of a gradient the bases hold after refreshes, through what peers send, the reducer publishes and all apply.

Shares of the energy |A|^2 that U U^T A V V^T holds, of matrices 128 x 344 with singular values 1/sqrt(k) at rank 32.
"""

from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import Tensor

from tests.optim.swarms import gradient_sketches
from tsr_swarm.config.blocks import Block, BlockRole
from tsr_swarm.config.layout import Part, Slot, upload_slots
from tsr_swarm.config.load import run_config_from_mapping
from tsr_swarm.config.manifest import Manifest
from tsr_swarm.config.presets import preset_keys
from tsr_swarm.exchange.contribution import pack
from tsr_swarm.exchange.reduction import WeightedPayload, open_published, publish_shard, seal
from tsr_swarm.lowrank.basis import is_orthonormal, random_basis
from tsr_swarm.lowrank.grid import Grid
from tsr_swarm.optim.consensus import Consensus
from tsr_swarm.optim.periods import plan_round
from tsr_swarm.optim.quantise import gradient_grid, quantise_slot
from tsr_swarm.train.trainer import RoundWork
from tsr_swarm.wire.codec import decode
from tsr_swarm.wire.messages import published_to_proto

ROWS, COLS, RANK, OVERSAMPLING = 128, 344, 32, 8
SKETCH_BITS = preset_keys("tsr-adam", 20)["wire.sketch_bits"]


def draw_gradient(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    left, _ = torch.linalg.qr(torch.randn(ROWS, ROWS, generator=generator))
    right, _ = torch.linalg.qr(torch.randn(COLS, ROWS, generator=generator))
    return left @ torch.diag(torch.arange(1, ROWS + 1).rsqrt()) @ right.mT


def held(a: Tensor, left: Tensor, right: Tensor) -> float:
    return float((left.mT @ a @ right).square().sum() / a.square().sum())


def textbook(a: Tensor, generator: torch.Generator) -> float:
    """What a randomized SVD of ``a`` without power iteration holds of it, in floats."""
    q, _ = torch.linalg.qr(a @ torch.randn(COLS, RANK + OVERSAMPLING, generator=generator))
    inner, _, outer = torch.linalg.svd(q.mT @ a, full_matrices=False)
    return held(a, q @ inner[:, :RANK], outer[:RANK].mT)


def optimum(a: Tensor, of: Tensor) -> float:
    left, _, right = torch.linalg.svd(of, full_matrices=False)
    return held(a, left[:, :RANK], right[:RANK].mT)


class Run:
    """A run of one block whose peers have given gradients; payloads are encoded, averaged, published and applied.

    Its refreshes end in rounds 2, 4, 6 ...
    """

    def __init__(self, seed: int, bits: int = SKETCH_BITS) -> None:
        config = run_config_from_mapping(
            {
                "optimizer": {"aim": "gradient", "rank": RANK, "inner": "adam", "oversampling": OVERSAMPLING},
                "periods": {"k_x": 20, "k_r": 40},
                "run": {"seed": seed},
                "wire": {"sketch_bits": bits},
            }
        )
        block = Block(
            name="a", rows=ROWS, cols=COLS, rank=RANK, role=BlockRole.MATRIX, oversampling=config.optimizer.oversampling
        )
        self.manifest = Manifest("run", config, (block,))
        start = random_basis(ROWS, COLS, RANK, seed, 0)
        self.consensus = Consensus((block,), {"a": torch.zeros(ROWS, COLS)}, {0: start})
        self.round, self.parent = 0, ""

    def play(self, gradients: Sequence[Tensor]) -> None:
        manifest, blocks = self.manifest, self.manifest.blocks
        plan = plan_round(manifest.config, blocks, self.round + 1, self.parent)
        slots, contributions = upload_slots(blocks, plan.due, manifest.config.wire), {}
        for number, gradient in enumerate(gradients):
            measured = gradient_sketches(plan, blocks, self.consensus.bases, {0: gradient})
            grids = {slot: self.grid(slot, measured) for slot in slots}
            header, data = pack(manifest, f"{number:032x}", RoundWork(plan, plan.steps, 1, 0.0, grids), 0, (0,))
            contributions[header.peer_id] = WeightedPayload(number, 1, decode(slots, header.sections, data))
        result, data, _ = publish_shard(manifest, plan, (0,), contributions, self.consensus.bases, {})
        header = seal(plan, manifest.shard_blocks, [result])
        published = open_published(manifest, published_to_proto(header), data, self.parent)
        self.consensus.apply(plan, published.grids, published.void)
        self.round, self.parent = plan.round, header.chain.hex()

    def grid(self, slot: Slot, measured: Mapping[tuple[int, Part], Tensor]) -> Grid:
        core = torch.zeros(slot.rows, slot.cols)
        return quantise_slot(core, slot) if slot.part is Part.CORE else gradient_grid(slot, measured)

    def held(self, a: Tensor) -> float:
        basis = self.consensus.bases[0]
        return held(a, basis.left_float(), basis.right_float())


def refreshed(seed: int, gradients: Sequence[Tensor], refreshes: int) -> Run:
    run = Run(seed)
    for _ in range(2 * refreshes):
        run.play(gradients)
    return run


@pytest.mark.parametrize("seed", range(3))
def test_the_first_refresh_holds_as_much_as_a_randomized_svd_without_power_iteration(seed: int) -> None:
    a = draw_gradient(seed)
    starts = [refreshed(start, [a], 1).held(a) for start in range(10)]
    drawn = [textbook(a, torch.Generator().manual_seed(start)) for start in range(10)]
    assert sum(starts) >= 0.98 * sum(drawn)


@pytest.mark.parametrize("seed", range(3))
def test_the_fourth_refresh_holds_nearly_the_optimum(seed: int) -> None:
    a = draw_gradient(seed)
    assert refreshed(seed, [a], 4).held(a) >= 0.98 * optimum(a, a)


@pytest.mark.parametrize("seed", range(3))
def test_with_noise_as_long_as_the_signal_the_fourth_refresh_holds_what_the_svd_of_the_mean_does(seed: int) -> None:
    a, generator = draw_gradient(seed), torch.Generator().manual_seed(100 + seed)
    noise = float(a.norm()) / (ROWS * COLS) ** 0.5
    gradients = [a + noise * torch.randn(ROWS, COLS, generator=generator) for _ in range(8)]
    mean = torch.stack(gradients).mean(0)
    run = refreshed(seed, gradients, 4)
    assert run.held(a) >= 0.98 * optimum(a, mean)
    assert run.held(mean) >= 0.98 * optimum(mean, mean)


def test_a_gradient_of_rank_one_is_held_whole_and_the_bases_stay_orthonormal() -> None:
    a = torch.randn(ROWS, 1, generator=torch.Generator().manual_seed(0)) @ torch.ones(1, COLS)
    run = refreshed(0, [a], 2)
    basis = run.consensus.bases[0]
    assert run.held(a) > 0.99
    assert is_orthonormal(basis.left)
    assert is_orthonormal(basis.right)


def test_a_gradient_of_zeros_leaves_the_bases() -> None:
    run = Run(0)
    before = run.consensus.bases[0]
    for _ in range(2):
        run.play([torch.zeros(ROWS, COLS)])
    assert torch.equal(run.consensus.bases[0].left, before.left)
    assert torch.equal(run.consensus.bases[0].right, before.right)
