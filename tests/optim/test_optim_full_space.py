"""FullSpace: full-size work through the same slots as a core peer's; the residual stays with its peer."""

import pytest
import torch
from torch import Tensor, nn

from tests.optim.swarms import FLOAT32, NEVER, Swarm, noise, optimizer_of
from tsr_swarm.config.run import OptimizerConfig

LOW_RANK = ("a.weight", "b.weight", "c.weight")


def full(aim: str = "gradient", gamma: float = 1.0) -> OptimizerConfig:
    return optimizer_of("full", aim=aim, gamma=gamma)


def test_steps_are_torchs_adam() -> None:
    own, again = noise(1), noise(1)
    run = Swarm(["full"], own, optimizer=full())
    plain = {name: nn.Parameter(weight.clone()) for name, weight in run.consensus[0].weights.items()}
    adam = torch.optim.Adam(plain.values(), betas=(0.9, 0.99))
    adam.param_groups[0]["lr"] = 0.01
    for _ in range(5):
        run.step(0.01)
        for name, parameter in plain.items():
            parameter.grad = again(0, name, parameter)
        adam.step()
    for name, parameter in plain.items():
        torch.testing.assert_close(run.parameters[0][name], parameter, rtol=FLOAT32, atol=FLOAT32)


def test_the_next_round_starts_at_wbar_less_gamma_of_the_residual() -> None:
    whole, part = (Swarm(["full", "full"], noise(2), optimizer=full(gamma=gamma)) for gamma in (1.0, 0.9))
    for run in (whole, part):
        run.play(included=[0])
    for name in LOW_RANK:
        residual = whole.displacement(0, name)
        torch.testing.assert_close(part.displacement(0, name), 0.9 * residual, rtol=FLOAT32, atol=FLOAT32)
        expected = part.consensus[0].weights[name].double() - part.displacement(0, name)
        torch.testing.assert_close(part.parameters[0][name].double(), expected, rtol=0, atol=FLOAT32)
        assert torch.equal(part.displacement(1, name), whole.displacement(1, name))  # not included: gamma is 1
    assert not part.displacement(0, "norm").any()
    assert part.displacement(1, "norm").any()


def test_a_tangent_round_takes_more_of_the_work_than_a_core_round() -> None:
    shares = []
    for k_r in (3, NEVER):
        run = Swarm(["full"], noise(3), optimizer=full("displacement"), k_r=k_r)
        run.play()
        run.train()
        work = run.displacement(0, "a.weight")
        run.upload()
        run.close()
        shares.append(float(run.displacement(0, "a.weight").norm() / work.norm()))
    assert shares[0] < 0.8 * shares[1]


def test_work_in_the_span_that_the_basis_was_aimed_at_is_flushed_whole() -> None:
    generator = torch.Generator().manual_seed(4)
    sign = torch.sign(torch.randn(12, 1, generator=generator)) @ torch.sign(torch.randn(1, 9, generator=generator))
    run = Swarm(["full"], lambda *_: sign, optimizer=full(), k_r=3, shapes={"a.weight": (12, 9)})
    run.play()
    run.play()  # the second pass of the first refresh
    residual = run.displacement(0, "a.weight")
    run.train()  # Adam of a constant gradient moves along its sign: new work of rank 1, in the span of the gradient
    work = run.displacement(0, "a.weight") - residual
    run.upload()
    run.close()
    assert residual.norm() < 1.2 * work.norm()
    assert run.displacement(0, "a.weight").norm() < residual.norm() + 0.02 * work.norm()


def test_a_replaced_consensus_keeps_the_residual_but_no_work_of_unknown_fate() -> None:
    run = Swarm(["full"], noise(7), optimizer=full())
    run.play()
    run.train()
    work = run.spaces[0].state_dict()
    run.spaces[0].rebase(run.consensus[0])
    assert torch.equal(run.displacement(0, "a.weight").float(), work["displacement/a.weight"])
    run.upload()
    run.spaces[0].rebase(run.consensus[0])
    after = run.spaces[0].state_dict()
    assert not after["displacement/a.weight"].any()
    assert not after["displacement/norm"].any()
    assert torch.equal(after["first/a.weight"], work["first/a.weight"])


def test_what_the_bases_hold_of_a_displacement_is_measured_before_anything_is_rounded() -> None:
    """Beside projections written out in float64, also after a refresh and for a block that never moved."""

    def gradient(peer: int, name: str, weight: Tensor) -> Tensor:
        return noise_of(peer, name, weight) * (name != "b.weight")

    noise_of = noise(5)
    run = Swarm(["full"], gradient, optimizer=full("displacement", gamma=0.9))
    for _ in range(3):
        run.train()
        captured = run.spaces[0].captured(run.consensus[0])
        assert [run.blocks[index].name for index in sorted(captured)] == list(LOW_RANK)
        for index, seen in captured.items():
            a = run.displacement(0, run.blocks[index].name)
            basis = run.consensus[0].bases[index]
            u, v = basis.left_float(torch.float64), basis.right_float(torch.float64)
            energy = float((a * a).sum())
            inside = u @ (u.mT @ a @ v) @ v.mT
            wanted = float((inside * inside).sum()) / energy if energy else 1.0
            # the basis' columns have 12 bits: the projection's energy counts their error twice
            assert seen.kappa == pytest.approx(wanted, rel=0.01)
            assert seen.energy == pytest.approx(energy, rel=FLOAT32)
            assert 0 <= seen.kappa <= 1
        run.upload()
        run.close()


@pytest.mark.parametrize("aim", ["gradient", "seed", "dct"])
def test_nothing_is_measured_where_the_leader_does_not_choose(aim: str) -> None:
    run = Swarm(["full"], noise(1), optimizer=full(aim))
    run.train()
    assert run.spaces[0].captured(run.consensus[0]) == {}
