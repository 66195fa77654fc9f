"""A leader's events of its rounds: each byte once, rounds in order, and no waiting for a peer that left."""

import asyncio
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.published_rounds import plan_of, small_manifest
from tests.swarm_rig import Told
from tests.wire.examples import HEADER
from tsr_swarm.errors import PeerError
from tsr_swarm.node.events.round_reporter import RoundReporter
from tsr_swarm.node.peer_registry import Roster
from tsr_swarm.node.round_cache import ReducedShard
from tsr_swarm.rounds.protocol import Drop, Explain
from tsr_swarm.telemetry import events as ev
from tsr_swarm.wire.codec import Section
from tsr_swarm.wire.messages import PublishedHeader, ShardResult
from tsr_swarm.wire.v1 import swarm_pb2 as pb

MANIFEST = small_manifest()
PLAN_STEPS = 5
OTTER, HERON, LYNX, COORDINATOR = (letter * 32 for letter in "abcd")
PEERS = {OTTER: "otter", HERON: "heron", LYNX: "lynx"}
RIGHT, WRONG = "11" * 32, "22" * 32


def result_of(*included: str, tokens: int = 100) -> ShardResult:
    if not included:
        return ShardResult(void=True)
    return ShardResult(included=included, tokens=tokens, sections=(Section("core", 500, 50, b"h" * 32),))


def header_of(round: int, *results: ShardResult) -> PublishedHeader:
    return PublishedHeader(plan_of(MANIFEST, round, "aa" * 32), ((0,), (1,))[: len(results)], results, b"c" * 32)


def report_of(peer: str, round: int, digest: str = RIGHT, sent: int = 7) -> pb.ReportRequest:
    return pb.ReportRequest(
        peer_id=peer, round=round, digest=bytes.fromhex(digest), sent={"core": sent}, received={"control": 1}
    )


@dataclass
class Rig(Told):
    """A reporter of three peers and the coordinator, with a clock that the test moves."""

    base: int = 0
    now: float = 100.0
    events: list[ev.Event] = field(default_factory=list)
    roster: Roster = field(default_factory=Roster)

    def __post_init__(self) -> None:
        for peer, name in PEERS.items():
            self.roster.admit(peer, name)
        self.roster.admit(COORDINATOR, "coordinator", trains=False)
        self.reporter = RoundReporter(MANIFEST, self.roster, self.events.append, lambda: self.now, self.base)

    def commit(self, round: int, *included: str) -> None:
        self.reporter.opened(plan_of(MANIFEST, round, "aa" * 32), frozenset(PEERS), 3)
        self.now += 2.0
        self.reporter.committed(header_of(round, result_of(*included)), [None], 3)

    async def apply_late(self, round: int) -> None:
        """Apply a round here long after it was committed: no report is waited for."""
        self.now += 60.0
        self.reporter.applied(round, RIGHT, 2.5)
        await self.reporter.finish()

    def report(self, peer: str, round: int, digest: str = RIGHT, sent: int = 7) -> "asyncio.Task[pb.ReportReply]":
        """Begin to receive a peer's report, which may have to wait."""
        return asyncio.ensure_future(self.reporter.report(report_of(peer, round, digest, sent)))


@pytest.fixture
async def rig() -> Rig:
    return Rig()


async def turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


STEPS = st.lists(
    st.tuples(st.just("report"), st.sampled_from(list(PEERS)), st.integers(1, 5), st.integers(0, 99))
    | st.tuples(st.just("apply")),
    max_size=30,
)


@given(steps=STEPS)
def test_each_reported_byte_is_in_one_round_and_rounds_close_in_order(steps: list[tuple[Any, ...]]) -> None:
    async def go() -> None:
        rig, first, applied = Rig(), dict[tuple[str, int], int](), 0
        for round in range(1, 4):
            rig.commit(round, *PEERS)
        calls = []
        for step in steps:
            if step[0] == "apply":
                applied += 1
                rig.now += 60.0
                rig.reporter.applied(applied, RIGHT, 1.0)
            else:
                _, peer, round, sent = step
                first.setdefault((peer, round), sent)
                calls.append(rig.report(peer, round, sent=sent))
            await turns()
        rig.now += 60.0  # no report is waited for any longer
        for round in range(applied + 1, 7):
            rig.reporter.applied(round, RIGHT, 1.0)
        await asyncio.gather(*calls)
        await rig.reporter.finish()
        closed = rig.of(ev.RoundClosed)
        assert [event.round for event in closed] == [1, 2, 3]
        shown = sum(event.wire_bytes["sent"].get("core", 0) for event in closed)
        left = sum(traffic["core"] for peer in rig.roster.everyone() for traffic in peer.traffic.values())
        assert shown + left == sum(first.values())
        of_peers = [traffic["sent"] for event in closed for traffic in event.per_peer.values()]
        assert sum(sent.get("core", 0) for sent in of_peers) == shown

    asyncio.run(go())


async def test_a_round_closes_as_soon_as_all_peers_in_it_have_reported(rig: Rig) -> None:
    rig.commit(1, OTTER, HERON)
    rig.reporter.applied(1, RIGHT, 2.5)
    await rig.reporter.report(report_of(OTTER, 1))
    await turns()
    assert rig.of(ev.RoundClosed) == []
    await rig.reporter.report(report_of(HERON, 1, sent=3))
    await rig.reporter.finish()
    (closed,) = rig.of(ev.RoundClosed)
    assert (closed.peers, closed.included, closed.late, closed.loss, closed.seconds) == (3, 2, 1, 2.5, 2.0)
    assert closed.wire_bytes == {"sent": {"core": 10}, "received": {"control": 2}}
    assert closed.dense_bytes == PLAN_STEPS * 2 * 2 * 4 * MANIFEST.parameters


async def test_a_round_whose_reports_are_all_here_waits_for_the_one_before_it(rig: Rig) -> None:
    rig.commit(1, OTTER)
    rig.commit(2, HERON)
    rig.reporter.applied(1, RIGHT, None)
    rig.reporter.applied(2, RIGHT, None)
    await rig.reporter.report(report_of(HERON, 2))
    await turns()
    assert rig.of(ev.RoundClosed) == []
    await rig.reporter.report(report_of(OTTER, 1))
    await rig.reporter.finish()
    assert [event.round for event in rig.of(ev.RoundClosed)] == [1, 2]


async def test_the_report_of_a_peer_that_left_is_not_waited_for(rig: Rig) -> None:
    rig.commit(1, OTTER, HERON)
    rig.reporter.applied(1, RIGHT, None)
    await rig.reporter.report(report_of(OTTER, 1))
    rig.reporter.leaving(HERON, "its laptop goes to bed")
    rig.reporter.dropped(Drop(HERON, "it said goodbye"))
    await turns()
    assert [type(event) for event in rig.events[-2:]] == [ev.PeerLeft, ev.RoundClosed]
    assert [event.reason for event in rig.of(ev.PeerLeft)] == ["its laptop goes to bed"]
    rig.reporter.dropped(Drop(HERON, "again"))
    assert len(rig.of(ev.PeerLeft)) == 1


async def test_a_round_s_figures_come_from_its_header_and_the_shards_that_are_known(rig: Rig) -> None:
    both, one = result_of(OTTER, HERON, tokens=300), result_of(HERON, tokens=200)
    rig.reporter.opened(plan_of(MANIFEST), frozenset({OTTER, HERON, LYNX}), 3)
    rig.reporter.dropped(Drop(LYNX, "gone"))
    shards = [ReducedShard(both, local_loss=2.0, raw_sent=900), ReducedShard(one, local_loss=4.5, raw_sent=80)]
    rig.reporter.committed(header_of(1, both, one), shards, 2)
    await rig.apply_late(1)
    (closed,) = rig.of(ev.RoundClosed)
    assert (closed.included, closed.late, closed.tokens) == (2, 0, 300)
    assert closed.local_loss == pytest.approx(3.0)
    assert closed.raw_bytes == {"sent": 980, "received": 2 * 1000}


async def test_a_round_of_an_earlier_leader_closes_without_what_only_that_leader_knew() -> None:
    rig = Rig(base=4)
    rig.reporter.committed(header_of(5, result_of(OTTER, HERON), result_of()), [None, None], 3)
    await rig.apply_late(5)
    (closed,) = rig.of(ev.RoundClosed)
    assert (closed.round, closed.included, closed.late, closed.tokens, closed.local_loss) == (5, 2, 0, 100, None)
    assert closed.raw_bytes == {"sent": 0, "received": 3 * 500}
    assert closed.digest == RIGHT


async def test_a_void_round_says_so_first(rig: Rig) -> None:
    rig.commit(1)
    await rig.apply_late(1)
    assert [type(event) for event in rig.events[-2:]] == [ev.RoundVoid, ev.RoundClosed]
    assert rig.of(ev.RoundClosed)[0].local_loss is None


async def test_rounds_that_a_downloaded_state_skipped_close_without_digest_and_loss(rig: Rig) -> None:
    for round in (1, 2, 3):
        rig.commit(round, OTTER)
    early = rig.report(OTTER, 1, WRONG)
    await turns()
    assert not early.done()
    await rig.apply_late(3)
    told = [(closed.round, closed.digest, closed.loss) for closed in rig.of(ev.RoundClosed)]
    assert told == [(1, "", None), (2, "", None), (3, RIGHT, 2.5)]
    assert not (await early).resync
    assert rig.of(ev.DigestMismatch) == []


async def test_a_next_round_that_is_open_already_stays_on_the_screen(rig: Rig) -> None:
    """The bytes of a committed round are read from disk, and the next one opens meanwhile."""
    rig.reporter.opened(plan_of(MANIFEST), frozenset(PEERS), 3)
    rig.now += 5.0
    rig.reporter.opened(plan_of(MANIFEST, 2, "aa" * 32), frozenset(PEERS), 3)
    rig.reporter.committed(header_of(1, result_of(OTTER)), [None], 3)
    assert [event.phase for event in rig.of(ev.PhaseChanged)] == ["train", "train"]
    rig.reporter.arrived(2, OTTER, 1.25)
    rig.reporter.arrived(2, OTTER, 9.0)  # its shards have moved, and it has sent them anew
    assert [(event.name, event.seconds) for event in rig.of(ev.PayloadReceived)] == [("otter", 1.25)]
    await rig.apply_late(1)
    assert [(event.seconds, event.late) for event in rig.of(ev.RoundClosed)] == [(5.0, 2)]
    rig.reporter.explained(Explain(2, "exchange", 3.0, "median"))
    assert rig.events[-1] == ev.PhaseChanged(round=2, phase="exchange", deadline=3.0, reason="median")


async def test_a_report_that_comes_before_this_node_has_applied_the_round_waits_for_it(rig: Rig) -> None:
    rig.commit(1, OTTER, HERON)
    right, wrong, ahead = rig.report(OTTER, 1), rig.report(HERON, 1, WRONG), rig.report(LYNX, 2)
    await turns()
    assert not right.done()
    rig.reporter.applied(1, RIGHT, None)
    assert not (await right).resync
    assert (await wrong).resync
    assert [event.peer for event in rig.of(ev.DigestReported)] == [OTTER, HERON]
    assert [(e.peer, e.expected, e.digest) for e in rig.of(ev.DigestMismatch)] == [(HERON, RIGHT, WRONG)]
    assert not ahead.done()
    rig.commit(2, LYNX)
    rig.reporter.applied(2, RIGHT, None)
    assert not (await ahead).resync
    assert [peer.applied for peer in rig.roster.here() if peer.trains] == [1, -1, 2]


@pytest.mark.parametrize("round", [3, 7, 9, 2**40])
async def test_a_report_of_a_round_that_this_leader_does_not_know_counts_its_bytes_at_once(round: int) -> None:
    rig = Rig(base=7)
    assert not (await rig.reporter.report(report_of(OTTER, round, WRONG))).resync
    assert not (await rig.reporter.report(report_of(OTTER, round, WRONG))).resync
    assert sum(counts["core"] for counts in rig.roster.get(OTTER).traffic.values()) == 7
    assert rig.events == []


async def test_reports_of_an_unknown_peer_or_out_of_bounds_change_nothing(rig: Rig) -> None:
    assert not (await rig.reporter.report(report_of("e" * 32, 1))).resync
    with pytest.raises(PeerError, match="digest"):
        await rig.reporter.report(pb.ReportRequest(peer_id=OTTER, round=1, digest=b"short"))
    assert rig.events == []


async def test_bytes_of_the_coordinator_are_counted_by_its_peers_and_its_digest_is_compared(rig: Rig) -> None:
    rig.commit(1, OTTER)
    rig.reporter.applied(1, RIGHT, None)
    assert (await rig.reporter.report(report_of(COORDINATOR, 1, WRONG, sent=1000))).resync
    await rig.reporter.report(report_of(OTTER, 1))
    await rig.reporter.finish()
    assert [event.name for event in rig.of(ev.DigestMismatch)] == ["coordinator"]
    (closed,) = rig.of(ev.RoundClosed)
    assert closed.wire_bytes["sent"] == {"core": 7}
    assert set(closed.per_peer) == {"otter"}


async def test_a_peer_shows_its_progress_once_a_second(rig: Rig) -> None:
    rig.reporter.opened(plan_of(MANIFEST), frozenset(PEERS), 3)
    for now, round, step in ((0.0, 1, 1), (0.5, 1, 2), (1.0, 1, 3), (2.0, 2, 4), (3.0, 1, 0)):
        rig.now = 200.0 + now
        rig.reporter.progressed(OTTER, pb.Progress(round=round, step=step, tokens_per_second=2.0))
    rig.reporter.progressed("e" * 32, pb.Progress(round=1, step=1))
    assert [(event.step, event.steps) for event in rig.of(ev.PeerProgress)] == [(1, PLAN_STEPS), (3, PLAN_STEPS)]


async def test_a_refusal_is_shown_of_a_peer_that_is_known_and_not_too_often(rig: Rig) -> None:
    for peer in (OTTER, OTTER, "e" * 32):
        rig.reporter.refused(replace(HEADER, round=2, peer_id=peer), PeerError("length", "too long"))
    rig.reporter.refused(replace(HEADER, round=2, peer_id=HERON), PeerError("round", "It came too late."))
    rig.reporter.late(2, LYNX, "closed")
    assert [(event.name, event.message) for event in rig.of(ev.PayloadRefused)] == [("otter", "too long")]
    late = [(event.round, event.name, event.reason) for event in rig.of(ev.PayloadLate)]
    assert late == [(2, "heron", "It came too late."), (2, "lynx", "closed")]
