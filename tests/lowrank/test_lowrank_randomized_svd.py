"""Bases from integers: orthonormal, in the span of what was published, and exact whatever was published."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tsr_swarm.lowrank.basis import Basis, is_orthonormal, random_basis
from tsr_swarm.lowrank.randomized_svd import (
    draw_test_matrix,
    known_range,
    left_basis,
    orthonormal_rows,
    projection,
    range_basis,
    range_sketch,
    right_basis,
    singular_vectors,
)

SEEDS = st.integers(0, 2**31)
BITS = st.sampled_from((3, 4, 5, 6, 8, 16))


@settings(max_examples=60)
@given(st.integers(2, 60), st.data(), BITS, SEEDS)
def test_rounded_directions_become_orthonormal_in_their_span(
    size: int, data: st.DataObject, bits: int, seed: int
) -> None:
    rank = data.draw(st.integers(1, max(1, size // 2)))
    generator = torch.Generator().manual_seed(seed)
    exact, _ = torch.linalg.qr(torch.randn(size, rank, generator=generator, dtype=torch.float64))
    limit = 2 ** (bits - 1) - 1
    rows = torch.round(exact.mT / exact.mT.abs().amax(dim=1, keepdim=True) * limit)
    found = orthonormal_rows(rows)
    assert found is not None
    if float(torch.linalg.cond(rows)) < 1.5:
        assert is_orthonormal(found)
        u = found.double() / 2048
        q, _ = torch.linalg.qr(rows.mT)
        assert float((u - q @ (q.mT @ u)).abs().max()) < 2**-9


@settings(max_examples=60)
@given(st.integers(1, 40), st.integers(1, 12), SEEDS, st.booleans())
def test_the_bits_do_not_depend_on_the_order_of_sums_whatever_the_integers(
    size: int, rank: int, seed: int, alike: bool
) -> None:
    """Permuted columns are other orders of the same sums; equal rows, which no honest reducer sends, grow most."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(-32767, 32768, (rank, size), generator=generator).double()
    rows = rows[:1].expand(rank, size).clone() if alike else rows
    order = torch.randperm(size, generator=generator)
    one, other = orthonormal_rows(rows), orthonormal_rows(rows[:, order])
    assert (one is None) == (other is None)
    if one is not None and other is not None:
        assert torch.equal(one[order], other)


def test_a_row_of_zeros_is_no_direction() -> None:
    assert orthonormal_rows(torch.tensor([[1.0, 2.0], [0.0, 0.0]], dtype=torch.float64)) is None


@given(SEEDS, st.integers(0, 5), st.integers(1, 100))
def test_a_test_matrix_holds_the_old_basis_and_signs_that_are_fresh_in_each_round(
    seed: int, block: int, round: int
) -> None:
    right = random_basis(9, 7, 3, 0, 0).right_float()
    drawn, same, later = (
        draw_test_matrix(right, width=5, seed=seed, block=block, round=at) for at in (round, round, round + 1)
    )
    assert torch.equal(drawn[:, :3], right)
    assert torch.equal(drawn, same)
    assert not torch.equal(drawn, later)
    torch.testing.assert_close(drawn[:, 3:].norm(dim=0), torch.ones(2))


@settings(max_examples=30)
@given(st.integers(0, 8), SEEDS, st.sampled_from((8, 16)))
def test_a_matrix_of_low_rank_is_held_whole_and_what_it_lacks_is_filled(rank: int, seed: int, bits: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(24, rank, generator=generator) @ torch.randn(rank, 20, generator=generator)
    old = random_basis(24, 20, 8, seed, 0)
    test = draw_test_matrix(old.right_float(), width=12, seed=seed, block=0, round=1)
    known = range_basis(range_sketch(a, test), old, bits).to(torch.int16)
    left, right = singular_vectors(known, projection(a, known.float()), 8, bits)
    bases = left_basis(known, left), right_basis(right)
    assert all((basis is None) == (rank == 0) for basis in bases)
    if bases[0] is not None and bases[1] is not None:
        u, v = (basis.float() / 2048 for basis in bases)
        assert is_orthonormal(bases[0])
        assert is_orthonormal(bases[1])
        assert float((u @ (u.mT @ a @ v) @ v.mT - a).norm()) < 0.1 * float(a.norm())


def test_a_range_that_was_void_is_that_of_the_old_basis() -> None:
    basis = random_basis(9, 7, 3, 0, 0)
    known = known_range(basis, 5)
    assert torch.equal(known[:3], basis.left.mT)
    assert not known[3:].any()
    published = torch.ones(5, 9, dtype=torch.int16)
    assert known_range(Basis(basis.left, basis.right, published), 5) is published
    left, right = singular_vectors(known, projection(torch.randn(9, 7), known.float()), 3, 8)
    assert left_basis(known, left) is not None
    assert right_basis(right) is not None
