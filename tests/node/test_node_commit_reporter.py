"""Rounds that stand are told once each, in order, with their digests, whoever led them."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.node_context import make_context
from tests.published_rounds import History, small_history
from tsr_swarm.node.contribution_store import ContributionStore
from tsr_swarm.node.events.commit_reporter import CommitReporter
from tsr_swarm.node.events.run_log import RunLog
from tsr_swarm.node.round_cache import ReducedShard, RoundCache
from tsr_swarm.node.weights import AppliedRound
from tsr_swarm.rounds.raft_state import RoundRecord
from tsr_swarm.storage.round_log import RoundLog
from tsr_swarm.telemetry.log import EventLog
from tsr_swarm.wire.messages import PublishedHeader, published_to_proto


@dataclass
class Leader:
    """A leadership that takes down what it is to tell."""

    told: list[tuple[int, str]] = field(default_factory=list)
    committed_rounds: list[int] = field(default_factory=list)

    @property
    def round_reporter(self) -> Any:
        return SimpleNamespace(
            applied=lambda round, digest, loss: self.told.append((round, digest)), committed=self.committed
        )

    def committed(self, header: PublishedHeader, reduced: Sequence[ReducedShard | None], members: int) -> None:
        self.committed_rounds.append(header.plan.round)


class Log(RunLog):
    """Asks nobody; ``asked`` lets the other voters answer, ``known`` is the newest round that was told."""

    def __init__(self) -> None:
        super().__init__(EventLog(lambda: 0.0), lambda event: None)
        self.asked = asyncio.Event()

    async def ask(self, others: object, round: int, clients: object) -> None:
        await self.asked.wait()


class Rig:
    """A node that has just begun to lead when round ``base`` stands."""

    def __init__(self, history: History, log: RoundLog) -> None:
        self.history, self.leader, self.round_cache = history, Leader(), RoundCache()
        self.context = make_context("a" * 32, history.manifest)
        self.context.run_log = self.run_log = Log()
        self.context.leader = self.leader  # type: ignore[assignment]
        contributions = ContributionStore(history.manifest, {})
        self.reporter = CommitReporter(self.context, self.round_cache, contributions, log)

    def record(self, round: int) -> RoundRecord:
        return replace(self.history.record(round), voters=("a" * 32, "b" * 32))

    async def apply(self, round: int) -> None:
        applied = AppliedRound(consensus=None, digest=f"digest-{round}", refreshed={})  # type: ignore[arg-type]
        await self.reporter.applied(self.history.at(round).header, applied, 0.1)

    async def begin(self, base: int) -> None:
        self.reporter.begin_to_lead(self.leader, self.record(base))  # type: ignore[arg-type]
        await asyncio.sleep(0)  # it begins


@pytest.fixture(scope="module")
def history() -> History:
    return small_history(2)


@pytest.fixture
async def rig(history: History, tmp_path: Path) -> Any:
    log = RoundLog(tmp_path / "rounds", 1 << 20)
    log.open()
    for round in (1, 2):
        log.store(published_to_proto(history.at(round).header), history.at(round).data)
        log.commit(round, history.at(round).header.chain)
    made = Rig(history, log)
    yield made
    await made.context.background.close()


async def test_the_round_before_is_told_first_however_quick_the_next_one_is(rig: Rig, history: History) -> None:
    """Once the next round was told while voters were asked: the one before was told without its digest, or never."""
    await rig.apply(1)
    await rig.begin(1)
    rig.round_cache.add_sealed(history.at(2).header, ())
    rig.reporter.commit(rig.record(2))
    later = asyncio.create_task(rig.apply(2))
    rig.run_log.asked.set()
    await later
    assert rig.leader.told[-2:] == [(1, "digest-1"), (2, "digest-2")]
    assert sorted(rig.leader.committed_rounds) == [1, 2]


async def test_all_rounds_that_the_leader_before_did_not_live_to_tell_are_told(rig: Rig) -> None:
    """Once only the newest was."""
    rig.context.leader = None
    await rig.apply(1)
    await rig.apply(2)
    rig.context.leader = rig.leader
    rig.run_log.asked.set()
    await rig.begin(2)
    await rig.reporter.told_all()
    assert rig.leader.told == [(1, "digest-1"), (2, "digest-2")]
    assert rig.leader.committed_rounds == [1, 2]


async def test_a_round_that_was_applied_before_this_process_began_is_told_without_a_digest(rig: Rig) -> None:
    rig.reporter.begin(2)
    rig.run_log.asked.set()
    await rig.begin(2)
    await rig.reporter.told_all()
    assert rig.leader.told == [(1, ""), (2, "")]
    assert rig.leader.committed_rounds == [1, 2]


async def test_a_round_that_is_applied_only_after_the_election_is_told_once_it_is(rig: Rig) -> None:
    rig.run_log.asked.set()
    await rig.begin(1)
    await rig.reporter.told_all()
    assert rig.leader.told == []
    await rig.apply(1)
    assert rig.leader.told == [(1, "digest-1")]
    assert rig.leader.committed_rounds == [1]


async def test_what_others_know_to_be_told_is_not_told_again(rig: Rig) -> None:
    await rig.apply(1)
    told = list(rig.leader.told)
    await rig.begin(1)
    rig.run_log.log.closed_round = 1
    rig.run_log.asked.set()
    await rig.reporter.told_all()
    assert rig.leader.told == told
    assert rig.leader.committed_rounds == []


async def test_who_does_not_lead_any_more_tells_nothing(rig: Rig) -> None:
    rig.context.leader = None
    await rig.apply(1)
    await rig.begin(1)
    rig.run_log.asked.set()
    await rig.reporter.told_all()
    assert rig.leader.told == []
    assert rig.leader.committed_rounds == []
