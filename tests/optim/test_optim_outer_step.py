"""The reducer's own step: averages lose nothing to their grid, momentum is DiLoCo's, and both survive a refresh."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor

from tests.optim.swarms import update_of
from tests.steady import steady, wide
from tsr_swarm.config.blocks import Block, BlockRole
from tsr_swarm.config.layout import Slot, published_slots, upload_slots
from tsr_swarm.config.round_plan import Due
from tsr_swarm.config.run import OptimizerConfig, WireConfig
from tsr_swarm.errors import CheckpointError, ConfigError
from tsr_swarm.lowrank.basis import Basis, random_basis
from tsr_swarm.lowrank.grid import Grid
from tsr_swarm.optim.outer_step import ADAPTIVITY, BETA2, OuterState, pack_outer, rotate_outer, unpack_outer
from tsr_swarm.optim.publish import publish_step

BLOCKS = (
    Block(name="up.weight", rows=12, cols=9, rank=3, role=BlockRole.MATRIX),
    Block(name="down.weight", rows=6, cols=12, rank=3, role=BlockRole.MATRIX, is_proportional=True),
    Block(name="norm.weight", rows=1, cols=9, rank=0, role=BlockRole.DENSE),
)
CORE, WIDE, DENSE = range(3)


def basis_of(block: Block, seed: int) -> Basis:
    """Random bases of the block's two ranks."""
    left = random_basis(block.rows, block.rows, block.ranks[0], seed, 0).left
    return Basis(left, random_basis(block.cols, block.cols, block.ranks[1], seed, 1).right)


BASES = {index: basis_of(BLOCKS[index], 3) for index in (CORE, WIDE)}

seeds = st.integers(0, 2**31)
linear_wires = st.builds(WireConfig, published_bits=st.sampled_from((2, 3, 4, 8, 16)))
sparse_wires = st.builds(WireConfig, published_bits=st.sampled_from((2, 4, 8)), published_density=st.just(0.2))
optimizers = st.sampled_from((steady(), steady(outer="nesterov", outer_lr=0.7), steady(outer="adam", outer_lr=0.5)))


def draw_means(rounds: int, seed: int, due: Due | None = None) -> list[dict[Slot, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    slots = upload_slots(BLOCKS, due or Due(), wide())
    return [
        {slot: torch.randn(slot.rows, slot.cols, generator=generator, dtype=torch.float64) for slot in slots}
        for _ in range(rounds)
    ]


def play(
    means: Sequence[Mapping[Slot, Tensor]],
    optimizer: OptimizerConfig,
    wire: WireConfig,
    state: OuterState | None = None,
) -> tuple[list[dict[int, Grid]], OuterState]:
    """Publish one mean after the other without a refresh. Returns the grids by round and block."""
    published, kept = [], {} if state is None else state
    for mean in means:
        grids, kept = publish_step(mean, published_slots(BLOCKS, Due(), wire), BLOCKS, BASES, optimizer, kept)
        published.append({slot.block: grid for slot, grid in grids.items()})
    return published, kept


def means_of(means: Sequence[Mapping[Slot, Tensor]], block: int) -> list[Tensor]:
    return [x for mean in means for slot, x in mean.items() if slot.block == block]


def lifted(core: Tensor, basis: Basis) -> Tensor:
    return basis.left_float(torch.float64) @ core.double() @ basis.right_float(torch.float64).mT


@settings(max_examples=40)
@given(st.one_of(linear_wires, sparse_wires), seeds, st.integers(1, 8))
def test_what_was_dropped_is_kept_and_at_full_density_is_at_most_half_a_step(
    wire: WireConfig, seed: int, rounds: int
) -> None:
    means = draw_means(rounds, seed)

    published, kept = play(means, steady(), wire)

    for block in (CORE, WIDE):
        missing, last = sum(means_of(means, block)), published[-1][block]
        missing = missing - sum(grids[block].numbers() for grids in published)
        if wire.published_density == 1:
            coarsest = math.ldexp(max([1, *last.mantissas.tolist()]), last.exponent())
            assert float(missing.abs().max()) <= 0.5 * coarsest * (1 + 1e-6)
        assert torch.allclose(kept[block].residual.double(), missing, rtol=0, atol=1e-5)


def test_dense_blocks_are_averaged_as_they_are_and_leave_nothing() -> None:
    means = draw_means(2, 5)

    published, kept = play(means, steady(), wide())

    for grids, mean in zip(published, means_of(means, DENSE), strict=True):
        assert torch.equal(grids[DENSE].values, mean.float())
    assert not [name for name in pack_outer(kept, BLOCKS) if name.endswith("norm.weight")]


def slow_adam(means: Sequence[Tensor], optimizer: OptimizerConfig) -> Tensor:
    """The steps entry by entry, from sums over all rounds instead of running moments."""
    beta, lr = optimizer.outer_momentum, optimizer.outer_lr
    rows = [mean.flatten().tolist() for mean in means]
    steps = []
    for t in range(1, len(rows) + 1):
        columns = list(zip(*rows[:t], strict=True))
        weights = [[base ** (t - 1 - k) for k in range(t)] for base in (beta, BETA2)]
        m = [sum(w * x for w, x in zip(weights[0], column, strict=True)) / sum(weights[0]) for column in columns]
        v = [sum(w * x * x for w, x in zip(weights[1], column, strict=True)) / sum(weights[1]) for column in columns]
        rms = math.sqrt(sum(v) / len(v))
        ratios = [one / (math.sqrt(other) + ADAPTIVITY * rms) for one, other in zip(m, v, strict=True)]
        steps.append([lr * rms * min(1.0, max(-1.0, ratio)) for ratio in ratios])
    return torch.tensor(steps, dtype=torch.float64)


def torchs_nesterov(means: Sequence[Tensor], optimizer: OptimizerConfig) -> Tensor:
    """The steps of the optimizer that DiLoCo uses."""
    weight = torch.nn.Parameter(torch.zeros_like(means[0]))
    momentum = optimizer.outer_momentum
    sgd = torch.optim.SGD([weight], lr=optimizer.outer_lr, momentum=momentum, nesterov=momentum > 0)
    walked = []
    for mean in means:
        before = weight.detach().clone()
        weight.grad = mean.clone()
        sgd.step()
        walked.append((before - weight.detach()).flatten())
    return torch.stack(walked)


@pytest.mark.parametrize(("outer", "reference"), [("nesterov", torchs_nesterov), ("adam", slow_adam)])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_steps_are_those_of_the_reference(outer: str, reference: Callable[..., Tensor], momentum: float) -> None:
    optimizer = steady(outer=outer, outer_lr=0.7, outer_momentum=momentum)
    means = draw_means(6, 1)

    published, kept = play(means, optimizer, wide())

    for block in (CORE, WIDE, DENSE):
        wanted = reference(means_of(means, block), optimizer)
        found = torch.stack([grids[block].numbers().flatten() for grids in published])
        residual = kept[block].residual
        left = torch.zeros(()) if residual is None else residual.flatten()
        assert torch.allclose(found.sum(0) + left, wanted.sum(0), rtol=0, atol=1e-5)
        assert torch.allclose(found, wanted, rtol=0, atol=1e-5 if block == DENSE else 1e-3)


@settings(max_examples=20)
@given(seeds, st.integers(-20, 10))
def test_an_adam_step_is_bounded_and_scales_with_the_averages(seed: int, power: int) -> None:
    optimizer = steady(outer="adam", outer_lr=0.5)
    means = draw_means(4, seed)
    scaled = [{slot: torch.ldexp(x, torch.tensor(power)) for slot, x in mean.items()} for mean in means]

    small, _ = play(scaled, optimizer, wide())
    plain, _ = play(means, optimizer, wide())

    largest = max(float(x.abs().max()) for x in means_of(means, DENSE))
    for grids, other in zip(plain, small, strict=True):
        assert float(grids[DENSE].numbers().abs().max()) <= 0.5 * largest
        expected = torch.ldexp(grids[DENSE].numbers(), torch.tensor(power))
        assert torch.allclose(expected, other[DENSE].numbers(), rtol=1e-5)


@pytest.mark.parametrize("outer", ["average", "nesterov", "adam"])
def test_a_mean_of_zeros_publishes_zeros(outer: str) -> None:
    means = [{slot: x * 0 for slot, x in draw_means(1, 0)[0].items()}] * 2

    published, _ = play(means, steady(outer=outer), wide(published_bits=4))

    assert not any(grid.values.any() for grids in published for grid in grids.values())


@settings(max_examples=15)
@given(optimizers, st.one_of(linear_wires, sparse_wires), seeds)
def test_a_saved_state_continues_bit_for_bit(optimizer: OptimizerConfig, wire: WireConfig, seed: int) -> None:
    means = draw_means(5, seed)
    through, _ = play(means, optimizer, wire)

    before, kept = play(means[:3], optimizer, wire)
    again = unpack_outer(load(save(pack_outer(kept, BLOCKS))), BLOCKS)
    after, _ = play(means[3:], optimizer, wire, again)

    for wanted, found in zip(through, before + after, strict=True):
        for block, grid in wanted.items():
            assert torch.equal(grid.values, found[block].values)
            assert torch.equal(grid.exponents, found[block].exponents)


@given(optimizers)
@settings(max_examples=6)
def test_a_step_leaves_the_old_state_and_other_blocks_alone(optimizer: OptimizerConfig) -> None:
    means = draw_means(3, 4)
    _, kept = play(means[:2], optimizer, wide(published_bits=4))
    before = {name: tensor.clone() for name, tensor in pack_outer(kept, BLOCKS).items()}
    others = {slot: x for slot, x in means[2].items() if slot.block != CORE}
    slots = published_slots(BLOCKS, Due(), wide(published_bits=4), void=frozenset({CORE}))

    _, after = publish_step(others, slots, BLOCKS, BASES, optimizer, kept)

    assert after[CORE] is kept[CORE]
    assert after[WIDE] is not kept[WIDE]
    assert all(torch.equal(tensor, before[name]) for name, tensor in pack_outer(kept, BLOCKS).items())


def test_a_gradient_sketch_in_the_same_round_changes_nothing() -> None:
    optimizer, wire, due = steady(outer="nesterov"), wide(published_bits=4), Due(range=frozenset({CORE}))
    mean = draw_means(1, 6, due)[0]
    cores = {slot: x for slot, x in mean.items() if slot.part.kind.value != "gradient"}

    _, aimed = publish_step(mean, published_slots(BLOCKS, due, wire), BLOCKS, BASES, optimizer, {})
    _, plain = play([cores], optimizer, wire)

    for name, tensor in pack_outer(plain, BLOCKS).items():
        assert torch.equal(tensor, pack_outer(aimed, BLOCKS)[name])


@given(optimizers, seeds)
@settings(max_examples=15)
def test_in_a_basis_of_the_same_span_the_state_is_the_same_matrix(optimizer: OptimizerConfig, seed: int) -> None:
    """Columns change places and signs: what a refresh does when the span stays, without any rounding."""
    _, kept = play(draw_means(3, seed), optimizer, wide(published_bits=4))
    refreshed = {index: (old, Basis(old.left.flip(1), -old.right)) for index, old in BASES.items()}

    turned = rotate_outer(kept, refreshed, optimizer)

    for index, (old, new) in refreshed.items():
        for key in ("residual", "first"):
            core, moved = getattr(kept[index], key), getattr(turned[index], key)
            assert (core is None) == (moved is None)
            if core is not None:
                # 12-bit columns are orthonormal to about 1 in 1000
                assert torch.allclose(lifted(moved, new), lifted(core, old), rtol=0, atol=0.01)
        second, variance = kept[index].second, turned[index].second
        if second is not None and variance is not None:
            assert torch.allclose(variance, second.flip(0), rtol=0.02, atol=0.02 * float(second.mean()))
    assert turned[DENSE] is kept[DENSE]


def test_a_tangent_sketch_takes_the_residual_with_it() -> None:
    optimizer, wire, due = steady(local_space="full"), wide(), Due(tangent=frozenset({CORE, WIDE}))
    _, kept = play(draw_means(2, 8), optimizer, wide(published_bits=4))
    mean, slots = draw_means(1, 9, due)[0], published_slots(BLOCKS, due, wire)

    without, _ = publish_step(mean, slots, BLOCKS, BASES, optimizer, {})
    found, after = publish_step(mean, slots, BLOCKS, BASES, optimizer, kept)

    for index, basis in BASES.items():
        update = [update_of(grids, index, basis) for grids in (without, found)]
        residual = kept[index].residual
        assert float(residual.abs().max()) > 0.05
        assert torch.allclose(update[1] - update[0], lifted(residual, basis), rtol=0, atol=0.01)
        assert after[index].residual is None


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("residual/other.weight", torch.zeros(3, 3)),
        ("third/up.weight", torch.zeros(3, 3)),
        ("first/up.weight", torch.zeros(3, 4)),
        ("first/norm.weight", torch.zeros(1, 9, dtype=torch.float64)),
        ("steps/up.weight", torch.zeros(3, 3)),
    ],
)
def test_a_saved_state_of_something_else_is_refused(name: str, tensor: Tensor) -> None:
    with pytest.raises(CheckpointError, match=f"'{name}' of the reducer's saved state is"):
        unpack_outer({name: tensor}, BLOCKS)


@pytest.mark.parametrize("space", ["full", "mixed"])
@pytest.mark.parametrize("outer", ["nesterov", "adam"])
def test_steps_of_cores_need_core_peers(space: str, outer: str) -> None:
    with pytest.raises(ConfigError, match=rf'optimizer.outer = "{outer}" needs optimizer.local_space = "core"'):
        steady(outer=outer, local_space=space)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"inner": "sgd"}, "optimizer.inner = 'sgd' is out of range"),
        ({"outer": "sgd"}, "optimizer.outer = 'sgd' is out of range"),
        ({"outer": "adam", "outer_lr": 0.0}, "optimizer.outer_lr = 0.0 is out of range"),
        ({"outer": "adam", "outer_momentum": 1.0}, "optimizer.outer_momentum = 1.0 is out of range"),
        ({"outer_lr": 0.5}, 'outer_lr = 0.5 has no effect with optimizer.outer = "average"'),
    ],
)
def test_an_invalid_optimizer_is_refused_in_one_sentence(changes: dict[str, float | str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        replace(steady(), **changes)
