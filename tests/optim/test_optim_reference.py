"""The slow references themselves, in cases that can be worked out by hand."""

import torch

from tests.optim.reference import (
    AdamOptions,
    reference_adam_direction,
    reference_core_round,
    reference_rotation,
    reference_tsr_adam,
)
from tsr_swarm.lowrank.basis import Basis, random_basis
from tsr_swarm.lowrank.sketch import rotate_moments

SIGN = AdamOptions(lr=0.5, eps=0.0)


def first_columns(size: int, rank: int) -> torch.Tensor:
    """The first unit vectors as a basis; 1 itself is beyond 12 bits, so they are 2047/2048 long."""
    return 2047 * torch.eye(size, dtype=torch.int16)[:, :rank]


def test_the_first_direction_is_the_gradients_sign() -> None:
    gradient = torch.tensor([[3.0, -0.2]], dtype=torch.float64)
    direction, first, second = reference_adam_direction(gradient, torch.zeros(1, 2), torch.zeros(1, 2), 1, SIGN)
    torch.testing.assert_close(direction, torch.tensor([[1.0, -1.0]], dtype=torch.float64))
    torch.testing.assert_close(first, 0.1 * gradient)
    torch.testing.assert_close(second, 0.001 * gradient**2)


def test_a_rotation_by_the_identity_changes_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    second = first.square() + 1
    eye = torch.eye(3, dtype=torch.float64)
    turned_first, turned_second = reference_rotation(first, second, eye, eye, 5, SIGN)
    torch.testing.assert_close(turned_first, first)
    torch.testing.assert_close(turned_second, second)


def test_a_rotation_equals_the_fast_one() -> None:
    old, new = random_basis(8, 7, 3, 0, 0), random_basis(8, 7, 3, 1, 0)
    left = new.left_float(torch.float64).mT @ old.left_float(torch.float64)
    right = new.right_float(torch.float64).mT @ old.right_float(torch.float64)
    first = torch.randn(3, 3, dtype=torch.float64)
    second = torch.rand(3, 3, dtype=torch.float64)
    slow = reference_rotation(first, second, left, right, 4, SIGN)
    fast = rotate_moments(first, second, old, new, SIGN.betas[0] ** 4, SIGN.betas[1] ** 4)
    torch.testing.assert_close(fast, slow)


def test_one_step_moves_only_inside_the_span_of_the_gradient() -> None:
    gradient = torch.zeros(4, 3)
    gradient[1, 2] = -7.0
    weight = reference_tsr_adam(torch.zeros(4, 3), [gradient], random_basis(4, 3, 1, 0, 0), 10, SIGN)
    expected = torch.zeros(4, 3, dtype=torch.float64)
    expected[1, 2] = 0.5
    torch.testing.assert_close(weight, expected, rtol=0, atol=1e-3)


def test_a_round_moves_by_the_mean_of_the_peers_weighted_by_tokens() -> None:
    basis = Basis(first_columns(3, 2), first_columns(3, 2))
    up, down = torch.ones(3, 3), -torch.ones(3, 3)
    weight, own = reference_core_round(torch.zeros(3, 3), [[up], [down]], [3.0, 1.0], basis, SIGN)
    inside = torch.zeros(3, 3, dtype=torch.float64)
    inside[:2, :2] = 1.0
    torch.testing.assert_close(own[0], -0.5 * inside, rtol=0, atol=1e-3)
    torch.testing.assert_close(own[1], 0.5 * inside, rtol=0, atol=1e-3)
    torch.testing.assert_close(weight, -0.25 * inside, rtol=0, atol=1e-3)
