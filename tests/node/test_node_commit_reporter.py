"""Committed rounds are reported once each, in order, with their digests, whichever node led them."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.published_rounds import History, small_history
from tsr_swarm.node.events.commit_reporter import CommitReporter, Sealed, Seams
from tsr_swarm.node.made import ReducedShard
from tsr_swarm.node.weights import AppliedRound
from tsr_swarm.process.tasks import Background
from tsr_swarm.rounds.raft_state import RoundRecord
from tsr_swarm.storage.round_log import RoundLog
from tsr_swarm.wire.messages import PublishedHeader, published_to_proto


@dataclass
class Leader:
    """A leadership that notes what it is to report."""

    applied: list[tuple[int, str]] = field(default_factory=list)  # rounds and digests
    committed_rounds: list[int] = field(default_factory=list)

    @property
    def chronicle(self) -> Any:
        return SimpleNamespace(
            applied=lambda round, digest, loss: self.applied.append((round, digest)), committed=self.committed
        )

    def committed(self, header: PublishedHeader, shards: Sequence[ReducedShard | None], members: int) -> None:
        self.committed_rounds.append(header.plan.round)


@dataclass
class Rig:
    """A node that leads, whose log has two rounds. The other voters answer once ``answered`` is set."""

    history: History
    log: RoundLog
    leader: Leader = field(default_factory=Leader)
    leads: bool = True
    reported: int = 0  # the newest round that voters know to be reported
    sealed: dict[str, Sealed] = field(default_factory=dict)
    answered: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.background = Background()
        self.reporter = CommitReporter("me", True, self.history.manifest, self.log, self._seams(), self.background)

    def _seams(self) -> Seams:
        async def ask(others: Sequence[str], round: int) -> None:
            await self.answered.wait()

        async def nothing(*arguments: object) -> None:
            pass

        return Seams(
            warn=lambda text: pytest.fail(text),
            leading=lambda: self.leader if self.leads else None,  # type: ignore[arg-type, return-value]
            members=frozenset,
            sealed=lambda: self.sealed,
            outer=dict,
            applied=nothing,
            score=nothing,
            told=lambda: self.reported,
            ask=ask,
        )

    def record(self, round: int) -> RoundRecord:
        return replace(self.history.record(round), voters=("me", "other"))

    async def apply(self, round: int) -> None:
        applied = AppliedRound(consensus=None, digest=f"digest-{round}", refreshed={})  # type: ignore[arg-type]
        await self.reporter.applied(self.history.at(round).header, applied, 0.1)

    async def begin(self, base: int) -> None:
        self.reporter.begin_to_lead(self.leader, self.record(base))  # type: ignore[arg-type]
        await asyncio.sleep(0)  # it begins

    async def finish(self) -> None:
        self.answered.set()
        await self.reporter.finish()

    def seal(self, round: int) -> None:
        header = self.history.at(round).header
        self.sealed[header.chain.hex()] = header, ()


@pytest.fixture(scope="module")
def history() -> History:
    return small_history(2)


@pytest.fixture
async def rig(history: History, tmp_path: Path) -> AsyncIterator[Rig]:
    log = RoundLog(tmp_path / "rounds", 1 << 20)
    log.open()
    for round in (1, 2):
        log.store(published_to_proto(history.at(round).header), history.at(round).data)
        log.commit(round, history.at(round).header.chain)
    rig = Rig(history, log)
    yield rig
    await rig.background.close()


async def test_the_round_before_is_reported_first_however_quick_the_next_one_is(rig: Rig) -> None:
    await rig.apply(1)
    await rig.begin(1)
    rig.seal(2)
    rig.reporter.commit(rig.record(2))
    later = asyncio.create_task(rig.apply(2))
    rig.answered.set()
    await later
    assert rig.leader.applied[-2:] == [(1, "digest-1"), (2, "digest-2")]
    assert sorted(rig.leader.committed_rounds) == [1, 2]


async def test_all_rounds_that_a_dead_leader_left_unreported_are_reported(rig: Rig) -> None:
    rig.leads = False
    await rig.apply(1)
    await rig.apply(2)
    rig.leads = True
    await rig.begin(2)
    await rig.finish()
    assert rig.leader.applied == [(1, "digest-1"), (2, "digest-2")]
    assert rig.leader.committed_rounds == [1, 2]


async def test_a_round_that_was_applied_before_this_process_began_is_reported_without_a_digest(rig: Rig) -> None:
    rig.reporter.begin(2)
    await rig.begin(2)
    await rig.finish()
    assert rig.leader.applied == [(1, ""), (2, "")]
    assert rig.leader.committed_rounds == [1, 2]


async def test_a_round_that_is_applied_only_after_the_election_is_reported_then(rig: Rig) -> None:
    await rig.begin(1)
    await rig.finish()
    assert rig.leader.applied == []
    await rig.apply(1)
    assert rig.leader.applied == [(1, "digest-1")]
    assert rig.leader.committed_rounds == [1]


@pytest.mark.parametrize("why", ["others have reported it", "it does not lead any more"])
async def test_a_node_reports_nothing_if(rig: Rig, why: str) -> None:
    rig.leads = why == "others have reported it"
    await rig.apply(1)
    before = list(rig.leader.applied)
    await rig.begin(1)
    rig.reported = int(rig.leads)
    await rig.finish()
    assert rig.leader.applied == before
    assert rig.leader.committed_rounds == []
