"""Committed rounds are reported once each, in order, with their digests, whichever node led them."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from tests.node_context import make_node
from tests.published_rounds import History
from tsr_swarm.node.events.run_log import RunLog
from tsr_swarm.node.round_cache import ReducedShard
from tsr_swarm.node.weights import AppliedRound
from tsr_swarm.rounds.raft_state import RoundRecord
from tsr_swarm.storage.round_log import RoundLog
from tsr_swarm.telemetry.log import EventLog
from tsr_swarm.wire.messages import PublishedHeader, published_to_proto

ME, OTHER = "a" * 32, "b" * 32


@dataclass
class Leader:
    """A leadership that notes what it is to report."""

    applied_rounds: list[tuple[int, str]] = field(default_factory=list)  # rounds and digests
    committed_rounds: list[int] = field(default_factory=list)

    @property
    def round_reporter(self) -> "Leader":
        return self

    def applied(self, round: int, digest: str, loss: float | None) -> None:
        self.applied_rounds.append((round, digest))

    def committed(self, header: PublishedHeader, shards: Sequence[ReducedShard | None], members: int) -> None:
        self.committed_rounds.append(header.plan.round)


class AskingLog(RunLog):
    """The other voters answer once ``answered`` is set."""

    def __init__(self) -> None:
        super().__init__(EventLog(lambda: 0.0), lambda event: None)
        self.answered = asyncio.Event()

    async def ask(self, others: object, round: int, clients: object) -> None:
        await self.answered.wait()


class Rig:
    """A node that leads, whose log has two rounds."""

    def __init__(self, history: History, log: RoundLog) -> None:
        self.history, self.leader = history, Leader()
        node = make_node(ME, history.manifest)
        self.context, self.reporter = node.context, node.commit_reporter
        self.reporter.log = log
        self.context.run_log = self.run_log = AskingLog()
        self.leads(True)

    def leads(self, leads: bool) -> None:
        self.context.leader = self.leader if leads else None  # type: ignore[assignment]

    def record(self, round: int) -> RoundRecord:
        return replace(self.history.record(round), voters=(ME, OTHER))

    async def apply(self, round: int) -> None:
        applied = AppliedRound(consensus=None, digest=f"digest-{round}", refreshed={})  # type: ignore[arg-type]
        await self.reporter.applied(self.history.at(round).header, applied, 0.1)

    async def begin(self, base: int) -> None:
        self.reporter.begin_to_lead(self.leader, self.record(base))  # type: ignore[arg-type]
        await asyncio.sleep(0)  # it begins

    async def finish(self) -> None:
        self.run_log.answered.set()
        await self.reporter.finish()


@pytest.fixture
async def rig(history: History, tmp_path: Path) -> AsyncIterator[Rig]:
    log = RoundLog(tmp_path / "rounds", 1 << 20)
    log.open()
    for round in (1, 2):
        log.store(published_to_proto(history.at(round).header), history.at(round).data)
        log.commit(round, history.at(round).header.chain)
    rig = Rig(history, log)
    yield rig
    await rig.context.background.close()


async def test_the_round_before_is_reported_first_however_quick_the_next_one_is(rig: Rig) -> None:
    await rig.apply(1)
    await rig.begin(1)
    rig.context.round_cache.add_sealed(rig.history.at(2).header, ())
    rig.reporter.commit(rig.record(2))
    later = asyncio.create_task(rig.apply(2))
    rig.run_log.answered.set()
    await later
    assert rig.leader.applied_rounds[-2:] == [(1, "digest-1"), (2, "digest-2")]
    assert sorted(rig.leader.committed_rounds) == [1, 2]


async def test_all_rounds_that_a_dead_leader_left_unreported_are_reported(rig: Rig) -> None:
    rig.leads(False)
    await rig.apply(1)
    await rig.apply(2)
    rig.leads(True)
    await rig.begin(2)
    await rig.finish()
    assert rig.leader.applied_rounds == [(1, "digest-1"), (2, "digest-2")]
    assert rig.leader.committed_rounds == [1, 2]


async def test_a_round_that_was_applied_before_this_process_began_is_reported_without_a_digest(rig: Rig) -> None:
    rig.reporter.began = 2
    await rig.begin(2)
    await rig.finish()
    assert rig.leader.applied_rounds == [(1, ""), (2, "")]
    assert rig.leader.committed_rounds == [1, 2]


async def test_a_round_that_is_applied_only_after_the_election_is_reported_then(rig: Rig) -> None:
    await rig.begin(1)
    await rig.finish()
    assert rig.leader.applied_rounds == []
    await rig.apply(1)
    assert rig.leader.applied_rounds == [(1, "digest-1")]
    assert rig.leader.committed_rounds == [1]


@pytest.mark.parametrize("why", ["others have reported it", "it does not lead any more"])
async def test_a_node_reports_nothing_if(rig: Rig, why: str) -> None:
    rig.leads(why == "others have reported it")
    await rig.apply(1)
    before = list(rig.leader.applied_rounds)
    await rig.begin(1)
    rig.run_log.log.closed_round = int(rig.context.leader is not None)
    await rig.finish()
    assert rig.leader.applied_rounds == before
    assert rig.leader.committed_rounds == []
