"""Unsent work when the basis changes: all of it is still there, and all of it goes out in the end."""

from collections.abc import Callable
from itertools import pairwise

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from steady import steady, wide

from tsr_swarm.lowrank.basis import Basis
from tsr_swarm.lowrank.dct import drawn_basis
from tsr_swarm.lowrank.packed import Packed
from tsr_swarm.optim.residual import carry


def whole(core: torch.Tensor, residual: Packed | None, basis: Basis) -> torch.Tensor:
    inside = basis.left_float() @ core @ basis.right_float().mT
    return inside if residual is None else inside + residual.numbers()


@settings(deadline=None)
@given(st.integers(4, 20), st.integers(4, 20), st.integers(0, 9), st.data())
def test_no_work_is_lost_when_the_basis_changes(rows: int, cols: int, seed: int, data: st.DataObject) -> None:
    ranks = data.draw(st.integers(1, rows)), data.draw(st.integers(1, cols))
    bases = [drawn_basis(rows, cols, ranks, seed=seed, block=0, number=number) for number in range(6)]
    core, residual = torch.randn(ranks, generator=torch.Generator().manual_seed(seed)), None
    work = whole(core, residual, bases[0])
    for old, new in pairwise(bases):
        core, residual = carry(core, residual, old, new)
        # each packing moves a number by at most 1/14 of its bucket's largest, and what the basis holds by nothing
        assert (whole(core, residual, new) - work).abs().max() <= 5 / 14 * work.abs().max() + 1e-5


@settings(deadline=None)
@given(st.integers(4, 16), st.integers(4, 16), st.integers(0, 9), st.data())
def test_the_core_takes_what_the_basis_holds(rows: int, cols: int, seed: int, data: st.DataObject) -> None:
    """Reference: projections written out with full-size projectors in float64."""
    ranks = data.draw(st.integers(1, rows)), data.draw(st.integers(1, cols))
    old, new = (drawn_basis(rows, cols, ranks, seed=seed, block=0, number=number) for number in (0, 3))
    core = torch.randn(ranks, generator=torch.Generator().manual_seed(seed))
    work = whole(core, None, old).double()
    u, v = new.left_float(torch.float64), new.right_float(torch.float64)

    turned, residual = carry(core, None, old, new)

    assert torch.allclose(u @ turned.double() @ v.mT, (u @ u.mT) @ work @ (v @ v.mT), atol=1e-4)
    rest = work - (u @ u.mT) @ work @ (v @ v.mT)
    kept = torch.zeros(()) if residual is None else residual.numbers().double()
    assert (kept - rest).abs().max() <= rest.abs().max() / 14 + 1e-4


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
        # what waits is rounded to four bits every round that it waits; without a residual all of it is missing
        assert (moved - wanted).norm() < 0.2 * wanted.norm()


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
