"""Each slot on its grid, and DES-LOC inside the cores: moments of core peers are averaged at periods of their own."""

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.optim.swarms import WIRES, Swarm, noise, optimizer_of
from tests.steady import steady, wide
from tsr_swarm.config.blocks import Block, BlockRole
from tsr_swarm.config.layout import FEW_BITS, MOMENT_BITS, Part, PayloadKind, Slot, published_slots, upload_slots
from tsr_swarm.config.round_plan import Due
from tsr_swarm.config.run import WireConfig
from tsr_swarm.errors import RunError
from tsr_swarm.lowrank.basis import Basis
from tsr_swarm.lowrank.grid import Grid, quantise_block, quantise_coarse, quantise_rows
from tsr_swarm.optim.block_state import zero_state
from tsr_swarm.optim.inner_optimizer import Adam, InnerOptimizer, Muon
from tsr_swarm.optim.publish import publish
from tsr_swarm.optim.quantise import moment_grid, quantise_slot, take_moment
from tsr_swarm.wire.codec import decode, encode

BLOCKS = (
    Block(name="a", rows=12, cols=9, rank=6, role=BlockRole.MATRIX),
    Block(name="b", rows=10, cols=8, rank=5, role=BlockRole.EMBEDDING),
)
BOTH = frozenset({0, 1})
DUES = [Due(), Due(tangent=BOTH), Due(tangent=frozenset({1}), range=BOTH, project=BOTH)]
LOW_RANK = ("a.weight", "b.weight", "c.weight")
BETAS = (0.9, 0.99)
FIRST, SECOND = (Slot(0, part, 4, 3, MOMENT_BITS, 4) for part in (Part.MOMENT_FIRST, Part.MOMENT_SECOND))
NEVER = 10**6
STILL = optimizer_of(aim="seed")  # no new basis before k_r


def numbers_for(slot: Slot, seed: int = 0) -> torch.Tensor:
    return torch.randn(slot.rows, slot.cols, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("due", DUES)
@pytest.mark.parametrize("layout", [upload_slots, published_slots])
def test_every_slot_gets_a_grid_that_travels(
    wire: WireConfig, due: Due, layout: Callable[[tuple[Block, ...], Due, WireConfig], tuple[Slot, ...]]
) -> None:
    slots = tuple(slot for slot in layout(BLOCKS, due, wire) if slot.exponents)
    grids = {slot: quantise_slot(numbers_for(slot), slot) for slot in slots}

    decoded = decode(slots, *encode(slots, grids, 1))

    for slot in slots:
        assert torch.equal(decoded[slot].numbers(), grids[slot].numbers())
        assert (grids[slot].exponents.numel(), grids[slot].mantissas.numel()) == (slot.exponents, slot.mantissas)


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("due", DUES)
def test_what_is_published_has_one_exponent_and_sketches_keep_their_bits(wire: WireConfig, due: Due) -> None:
    for slot in published_slots(BLOCKS, due, wire):
        if slot.part in (Part.TANGENT_LEFT, Part.TANGENT_RIGHT):
            assert slot.bits >= wire.sketch_bits
            assert slot.density == 1
        assert slot.exponents <= 1
        assert bool(slot.mantissas) == (slot.exponents > 0 and (slot.bits <= FEW_BITS or slot.density < 1))


def test_more_than_four_bits_of_full_density_have_steps_of_powers_of_two() -> None:
    upload, published = Slot(0, Part.CORE, 4, 4, 8, 4), Slot(0, Part.CORE, 4, 4, 16, 1)
    x = numbers_for(upload)

    assert torch.equal(quantise_slot(x, upload).values, quantise_rows(x, 8).values)
    assert torch.equal(quantise_slot(x, published).values, quantise_block(x, 16).values)


def test_stochastic_rounding_differs_by_peer_and_block_and_repeats_itself() -> None:
    here, there = (Slot(block, Part.CORE, 8, 8, 4, 8, 8, stochastic=True) for block in (0, 1))
    x = numbers_for(here)
    other = x + 2.0**-40  # another peer's numbers, as good as the same

    first = quantise_slot(x.double(), here)

    assert torch.equal(first.values, quantise_slot(x.double(), here).values)
    assert not torch.equal(first.values, quantise_slot(x.double(), there).values)
    assert not torch.equal(first.values, quantise_slot(other.double() + 2.0**-40, here).values)
    assert not torch.equal(first.values, quantise_coarse(x, 4, 8).values)
    assert torch.equal(first.mantissas, quantise_coarse(x, 4, 8).mantissas)


def moment(run: Any, peer: int, order: str, name: str) -> Tensor:
    """A peer's moment, bias-corrected, in float64."""
    state = run.spaces[peer].state_dict()
    steps = int(state["steps"][[block.name for block in run.blocks].index(name)])
    beta = BETAS[0] if order == "first" else BETAS[1]
    corrected: Tensor = state[f"{order}/{name}"].double() / (1 - beta**steps)
    return corrected


def difference(run: Any, order: str, name: str, peer: int = 1) -> float:
    """Between two peers, of the largest number of one."""
    one, other = moment(run, 0, order, name), moment(run, peer, order, name)
    return float((one - other).abs().max() / one.abs().max())


class Pull:
    """Each peer is drawn to its own target, through its own curvature."""

    def __init__(self, peers: int, size: int) -> None:
        generator = torch.Generator().manual_seed(3)
        self.targets = [torch.randn(size, size, generator=generator) for _ in range(peers)]
        self.curvatures = [0.5 + i + torch.rand(size, 1, generator=generator) for i in range(peers)]

    def __call__(self, peer: int, name: str, weight: Tensor) -> Tensor:
        return (self.curvatures[peer] * (weight - self.targets[peer])).to(weight.dtype)


def slow_des_loc(
    start: Tensor,
    gradient: Pull,
    peers: int,
    steps: int,
    periods: tuple[int, int, int],
    phases: tuple[int, int, int] = (0, 0, 0),
) -> Tensor:
    """Algorithm 1 of the paper as it is printed, in float64, with Adam's bias correction: averages, then a step.

    ``phases``: the step within each period before which the average is taken; 0 in the paper.
    """
    x, u, v = (torch.stack([numbers] * peers) for numbers in (start, start * 0, start * 0))
    for t in range(steps):
        for states, period, phase in zip((x, u, v), periods, phases, strict=True):
            if t % period == phase:
                states[:] = states.mean(0)
        for m in range(peers):
            g = gradient(m, "", x[m])
            u[m] = BETAS[0] * u[m] + (1 - BETAS[0]) * g
            v[m] = BETAS[1] * v[m] + (1 - BETAS[1]) * g * g
            u_hat, v_hat = u[m] / (1 - BETAS[0] ** (t + 1)), v[m] / (1 - BETAS[1] ** (t + 1))
            x[m] -= 0.05 * u_hat / (v_hat.sqrt() + 1e-8)
    return x.mean(0)


@pytest.mark.parametrize(("k_u", "k_v"), [(3, 3), (3, 9), (9, 6), (0, 6), (6, 0)])
def test_core_peers_with_a_basis_of_full_rank_are_des_loc_block_by_block(k_u: int, k_v: int) -> None:
    """Each block by itself, with its turn within the period."""
    size, peers, rounds, nearly_one = 5, 3, 9, 2047 / 2048
    identity = (torch.eye(size) * 2047).to(torch.int16)
    gradient = Pull(peers, size)
    run = Swarm(
        ["core"] * peers,
        gradient,
        # U and V are 2047/2048 times the identity, so gradients are that squared, and so are steps: undone
        optimizer=steady(aim="seed", rank=size, lr=0.05, warmup_steps=0, betas=BETAS, update_scale=nearly_one**-2),
        wire=WireConfig(core_bits=16, published_bits=16),
        k_x=3,
        k_r=3000,
        k_u=k_u,
        k_v=k_v,
        shapes=dict.fromkeys(LOW_RANK, (size, size)),
        bases=dict.fromkeys(range(len(LOW_RANK)), Basis(identity, identity)),
    )
    starts = {name: run.consensus[0].weights[name].double() for name in LOW_RANK}
    phases = {}
    for _ in range(rounds):
        for kind, blocks in (("first", run.plan.due.first), ("second", run.plan.due.second)):
            phases.update(dict.fromkeys(product(blocks, [kind]), 3 * run.plan.round))
        run.play()
    periods = 3, k_u or NEVER, k_v or NEVER
    for index, name in enumerate(LOW_RANK):
        weight = run.consensus[0].weights[name].double()
        steps = 0, phases.get((index, "first"), 0) % periods[1], phases.get((index, "second"), 0) % periods[2]
        expected = slow_des_loc(starts[name], gradient, peers, 3 * rounds, periods, steps)
        others = slow_des_loc(starts[name], gradient, peers, 3 * rounds, (3, NEVER, NEVER))
        assert (weight - expected).abs().max() < 1e-3
        assert (weight - others).abs().max() > 1e-2


def state_of(first: Tensor, second: Tensor, steps: int) -> Any:
    state = zero_state(first, moments=2)
    state.first.copy_(first)
    state.second.copy_(second)
    state.steps = steps
    return state


def sent_and_taken(state: Any, inner: InnerOptimizer, slot: Slot, into: Any) -> None:
    """One moment over the wire, with nothing but itself in the average."""
    grid = moment_grid(slot, state, inner)
    take_moment(slot, decode((slot,), *encode((slot,), {slot: grid}, 3))[slot], into, inner)


@given(seed=st.integers(0, 10**6), scale=st.integers(-20, 3), steps=st.integers(1, 2000))
def test_moments_survive_the_wire_to_sixteen_bits_of_their_rows(seed: int, scale: int, steps: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(4, 3, generator=generator) * 10.0**scale
    state, inner = state_of(first, first.square() / 4, steps), Adam(BETAS, 1e-8)
    taken = state_of(first * 0, first * 0, steps)
    for slot in (FIRST, SECOND):
        sent_and_taken(state, inner, slot, taken)
    for before, after in ((state.first, taken.first), (state.second, taken.second)):
        rows = before.abs().amax(dim=1, keepdim=True)
        assert ((after - before).abs() <= rows * 2.0**-15 + 1e-37).all()
    assert (taken.second > 0).all()


@given(st.lists(st.integers(-40, 0), min_size=3, max_size=3), st.integers(1, 50))
def test_no_second_moment_is_taken_as_zero_however_small(powers: list[int], steps: int) -> None:
    """A step divides by its root: with a moment that was rounded to zero it would be many times the rate."""
    gradient = torch.tensor([[10.0**power for power in powers]]).expand(4, 3)
    state, inner = zero_state(gradient, moments=2), Adam(BETAS, 1e-8)
    for step in range(1, steps + 1):
        inner.direction(gradient, state.first, state.second, [step])
    state.steps = steps
    for slot in (FIRST, SECOND):
        sent_and_taken(state, inner, slot, state)
    direction = state.first / inner.corrections(steps)[0]
    direction = direction / (state.second / inner.corrections(steps)[1]).sqrt()
    assert (direction.abs() <= 1.25).all()  # 1.5 steps of the grid may be rounded to one


def test_a_negative_average_is_not_taken_for_a_second_moment() -> None:
    state, inner = state_of(torch.ones(4, 3), torch.ones(4, 3), 5), Adam(BETAS, 1e-8)
    grid = Grid(torch.full((4, 3), -5, dtype=torch.int32), torch.full((4,), -10, dtype=torch.int32))
    take_moment(SECOND, grid, state, inner)
    assert torch.allclose(state.second, torch.tensor(2.0**-11 * (1 - BETAS[1] ** 5)))


def test_slots_of_moments_are_those_of_the_cores_and_only_when_due() -> None:
    blocks = (
        Block(name="a", rows=8, cols=12, rank=2, role=BlockRole.MATRIX, is_proportional=True),
        Block(name="n", rows=1, cols=5, rank=0, role=BlockRole.DENSE),
    )
    for layout in (upload_slots, published_slots):
        for first, second in product((frozenset[int](), frozenset({0, 1})), repeat=2):
            slots = layout(blocks, Due(first=first, second=second), wide())
            due = [slot for slot in slots if slot.part.kind is PayloadKind.MOMENT]
            parts = [part for part, is_due in zip((FIRST.part, SECOND.part), (first, second), strict=True) if is_due]
            assert due == [Slot(0, part, 2, 3, 16, 2) for part in parts]


def test_a_peer_without_any_steps_sends_zeros_and_takes_nothing() -> None:
    inner = Adam(BETAS, 1e-8)
    fresh, other = zero_state(torch.ones(4, 3), moments=2), state_of(torch.ones(4, 3), torch.ones(4, 3), 9)
    sent_and_taken(fresh, inner, FIRST, other)
    assert not other.first.any()
    sent_and_taken(other, inner, SECOND, fresh)
    assert not fresh.second.any()


def test_averages_are_bias_corrected_and_each_peer_applies_its_own_correction() -> None:
    one = torch.ones(4, 3)
    adam, muon = Adam(BETAS, 1e-8), Muon()
    for inner, betas in ((adam, BETAS), (muon, (0.95,))):
        short, long = (state_of(one * (1 - betas[0] ** t), one, t) for t in (2, 30))
        sent_and_taken(long, inner, FIRST, short)
        assert torch.allclose(short.first, one * (1 - betas[0] ** 2), rtol=1e-4)


@pytest.mark.parametrize(("k_u", "k_v"), [(3, 0), (0, 3), (3, 3), (9, 9), (9, 6)])
def test_after_the_round_all_core_peers_have_the_same_moments_of_the_blocks_that_were_due(k_u: int, k_v: int) -> None:
    """In the bases of before where those stay, in the new ones where they are refreshed in the same round."""
    run = Swarm(["core"] * 3, noise(1), k_u=k_u, k_v=k_v)
    refreshed = 0
    for _ in range(12):
        due = run.plan.due
        run.play()
        for (order, blocks), (index, name) in product(
            (("first", due.first), ("second", due.second)), enumerate(LOW_RANK)
        ):
            gaps = [difference(run, order, name, peer) for peer in (1, 2)]
            # a second moment turns together with the first: alone it is alike only between refreshes
            if index in blocks and (index in due.first or index not in due.refresh):
                assert max(gaps) < 1e-6
                refreshed += index in due.refresh
            elif index not in blocks:
                assert min(gaps) > 1e-3
        assert difference(run, "first", "norm") > 0.05, "dense blocks keep their own"
    assert refreshed or not k_u


@pytest.mark.parametrize(("included", "shares"), [([0, 1], (0.75, 0.25)), ([0], (1, 0)), ([], None)])
def test_all_peers_take_the_average_of_the_included_by_tokens_and_of_a_void_round_nothing(
    included: list[int], shares: tuple[float, float] | None
) -> None:
    run = Swarm(["core"] * 3, noise(2), optimizer=STILL, k_r=300, k_u=3, k_v=3, tokens=[3.0, 1.0, 1.0])
    run.train()
    before = [moment(run, peer, "first", "a.weight") for peer in range(3)]
    run.upload()
    run.close(included=included)
    for peer, own in enumerate(before):
        found = moment(run, peer, "first", "a.weight")
        if shares is None:
            assert torch.equal(found, own)
        else:
            torch.testing.assert_close(found, shares[0] * before[0] + shares[1] * before[1], rtol=1e-3, atol=1e-4)


def test_the_momentum_of_muon_is_averaged() -> None:
    run = Swarm(["core", "core"], noise(5), k_u=3, optimizer=optimizer_of(inner="muon"))
    run.play()
    one, other = (run.spaces[peer].state_dict() for peer in (0, 1))
    assert all(torch.allclose(one[f"first/{name}"], other[f"first/{name}"], rtol=1e-6) for name in LOW_RANK)
    assert one["first/a.weight"].any()


def test_moments_are_no_part_of_the_consensus_but_of_a_whole_round() -> None:
    """Weights and bases move alike whatever moments are published with them, but not without any."""
    run = Swarm(["core", "core"], noise(6), optimizer=STILL, k_r=300, k_u=3)
    run.train()
    run.upload()
    slots = published_slots(run.blocks, run.plan.due, run.config.wire)
    mean = {slot: grid.numbers() for slot, grid in run.sent[0].items()}
    published = publish(mean, slots, run.blocks, run.consensus[0].bases)
    moments = [slot for slot in slots if slot.part.kind is PayloadKind.MOMENT]
    assert len(moments) == len(LOW_RANK)
    missing = {slot: grid for slot, grid in published.items() if slot != moments[0]}
    with pytest.raises(RunError, match=r"publishes nothing as 'moment_first' of block 'a\.weight', not 4 x 4"):
        run.consensus[0].apply(run.plan, missing)
    other = {slot: Grid(published[slot].values + 1, published[slot].exponents) for slot in moments}
    for consensus, grids in zip(run.consensus, (published, published | other), strict=True):
        consensus.apply(run.plan, grids)
    assert run.consensus[0].digest() == run.consensus[1].digest()
