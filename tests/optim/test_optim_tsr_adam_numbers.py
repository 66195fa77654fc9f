"""TSRAdam and numbers of all sizes and kinds: gradients near the ends of floating point, options of other libraries."""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tsr_swarm.optim.tsr_adam import TSRAdam, bounded

OPTIONS: Sequence[dict[str, Any]] = (
    {"rank": 3, "refresh_every": 2},
    {"rank": 3, "refresh_every": 2, "feedback_bits": 8},
    {"rank": None},
)
INF, NAN = float("inf"), float("nan")


def draw(count: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(9, 8, generator=generator) for _ in range(count)]


def run(gradients: Sequence[Tensor], dtype: torch.dtype = torch.float32, **options: Any) -> list[Tensor]:
    """The weights after each step, from ones."""
    parameter = nn.Parameter(torch.ones(9, 8, dtype=dtype))
    optimizer, weights = TSRAdam([parameter], lr=0.1, **options), []
    for gradient in gradients:
        parameter.grad = gradient.to(dtype)
        optimizer.step()
        weights.append(parameter.detach().clone())
    return weights


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("size", [1e13, 1e20, 1e30, 3e38])
def test_one_huge_gradient_moves_weights_by_no_more_than_a_few_steps(
    size: float, dtype: torch.dtype, options: dict[str, Any]
) -> None:
    gradients = draw(9)
    gradients[3] = gradients[3] / gradients[3].abs().max() * size
    before, *after = run(gradients, dtype, **options)[2:]
    for weights in after:
        assert weights.isfinite().all()
        assert float((weights - before).abs().max()) < 10  # a hundred times the rate


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("options", OPTIONS)
def test_the_largest_gradients_still_move_weights_in_their_direction(options: dict[str, Any], sign: int) -> None:
    largest = torch.finfo(torch.float32).max
    weights = run([torch.full((9, 8), sign * largest)] * 3, **options)[-1]
    assert weights.isfinite().all()
    assert sign * float((weights - 1).mean()) < -0.05


@pytest.mark.parametrize("options", OPTIONS)
def test_a_huge_gradient_counts_as_a_smaller_one_of_its_direction(options: dict[str, Any]) -> None:
    weights = [run([gradient * size for gradient in draw(1)], **options)[0] for size in (1.0, 1e6, 1e20, 1e37)]
    for other in weights[2:]:
        if options["rank"] is not None:
            torch.testing.assert_close(other, weights[1], rtol=1e-4, atol=1e-4)
        assert torch.equal((other - 1).sign(), (weights[0] - 1).sign())


@pytest.mark.parametrize("size", [0.0, 1e-44, 1e-30, 1e-20])
@pytest.mark.parametrize("options", OPTIONS)
def test_tiny_gradients_leave_weights_finite(options: dict[str, Any], size: float) -> None:
    assert all(weights.isfinite().all() for weights in run([g * size for g in draw(6)], **options))


@pytest.mark.parametrize("size", [1e-30, 1e-3, 1.0, 1e4, 1e10])
def test_no_bit_of_an_ordinary_gradient_changes(size: float) -> None:
    for gradient in draw(8):
        gradient *= size
        for bound_by in (gradient.abs(), gradient.abs().max()):
            assert torch.equal(bounded(gradient, bound_by), gradient)


@pytest.mark.parametrize("number", [INF, -INF, NAN])
@pytest.mark.parametrize("options", OPTIONS)
def test_what_is_not_finite_becomes_nan_as_with_adamw(options: dict[str, Any], number: float) -> None:
    gradient = draw(1)[0]
    gradient[0, 0] = number
    plain = nn.Parameter(torch.ones(9, 8))
    plain.grad = gradient
    torch.optim.AdamW([plain]).step()
    assert plain[0, 0].isnan()
    assert run([gradient], **options)[0][0, 0].isnan()


@pytest.mark.parametrize("options", OPTIONS)
def test_a_huge_entry_leaves_the_users_gradient_as_it_was(options: dict[str, Any]) -> None:
    gradient = torch.full((9, 8), 1e30)
    run([gradient], **options)
    assert torch.equal(gradient, torch.full((9, 8), 1e30))


@pytest.mark.parametrize("options", OPTIONS)
def test_maximize_negates_the_gradient(options: dict[str, Any]) -> None:
    up, down = run(draw(5), maximize=True, **options), run([-gradient for gradient in draw(5)], **options)
    assert all(map(torch.equal, up, down))


NUMPY = {
    "lr": np.float32(0.5),
    "betas": (np.float64(0.5), np.float32(0.75)),
    "eps": np.float64(1e-6),
    "weight_decay": np.float32(0.25),
    "rank": np.int64(3),
    "refresh_every": np.int32(4),
    "scale": np.float16(0.5),
    "seed": np.uint8(7),
    "feedback_bits": np.int64(4),
    "maximize": np.bool_(True),
}
PLAIN = {key: tuple(map(float, value)) if key == "betas" else value.item() for key, value in NUMPY.items()}


def test_numbers_of_numpy_become_pythons() -> None:
    for optimizer in (
        TSRAdam([nn.Parameter(torch.ones(9, 8))], **NUMPY),
        TSRAdam([{"params": [nn.Parameter(torch.ones(9, 8))], **NUMPY}]),
    ):
        group = {key: optimizer.param_groups[0][key] for key in PLAIN}
        assert group == PLAIN
        assert {key: type(value) for key, value in group.items()} == {key: type(value) for key, value in PLAIN.items()}
        file = io.BytesIO()
        torch.save(optimizer.state_dict(), file)
        file.seek(0)
        optimizer.load_state_dict(torch.load(file, weights_only=True))


def test_numbers_of_torch_are_taken_too_and_a_rate_stays_a_tensor() -> None:
    rate = torch.tensor(0.5)
    tensors = {key: torch.tensor(value) for key, value in PLAIN.items() if isinstance(value, float)}
    optimizer = TSRAdam([nn.Parameter(torch.ones(9, 8))], **{**tensors, "lr": rate, "betas": torch.tensor([0.5, 0.75])})
    assert optimizer.param_groups[0]["lr"] is rate
    assert optimizer.param_groups[0]["betas"] == (0.5, 0.75)
    assert isinstance(optimizer.param_groups[0]["eps"], float)


META, PAIR = torch.tensor(0.1, device="meta"), torch.tensor([0.1, 0.2])
REFUSED: Mapping[str, tuple[str, Sequence[object], str]] = {
    "lr": (
        "learning rate",
        [-1.0, NAN, INF, "0.1", 10**400, True, None, META, PAIR, torch.tensor(-0.1)],
        "at least 0 and finite",
    ),
    "betas": ("betas", [(0.9,), 0.9, torch.tensor(0.9)], "two numbers"),
    "eps": ("epsilon value", [-1e-8, "small", NAN], "at least 0 and finite"),
    "weight_decay": ("weight_decay value", [-0.1, INF], "at least 0 and finite"),
    "rank": (
        "rank",
        [0, 2.5, True, np.bool_(True), np.float64(64.0), "64", np.int64(0)],
        "a whole number of at least 1, or None",
    ),
    "refresh_every": ("refresh_every", [0, None, False], "a whole number, at least 1"),
    "scale": ("scale", [-1.0, None, INF], "at least 0 (0: automatic) and finite"),
    "seed": ("seed", [0.5, None, True], "a whole number"),
    "feedback_bits": ("feedback_bits", [5, 4.0, None], "0, 4 or 8"),
    "maximize": ("maximize", [1], "True or False"),
}
BETAS = {(0.9, 1.0): (1, 1.0), (-0.1, 0.9): (0, -0.1), "90": (0, "9"), ("0.9", 0.99): (0, "0.9"), (0.9, NAN): (1, NAN)}


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        *(
            (option, value, f"Invalid {name}: {value}; it must be {limit}.")
            for option, (name, values, limit) in REFUSED.items()
            for value in values
        ),
        *(
            ("betas", value, f"Invalid beta parameter at index {index}: {beta}; it must be at least 0 and below 1.")
            for value, (index, beta) in BETAS.items()
        ),
    ],
)
def test_an_option_out_of_range_is_refused_in_one_sentence(option: str, value: object, message: str) -> None:
    for params in ([nn.Parameter(torch.ones(4, 4))], [{"params": [nn.Parameter(torch.ones(4, 4))], option: value}]):
        chosen = {option: value} if isinstance(params[0], nn.Parameter) else {}
        with pytest.raises(ValueError, match=re.escape(message)):
            TSRAdam(params, **chosen)  # type: ignore[arg-type]
