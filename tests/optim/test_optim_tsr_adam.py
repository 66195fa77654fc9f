"""TSRAdam: against the slow reference, against torch's own Adam, and with gradients near the ends of floating point."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.bench.optimizer import quadratic
from tests.optim.published import PublishedTSRAdam
from tests.optim.reference import AdamOptions, reference_tsr_adam
from tsr_swarm.lowrank.basis import random_basis
from tsr_swarm.optim.tsr_adam import TSRAdam
from tsr_swarm.optim.tsr_adam_refresh import aim, fresh_columns
from tsr_swarm.optim.tsr_adam_step import bounded

EXACT = 1e-9  # float64 against float64: only the order of sums differs
FLOAT32 = 1e-5  # per step of size lr: a few rounding errors of moments and weight


def draw(seed: int, *shape: int, count: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(count)]


def run(optimizer: TSRAdam | torch.optim.Optimizer, parameter: nn.Parameter, gradients: list[Tensor]) -> None:
    for gradient in gradients:
        parameter.grad = gradient.to(parameter.dtype)
        optimizer.step()


@settings(max_examples=30)
@given(
    rank=st.integers(1, 5),
    rows=st.integers(1, 6),
    cols=st.integers(1, 6),
    refresh_every=st.integers(1, 4),
    scale=st.sampled_from([0.0, 0.5]),
    decay=st.sampled_from([0.0, 0.1]),
    oversampling=st.integers(0, 3),
    power_iterations=st.integers(0, 2),
    seed=st.integers(0, 2**16),
)
def test_it_equals_the_reference(
    rank: int, rows: int, cols: int, refresh_every: int, scale: float, decay: float, oversampling: int,
    power_iterations: int, seed: int,
) -> None:  # fmt: skip
    rows, cols = rank + rows, rank + cols
    weight, *gradients = draw(seed, rows, cols, count=7)
    parameter = nn.Parameter(weight.clone())
    optimizer = TSRAdam(
        [parameter], lr=0.01, rank=rank, refresh_every=refresh_every, scale=scale, weight_decay=decay, seed=seed,
        oversampling=oversampling, power_iterations=power_iterations,
    )  # fmt: skip
    run(optimizer, parameter, gradients)
    options = AdamOptions(lr=0.01, scale=scale or (rows * cols) ** 0.5 / rank, weight_decay=decay)
    basis = random_basis(rows, cols, rank, seed, 0)
    omegas = {t: fresh_columns(weight, oversampling, rank, seed, 0, t) for t in range(7)}
    expected = reference_tsr_adam(
        weight, gradients, basis, refresh_every, options, power_iterations=power_iterations, omegas=omegas
    )
    torch.testing.assert_close(parameter.detach(), expected, rtol=0, atol=EXACT)


@pytest.mark.parametrize("shape", [(9, 7), (7, 9), (8, 8)])
def test_until_its_second_refresh_it_goes_the_way_of_the_papers_code(shape: tuple[int, int]) -> None:
    """With as many columns as there are, both have the same singular directions, ours in 12 bits.

    The first core is diagonal there but for that rounding, which a first step of Adam would make as large as the rest.
    """
    weight, *gradients = draw(7, *shape, count=6)
    ours, theirs = nn.Parameter(weight.clone()), nn.Parameter(weight.clone())
    chosen: dict[str, Any] = {"lr": 0.01, "rank": 3, "refresh_every": 99, "scale": 0.75, "eps": 1e-12}
    for optimizer, parameter in ((TSRAdam([ours], **chosen), ours), (PublishedTSRAdam([theirs], **chosen), theirs)):
        optimizer.param_groups[0]["lr"] = 0.0
        run(optimizer, parameter, gradients[:1])
        optimizer.param_groups[0]["lr"] = 0.01
        run(optimizer, parameter, gradients[1:])
    assert (ours - theirs).norm() < 5e-3 * (theirs - weight).norm()


@pytest.mark.parametrize("refresh_every", [20, 100])
def test_it_is_at_par_with_the_papers_code_on_a_noisy_quadratic(refresh_every: int) -> None:
    def left(make: Any) -> float:
        return sum(quadratic(partial(make, lr=0.3, scale=1.0), seed, 300, refresh_every) for seed in range(3)) / 3

    assert left(TSRAdam) < 1.05 * left(PublishedTSRAdam) < 0.2


@pytest.mark.parametrize("refresh_every", [1, 3])
def test_error_feedback_equals_the_reference_to_the_bits_it_is_kept_in(refresh_every: int) -> None:
    basis, options = random_basis(8, 7, 3, 2, 0), AdamOptions(lr=0.01, scale=1.0)
    chosen: dict[str, Any] = {"lr": 0.01, "rank": 3, "scale": 1.0, "seed": 2, "oversampling": 0, "power_iterations": 0}
    errors = {0: 0.0, 4: 0.0, 8: 0.0}
    for seed in range(8):  # where two strengths are nearly equal, a last bit can turn a basis
        weight, *gradients = draw(seed, 8, 7, count=5)
        exact = reference_tsr_adam(weight, gradients, basis, refresh_every, options, feedback=True)
        for bits in errors:
            parameter = nn.Parameter(weight.clone())
            run(TSRAdam([parameter], refresh_every=refresh_every, feedback_bits=bits, **chosen), parameter, gradients)
            errors[bits] += float((parameter.detach() - exact).norm())
    assert errors[8] < 0.2 * errors[0]
    assert errors[8] < errors[4] < errors[0]


def test_with_feedback_no_direction_of_a_gradient_is_left_out_for_ever() -> None:
    """Where a gradient never changes, a basis of rank 2 aimed at it once holds two of its directions and no more."""
    gradient = torch.diag(torch.tensor([5.0, 4.0, 3.0, 2.0]))
    moved = {}
    for bits in (0, 8):
        parameter = nn.Parameter(torch.zeros(4, 4))
        optimizer = TSRAdam([parameter], lr=0.01, rank=2, refresh_every=5, scale=1.0, feedback_bits=bits)
        run(optimizer, parameter, [gradient] * 200)
        moved[bits] = -float(torch.diagonal(parameter.detach())[2:].min())
    assert moved[8] > 3 * moved[0]


@pytest.mark.parametrize(("rows", "cols", "rank", "of_gradient"), [(7, 7, 7, 7), (20, 15, 5, 2)])
def test_aiming_finds_the_span_of_a_gradient_and_keeps_the_rest_of_the_old_basis(
    rows: int, cols: int, rank: int, of_gradient: int
) -> None:
    (left,), (right,) = draw(3, rows, of_gradient), draw(4, cols, of_gradient)
    gradient = left @ right.mT
    u, v = aim(gradient, random_basis(rows, cols, rank, 0, 0)).factors(gradient)
    assert (gradient - u @ (u.mT @ gradient @ v) @ v.mT).norm() < 1e-2 * gradient.norm()  # the bases have 12 bits
    torch.testing.assert_close(u.mT @ u, torch.eye(rank, dtype=torch.float64), rtol=0, atol=1e-2)


@pytest.mark.parametrize("gradient", [torch.zeros(8, 6), torch.full((8, 6), float("nan"))])
def test_a_gradient_that_cannot_aim_keeps_the_basis(gradient: Tensor) -> None:
    old = random_basis(8, 6, 3, 0, 0)
    assert aim(gradient, old) is old


@pytest.mark.parametrize(("weight_decay", "optimizer_type"), [(0.0, torch.optim.Adam), (0.1, torch.optim.AdamW)])
@pytest.mark.parametrize(("rank", "shape"), [(None, (6, 5)), (5, (6, 5)), (2, (7,)), (1, (2, 3, 4))])
def test_without_a_rank_it_is_torchs_adam(
    weight_decay: float, optimizer_type: type[torch.optim.Optimizer], rank: int | None, shape: tuple[int, ...]
) -> None:
    weight, *gradients = draw(5, *shape, count=6)
    own, plain = nn.Parameter(weight.float()), nn.Parameter(weight.float())
    run(TSRAdam([own], lr=0.1, rank=rank, weight_decay=weight_decay), own, gradients)
    run(optimizer_type([plain], lr=0.1, weight_decay=weight_decay), plain, gradients)  # type: ignore[call-arg]
    torch.testing.assert_close(own, plain, rtol=FLOAT32, atol=FLOAT32)


def test_groups_have_their_own_options_and_can_be_added() -> None:
    low, dense, added = (nn.Parameter(torch.randn(8, 8)) for _ in range(3))
    optimizer = TSRAdam([{"params": [low]}, {"params": [dense], "rank": None, "lr": 0.5}], rank=2)
    optimizer.add_param_group({"params": [added], "rank": 3})
    for parameter in (low, dense, added):
        parameter.grad = torch.randn(8, 8)
    optimizer.step()
    shapes = [tuple(optimizer.state[p]["exp_avg"].shape) for p in (low, dense, added)]
    assert shapes == [(2, 2), (8, 8), (3, 3)]
    assert optimizer.param_groups[1]["lr"] == 0.5


def test_a_schedule_sets_the_length_of_steps() -> None:
    parameter = nn.Parameter(torch.zeros(8, 6))
    optimizer = TSRAdam([parameter], lr=1.0, rank=2, scale=1.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    gradient, lengths = torch.randn(8, 6), []
    for _ in range(3):
        before = parameter.detach().clone()
        run(optimizer, parameter, [gradient])
        scheduler.step()
        lengths.append(float((parameter.detach() - before).norm()))
    assert lengths[1] == pytest.approx(lengths[0] / 2, rel=1e-3)
    assert lengths[2] == pytest.approx(lengths[0] / 4, rel=1e-3)


def test_a_closure_is_called_with_gradients_on_and_its_loss_returned() -> None:
    parameter = nn.Parameter(torch.ones(4, 4))
    optimizer = TSRAdam([parameter], rank=2)

    def closure() -> float:
        optimizer.zero_grad()
        loss = parameter.square().sum()
        loss.backward()
        return float(loss.detach())

    assert optimizer.step(closure) == 16.0
    assert not torch.equal(parameter.detach(), torch.ones(4, 4))


def test_a_grad_scaler_skips_the_step_of_an_infinite_gradient() -> None:
    parameter = nn.Parameter(torch.ones(4, 4))
    optimizer = TSRAdam([parameter], rank=2)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for factor in (float("inf"), 1.0):
        before = parameter.detach().clone()
        optimizer.zero_grad()
        scaler.scale((parameter * factor).square().sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(parameter.detach(), before) == (factor == float("inf"))


def test_parameters_without_a_gradient_are_left_alone() -> None:
    used, unused = nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.ones(4, 4))
    optimizer = TSRAdam([used, unused], rank=2, weight_decay=0.1)
    used.grad = torch.ones(4, 4)
    optimizer.step()
    assert torch.equal(unused.detach(), torch.ones(4, 4))
    assert unused not in optimizer.state


def test_complex_parameters_are_refused() -> None:
    parameter = nn.Parameter(torch.ones(4, 4, dtype=torch.complex64))
    parameter.grad = torch.ones_like(parameter)
    with pytest.raises(RuntimeError, match="complex"):
        TSRAdam([parameter], rank=2).step()


def test_the_loss_of_a_small_regression_falls() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(64, 12, generator=generator)
    wanted = torch.tanh(inputs @ torch.randn(12, 10, generator=generator))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 24), nn.Tanh(), nn.Linear(24, 10))
    optimizer = TSRAdam(model.parameters(), lr=0.01, rank=6, refresh_every=20)
    losses = []
    for _ in range(150):
        optimizer.zero_grad()
        loss = (model(inputs) - wanted).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.2 * losses[0]


OPTIONS: Sequence[dict[str, Any]] = (
    {"rank": 3, "refresh_every": 2},
    {"rank": 3, "refresh_every": 2, "feedback_bits": 8},
    {"rank": None},
)
INF, NAN = float("inf"), float("nan")


def gradients_of(count: int) -> list[Tensor]:
    return [gradient.float() for gradient in draw(0, 9, 8, count=count)]


def weights_after(gradients: Sequence[Tensor], dtype: torch.dtype = torch.float32, **options: Any) -> list[Tensor]:
    """The weights after each step, from ones."""
    parameter = nn.Parameter(torch.ones(9, 8, dtype=dtype))
    optimizer, weights = TSRAdam([parameter], lr=0.1, **options), []
    for gradient in gradients:
        run(optimizer, parameter, [gradient])
        weights.append(parameter.detach().clone())
    return weights


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("size", [1e13, 1e20, 1e30, 3e38])
def test_one_huge_gradient_moves_weights_by_no_more_than_a_few_steps(
    size: float, dtype: torch.dtype, options: dict[str, Any]
) -> None:
    gradients = gradients_of(9)
    gradients[3] = gradients[3] / gradients[3].abs().max() * size
    before, *after = weights_after(gradients, dtype, **options)[2:]
    for weights in after:
        assert weights.isfinite().all()
        assert float((weights - before).abs().max()) < 10  # a hundred times the rate


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("options", OPTIONS)
def test_the_largest_gradients_still_move_weights_in_their_direction(options: dict[str, Any], sign: int) -> None:
    largest = torch.finfo(torch.float32).max
    weights = weights_after([torch.full((9, 8), sign * largest)] * 3, **options)[-1]
    assert weights.isfinite().all()
    assert sign * float((weights - 1).mean()) < -0.05


@pytest.mark.parametrize("options", OPTIONS)
def test_a_huge_gradient_counts_as_a_smaller_one_of_its_direction(options: dict[str, Any]) -> None:
    (gradient,) = gradients_of(1)
    weights = [weights_after([gradient * size], **options)[0] for size in (1.0, 1e6, 1e20, 1e37)]
    for other in weights[2:]:
        if options["rank"] is not None:
            torch.testing.assert_close(other, weights[1], rtol=1e-4, atol=1e-4)
        assert torch.equal((other - 1).sign(), (weights[0] - 1).sign())


@pytest.mark.parametrize("size", [0.0, 1e-44, 1e-30, 1e-20])
@pytest.mark.parametrize("options", OPTIONS)
def test_tiny_gradients_leave_weights_finite(options: dict[str, Any], size: float) -> None:
    assert all(weights.isfinite().all() for weights in weights_after([g * size for g in gradients_of(6)], **options))


@pytest.mark.parametrize("size", [1e-30, 1e-3, 1.0, 1e4, 1e10])
def test_no_bit_of_an_ordinary_gradient_changes(size: float) -> None:
    for gradient in gradients_of(8):
        gradient *= size
        for bound_by in (gradient.abs(), gradient.abs().max()):
            assert torch.equal(bounded(gradient, bound_by), gradient)


@pytest.mark.parametrize("number", [INF, -INF, NAN])
@pytest.mark.parametrize("options", OPTIONS)
def test_what_is_not_finite_becomes_nan_as_with_adamw(options: dict[str, Any], number: float) -> None:
    gradient = gradients_of(1)[0]
    gradient[0, 0] = number
    plain = nn.Parameter(torch.ones(9, 8))
    plain.grad = gradient
    torch.optim.AdamW([plain]).step()
    assert plain[0, 0].isnan()
    assert weights_after([gradient], **options)[0][0, 0].isnan()


@pytest.mark.parametrize("options", OPTIONS)
def test_a_huge_entry_leaves_the_users_gradient_as_it_was(options: dict[str, Any]) -> None:
    gradient = torch.full((9, 8), 1e30)
    weights_after([gradient], **options)
    assert torch.equal(gradient, torch.full((9, 8), 1e30))


@pytest.mark.parametrize("options", OPTIONS)
def test_maximize_negates_the_gradient(options: dict[str, Any]) -> None:
    up = weights_after(gradients_of(5), maximize=True, **options)
    assert all(map(torch.equal, up, weights_after([-gradient for gradient in gradients_of(5)], **options)))
