"""Unsent work when the basis changes: all of it is still there, and all of it goes out in the end."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.steady import steady, wide
from tsr_swarm.lowrank.basis import Basis
from tsr_swarm.lowrank.dct import drawn_basis
from tsr_swarm.optim.waiting_work import Waiting, averaged, turned


def unsent(core: torch.Tensor, waiting: Waiting | None, basis: Basis) -> torch.Tensor:
    """A = E + U (C - S0) V^T."""
    u, v = basis.left_float(), basis.right_float()
    return u @ core @ v.mT if waiting is None else waiting.outside(basis) + u @ core @ v.mT


@settings(deadline=None)
@given(st.integers(4, 20), st.integers(4, 20), st.integers(0, 9), st.data())
def test_no_work_is_lost_or_added_however_often_the_basis_changes(
    rows: int, cols: int, seed: int, data: st.DataObject
) -> None:
    """Story: packed anew at each of 200 changes, the work of one late round grew to six times its energy."""
    ranks = data.draw(st.integers(1, rows)), data.draw(st.integers(1, cols))
    bases = [drawn_basis(rows, cols, ranks, seed=seed, block=0, number=number) for number in range(20)]
    core: torch.Tensor = torch.randn(ranks, generator=torch.Generator().manual_seed(seed))
    waiting: Waiting | None = None
    work = unsent(core, waiting, bases[0])
    for old, new in pairwise(bases):
        core, waiting = turned(core, waiting, old, new, usual=0.0, bits=8)
        assert (unsent(core, waiting, new) - work).abs().max() <= work.abs().max() / 254 + 1e-5  # packed once


@settings(deadline=None)
@given(st.integers(4, 16), st.integers(4, 16), st.integers(0, 9), st.data())
def test_the_core_begins_with_what_the_basis_holds(rows: int, cols: int, seed: int, data: st.DataObject) -> None:
    """Reference: full-size projectors in float64."""
    ranks = data.draw(st.integers(1, rows)), data.draw(st.integers(1, cols))
    old, new = (drawn_basis(rows, cols, ranks, seed=seed, block=0, number=number) for number in (0, 3))
    core = torch.randn(ranks, generator=torch.Generator().manual_seed(seed))

    began, waiting = turned(core, None, old, new, usual=0.0, bits=8)

    assert waiting is not None
    work = waiting.work.numbers().double()
    u, v = new.left_float(torch.float64), new.right_float(torch.float64)
    assert torch.allclose(u @ began.double() @ v.mT, (u @ u.mT) @ work @ (v @ v.mT), atol=1e-4)
    left = averaged(waiting, new)
    rest = work - (u @ u.mT) @ work @ (v @ v.mT)
    kept = torch.zeros(()) if left is None else left.work.numbers().double()
    assert (kept - rest).abs().max() <= rest.abs().max() / 254 + 0.02 * work.norm()


@pytest.mark.parametrize(("share", "error"), [(2, 0.05), (4, 0.1), (8, 0.2)])
def test_work_goes_out_once_as_its_directions_have_their_turn(share: int, error: float) -> None:
    """A peer missed one round, has no new work and is in every average for two cycles of all bases."""
    rows, cols = 64, 48
    ranks = rows // share, cols // share
    old = drawn_basis(rows, cols, ranks, seed=1, block=0, number=0)
    core: torch.Tensor = torch.randn(ranks, generator=torch.Generator().manual_seed(2))
    waiting: Waiting | None = None
    work, out = unsent(core, None, old), torch.zeros(rows, cols)
    for number in range(1, 2 * share**2 + 1):
        new = drawn_basis(rows, cols, ranks, seed=1, block=0, number=number)
        core, waiting = turned(core, waiting, old, new, usual=0.0, bits=8)
        out += new.left_float() @ core @ new.right_float().mT
        waiting, core, old = waiting and averaged(waiting, new), torch.zeros(ranks), new

    along = float((out * work).sum() / work.square().sum())
    assert 0.9 < along < 1.1
    assert (out - work).norm() < error * work.norm()


def test_work_that_waits_too_long_goes_on_by_half() -> None:
    old, new = (drawn_basis(16, 16, (4, 4), seed=0, block=0, number=number) for number in (0, 1))
    core = torch.ones(4, 4) * 100
    _, free = turned(core, None, old, new, usual=0.0, bits=8)
    _, bounded = turned(core, None, old, new, usual=1.0, bits=8)
    assert free is not None
    assert bounded is not None
    assert abs(bounded.work.norm() / free.work.norm() - 0.5) < 1e-6


def test_a_peer_left_out_for_a_round_gives_all_its_work_in_the_end(swarm: type, noise: Callable) -> None:
    """Story: with drawn bases the next basis holds nothing of the last one, and a late peer's round was lost."""
    optimizer = steady(rank="1/2", aim="seed", inner="muon", lr=0.01, warmup_steps=0)
    shapes = {"a.weight": (12, 8), "b.weight": (8, 8)}
    wire = wide(core_bits=16)
    run = swarm(["core"], noise(3), optimizer=optimizer, wire=wire, shapes=shapes, k_x=3, k_r=3)
    run.play()
    run.train()
    before = {name: run.consensus[0].weights[name].clone() for name in shapes}
    goal = {name: run.parameters[0][name].detach().clone() for name in shapes}
    run.upload()
    run.close(included=[])  # void: nobody was in time
    for _ in range(8):  # no steps are taken: only old work goes out, as its directions get their turn
        run.upload()
        run.close()
    for name in shapes:
        moved, wanted = run.consensus[0].weights[name] - before[name], goal[name] - before[name]
        assert (moved - wanted).norm() < 0.05 * wanted.norm()  # without what waits, all of it


@settings(deadline=None, max_examples=10)
@given(st.booleans(), st.sampled_from([2, 3, 4]), st.integers(0, 99))
def test_without_feedback_rounding_is_forgotten_and_work_is_not(
    swarm: type, noise: Callable, feedback: bool, bits: int, seed: int
) -> None:
    optimizer = steady(rank=4, lr=0.01, warmup_steps=0, feedback=feedback)
    run = swarm(["core", "core"], noise(seed), optimizer=optimizer, wire=wide(core_bits=bits), k_r=3000)
    run.play()
    run.train()
    work = [run.displacement(peer, "a.weight") for peer in range(2)]
    run.upload()
    sent = next(grid.numbers() for slot, grid in run.sent[0].items() if slot.block == 0)
    run.close(included=[0])

    left = work[0] - sent if feedback else torch.zeros_like(work[0])
    assert torch.allclose(run.displacement(0, "a.weight"), left, atol=1e-6)
    assert torch.equal(run.displacement(1, "a.weight"), work[1])
