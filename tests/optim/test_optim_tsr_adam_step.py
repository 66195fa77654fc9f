"""TSRAdam's faster ways of stepping, each against the plain one: stacks, steps counted in tensors, compiled graphs."""

import copy
import io
import re
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tsr_swarm.optim.tsr_adam import TSRAdam

CLOSE = 2e-5  # of weights near 1 after some steps: products of stacks may be summed in another order
COMPILERS = [pytest.param("inductor", {}, marks=pytest.mark.e2e)] if shutil.which("g++") else []
SHAPES = ((9, 8), (7,), (9, 8), (6, 10), (7,), (9, 8))


def parameters(dtype: torch.dtype = torch.float32, shapes: Sequence[tuple[int, ...]] = SHAPES) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]


def train(optimizer: TSRAdam, steps: int, seed: int = 1, absent: Sequence[int] = ()) -> list[Tensor]:
    """Take steps and return the weights. In every other step the parameters ``absent`` have no gradient."""
    weights = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        for number, parameter in enumerate(weights):
            gradient = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
            parameter.grad = None if step % 2 and number in absent else gradient
        optimizer.step()
    return [parameter.detach().clone() for parameter in weights]


def trained(
    prepare: Callable[[TSRAdam], object] = id,
    dtype: torch.dtype = torch.float32,
    absent: Sequence[int] = (),
    **options: Any,
) -> list[Tensor]:
    optimizer = TSRAdam(parameters(dtype), **{"lr": 0.01, "rank": 3, "refresh_every": 3, **options})
    prepare(optimizer)
    return train(optimizer, 7, absent=absent)


def assert_close(found: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float = CLOSE) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@settings(max_examples=15)
@given(
    absent=st.sets(st.integers(0, len(SHAPES) - 1)),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    decay=st.sampled_from([0.0, 0.1]),
    bits=st.sampled_from([0, 8]),
    maximize=st.booleans(),
    capturable=st.booleans(),
    rank=st.sampled_from([3, 7, None]),
)
def test_parameters_of_one_shape_step_together_as_they_do_alone(
    absent: set[int], dtype: torch.dtype, rank: int | None, **options: Any
) -> None:
    options["weight_decay"], options["feedback_bits"] = options.pop("decay"), options.pop("bits")
    alone = trained(dtype=dtype, absent=sorted(absent), foreach=False, rank=rank, **{**options, "capturable": False})
    assert_close(trained(dtype=dtype, absent=sorted(absent), foreach=True, rank=rank, **options), alone)


def test_weights_of_a_shorter_dtype_step_together_bit_by_bit() -> None:
    alone, together = (trained(dtype=torch.bfloat16, foreach=foreach) for foreach in (False, True))
    assert_close(together, alone, 2**-7)


def test_many_parameters_are_split_into_stacks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = trained()
    monkeypatch.setattr("tsr_swarm.optim.tsr_adam.STACK_NUMBERS", 2 * 3 * 9)  # two matrices of rank 3
    monkeypatch.setattr("tsr_swarm.optim.tsr_adam._DENSE_STACK", 1)
    assert_close(trained(), whole)


@pytest.mark.parametrize(
    ("backend", "options"),
    [("eager", {"feedback_bits": 4}), ("aot_eager", {"maximize": True, "weight_decay": 0.1}), *COMPILERS],
)
def test_a_compiled_step_is_one_graph_and_equals_the_plain_one(backend: str, options: dict[str, Any]) -> None:
    torch._dynamo.reset()
    graphs = torch._dynamo.utils.counters["stats"]
    before = graphs["unique_graphs"]
    compiled = trained(lambda optimizer: optimizer.compile(backend=backend), capturable=True, **options)
    assert graphs["unique_graphs"] == before + 1
    assert_close(compiled, trained(**options))


@pytest.mark.parametrize("rate", [0.01, torch.tensor(0.01)])
def test_a_compiled_step_follows_a_schedule(rate: float | Tensor) -> None:
    def scheduled(prepare: Callable[[TSRAdam], object], **options: Any) -> list[Tensor]:
        optimizer = TSRAdam(parameters(), lr=copy.deepcopy(rate), rank=3, refresh_every=3, **options)
        prepare(optimizer)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.7**step)
        for seed in range(4):
            train(optimizer, 1, seed)
            schedule.step()
        return train(optimizer, 1)

    torch._dynamo.reset()
    compiled = scheduled(lambda optimizer: optimizer.compile(backend="eager"), capturable=True)
    assert_close(compiled, scheduled(id))


def test_only_a_capturable_optimizer_is_compiled() -> None:
    with pytest.raises(ValueError, match=re.escape("compiled only with capturable=True")):
        TSRAdam(parameters(), rank=3).compile(backend="eager")


def test_a_step_that_is_no_refresh_keeps_every_tensor_where_it_is() -> None:
    """A captured graph knows addresses: nothing that a step or a refresh changes may move."""
    optimizer = TSRAdam(parameters(), rank=3, refresh_every=2, feedback_bits=8, capturable=True)
    train(optimizer, 1)
    kept = [tensor for state in optimizer.state.values() for tensor in state.values()]
    assert all(isinstance(tensor, Tensor) for tensor in kept)
    places = [tensor.data_ptr() for tensor in kept]
    train(optimizer, 4)
    optimizer.refresh()
    assert [tensor.data_ptr() for state in optimizer.state.values() for tensor in state.values()] == places


@pytest.mark.parametrize("bits", [0, 8])
def test_a_refresh_between_steps_is_that_of_a_step(bits: int) -> None:
    """Aimed by hand before each step that would have been due, an optimizer goes the way of one that aims itself."""
    shapes = ((9, 8), (6, 10))
    itself = TSRAdam(parameters(shapes=shapes), lr=0.01, rank=3, refresh_every=3, oversampling=0, feedback_bits=bits)
    by_hand = TSRAdam(parameters(shapes=shapes), lr=0.01, rank=3, refresh_every=99, oversampling=0, feedback_bits=bits)
    generator = torch.Generator().manual_seed(1)
    for step in range(7):
        for one, other in zip(itself.param_groups[0]["params"], by_hand.param_groups[0]["params"], strict=True):
            one.grad = torch.randn(one.shape, generator=generator)
            other.grad = one.grad.clone()
        if step and step % 3 == 0:
            by_hand.refresh()
        itself.step()
        by_hand.step()
    pairs = list(zip(itself.state.values(), by_hand.state.values(), strict=True))
    for one, other in pairs if bits == 0 else ():
        assert torch.equal(one["left"], other["left"])
        torch.testing.assert_close(one["exp_avg"], other["exp_avg"])
    weights = [[p.detach() for p in optimizer.param_groups[0]["params"]] for optimizer in (itself, by_hand)]
    assert_close(*weights, tolerance=CLOSE if bits == 0 else 0.05)


@pytest.mark.parametrize(("before", "after"), [(False, True), (True, False), (True, True)])
def test_a_state_goes_from_tensors_to_numbers_and_back(before: bool, after: bool) -> None:
    expected = TSRAdam(parameters(), rank=3, refresh_every=3)
    train(expected, 4)
    saving, file = TSRAdam(parameters(), rank=3, refresh_every=3, capturable=before), io.BytesIO()
    train(saving, 4)
    torch.save(saving.state_dict(), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    saved["param_groups"][0]["capturable"] = after
    other = TSRAdam(parameters(), rank=3)
    other.load_state_dict(saved)
    for weight, like in zip(other.param_groups[0]["params"], saving.param_groups[0]["params"], strict=True):
        weight.detach().copy_(like.detach())
    assert_close(train(other, 4, seed=2), train(expected, 4, seed=2))
    assert {isinstance(state["step"], Tensor) for state in other.state.values()} == {after}
    assert {int(state["step"]) for state in other.state.values()} == {8}
