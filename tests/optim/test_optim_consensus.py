"""The state all peers share: how a round changes it, how it is named by a digest, and what is refused as a state."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.fixtures import round_plan
from tests.optim.swarms import BLOCKS, DUES, LOW_RANK, SEEDS, draw_mean
from tests.steady import wide
from tsr_swarm.config.blocks import Block, BlockRole
from tsr_swarm.config.layout import Part, Slot, published_slots
from tsr_swarm.config.round_plan import Due
from tsr_swarm.errors import RunError
from tsr_swarm.lowrank.basis import Basis, random_basis
from tsr_swarm.lowrank.dct import drawn_basis
from tsr_swarm.lowrank.exact import lift, lift_tangent
from tsr_swarm.lowrank.grid import Grid
from tsr_swarm.lowrank.orthogonal_iteration import range_of
from tsr_swarm.lowrank.randomized_svd import known_range, left_basis, right_basis
from tsr_swarm.optim.consensus import Consensus
from tsr_swarm.optim.publish import publish

VOIDS = st.frozensets(st.sampled_from((0, 1, 2)))


def draw_consensus(seed: int = 0, lift: str = "exact") -> Consensus:
    generator = torch.Generator().manual_seed(seed)
    shapes = {b.name: (b.rows, b.cols) if b.is_low_rank else (b.cols,) for b in BLOCKS}
    weights = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    bases = {i: random_basis(b.rows, b.cols, b.rank, 3, i) for i, b in enumerate(BLOCKS) if b.is_low_rank}
    return Consensus(BLOCKS, weights, bases, lift)


def draw_published(
    consensus: Consensus, due: Due, void: frozenset[int] = frozenset(), seed: int = 1
) -> dict[Slot, Grid]:
    mean = {slot: numbers / 100 for slot, numbers in draw_mean(due, seed).items()}
    return publish(mean, published_slots(BLOCKS, due, wide(), void), BLOCKS, consensus.bases)


def equal(a: Basis, b: Basis) -> bool:
    return torch.equal(a.left, b.left) and torch.equal(a.right, b.right)


@settings(max_examples=60)
@given(DUES, VOIDS, SEEDS)
def test_a_round_decays_subtracts_what_is_lifted_in_the_old_basis_and_reports_the_bases_that_it_changes(
    due: Due, void: frozenset[int], seed: int
) -> None:
    consensus = draw_consensus(seed)
    before, bases = dict(consensus.weights), dict(consensus.bases)
    published = draw_published(consensus, due, void, seed)
    grids = {(slot.block, slot.part): grid for slot, grid in published.items()}

    refreshed = consensus.apply(round_plan(due=due, decay=0.9), published, void)

    for index, block in enumerate(BLOCKS):
        old, new = before[block.name], consensus.weights[block.name]
        if index in void:
            assert torch.equal(new, old)
        elif not block.is_low_rank:
            assert torch.equal(new, old - grids[index, Part.DENSE].values.reshape(-1))
        elif index in due.tangent:
            sketch = grids[index, Part.TANGENT_LEFT], grids[index, Part.TANGENT_RIGHT]
            assert torch.equal(new, old * torch.tensor(0.9) - lift_tangent(bases[index], *sketch))
        else:
            assert torch.equal(new, old * torch.tensor(0.9) - lift(bases[index], grids[index, Part.CORE]))
    assert refreshed.keys() == due.refresh - void
    for index, basis in bases.items():
        now = consensus.bases[index]
        if index in due.range - void:
            assert torch.equal(now.range.int(), grids[index, Part.RANGE].values)
        else:
            assert now.range is None
        if index not in refreshed:
            assert equal(now, basis)
            continue
        assert equal(refreshed[index][0], basis)
        assert equal(refreshed[index][1], now)
        if index in due.project:
            known = known_range(basis, BLOCKS[index].sketch_width)
            assert torch.equal(now.left, left_basis(known, grids[index, Part.SINGULAR_LEFT].values))
            assert torch.equal(now.right, right_basis(grids[index, Part.SINGULAR_RIGHT].values))
        else:
            assert torch.equal(now.right, range_of(grids[index, Part.TANGENT_RIGHT], basis.right))


@settings(max_examples=20)
@given(DUES, VOIDS, SEEDS)
def test_two_peers_that_apply_the_same_rounds_have_the_same_digest(due: Due, void: frozenset[int], seed: int) -> None:
    one = draw_consensus(seed)
    other = Consensus.from_tensors(BLOCKS, one.tensors())
    for number, round_due in enumerate((Due(), due, Due())):
        published = draw_published(one, round_due, void, seed + number)
        one.apply(round_plan(due=round_due, decay=0.99), published, void)
        other.apply(round_plan(due=round_due, decay=0.99), dict(reversed(published.items())), void)

    assert one.digest() == other.digest()


@settings(max_examples=10)
@given(st.integers(0, 30), SEEDS)
def test_drawn_bases_are_the_same_for_all_peers_and_are_not_sent(number: int, seed: int) -> None:
    due = Due(draw=((0, number), (1, number + 1)))
    one = draw_consensus(seed)
    other = Consensus.from_tensors(BLOCKS, one.tensors())
    plan, published = round_plan(due=due, seed=seed), draw_published(one, due)
    weight = one.weights["up.weight"].clone()

    refreshed = one.apply(plan, published, frozenset({1}))
    other.apply(plan, published, frozenset({1}))

    assert {slot.part for slot in published} == {Part.CORE, Part.DENSE}
    assert refreshed.keys() == {0, 1}  # also of a void block: the number of the round alone says which basis it has
    assert equal(one.bases[0], drawn_basis(20, 8, (4, 4), seed=seed, block=0, number=number))
    assert equal(one.bases[1], drawn_basis(12, 9, (3, 3), seed=seed, block=1, number=number + 1))
    assert torch.equal(one.weights["up.weight"], weight)
    assert one.digest() == other.digest()


def test_a_side_that_could_not_be_aimed_keeps_its_basis() -> None:
    consensus = draw_consensus()
    due = Due(tangent=LOW_RANK)
    published = draw_published(consensus, due)
    for slot, grid in published.items():
        if (slot.block, slot.part) == (0, Part.TANGENT_LEFT) or slot.block == 1:
            grid.values.zero_()

    refreshed = consensus.apply(round_plan(due=due), published)

    assert refreshed.keys() == {0}  # block 1 kept both sides: nothing to rotate
    old, new = refreshed[0]
    assert torch.equal(old.left, new.left)
    assert not torch.equal(old.right, new.right)


@settings(max_examples=20)
@given(VOIDS, VOIDS, SEEDS)
def test_a_range_is_part_of_the_state_for_one_round_and_a_void_one_is_that_of_the_old_basis(
    first: frozenset[int], second: frozenset[int], seed: int
) -> None:
    one = draw_consensus(seed)
    one.apply(round_plan(due=Due(range=LOW_RANK)), draw_published(one, Due(range=LOW_RANK), first, seed), first)
    tensors = one.tensors()
    other = Consensus.from_tensors(BLOCKS, tensors)

    assert {name for name in tensors if name.startswith("range/")} == {
        f"range/{BLOCKS[index].name}" for index in LOW_RANK - first
    }
    assert one.digest() == other.digest()
    due, old = Due(project=LOW_RANK), dict(one.bases)
    published = draw_published(one, due, second, seed + 1)
    for consensus in (one, other):
        refreshed = consensus.apply(round_plan(due=due), published, second)
        assert refreshed.keys() == LOW_RANK - second
        assert not any(name.startswith("range/") for name in consensus.tensors())
    assert one.digest() == other.digest()
    for index in LOW_RANK & first - second:  # U turns within its span
        u, before = (basis.left_float(torch.float64) for basis in (one.bases[index], old[index]))
        assert float((u - before @ (before.mT @ u)).norm()) < 0.02


def test_tensors_taken_before_a_round_do_not_change() -> None:
    consensus = draw_consensus()
    state = consensus.tensors()
    copies = {name: tensor.clone() for name, tensor in state.items()}
    due = Due(range=LOW_RANK, project=LOW_RANK)

    consensus.apply(round_plan(due=due, decay=0.9), draw_published(consensus, due))

    assert all(torch.equal(state[name], copies[name]) for name in copies)


def test_weights_given_are_copied() -> None:
    weights = {b.name: torch.ones(b.rows, b.cols) for b in BLOCKS}
    consensus = Consensus(BLOCKS, weights, draw_consensus().bases)
    before = consensus.digest()

    for weight in weights.values():
        weight.zero_()

    assert consensus.digest() == before


@pytest.mark.parametrize(
    ("spoiled", "says"),
    [(Part.DENSE, r"publishes nothing as 'dense' of block 'norm.weight', not 1 x 9"), (Part.RANGE, "65536")],
)
def test_a_round_that_lacks_a_part_or_has_a_range_out_of_bounds_changes_nothing(spoiled: Part, says: str) -> None:
    consensus = draw_consensus()
    before = consensus.digest()
    due = Due(range=LOW_RANK, project=LOW_RANK)
    published = draw_published(consensus, due)
    slot = next(slot for slot in published if slot.part is spoiled)
    if spoiled is Part.DENSE:
        del published[slot]
    else:
        published[slot].values[0, 0] = 65536

    with pytest.raises(RunError, match=says):
        consensus.apply(round_plan(due=due), published)

    assert consensus.digest() == before


def test_the_float32_control_is_close_to_the_exact_lift() -> None:
    exact, control = draw_consensus(), draw_consensus(lift="float32")
    for due in (Due(), Due(tangent=LOW_RANK)):
        published = draw_published(exact, due)
        exact.apply(round_plan(due=due), published)
        control.apply(round_plan(due=due), published)

    for name, weight in exact.weights.items():
        torch.testing.assert_close(control.weights[name], weight, rtol=1e-4, atol=1e-4)


@settings(max_examples=60)
@given(st.data())
def test_any_changed_number_changes_the_digest(data: st.DataObject) -> None:
    consensus = draw_consensus()
    state = {name: tensor.clone() for name, tensor in consensus.tensors().items()}
    flat = state[data.draw(st.sampled_from(sorted(state)))].view(-1)
    position = data.draw(st.integers(0, flat.numel() - 1))
    flat[position] = (
        torch.nextafter(flat[position], flat[position] * 2 + 1) if flat.is_floating_point() else flat[position] ^ 1
    )

    assert Consensus.from_tensors(BLOCKS, state).digest() != consensus.digest()


def test_a_changed_name_or_shape_changes_the_digest() -> None:
    weights, bases = {"a": torch.zeros(2, 6)}, {0: random_basis(2, 6, 1, 0, 0)}
    named, renamed, reshaped = (
        Consensus((Block(name=name, rows=rows, cols=12 // rows, rank=0, role=BlockRole.DENSE),), {name: weight}, bases)
        for name, rows, weight in (("a", 2, weights["a"]), ("b", 2, weights["a"]), ("a", 3, weights["a"].view(3, 4)))
    )

    assert len({named.digest(), renamed.digest(), reshaped.digest()}) == 3


def test_minus_zero_and_zero_have_different_digests() -> None:
    block = (Block(name="a", rows=1, cols=1, rank=0, role=BlockRole.DENSE),)
    plus, minus = (Consensus(block, {"a": torch.tensor([x])}, {}) for x in (0.0, -0.0))

    assert plus.digest() != minus.digest()


def first_row(value: float) -> Callable[[Tensor], Tensor]:
    return lambda tensor: tensor.index_fill(0, torch.tensor([0]), value)


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("weight/up.weight", lambda _: None, r"differ in 1 names, the first is 'weight/up.weight'"),
        ("left/norm.weight", lambda _: torch.zeros(1), "left/norm.weight"),
        ("weight/up.weight", lambda x: x.mT, r"shape \(9, 12\), the manifest says 12 x 9"),
        ("weight/norm.weight", lambda x: x[:-1], "shape"),
        ("weight/up.weight", lambda x: x.double(), "float64, not float32"),
        ("weight/up.weight", first_row(math.nan), "not finite"),
        ("weight/norm.weight", first_row(math.inf), "not finite"),
        ("left/up.weight", lambda x: x.int(), "int32, not int16"),
        ("left/up.weight", lambda x: x[:, :2], "12 x 3"),
        ("right/up.weight", first_row(2048), "beyond 2047"),
        ("right/up.weight", first_row(-2048), "beyond 2047"),
        ("right/up.weight", first_row(-32768), "beyond 2047"),
        ("range/up.weight", lambda _: torch.zeros(3, 9, dtype=torch.int16), "has shape"),
        ("range/up.weight", lambda _: torch.full((3, 12), -32768, dtype=torch.int16), "beyond 32767"),
        ("range/norm.weight", lambda _: torch.zeros(3, 9, dtype=torch.int16), "differ in 1 names"),
    ],
)
def test_an_invalid_state_is_refused(name: str, change: Callable[[Any], Tensor | None], says: str) -> None:
    state = draw_consensus().tensors()
    if (changed := change(state.pop(name, None))) is not None:
        state[name] = changed

    with pytest.raises(RunError, match=says):
        Consensus.from_tensors(BLOCKS, state)
