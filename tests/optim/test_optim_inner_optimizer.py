"""Muon: singular values near one, the same step in every basis, one moment kept, and a swarm that learns by it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.optim.reference import AdamOptions, reference_adam_direction, reference_muon_direction
from tests.optim.swarms import Swarm, noise, optimizer_of
from tests.steady import steady
from tsr_swarm.errors import CheckpointError
from tsr_swarm.lowrank.basis import Basis, random_basis
from tsr_swarm.optim.block_state import zero_state
from tsr_swarm.optim.inner_optimizer import Muon, muon_direction, newton_schulz

SIZES = st.tuples(st.integers(1, 3), st.integers(1, 12), st.integers(1, 12))


def orthogonal(size: int, generator: torch.Generator) -> Tensor:
    return torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0]


@settings(max_examples=40)
@given(shape=SIZES, steps=st.integers(1, 4), scale=st.sampled_from([1e-12, 1e-3, 1.0, 1e6]), seed=st.integers(0, 2**16))
def test_a_direction_equals_the_reference(shape: tuple[int, int, int], steps: int, scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    first, slow = torch.zeros(shape), [torch.zeros(shape[1:])] * shape[0]
    for _ in range(steps):
        gradient = torch.randn(shape, generator=generator) * scale
        fast = muon_direction(gradient, first)
        for position in range(shape[0]):
            expected, slow[position] = reference_muon_direction(gradient[position], slow[position])
            torch.testing.assert_close(fast[position].double(), expected, rtol=0, atol=2e-3)
            torch.testing.assert_close(first[position].double(), slow[position], rtol=1e-4, atol=1e-6 * scale)


@settings(max_examples=40)
@given(
    short=st.integers(1, 24),
    longer=st.integers(0, 8),
    spread=st.floats(1, 50),
    tall=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_singular_values_end_near_one(short: int, longer: int, spread: float, tall: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = 1 + (spread - 1) * torch.rand(short, generator=generator, dtype=torch.float64)
    m = orthogonal(short, generator) * values @ orthogonal(short + longer, generator)[:short]
    found = torch.linalg.svdvals(newton_schulz((m.mT if tall else m).float()).double())
    assert found.min() > 0.65
    assert found.max() < 1.25


@settings(max_examples=20)
@given(rows=st.integers(1, 10), cols=st.integers(1, 10), seed=st.integers(0, 2**16))
def test_in_a_turned_basis_the_step_is_the_turned_step(rows: int, cols: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    left, right = orthogonal(rows, generator), orthogonal(cols, generator)
    m = torch.randn(rows, cols, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(newton_schulz(left @ m @ right.mT), left @ newton_schulz(m) @ right.mT)


def test_a_refresh_to_a_turned_basis_changes_no_weight_step() -> None:
    generator = torch.Generator().manual_seed(2)
    old = random_basis(40, 30, 6, 0, 0)
    signs = torch.tensor([1, -1, 1, 1, -1, -1], dtype=torch.int16)  # a signed permutation is exact in 12 bits
    new = Basis((old.left * signs)[:, torch.randperm(6, generator=generator)], old.right.flip(1))
    state, gradient = zero_state(torch.empty(6, 6), moments=1), torch.randn(40, 30, generator=generator)
    muon_direction(torch.randn(6, 6, generator=generator), state.first)
    momentum = state.first.clone()
    Muon().rotate(state, old, new)
    lifted = []
    for basis, first in ((old, momentum), (new, state.first)):
        u, v = basis.left_float(), basis.right_float()
        lifted.append(u @ muon_direction(u.mT @ gradient @ v, first) @ v.mT)
    assert (lifted[1] - lifted[0]).norm() < 0.01 * lifted[0].norm()


def test_zero_stays_zero_and_length_does_not_count() -> None:
    assert not newton_schulz(torch.zeros(2, 3, 3)).any()
    m = torch.randn(5, 7, generator=torch.Generator().manual_seed(3))
    for scale in (2.0**-40, 2.0**40):
        assert torch.equal(newton_schulz(m * scale), newton_schulz(m))


@pytest.mark.parametrize("space", ["core", "full"])
def test_a_step_moves_a_weight_as_far_as_muons_whole_matrix_would(space: str) -> None:
    run = Swarm([space], noise(4), optimizer=optimizer_of(space, inner="muon"), shapes={"a.weight": (40, 30)})
    before = run.parameters[0]["a.weight"].detach().clone()
    run.step(0.01)
    moved = float((run.parameters[0]["a.weight"].detach() - before).square().mean().sqrt())
    assert 0.8 * 0.2 * 0.01 < moved < 1.2 * 0.2 * 0.01


@pytest.mark.parametrize("rank", [1, 3, 4])
@pytest.mark.parametrize("inner", ["adam", "muon"])
def test_a_core_takes_its_inner_optimizers_steps_and_a_dense_block_adams(inner: str, rank: int) -> None:
    own, again = noise(5), noise(5)
    run = Swarm(["core"], own, optimizer=optimizer_of(inner=inner, rank=rank))
    options = AdamOptions(lr=0.01, betas=(0.9, 0.99))
    kept: dict[str, list[Tensor]] = {}  # the displacement and the moments by block
    for t in range(1, 4):
        run.step(0.01)
        for index, block in enumerate(run.blocks):
            gradient, scale = again(0, block.name, run.parameters[0][block.name]).double(), 1.0
            if block.is_low_rank:
                left, right = run.consensus[0].bases[index].factors(gradient)
                gradient, scale = left.mT @ gradient @ right, (block.rows * block.cols) ** 0.5 / rank
            gradient = gradient.reshape(-1, gradient.shape[-1])
            displacement, first, second = kept.get(block.name, [torch.zeros_like(gradient)] * 3)
            if block.is_low_rank and inner == "muon":
                direction, first = reference_muon_direction(gradient, first)
            else:
                direction, first, second = reference_adam_direction(gradient, first, second, t, options)
            kept[block.name] = [displacement + 0.01 * scale * direction, first, second]
            found = run.displacement(0, block.name).reshape_as(gradient)
            torch.testing.assert_close(found, kept[block.name][0], rtol=0, atol=1e-4)


def test_in_the_full_space_embedding_head_and_vectors_take_adams_steps() -> None:
    shapes = {"embed_tokens.weight": (12, 9), "a.weight": (12, 9), "lm_head.weight": (12, 9), "norm": (9,)}
    options, runs = {"rank": 4, "embedding_rank": 4, "local_space": "full"}, {}
    for inner in ("adam", "muon", "lordo"):
        runs[inner] = Swarm(["full"], noise(6), optimizer=steady(inner=inner, **options), shapes=shapes)
        runs[inner].step(0.01)
    by_adam = runs["adam"].parameters[0]
    for inner in ("muon", "lordo"):
        same = {name: torch.equal(by_adam[name], runs[inner].parameters[0][name]) for name in shapes}
        assert same == {"embed_tokens.weight": True, "a.weight": False, "lm_head.weight": True, "norm": True}
    again = noise(6)
    first = {name: again(0, name, torch.empty(shape)) for name, shape in shapes.items()}
    expected, _ = reference_muon_direction(first["a.weight"], torch.zeros(12, 9))
    torch.testing.assert_close(runs["muon"].displacement(0, "a.weight"), 0.01 * expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("space", ["core", "full"])
def test_no_second_moment_is_kept_of_what_muon_moves(space: str) -> None:
    run = Swarm([space], noise(7), optimizer=optimizer_of(space, inner="muon"))
    run.play()
    saved = run.spaces[0].state_dict()
    assert [key for key in saved if key.startswith("second/")] == ["second/norm"]
    adam = Swarm([space], noise(7), optimizer=steady(rank=4, local_space=space))
    for one, other in ((run, adam), (adam, run)):
        with pytest.raises(CheckpointError, match=r"second/a\.weight"):
            one.spaces[0].load_state_dict(other.spaces[0].state_dict())


def test_a_new_basis_of_unknown_history_starts_from_nothing() -> None:
    run, other = (Swarm(["core"], noise(9), optimizer=optimizer_of(inner="muon"), seed=seed) for seed in (0, 1))
    run.train()
    run.spaces[0].rebase(other.consensus[0])
    assert not any(run.spaces[0].state_dict()[f"first/{name}.weight"].any() for name in "abc")
