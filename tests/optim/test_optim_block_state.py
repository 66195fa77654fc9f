"""Unsent work when the basis changes: all of it is still there, and all of it goes out in the end."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.optim.swarms import Swarm, noise
from tests.steady import steady, wide
from tsr_swarm.lowrank.basis import Basis
from tsr_swarm.lowrank.dct import drawn_basis
from tsr_swarm.optim.block_state import UnsentWork, change_basis


def unsent(core: torch.Tensor, rest: UnsentWork | None, basis: Basis) -> torch.Tensor:
    """A = E + U (C - S0) V^T."""
    u, v = basis.left_float(), basis.right_float()
    return u @ core @ v.mT if rest is None else rest.outside(basis) + u @ core @ v.mT


@given(st.integers(4, 20), st.integers(4, 20), st.integers(0, 9), st.data())
def test_no_work_is_lost_or_added_however_often_the_basis_changes(
    rows: int, cols: int, seed: int, data: st.DataObject
) -> None:
    """Story: packed anew at each of 200 changes, the work of one late round grew to six times its energy."""
    ranks = data.draw(st.integers(1, rows)), data.draw(st.integers(1, cols))
    bases = [drawn_basis(rows, cols, ranks, seed=seed, block=0, number=number) for number in range(20)]
    core: torch.Tensor = torch.randn(ranks, generator=torch.Generator().manual_seed(seed))
    rest: UnsentWork | None = None
    work = unsent(core, rest, bases[0])
    for old, new in pairwise(bases):
        core, rest = change_basis(core, rest, old, new, usual=0.0, bits=8)
        assert (unsent(core, rest, new) - work).abs().max() <= work.abs().max() / 254 + 1e-5  # packed once


@given(st.integers(4, 16), st.integers(4, 16), st.integers(0, 9), st.data())
def test_the_core_begins_with_what_the_basis_holds(rows: int, cols: int, seed: int, data: st.DataObject) -> None:
    """Reference: full-size projectors in float64."""
    ranks = data.draw(st.integers(1, rows)), data.draw(st.integers(1, cols))
    old, new = (drawn_basis(rows, cols, ranks, seed=seed, block=0, number=number) for number in (0, 3))
    core = torch.randn(ranks, generator=torch.Generator().manual_seed(seed))

    began, rest = change_basis(core, None, old, new, usual=0.0, bits=8)

    work = rest.work.numbers().double()
    u, v = new.left_float(torch.float64), new.right_float(torch.float64)
    assert torch.allclose(u @ began.double() @ v.mT, (u @ u.mT) @ work @ (v @ v.mT), atol=1e-4)
    left = rest.after_average(new)
    expected = work - (u @ u.mT) @ work @ (v @ v.mT)
    kept = torch.zeros(()) if left is None else left.work.numbers().double()
    assert (kept - expected).abs().max() <= expected.abs().max() / 254 + 0.02 * work.norm()


@pytest.mark.parametrize(("share", "error"), [(2, 0.05), (4, 0.1), (8, 0.2)])
def test_work_is_sent_once_when_a_basis_holds_its_directions(share: int, error: float) -> None:
    """A peer missed one round, has no new work and is in every average for two cycles of all bases."""
    rows, cols = 64, 48
    ranks = rows // share, cols // share
    old = drawn_basis(rows, cols, ranks, seed=1, block=0, number=0)
    core: torch.Tensor = torch.randn(ranks, generator=torch.Generator().manual_seed(2))
    rest: UnsentWork | None = None
    work, out = unsent(core, None, old), torch.zeros(rows, cols)
    for number in range(1, 2 * share**2 + 1):
        new = drawn_basis(rows, cols, ranks, seed=1, block=0, number=number)
        core, rest = change_basis(core, rest, old, new, usual=0.0, bits=8)
        out += new.left_float() @ core @ new.right_float().mT
        rest, core, old = rest and rest.after_average(new), torch.zeros(ranks), new

    along = float((out * work).sum() / work.square().sum())
    assert 0.9 < along < 1.1
    assert (out - work).norm() < error * work.norm()


def test_work_that_stays_too_long_is_halved() -> None:
    old, new = (drawn_basis(16, 16, (4, 4), seed=0, block=0, number=number) for number in (0, 1))
    core = torch.ones(4, 4) * 100
    _, free = change_basis(core, None, old, new, usual=0.0, bits=8)
    _, bounded = change_basis(core, None, old, new, usual=1.0, bits=8)
    assert abs(bounded.work.norm() / free.work.norm() - 0.5) < 1e-6


def test_all_work_of_a_peer_that_missed_a_round_is_averaged_in_time() -> None:
    """Story: with drawn bases the next basis holds nothing of the last one, and a late peer's round was lost."""
    optimizer = steady(rank="1/2", aim="seed", inner="muon", lr=0.01, warmup_steps=0)
    shapes = {"a.weight": (12, 8), "b.weight": (8, 8)}
    wire = wide(core_bits=16)
    run = Swarm(["core"], noise(3), optimizer=optimizer, wire=wire, shapes=shapes, k_x=3, k_r=3)
    run.play()
    run.train()
    before = {name: run.consensus[0].weights[name].clone() for name in shapes}
    goal = {name: run.parameters[0][name].detach().clone() for name in shapes}
    run.upload()
    run.close(included=[])  # void: no peer was in time
    for _ in range(8):  # no steps are taken: only old work goes out, as its directions get their turn
        run.upload()
        run.close()
    for name in shapes:
        moved, wanted = run.consensus[0].weights[name] - before[name], goal[name] - before[name]
        assert (moved - wanted).norm() < 0.05 * wanted.norm()
