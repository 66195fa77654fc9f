"""CoreStack's products: the formulas, for every shape, without a copy of anything of full size."""

import gc

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.optim.swarms import Swarm, noise
from tests.steady import steady
from tsr_swarm.config.blocks import plan_blocks
from tsr_swarm.config.run import OptimizerConfig
from tsr_swarm.lowrank.basis import random_basis
from tsr_swarm.optim.consensus import Consensus
from tsr_swarm.optim.core_space import CoreSpace
from tsr_swarm.optim.core_stack import project, stacks, subtract_lifted

SIZE, RANK = st.integers(1, 9), st.integers(1, 5)
SHAPES = st.tuples(st.integers(1, 4), SIZE, SIZE, RANK, RANK)  # blocks, M, N, P, Q


def draw(count: int, rows: int, cols: int, p: int, q: int, seed: int) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    whole = [torch.randn(rows, cols, generator=generator) for _ in range(count)]
    shapes = ((count, rows, p), (count, cols, q), (count, p, q))
    left, right, core = (torch.randn(shape, generator=generator) for shape in shapes)
    return whole, left, right, core


@settings(max_examples=40)
@given(shape=SHAPES, missing=st.integers(0, 3), half=st.booleans(), seed=st.integers(0, 2**16))
def test_a_projection_is_u_t_g_v_and_a_missing_gradient_is_zero(
    shape: tuple[int, ...], missing: int, half: bool, seed: int
) -> None:
    whole, left, right, _ = draw(*shape, seed)
    given_in = [g.to(torch.bfloat16) if half else g for g in whole]
    gradients = [None if position == missing else gradient for position, gradient in enumerate(given_in)]
    found = project(gradients, left, right)
    for position, gradient in enumerate(given_in):
        g = torch.zeros(gradient.shape) if position == missing else gradient
        expected = left[position].double().mT @ g.double() @ right[position].double()
        torch.testing.assert_close(found[position].double(), expected, rtol=1e-4, atol=1e-4)


@settings(max_examples=40)
@given(shape=SHAPES, seed=st.integers(0, 2**16))
def test_a_lift_subtracts_u_c_v_t_in_place(shape: tuple[int, ...], seed: int) -> None:
    whole, left, right, core = draw(*shape, seed)
    expected = [
        w.double() - u.double() @ c.double() @ v.double().mT
        for w, u, c, v in zip(whole, left, core, right, strict=True)
    ]
    subtract_lifted(whole, core, left, right)
    for found, wanted in zip(whole, expected, strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-4)


def begun(parameters: dict[str, nn.Parameter], optimizer: OptimizerConfig) -> tuple[CoreSpace, Consensus]:
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    blocks = plan_blocks(shapes, optimizer, 8)
    weights = {name: torch.ones(shape) for name, shape in shapes.items()}
    bases = {i: random_basis(b.rows, b.cols, b.rank, 0, 0) for i, b in enumerate(blocks)}  # alike blocks, one basis
    consensus = Consensus(blocks, weights, bases)
    space = CoreSpace(parameters, blocks, optimizer)
    space.begin(consensus)
    return space, consensus


@pytest.mark.parametrize("inner", ["adam", "muon"])
def test_nothing_of_full_size_is_kept_between_steps(inner: str) -> None:
    parameters = {f"{n}.weight": nn.Parameter(torch.zeros(64, 48)) for n in range(3)}
    before = {id(found) for found in gc.get_objects()}
    space, consensus = begun(parameters, steady(rank=4, inner=inner))
    for parameter in parameters.values():
        parameter.grad = torch.randn(64, 48)
    space.step(0.01)
    gc.collect()
    kept = [found for found in gc.get_objects() if id(found) not in before and type(found) is Tensor]
    shared = {t.untyped_storage().data_ptr() for t in consensus.tensors().values()}
    shared |= {p.grad.untyped_storage().data_ptr() for p in parameters.values() if p.grad is not None}
    own = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}
    numbers = sum(size for address, size in own.items() if address not in shared) / 4
    assert numbers == 3 * 4 * (64 + 48) + 3 * 4 * 4 * (3 if inner == "adam" else 2)


def test_small_steps_arrive_in_half_precision_parameters_too() -> None:
    parameters = {
        "a.weight": nn.Parameter(torch.zeros(8, 6, dtype=torch.bfloat16)),
        "b.weight": nn.Parameter(torch.zeros(8, 6)),
    }
    space, _ = begun(parameters, steady(rank=5))
    gradient = torch.sign(torch.randn(8, 6, generator=torch.Generator().manual_seed(1)))
    for _ in range(40):
        for parameter in parameters.values():
            parameter.grad = gradient.to(parameter.dtype)
        space.step(2**-12)  # a sixteenth of what bfloat16 resolves at 1
    moved = [parameter.detach().float() - 1 for parameter in parameters.values()]
    assert moved[1].abs().max() > 2**-6
    torch.testing.assert_close(moved[0], moved[1], rtol=0, atol=2**-8)


def test_many_small_steps_add_up_to_the_lifted_core() -> None:
    run = Swarm(["core"], noise(1), k_r=3000)
    for _ in range(300):
        run.step(0.01)
    walked = {name: parameter.detach().clone() for name, parameter in run.parameters[0].items()}
    run.begin()
    for name, parameter in run.parameters[0].items():
        torch.testing.assert_close(walked[name], parameter.detach(), rtol=0, atol=1e-4)


def test_a_stack_is_split_before_its_products_grow_large() -> None:
    blocks = plan_blocks({f"{n}.weight": (2048, 2048) for n in range(9)}, steady(rank=2048), 8)
    parameters = {block.name: nn.Parameter(torch.empty(2048, 2048, device="meta")) for block in blocks}
    parts = list(stacks(blocks, parameters, steady(rank=2048)))
    assert [len(stack.states) for stack in parts] == [4, 4, 1]
