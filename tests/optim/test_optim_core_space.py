"""CoreSpace: W_i = Wbar + U S V^T at all times, and no work lost or counted twice, whoever was included."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.optim.swarms import FLOAT32, NEVER, Swarm, noise, optimizer_of
from tests.steady import wide
from tsr_swarm.config.layout import Part
from tsr_swarm.errors import CheckpointError, RunError
from tsr_swarm.lowrank.basis import random_basis
from tsr_swarm.lowrank.packed import Packed
from tsr_swarm.lowrank.sketch import rotate_core, rotate_moments
from tsr_swarm.optim.block_state import UnsentWork
from tsr_swarm.optim.consensus import Consensus


def outside(swarm: Swarm, peer: int, name: str) -> Tensor:
    """What of a core peer's unsent work its basis does not hold, float64."""
    state = swarm.spaces[peer].state_dict()
    if f"residual/codes/{name}" not in state:
        return torch.zeros(())
    block = next(block for block in swarm.blocks if block.name == name)
    packed = Packed(*(state[f"residual/{part}/{name}"] for part in ("codes", "scales")), (block.rows, block.cols))
    basis = swarm.consensus[peer].bases[swarm.blocks.index(block)]
    return UnsentWork(packed, state[f"residual/share/{name}"]).outside(basis).double()


@settings(max_examples=15)
@given(
    rank=st.integers(1, 4),
    shapes=st.lists(st.tuples(st.integers(4, 8), st.integers(4, 8)), min_size=1, max_size=4),
    seed=st.integers(0, 2**16),
)
def test_parameters_are_wbar_plus_the_lifted_core_after_every_step(
    rank: int, shapes: list[tuple[int, int]], seed: int
) -> None:
    named = {f"{number}.weight": shape for number, shape in enumerate(shapes)}
    optimizer = optimizer_of(rank=rank, lr=0.05)
    run = Swarm(["core"], noise(seed), optimizer=optimizer, shapes=named, seed=seed)
    for _ in range(3):
        for _ in range(2):
            run.step(0.05)
            for name in named:
                expected = run.consensus[0].weights[name] - run.lifted(0, name) - outside(run, 0, name)
                torch.testing.assert_close(run.parameters[0][name].double(), expected, rtol=0, atol=FLOAT32)
        run.upload()
        run.close()


def test_a_refresh_turns_cores_and_moments_and_keeps_the_step_count() -> None:
    run = Swarm(["core", "core"], noise(4), optimizer=optimizer_of(residual_bits=0), k_x=3, k_r=3)
    run.play()
    run.play()  # the next round refreshes, as this one did
    run.train()
    before, old = run.spaces[1].state_dict(), run.consensus[1].bases[0]
    run.upload()
    run.close(included=[0])
    after, new = run.spaces[1].state_dict(), run.consensus[1].bases[0]
    assert not torch.equal(old.left, new.left)
    core = rotate_core(before["displacement/a.weight"], old, new)
    beta_t = [beta**9 for beta in run.config.optimizer.betas]
    first, second = rotate_moments(before["first/a.weight"], before["second/a.weight"], old, new, *beta_t)
    assert torch.equal(after["displacement/a.weight"], core)
    assert torch.equal(after["first/a.weight"], first)
    assert torch.equal(after["second/a.weight"], second)
    assert after["steps"].tolist() == [9, 9, 9, 9]


def test_work_of_a_missed_round_is_sent_with_the_next() -> None:
    run = Swarm(["core", "core"], noise(5), k_r=NEVER)
    run.play()
    run.play(included=[0])
    left = run.lifted(1, "a.weight")
    run.upload()
    run.close(included=[1])  # no steps in between: only the residual is left to send
    assert left.norm() > 0.01
    assert run.lifted(1, "a.weight").norm() < 0.02 * left.norm()


def test_a_saved_state_that_does_not_fit_is_refused_before_any_change() -> None:
    run = Swarm(["core"], noise(7))
    run.play()
    good = run.spaces[0].state_dict()
    lacking = {key: value for key, value in good.items() if key != "first/a.weight"}
    other_rank = good | {"first/a.weight": torch.zeros(3, 3)}
    no_hash = good | {"basis/a.weight": torch.zeros(16)}
    for bad in (lacking, other_rank, no_hash, good | {"first/z.weight": torch.zeros(1)}):
        with pytest.raises(CheckpointError):
            run.spaces[0].load_state_dict(bad)
    assert all(torch.equal(value, run.spaces[0].state_dict()[key]) for key, value in good.items())


def test_a_core_of_another_basis_is_refused() -> None:
    run, other = Swarm(["core"], noise(8), seed=8), Swarm(["core"], noise(8), seed=9)
    with pytest.raises(RunError, match=r"another basis"):
        run.spaces[0].begin(other.consensus[0])


def test_a_replaced_consensus_keeps_work_where_the_basis_is_the_same() -> None:
    run = Swarm(["core"], noise(9))
    run.play()
    run.train()
    before = run.spaces[0].state_dict()
    tensors = dict(run.consensus[0].tensors())
    basis = random_basis(12, 9, 4, 99, 1)
    tensors |= {"left/b.weight": basis.left, "right/b.weight": basis.right}
    replaced = Consensus.from_tensors(run.blocks, tensors)
    run.spaces[0].rebase(replaced)
    run.spaces[0].begin(replaced)
    after = run.spaces[0].state_dict()
    for key in ("displacement/a.weight", "first/a.weight", "second/c.weight", "displacement/norm"):
        assert torch.equal(after[key], before[key])
    for key in ("first/b.weight", "second/b.weight"):
        assert not after[key].any()
    assert after["steps"].tolist() == [6, 0, 6, 6]
    # its unsent work is carried to the new basis, and what that does not hold is kept
    run.consensus[0] = replaced
    expected = replaced.weights["b.weight"].double() - run.lifted(0, "b.weight") - outside(run, 0, "b.weight")
    torch.testing.assert_close(run.parameters[0]["b.weight"].detach().double(), expected, rtol=0, atol=FLOAT32)


def test_an_unsettled_upload_counts_as_averaged_when_the_consensus_is_replaced() -> None:
    run = Swarm(["core"], noise(10), k_r=NEVER)
    run.play()
    run.train()
    work = run.displacement(0, "a.weight")
    run.upload()
    run.spaces[0].rebase(run.consensus[0])
    assert run.displacement(0, "a.weight").norm() < 0.02 * work.norm()
    assert not run.displacement(0, "norm").any()


def test_steps_taken_between_upload_and_settle_are_kept() -> None:
    run = Swarm(["core"], noise(11), optimizer=optimizer_of(aim="seed"), k_r=NEVER)
    run.play()
    run.train()
    run.upload()
    sent = next(grid.numbers() for slot, grid in run.sent[0].items() if slot.block == 0)
    run.step(0.01)
    now = run.displacement(0, "a.weight")
    run.close()
    torch.testing.assert_close(run.displacement(0, "a.weight"), now - sent, rtol=0, atol=FLOAT32)


def test_a_core_is_sent_as_a_tangent_sketch_of_its_lift() -> None:
    run = Swarm(["core"], noise(12), optimizer=optimizer_of("mixed"), wire=wide(sketch_bits=16))
    run.play()
    run.train()  # round 2 sends tangents: a basis changes
    work, old = run.lifted(0, "a.weight"), run.consensus[0].weights["a.weight"].double()
    run.upload()
    assert {slot.part for slot in run.sent[0] if slot.block == 0} == {
        Part.TANGENT_LEFT,
        Part.TANGENT_RIGHT,
        Part.PROJECTION,
    }
    run.close()
    applied = old - run.consensus[0].weights["a.weight"].double()
    assert (applied - work).norm() < 1e-3 * work.norm()
    assert run.lifted(0, "a.weight").norm() < 2e-3 * work.norm()
