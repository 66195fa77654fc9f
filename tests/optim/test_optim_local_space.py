"""What both local spaces promise, with both inner optimizers."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor

from tests.optim.swarms import FLOAT32, NEVER, SPACES, WIRES, LeastSquares, Swarm, noise, optimizer_of, update_of
from tests.steady import wide
from tsr_swarm.config.layout import upload_slots
from tsr_swarm.config.run import WireConfig
from tsr_swarm.optim.consensus import Consensus

PUBLISHED = 2**-14  # of the largest number: one exponent a block at 16 bits


@pytest.mark.parametrize("moment", ["after steps", "after upload", "after close"])
@pytest.mark.parametrize("inner", ["adam", "muon"])
@pytest.mark.parametrize(("space", "k_r"), [("core", 6), ("full", 3), ("full", NEVER)])
def test_a_restarted_peer_continues_bit_for_bit(space: str, k_r: int, inner: str, moment: str) -> None:
    chosen = optimizer_of(space, inner=inner)
    straight, restarted = (Swarm([space, space], noise(6), optimizer=chosen, k_r=k_r) for _ in range(2))
    for run in (straight, restarted):
        run.play()
        run.play(included=[1])  # peer 0 carries a residual
        run.train()
        if moment != "after steps":
            run.upload()
        if moment == "after close":
            run.close()
    saved, tensors = save(restarted.spaces[0].state_dict()), restarted.consensus[0].tensors()
    restarted.spaces[0] = SPACES[space](restarted.parameters[0], restarted.blocks, chosen)
    restarted.spaces[0].load_state_dict(load(saved))
    restarted.consensus[0] = Consensus.from_tensors(restarted.blocks, tensors)
    for parameter in restarted.parameters[0].values():
        parameter.data.zero_()
    restarted.spaces[0].begin(restarted.consensus[0])
    for run in (straight, restarted):
        if moment == "after steps":
            run.upload()
        if moment != "after close":
            run.close()
        run.play()
    for name in straight.parameters[0]:
        assert torch.equal(straight.parameters[0][name], restarted.parameters[0][name])
    assert straight.consensus[0].digest() == restarted.consensus[0].digest()


@pytest.mark.parametrize(
    ("spaces", "changes"),
    [
        (["core", "core"], {"rank": 6, "weight_decay": 1e-3}),
        (["full", "full"], {"weight_decay": 1e-3}),
        (["full", "full"], {"weight_decay": 1e-3, "aim": "displacement"}),
        (["core", "full"], {"weight_decay": 1e-3, "local_space": "mixed"}),
        (["core", "core"], {"rank": 6, "lr": 0.1, "inner": "muon"}),
        (["full", "full"], {"rank": 6, "lr": 0.1, "inner": "muon"}),
    ],
)
def test_two_peers_lower_a_least_squares_loss_and_stay_bit_identical(
    spaces: list[str], changes: dict[str, Any]
) -> None:
    problem = LeastSquares(2, 1)
    chosen = optimizer_of(spaces[0], **{"lr": 0.02, "warmup_steps": 5, **changes})
    run = Swarm(spaces, problem.gradient, optimizer=chosen, k_x=5, k_r=10, tokens=[3.0, 5.0])
    first = problem.loss(run.consensus[0].weights)
    for round_number in range(40):
        run.play(included=[1] if round_number % 5 == 4 else None)
        assert run.consensus[0].digest() == run.consensus[1].digest()
    assert problem.loss(run.consensus[0].weights) < 0.2 * first


@settings(max_examples=30)
@given(
    case=st.sampled_from([("core", True), ("core", False), ("full", True)]),
    aim=st.sampled_from(["gradient", "displacement"]),
    k_r=st.sampled_from([3, 6, NEVER]),
    wire=st.sampled_from(WIRES),
    drops=st.lists(st.sets(st.integers(0, 2), max_size=2), min_size=2, max_size=4),
    seed=st.integers(0, 2**16),
)
def test_what_was_averaged_and_what_is_left_is_the_work_done(
    case: tuple[str, bool], aim: str, k_r: int, wire: WireConfig, drops: list[set[int]], seed: int
) -> None:
    """Without feedback an included core peer forgets what rounding dropped."""
    (space, feedback), tokens = case, [1.0, 2.0, 4.0]
    if space == "core":
        aim, k_r = "seed", NEVER  # a refresh would turn what is left
    chosen = optimizer_of(space, aim=aim, gamma=1.0, feedback=feedback)
    run = Swarm([space] * 3, noise(seed), optimizer=chosen, wire=wire, tokens=tokens, k_r=k_r, seed=seed)
    run.play()
    for dropped in drops:
        included = [peer for peer in range(3) if peer not in dropped]
        run.train()
        work = {(peer, block.name): run.lifted(peer, block.name) for peer in range(3) for block in run.blocks}
        old, bases = dict(run.consensus[0].weights), dict(run.consensus[0].bases)
        assert not any(torch.equal(kept, torch.zeros_like(kept)) for kept in work.values())
        run.upload()
        run.close(included)
        for index, (name, weight) in enumerate(old.items()):
            sent = {p: update_of(run.sent[p], index, bases.get(index)).reshape(weight.shape) for p in included}
            for peer in range(3):
                left = work[peer, name] - sent.get(peer, 0) if feedback or peer in dropped else weight.double() * 0
                torch.testing.assert_close(run.lifted(peer, name), left, rtol=0, atol=FLOAT32)
            if wire.published_bits == 16:
                mean = sum((sent[p] * tokens[p] for p in included), torch.zeros(())) / sum(tokens[p] for p in included)
                applied = weight.double() - run.consensus[0].weights[name].double()
                slack = FLOAT32 + 32 * PUBLISHED * max(float(update.abs().max()) for update in sent.values())
                torch.testing.assert_close(applied, mean, rtol=0, atol=slack)


@pytest.mark.parametrize(("space", "k_r", "name"), [("core", NEVER, "norm"), ("full", 6, "a.weight")])
def test_a_peer_that_is_never_included_does_not_run_away(space: str, k_r: int, name: str) -> None:
    ones = lambda peer, name, weight: torch.ones(weight.shape)  # noqa: E731
    run = Swarm([space, space], ones, optimizer=optimizer_of(space), k_r=k_r)
    if space == "core":
        run.play()
    run.train()
    usual = run.displacement(1, name).norm()  # the work of one round, the same in every one
    run.upload()
    run.close()
    norms = []
    for _ in range(30):
        run.play(included=[0])
        norms.append(float(run.displacement(1, name).norm() / usual))
    assert norms[2] > 2.5  # nothing is lost at first
    assert max(norms) < 6


def test_core_and_full_peers_of_a_mixed_run_send_the_same_slots_in_the_layouts_order() -> None:
    run = Swarm(["core", "full"], noise(8), optimizer=optimizer_of("mixed"))
    for _ in range(4):  # tangent and core rounds
        run.train()
        run.upload()
        core, full = run.sent
        assert tuple(core) == tuple(full) == upload_slots(run.blocks, run.plan.due, run.config.wire)
        for slot in core:
            assert core[slot].values.shape == full[slot].values.shape == (slot.rows, slot.cols)
            assert core[slot].exponents.numel() == full[slot].exponents.numel() == slot.exponents
        run.close()
        assert run.consensus[0].digest() == run.consensus[1].digest()


@pytest.mark.parametrize(
    ("changes", "wire"),
    [
        ({}, {}),
        ({"inner": "muon"}, {}),
        ({"local_space": "mixed"}, {}),
        ({"aim": "seed"}, {}),
        ({}, {"core_bits": 2, "published_bits": 3}),
        ({}, {"core_density": 0.5, "published_density": 0.5, "published_bits": 8}),
    ],
)
def test_a_default_device_changes_nothing(changes: dict[str, Any], wire: dict[str, Any]) -> None:
    """Rounds inside ``with torch.device(...)``, one of which a peer missed."""
    spaces = ["full" if changes.get("local_space") == "mixed" else "core", "core"]

    def train(context: Any) -> dict[str, Tensor]:
        chosen = optimizer_of("core", **changes)
        run = Swarm(spaces, LeastSquares(2, seed=1).gradient, optimizer=chosen, wire=wide(**wire))
        with context:
            for included in (None, [1], None):
                run.play(included)
            saved = run.spaces[0].state_dict()
            run.spaces[0].load_state_dict(saved)
        return saved | run.consensus[0].weights

    plain, inside = train(nullcontext()), train(torch.device("meta"))
    assert plain.keys() == inside.keys()
    assert all(torch.equal(plain[name], inside[name]) for name in plain)
