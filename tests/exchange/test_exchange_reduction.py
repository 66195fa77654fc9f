"""The mean of contributions, and the outer state between rounds: it counts once a round is applied, and is resumed."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.published_rounds import publish, random_grids
from tests.swarm_rig import Swarm, run_swarm, stop_coordinator, tiny_config, when
from tsr_swarm.config.layout import Part, Slot, upload_slots
from tsr_swarm.config.run import RunConfig
from tsr_swarm.exchange.reduction import Published, WeightedPayload, weighted_mean
from tsr_swarm.lowrank.grid import quantise_rows
from tsr_swarm.optim.outer_step import OuterState, pack_outer, rotate_outer, without_residuals
from tsr_swarm.optim.periods import plan_round
from tsr_swarm.rounds.raft_state import HardState
from tsr_swarm.storage import run_folder
from tsr_swarm.telemetry import events as ev
from tsr_swarm.wire.gate import shard_slots
from tsr_swarm.wire.messages import published_to_proto

ME = "c" * 32  # the coordinator
OUTERS = ("average", "nesterov", "adam")


def assert_same(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def outer_config(folder: Path, outer: str) -> RunConfig:
    """So few bits that much is dropped; the bases change in rounds 1 and 3 of 4."""
    return tiny_config(
        folder,
        run={"rounds": 4, "min_peers": 2},
        optimizer={"outer": outer, "outer_momentum": 0.5},
        wire={"published_bits": 3},
        round={"shards": 2},
    )


class Reducer:
    """Reduces one peer's contributions, seeded noise, without a process."""

    def __init__(self, start: run_folder.StartingPoint) -> None:
        self.manifest, self.consensus = start.manifest, start.consensus
        self.outer, self.record = start.outer, start.record

    def reduce(self, shards: tuple[int, ...] = (0, 1)) -> tuple[Published, OuterState]:
        """The open round, of which ``shards`` arrived, and the outer state after it."""
        config, blocks = self.manifest.config, self.manifest.blocks
        plan = plan_round(config, blocks, self.record.round + 1, self.record.chain)
        slots, contributions = upload_slots(blocks, plan.due, config.wire), []
        for shard, of_shard in enumerate(self.manifest.shard_blocks):
            grids = random_grids(
                shard_slots(slots, of_shard), torch.Generator().manual_seed(10 * plan.round + shard), scale=0.01
            )
            contributions.append({"a" * 32: WeightedPayload(1, 64, grids)} if shard in shards else {})
        return publish(self.manifest, plan, contributions, self.consensus.bases, self.outer)

    def apply(self, published: Published, outer: OuterState) -> run_folder.RunState:
        refreshed = self.consensus.apply(published.header.plan, published.grids, published.void)
        self.outer = rotate_outer(outer, refreshed, self.manifest.config.optimizer)
        self.record = run_folder.record_of(published.header)
        digest = self.consensus.digest().hex()
        return run_folder.RunState(record=self.record, consensus=self.consensus, outer=self.outer, digest=digest)


@given(seed=st.integers(0, 2**31), weights=st.lists(st.integers(1, 10**6), min_size=1, max_size=5))
def test_the_mean_is_weighted_by_tokens_and_does_not_depend_on_the_order(seed: int, weights: list[int]) -> None:
    generator = torch.Generator().manual_seed(seed)
    slot = Slot(0, Part.CORE, 3, 4, 8, 3)
    contributions = [
        WeightedPayload(number, tokens, {slot: quantise_rows(torch.randn(3, 4, generator=generator), 8)})
        for number, tokens in enumerate(weights, 1)
    ]
    mean = weighted_mean(contributions, [slot])[slot]
    assert torch.equal(mean, weighted_mean(contributions[::-1], [slot])[slot])
    expected = sum(c.grids[slot].numbers() * c.tokens for c in contributions) / sum(weights)
    assert torch.allclose(mean, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("outer", OUTERS)
def test_a_resumed_reducer_publishes_the_bytes_of_one_that_never_stopped(tmp_path: Path, outer: str) -> None:
    config, folder = outer_config(tmp_path, outer), run_folder.RunFolder(tmp_path / "coordinator")
    reducer = Reducer(run_folder.start_run(folder, config, ME))
    for _ in range(3):
        applied = reducer.apply(*reducer.reduce())
    folder.save(reducer.manifest, applied, keep=1)

    again = Reducer(run_folder.resume_run(folder, config, ME, False, pytest.fail))

    for _ in range(3):
        wanted, found = reducer.reduce(), again.reduce()
        assert (found[0].header, found[0].data) == (wanted[0].header, wanted[0].data)
        assert reducer.apply(*wanted).digest == again.apply(*found).digest


@pytest.fixture(params=OUTERS)
def reducer(tmp_path: Path, request: pytest.FixtureRequest) -> Reducer:
    """After one round."""
    folder = run_folder.RunFolder(tmp_path / "coordinator")
    reducer = Reducer(run_folder.start_run(folder, outer_config(tmp_path, request.param), ME))
    reducer.apply(*reducer.reduce())
    return reducer


def test_a_round_that_is_not_applied_leaves_the_outer_state(reducer: Reducer) -> None:
    before = {name: tensor.clone() for name, tensor in pack_outer(reducer.outer, reducer.manifest.blocks).items()}
    assert before

    (first, _), (second, _) = reducer.reduce(), reducer.reduce()

    assert first.data == second.data
    assert_same(pack_outer(reducer.outer, reducer.manifest.blocks), before)


def test_blocks_of_a_void_shard_keep_their_outer_state(reducer: Reducer) -> None:
    published, after = reducer.reduce(shards=(1,))

    assert published.void
    for index, block in enumerate(reducer.manifest.blocks):
        if block.is_low_rank:
            assert (after[index] is reducer.outer[index]) == (index in published.void)


def test_replayed_rounds_rotate_the_outer_state_and_change_no_weight(tmp_path: Path) -> None:
    """A checkpoint of round 1, then rounds 2 and 3 from the log: in round 3 the bases change."""
    config, folder = outer_config(tmp_path, "nesterov"), run_folder.RunFolder(tmp_path / "coordinator")
    start = run_folder.start_run(folder, config, ME)
    reducer = Reducer(start)
    folder.save(reducer.manifest, reducer.apply(*reducer.reduce()), keep=1)
    kept, old = reducer.outer, dict(reducer.consensus.bases)
    for round in (2, 3):
        published, outer = reducer.reduce()
        start.round_log.store(published_to_proto(published.header), published.data)
        applied = reducer.apply(published, outer)
        assert applied.record.round == round
        start.journal.write(HardState(replace(applied.record, voters=(ME,)), term=1, voted_for=ME))

    again = run_folder.resume_run(folder, config, ME, False, pytest.fail)

    assert again.consensus.digest().hex() == applied.digest
    assert again.record == applied.record
    bases = {index: (basis, again.consensus.bases[index]) for index, basis in old.items()}
    # the residual of the checkpoint went out with the rounds that are replayed
    rotated = rotate_outer(without_residuals(kept, frozenset()), bases, config.optimizer)
    assert_same(pack_outer(again.outer, again.manifest.blocks), pack_outer(rotated, again.manifest.blocks))


async def test_a_stopped_coordinator_continues_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    """Few bits and momentum, so a lost state would show in the digest of the next round."""
    config = outer_config(tmp_path / "whole", "nesterov")
    whole = await run_swarm(tmp_path / "whole", config, peers=2)

    folder = tmp_path / "stopped"
    swarm = Swarm(folder, outer_config(folder, "nesterov"), when(ev.RoundOpened, 2, stop_coordinator))
    await swarm.start(peers=2)
    await asyncio.wait_for(swarm.coordinator.task, 30)
    _, saved = run_folder.load_run(run_folder.RunFolder(folder / "coordinator"), pytest.fail)
    assert saved.round == 2
    assert {name.partition("/")[0] for name in saved.files[run_folder.OUTER]} == {"residual", "first"}
    await swarm.resume_coordinator()
    await swarm.finish()

    assert [event.digest for event in swarm.closed()] == [event.digest for event in whole.closed()]
