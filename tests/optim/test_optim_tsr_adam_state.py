"""TSRAdam's options, and what it saves and reads back: its own states, older ones and from other devices too."""

import copy
import io
import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tsr_swarm.optim.tsr_adam import TSRAdam

SHAPES = ((9, 8), (7,), (6, 10))


def parameters(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]


def train(optimizer: torch.optim.Optimizer, steps: int, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
        optimizer.step()


def trained(**options: Any) -> TSRAdam:
    optimizer = TSRAdam(parameters(), **{"rank": 3, "refresh_every": 2, **options})
    train(optimizer, 3)
    return optimizer


def weights(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter.detach() for group in optimizer.param_groups for parameter in group["params"]]


def assert_goes_on_alike(one: torch.optim.Optimizer, other: torch.optim.Optimizer) -> None:
    """From the same weights, both take the same steps."""
    for weight, like in zip(weights(other), weights(one), strict=True):
        weight.copy_(like)
    for optimizer in (one, other):
        train(optimizer, 4, seed=2)
    for weight, like in zip(weights(other), weights(one), strict=True):
        assert torch.equal(weight, like)


@pytest.mark.parametrize("bits", [0, 4, 8])
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda optimizer: pickle.loads(pickle.dumps(optimizer))])
def test_a_copy_of_the_optimizer_goes_on_alike(duplicate: Callable[[TSRAdam], TSRAdam], bits: int) -> None:
    optimizer = trained(feedback_bits=bits)
    assert_goes_on_alike(optimizer, duplicate(optimizer))


@pytest.mark.parametrize(
    ("dtype", "bits"),
    [(torch.float32, 0), (torch.float32, 4), (torch.float32, 8), (torch.bfloat16, 0), (torch.float64, 0)],
)
def test_a_state_goes_through_a_file_that_holds_nothing_but_data(dtype: torch.dtype, bits: int) -> None:
    optimizer, file = TSRAdam(parameters(dtype), rank=3, refresh_every=2, feedback_bits=bits), io.BytesIO()
    train(optimizer, 3)
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    other = TSRAdam(parameters(dtype), rank=3)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert {state["exp_avg"].dtype for state in other.state.values()} == {torch.promote_types(dtype, torch.float32)}
    assert_goes_on_alike(optimizer, other)


@pytest.mark.parametrize("state", [{}, {"state": {}}])
def test_reading_leaves_what_it_is_given_as_it_was(state: dict[str, Any]) -> None:
    optimizer, other = trained(feedback_bits=8), TSRAdam(parameters(), rank=3)
    saved = copy.deepcopy(optimizer.state_dict()) | state
    kept = copy.deepcopy(saved)
    other.load_state_dict(saved)
    train(other, 2)
    assert str(saved) == str(kept)


@pytest.mark.parametrize(
    ("dtype", "moments"),
    [(torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float64, torch.float64)],
)
def test_a_state_is_read_for_parameters_of_another_dtype(dtype: torch.dtype, moments: torch.dtype) -> None:
    saved, other = trained(feedback_bits=4), TSRAdam(parameters(dtype), rank=3)
    other.load_state_dict(saved.state_dict())
    for like, state in zip(saved.state.values(), other.state.values(), strict=True):
        assert state["exp_avg"].dtype == state["exp_avg_sq"].dtype == moments
        assert torch.equal(state["exp_avg"], like["exp_avg"].to(moments))
        assert all(torch.equal(state[key], like[key]) for key in ("left", "codes", "scales") if key in like)
    train(other, 3)
    assert all(weight.isfinite().all() for weight in weights(other))


def test_a_state_is_read_for_parameters_on_another_device() -> None:
    saved, other = trained(feedback_bits=4), TSRAdam([nn.Parameter(p.to("meta")) for p in parameters()], rank=3)
    other.load_state_dict(saved.state_dict())
    tensors = [value for state in other.state.values() for value in state.values() if isinstance(value, Tensor)]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    with pytest.raises(ValueError, match="on the meta device, without numbers"):
        saved.load_state_dict(other.state_dict())


def test_four_bits_that_were_saved_without_zeros_code_are_read() -> None:
    saved, other = trained(feedback_bits=4).state_dict(), TSRAdam(parameters(), rank=3)
    saved["state"][0]["codes"] = codes = saved["state"][0]["codes"][:, :-1].clone()
    other.load_state_dict(saved)
    read = other.state[other.param_groups[0]["params"][0]]["codes"]
    assert torch.equal(read[:, :-1], codes)
    assert read[:, -1].eq(7).all()
    train(other, 2)


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("optimizer_type", [torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD, torch.optim.RMSprop])
@pytest.mark.parametrize("rank", [3, None])
def test_a_state_of_another_optimizer_is_refused(
    optimizer_type: Callable[..., torch.optim.Optimizer], steps: int, rank: int | None
) -> None:
    other = optimizer_type(parameters(), lr=0.1)
    train(other, steps)
    optimizer = trained(rank=rank)
    before = str(optimizer.state_dict())
    with pytest.raises(ValueError, match="of another optimizer: its parameter group 0 has no 'rank'; load what TSRA"):
        optimizer.load_state_dict(other.state_dict())
    assert str(optimizer.state_dict()) == before


def test_moments_of_full_size_are_refused_where_a_core_is_kept() -> None:
    optimizer, dense = trained(), TSRAdam(parameters(), rank=None)
    train(dense, 1)
    saved = {**dense.state_dict(), "param_groups": optimizer.state_dict()["param_groups"]}
    with pytest.raises(ValueError, match=r"parameter 0 lacks '\w+', which rank 3 needs for a shape of \(9, 8\)"):
        optimizer.load_state_dict(saved)


@pytest.mark.parametrize("option", ["feedback_bits", "maximize", "scale", "seed", "eps", "weight_decay", "betas", "lr"])
def test_options_that_an_older_state_lacks_stay_as_they_are(option: str) -> None:
    chosen = {"scale": 0.5, "seed": 4, "eps": 1e-6, "weight_decay": 0.1, "betas": (0.8, 0.9), "lr": 0.5}
    optimizer, other = trained(**chosen), TSRAdam(parameters(), rank=3, **chosen)  # type: ignore[arg-type]
    saved = optimizer.state_dict()
    del saved["param_groups"][0][option]
    other.load_state_dict(saved)
    assert other.param_groups[0][option] == optimizer.defaults[option]
    assert_goes_on_alike(optimizer, other)


def test_an_optimizer_that_was_pickled_before_an_option_existed_goes_on() -> None:
    optimizer = trained(oversampling=0, power_iterations=0)
    old = copy.deepcopy(optimizer)
    for options in (old.defaults, *old.param_groups):
        for option in ("feedback_bits", "maximize", "oversampling", "power_iterations", "foreach", "capturable"):
            del options[option]
    again = pickle.loads(pickle.dumps(old))
    again.add_param_group({"params": [nn.Parameter(torch.ones(5, 5))]})
    assert [group["feedback_bits"] for group in again.param_groups] == [0, 0]
    del again.param_groups[1]
    assert_goes_on_alike(optimizer, again)


def test_options_and_other_keys_of_a_group_are_read_with_the_state() -> None:
    optimizer, other = trained(rank=3, lr=0.25), TSRAdam(parameters(), rank=2, lr=0.5)
    torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    other.load_state_dict(optimizer.state_dict())
    assert [other.param_groups[0][key] for key in ("rank", "lr", "initial_lr")] == [3, 0.25, 0.25]
    assert_goes_on_alike(optimizer, other)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda s: s["state"][0].update(exp_avg=torch.zeros(4, 4)), "'exp_avg' of (4, 4) torch.float32, not (3, 3)"),
        (lambda s: s["state"][0].update(exp_avg="?"), "has 'exp_avg' of type str, not a tensor"),
        (lambda s: s["state"][0].update(exp_avg=torch.zeros(3, 3, dtype=torch.int8)), "'exp_avg' of (3, 3) torch.int8"),
        (lambda s: s["state"][0].update(left=torch.zeros(9, 3)), "'left' of (9, 3) torch.float32, not (9, 3) torch.in"),
        (lambda s: s["state"][0].update(left=torch.zeros(8, 3, dtype=torch.int16)), "'left' of (8, 3)"),
        (lambda s: s["state"][0].pop("right"), "lacks 'right'"),
        (lambda s: s["state"][0].pop("scales"), "lacks 'scales'"),
        (lambda s: s["state"][0].pop("step"), "lacks 'step'"),
        (lambda s: s["state"][0].update(step=-1), "has -1 as its 'step', not a number of steps"),
        (lambda s: s["state"][0].update(step=1.5), "has 1.5 as its 'step'"),
        (lambda s: s["state"][0].update(step="two"), "has 'two' as its 'step'"),
        (lambda s: s["state"][0].update(codes=torch.zeros(0, dtype=torch.uint8)), "has 'codes' of (0,)"),
        (lambda s: s["state"][0].update(codes=None), "has 'codes' of type NoneType"),
        (lambda s: s["state"][1].update(max_exp_avg_sq=torch.zeros(7)), "has 'max_exp_avg_sq', which a TSRAdam"),
        (lambda s: s["state"].update({1: torch.zeros(7)}), "parameter 1 is Tensor, not a dict"),
        (lambda s: s["state"].update({"0": s["state"].pop(0)}), "no group has the parameter '0' of its moments"),
        (lambda s: s["param_groups"][0].update(rank=5), "not (5, 5)"),
        (lambda s: s["param_groups"][0].update(rank=0), "Invalid rank: 0"),
        (lambda s: s["param_groups"][0].update(lr="fast"), "Invalid learning rate: fast"),
        (lambda s: s["param_groups"][0].update(betas=None), "Invalid betas: None"),
        (lambda s: s["param_groups"][0].pop("refresh_every"), "group 0 has no 'refresh_every'"),
        (lambda s: s["param_groups"][0].pop("params"), "not an optimizer's state"),
        (lambda s: s["param_groups"].append(7), "not an optimizer's state"),
        (lambda s: s.pop("state"), "not an optimizer's state"),
        (lambda s: s.update(param_groups={}), "not an optimizer's state"),
        (lambda s: s["param_groups"][0]["params"].pop(), "parameter 2"),
        (lambda s: s["param_groups"].append(s["param_groups"][0]), "different number of parameter groups"),
    ],
)
def test_a_damaged_state_is_refused_and_changes_nothing(damage: Callable[..., object], message: str) -> None:
    optimizer = trained(feedback_bits=8)
    before, saved = str(optimizer.state_dict()), copy.deepcopy(optimizer.state_dict())
    damage(saved)
    with pytest.raises(ValueError, match=re.escape(message)):
        optimizer.load_state_dict(saved)
    assert str(optimizer.state_dict()) == before
    train(optimizer, 1)


@pytest.mark.parametrize("state", [None, [], "state.pt", torch.zeros(3)])
def test_a_state_that_is_no_dict_is_refused(state: Any) -> None:
    with pytest.raises(ValueError, match=r"not an optimizer's state; load what TSRAdam.state_dict\(\) returned"):
        trained().load_state_dict(state)


def test_the_state_of_a_model_with_other_shapes_is_refused() -> None:
    wider = TSRAdam([nn.Parameter(torch.ones(9, 20)), *parameters()[1:]], rank=3)
    with pytest.raises(ValueError, match=r"parameter 0 has 'right' of \(8, 3\) torch.int16, not \(20, 3\)"):
        wider.load_state_dict(trained().state_dict())


def test_parameters_that_had_no_gradient_have_no_state_to_read() -> None:
    optimizer, other = TSRAdam(parameters(), rank=3), TSRAdam(parameters(), rank=3)
    optimizer.param_groups[0]["params"][0].grad = torch.ones(SHAPES[0])
    optimizer.step()
    saved = optimizer.state_dict()
    saved["state"][1] = {}
    other.load_state_dict(saved)
    assert_goes_on_alike(optimizer, other)


def test_hooks_of_loading_may_turn_another_state_into_one_of_tsradam() -> None:
    optimizer, other, seen = trained(), TSRAdam(parameters(torch.bfloat16), rank=3), []
    saved = optimizer.state_dict()
    other.register_load_state_dict_pre_hook(lambda _, wrapped: wrapped["wrapped"])
    other.register_load_state_dict_post_hook(
        lambda loaded: seen.extend(state["exp_avg"].dtype for state in loaded.state.values())
    )
    for _ in range(2):
        other.load_state_dict({"wrapped": saved})
    assert seen == [torch.float32] * 6


@pytest.mark.parametrize("rank", [2, 4, None])
def test_a_rank_that_changes_after_the_first_step_is_refused_before_anything_moves(rank: int | None) -> None:
    optimizer = trained()
    before = copy.deepcopy(weights(optimizer))
    optimizer.param_groups[0]["rank"] = rank
    with pytest.raises(ValueError, match=r"Parameter 0 of shape \(9, 8\) has moments of \(3, 3\), which do not fit ra"):
        optimizer.step()
    assert all(map(torch.equal, weights(optimizer), before))


@pytest.mark.parametrize(("before", "after"), [(0, 8), (8, 0), (4, 8)])
def test_feedback_can_be_turned_on_and_off_between_steps(before: int, after: int) -> None:
    optimizer = trained(feedback_bits=before)
    optimizer.param_groups[0]["feedback_bits"] = after
    train(optimizer, 1)
    state = optimizer.state[optimizer.param_groups[0]["params"][0]]
    assert ("codes" in state) == (after != 0)
    other = TSRAdam(parameters(), rank=3)
    other.load_state_dict(optimizer.state_dict())
    assert_goes_on_alike(optimizer, other)


INF, NAN = float("inf"), float("nan")
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
    "oversampling": np.int64(6),
    "power_iterations": np.uint8(2),
    "foreach": np.bool_(False),
    "capturable": np.bool_(True),
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


TENSORS = (torch.tensor(0.1, device="meta"), torch.tensor([0.1, 0.2]), torch.tensor(-0.1))
REFUSED: Mapping[str, tuple[str, Sequence[object], str]] = {
    "lr": ("learning rate", [-1.0, NAN, INF, "0.1", 10**400, True, None, *TENSORS], "at least 0 and finite"),
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
    "oversampling": ("oversampling", [-1, 0.5, True, None], "a whole number, at least 0"),
    "power_iterations": ("power_iterations", [-1, 1.0, None], "a whole number, at least 0"),
    "foreach": ("foreach", [None, 1], "True or False"),
    "capturable": ("capturable", ["yes"], "True or False"),
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
