"""TSRAdam under whatever torch can be in: default devices, autocast, wrappers of models, schedules."""

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.testing._internal.distributed.fake_pg import FakeStore

from tsr_swarm.optim.tsr_adam import TSRAdam


def model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 8))


def give_gradients(parameters: list[nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def train(make_context: Callable[[], AbstractContextManager[Any]], steps: int = 5, **options: Any) -> list[Tensor]:
    """Return the weights after some steps, each in a context of its own."""
    parameters = list(model().parameters())
    with make_context():
        optimizer = TSRAdam(parameters, **{"rank": 3, "refresh_every": 2, "feedback_bits": 8, **options})
    for step in range(steps):
        give_gradients(parameters, step)
        with make_context():
            optimizer.step()
    state = copy.deepcopy(optimizer.state_dict())
    with make_context():
        optimizer.load_state_dict(state)
    give_gradients(parameters, steps)
    with make_context():
        optimizer.step()
    return [parameter.detach() for parameter in parameters]


@contextmanager
def default(what: str, value: object) -> Iterator[None]:
    """Change torch's default device or dtype."""
    before = getattr(torch, f"get_default_{what}")()
    getattr(torch, f"set_default_{what}")(value)
    try:
        yield
    finally:
        getattr(torch, f"set_default_{what}")(before)


@pytest.mark.parametrize(
    "make_context",
    [
        lambda: torch.device("meta"),
        lambda: default("device", "meta"),
        lambda: default("dtype", torch.float64),
        lambda: torch.autocast("cpu", dtype=torch.bfloat16),
        torch.enable_grad,
        torch.no_grad,
    ],
    ids=["device", "default_device", "default_dtype", "autocast", "enable_grad", "no_grad"],
)
def test_a_step_is_the_same_whatever_context_it_is_in(make_context: Any) -> None:
    assert all(map(torch.equal, train(make_context), train(nullcontext)))


def test_autocast_holds_in_the_closure() -> None:
    parameter, seen = nn.Parameter(torch.ones(6, 6)), []

    def closure() -> float:
        product = parameter @ torch.ones(6, 6)
        seen.append(product.dtype)
        product.sum().backward()
        return 0.0

    with torch.autocast("cpu", dtype=torch.bfloat16):
        TSRAdam([parameter], rank=2).step(closure)
    assert seen == [torch.bfloat16]


def test_parameters_on_the_meta_device_get_moments_of_their_size() -> None:
    parameter = nn.Parameter(torch.ones(9, 8, device="meta"))
    optimizer = TSRAdam([parameter], rank=3, feedback_bits=8)
    for _ in range(2):
        parameter.grad = torch.ones(9, 8, device="meta")
        optimizer.step()
    assert {key: tuple(value.shape) for key, value in optimizer.state[parameter].items() if key != "step"} == {
        "left": (9, 3),
        "right": (8, 3),
        "exp_avg": (3, 3),
        "exp_avg_sq": (3, 3),
        "codes": (2, 64),
        "scales": (2, 1),
    }


def test_a_cycle_of_rates_and_betas_is_followed() -> None:
    parameters = list(model().parameters())
    optimizer = TSRAdam(parameters, rank=3, refresh_every=2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=8)
    betas = set()
    for step in range(7):
        give_gradients(parameters, step)
        optimizer.step()
        schedule.step()
        betas.add(optimizer.param_groups[0]["betas"])
    assert len(betas) > 4
    assert all(parameter.isfinite().all() for parameter in parameters)


def test_a_rate_that_is_a_tensor_is_followed() -> None:
    weights = []
    for rate in (0.25, torch.tensor(0.25)):
        parameters = list(model().parameters())
        optimizer = TSRAdam(parameters, lr=rate, rank=3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6)
        for step in range(4):
            give_gradients(parameters, step)
            optimizer.step()
            schedule.step()
        weights.append(parameters[0].detach())
    torch.testing.assert_close(*weights)


def test_names_of_parameters_are_kept_where_torch_keeps_them() -> None:
    names = [name for name, _ in model().named_parameters()]
    optimizer = TSRAdam(model().named_parameters(), rank=3)
    saved = optimizer.state_dict()["param_groups"][0]
    assert saved["param_names"] == optimizer.param_groups[0]["param_names"] == names
    assert all(isinstance(parameter, nn.Parameter) for parameter in optimizer.param_groups[0]["params"])


def test_hooks_see_every_step() -> None:
    parameters, calls = list(model().parameters()), []
    optimizer = TSRAdam(parameters, rank=3)
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    give_gradients(parameters, 0)
    optimizer.step()
    assert calls == ["before", "after"]


@pytest.mark.parametrize("shape", [(0, 8), (8, 0), (0,), (), (1, 8), (8, 1), (2, 0, 3)])
def test_parameters_of_any_shape_step(shape: tuple[int, ...]) -> None:
    parameter = nn.Parameter(torch.ones(shape))
    parameter.grad = torch.ones(shape)
    optimizer = TSRAdam([parameter], lr=0.1, rank=1)
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.step()
    torch.testing.assert_close(parameter.detach(), torch.full(shape, 0.8))


@pytest.mark.parametrize("rank", [3, None])
def test_the_memory_layout_of_a_parameter_does_not_matter(rank: int | None) -> None:
    start, gradients = torch.randn(9, 8), torch.randn(4, 9, 8)
    weights = []
    for lay in (torch.Tensor.contiguous, lambda x: x.mT.contiguous().mT, lambda x: torch.stack((x, x), 2)[:, :, 0]):
        parameter = nn.Parameter(lay(start.clone()))
        optimizer = TSRAdam([parameter], rank=rank, refresh_every=2)
        for gradient in gradients:
            parameter.grad = lay(gradient)
            optimizer.step()
        weights.append(parameter.detach())
    for other in weights[1:]:
        torch.testing.assert_close(other, weights[0])


def test_tied_parameters_step_once() -> None:
    tied, alone = nn.ModuleList([nn.Linear(8, 6, bias=False) for _ in range(2)]), nn.Linear(8, 6, bias=False)
    tied[1].weight = tied[0].weight
    alone.load_state_dict(tied[0].state_dict())
    for module in (tied, alone):
        (weight,) = module.parameters()
        weight.grad = torch.ones(6, 8)
        TSRAdam(module.parameters(), rank=2).step()
    assert torch.equal(tied[1].weight, alone.weight)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("layout", ["coo", "csr"])
def test_a_gradient_without_strides_moves_nothing(layout: str) -> None:
    dense, sparse = nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.ones(4, 4))
    if layout == "csr":
        sparse = nn.Parameter(torch.ones(4, 4).to_sparse_csr())
    dense.grad = torch.ones(4, 4)
    sparse.grad = torch.ones(4, 4).to_sparse() if layout == "coo" else torch.ones(4, 4).to_sparse_csr()
    with pytest.raises(RuntimeError, match="sparse gradients"):
        TSRAdam([dense, sparse], rank=2).step()
    assert torch.equal(dense.detach(), torch.ones(4, 4))


@pytest.fixture
def group() -> Iterator[None]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def half_a_group() -> Iterator[None]:
    """The first of two processes; what it receives from the other is not looked at."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield
    dist.destroy_process_group()


def sharded(*, flat: bool = False, **options: Any) -> nn.Module:
    """FSDP2's model, or that of its forerunner."""
    if not flat:
        wrapped = model()
        fully_shard(wrapped, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
        return wrapped
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return FullyShardedDataParallel(model(), device_id=torch.device("cpu"), **options)


@pytest.mark.usefixtures("group")
def test_a_model_in_ddp_trains_as_one_outside() -> None:
    inputs, weights = torch.randn(5, 12), []
    for wrap in (lambda plain: plain, DistributedDataParallel):
        wrapped = wrap(model())
        optimizer = TSRAdam(wrapped.parameters(), rank=3, refresh_every=2)
        for _ in range(3):
            optimizer.zero_grad()
            wrapped(inputs).square().mean().backward()
            optimizer.step()
        weights.append([parameter.detach() for parameter in wrapped.parameters()])
    assert all(map(torch.equal, *weights))


@pytest.mark.usefixtures("group")
def test_shards_of_fsdp2_are_refused() -> None:
    with pytest.raises(ValueError, match=r"cores of whole matrices, but a parameter is a DTensor .* use Distributed"):
        TSRAdam(sharded().parameters(), rank=3)


@pytest.mark.usefixtures("group")
def test_shards_of_fsdp2_take_plain_adam_steps_where_that_is_asked_for() -> None:
    weights = []
    for make in (lambda p: TSRAdam(p, lr=0.1, rank=None), lambda p: torch.optim.Adam(p, lr=0.1)):
        wrapped = sharded()
        optimizer = make(wrapped.parameters())
        for _ in range(2):
            wrapped(torch.ones(2, 12)).sum().backward()
            optimizer.step()
        optimizer.load_state_dict(optimizer.state_dict())
        optimizer.step()
        weights.append([parameter.full_tensor().detach() for parameter in wrapped.parameters()])
    for own, plain in zip(*weights, strict=True):
        torch.testing.assert_close(own, plain)


@pytest.mark.usefixtures("group")
def test_a_refused_group_leaves_the_optimizer_as_it_was() -> None:
    optimizer = TSRAdam(model().parameters(), rank=3)
    with pytest.raises(ValueError, match="DTensor"):
        optimizer.add_param_group({"params": list(sharded().parameters())})
    assert len(optimizer.param_groups) == 1


@pytest.mark.usefixtures("half_a_group")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_orig_params": False}, "is the flat parameter of FullyShardedDataParallel"),
        ({"use_orig_params": True}, "is a one-dimensional piece of FullyShardedDataParallel's flat parameter"),
    ],
)
def test_shards_of_flat_parameters_are_refused(options: dict[str, bool], message: str) -> None:
    with pytest.raises(ValueError, match=f"{message}; use DistributedDataParallel, or .*NO_SHARD"):
        TSRAdam(sharded(flat=True, **options).parameters(), rank=3)


@pytest.mark.usefixtures("group")
def test_fsdp_that_keeps_matrices_whole_is_accepted() -> None:
    wrapped = sharded(flat=True, use_orig_params=True, sharding_strategy=ShardingStrategy.NO_SHARD)
    optimizer = TSRAdam(wrapped.parameters(), rank=3)
    wrapped(torch.ones(2, 12)).sum().backward()
    optimizer.step()
    assert [tuple(state["exp_avg"].shape) for state in optimizer.state.values()] == [(3, 3), (10,), (3, 3), (8,)]
