"""What a leader tells of its rounds: each byte once, rounds in order, and nothing waits for who is gone."""

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.steady import steady, wide
from tsr_swarm.config.manifest import PROTOCOL_VERSION, make_manifest
from tsr_swarm.config.round_plan import RoundPlan
from tsr_swarm.config.run import PeriodsConfig, RunConfig
from tsr_swarm.errors import PeerError
from tsr_swarm.node.events.round_reporter import RoundReporter
from tsr_swarm.node.peer_registry import KEPT_REPORTS, Roster
from tsr_swarm.node.round_cache import ReducedShard
from tsr_swarm.optim.periods import plan_round
from tsr_swarm.rounds.protocol import Drop, Explain
from tsr_swarm.rounds.raft_state import RoundRecord
from tsr_swarm.telemetry import events as ev
from tsr_swarm.wire.codec import Section
from tsr_swarm.wire.messages import ContributionHeader, PublishedHeader, ShardResult
from tsr_swarm.wire.v1 import swarm_pb2 as pb

CONFIG = RunConfig(optimizer=steady(rank=8), wire=wide(), periods=PeriodsConfig(k_x=4, k_r=8, k_r_embedding=8))
MANIFEST = make_manifest("chronicle", CONFIG, {"a.weight": (40, 30), "norm.weight": (30,)})
OTTER, HERON, LYNX, COORDINATOR = (letter * 32 for letter in "abcd")
PEERS = {OTTER: "otter", HERON: "heron", LYNX: "lynx"}
RIGHT, WRONG = "11" * 32, "22" * 32
E = TypeVar("E", bound=ev.Event)


def plan_of(round: int) -> RoundPlan:
    return plan_round(CONFIG, MANIFEST.blocks, round, "" if round == 1 else "aa" * 32)


def result_of(*included: str, tokens: int = 100) -> ShardResult:
    if not included:
        return ShardResult(void=True)
    return ShardResult(included=included, tokens=tokens, sections=(Section("core", 500, 50, b"h" * 32),))


def header_of(round: int, *results: ShardResult) -> PublishedHeader:
    return PublishedHeader(plan_of(round), ((0,), (1,))[: len(results)], results, b"c" * 32)


def report_of(peer: str, round: int, digest: str = RIGHT, sent: int = 7) -> pb.ReportRequest:
    return pb.ReportRequest(
        peer_id=peer, round=round, digest=bytes.fromhex(digest), sent={"core": sent}, received={"control": 1}
    )


@dataclass
class Desk:
    """A chronicle of three peers and the coordinator, with a clock that the test moves."""

    base: int = 0
    now: float = 100.0
    told: list[ev.Event] = field(default_factory=list)
    roster: Roster = field(default_factory=Roster)

    def __post_init__(self) -> None:
        for peer, name in PEERS.items():
            self.roster.admit(peer, name)
        self.roster.admit(COORDINATOR, "coordinator", trains=False)
        base = RoundRecord(self.base)
        self.chronicle = RoundReporter(MANIFEST, self.roster, self.told.append, lambda: self.now, base)

    def of(self, kind: type[E]) -> list[E]:
        return [event for event in self.told if isinstance(event, kind)]

    def hold(self, round: int, *included: str, members: int = 3) -> None:
        """Open a round for all peers, and commit it with these."""
        self.chronicle.opened(plan_of(round), frozenset(PEERS), members)
        self.now += 2.0
        self.chronicle.committed(header_of(round, result_of(*included)), [None], members)

    async def tell(self, round: int, loss: float | None = 2.5) -> None:
        """Apply a round here, long after it was committed: nobody's report is waited for."""
        self.now += 60.0
        self.chronicle.applied(round, RIGHT, loss)
        await self.chronicle.finish()


def waiting(work: Awaitable[pb.ReportReply]) -> "asyncio.Task[pb.ReportReply]":
    async def run() -> pb.ReportReply:
        return await work

    return asyncio.create_task(run())


async def turns() -> None:
    """Let everybody who can go on do so."""
    for _ in range(10):
        await asyncio.sleep(0)


STEPS = st.lists(
    st.tuples(st.just("report"), st.sampled_from(list(PEERS)), st.integers(1, 5), st.integers(0, 99))
    | st.tuples(st.just("apply")),
    max_size=30,
)


@given(steps=STEPS)
def test_each_reported_byte_is_in_one_round_and_rounds_are_told_in_order(steps: list[tuple[object, ...]]) -> None:
    async def go() -> None:
        desk, first, applied = Desk(), dict[tuple[str, int], int](), 0
        for round in range(1, 4):
            desk.hold(round, *PEERS)
        calls = []
        for step in steps:
            if step[0] == "apply":
                applied += 1
                desk.now += 60.0
                desk.chronicle.applied(applied, RIGHT, 1.0)
            else:
                _, peer, round, sent = step
                assert isinstance(peer, str)
                assert isinstance(round, int)
                assert isinstance(sent, int)
                first.setdefault((peer, round), sent)
                calls.append(waiting(desk.chronicle.report(report_of(peer, round, sent=sent))))
            await turns()
        desk.now += 60.0  # nobody's report is waited for any longer
        for round in range(applied + 1, 7):
            desk.chronicle.applied(round, RIGHT, 1.0)
        await asyncio.gather(*calls)
        await desk.chronicle.finish()
        closed = desk.of(ev.RoundClosed)
        assert [event.round for event in closed] == [1, 2, 3]
        shown = sum(event.wire_bytes["sent"].get("core", 0) for event in closed)
        left = sum(traffic["core"] for peer in desk.roster.everyone() for traffic in peer.traffic.values())
        assert shown + left == sum(first.values())
        assert desk.chronicle.totals.dense_bytes == sum(event.dense_bytes for event in closed)
        of_peers = [traffic["sent"] for event in closed for traffic in event.per_peer.values()]
        assert sum(sent.get("core", 0) for sent in of_peers) == shown

    asyncio.run(go())


async def test_a_round_is_told_as_soon_as_all_who_are_in_it_have_reported() -> None:
    desk = Desk()
    desk.hold(1, OTTER, HERON)
    desk.chronicle.applied(1, RIGHT, 2.5)
    await desk.chronicle.report(report_of(OTTER, 1))
    await turns()
    assert desk.of(ev.RoundClosed) == []
    await desk.chronicle.report(report_of(HERON, 1, sent=3))
    await desk.chronicle.finish()
    (closed,) = desk.of(ev.RoundClosed)
    assert (closed.peers, closed.included, closed.late, closed.loss, closed.seconds) == (3, 2, 1, 2.5, 2.0)
    assert closed.wire_bytes == {"sent": {"core": 10}, "received": {"control": 2}}
    assert closed.dense_bytes == 4 * 2 * 2 * 4 * MANIFEST.parameters
    assert (desk.chronicle.totals.wire_bytes, desk.chronicle.totals.dense_bytes) == (12, closed.dense_bytes)


async def test_a_round_whose_reports_are_all_here_waits_for_the_one_before_it() -> None:
    desk = Desk()
    desk.hold(1, OTTER)
    desk.hold(2, HERON)
    desk.chronicle.applied(1, RIGHT, None)
    desk.chronicle.applied(2, RIGHT, None)
    await desk.chronicle.report(report_of(HERON, 2))
    await turns()
    assert desk.of(ev.RoundClosed) == []
    await desk.chronicle.report(report_of(OTTER, 1))
    await desk.chronicle.finish()
    assert [event.round for event in desk.of(ev.RoundClosed)] == [1, 2]


async def test_nobody_waits_for_the_report_of_a_peer_that_left() -> None:
    desk = Desk()
    desk.hold(1, OTTER, HERON)
    desk.chronicle.applied(1, RIGHT, None)
    await desk.chronicle.report(report_of(OTTER, 1))
    desk.chronicle.leaving(HERON, "its laptop goes to bed")
    desk.chronicle.dropped(Drop(HERON, "it said goodbye"))
    await turns()
    assert [type(event) for event in desk.told[-2:]] == [ev.PeerLeft, ev.RoundClosed]
    assert [event.reason for event in desk.of(ev.PeerLeft)] == ["its laptop goes to bed"]
    desk.chronicle.dropped(Drop(HERON, "again"))
    assert len(desk.of(ev.PeerLeft)) == 1


async def test_what_a_round_was_is_taken_from_its_header_and_from_the_shards_that_are_known() -> None:
    desk = Desk()
    both, one = result_of(OTTER, HERON, tokens=300), result_of(HERON, tokens=200)
    desk.chronicle.opened(plan_of(1), frozenset({OTTER, HERON, LYNX}), 3)
    desk.chronicle.dropped(Drop(LYNX, "gone"))
    made = [ReducedShard(both, local_loss=2.0, raw_sent=900), ReducedShard(one, local_loss=4.5, raw_sent=80)]
    desk.chronicle.committed(header_of(1, both, one), made, 2)
    await desk.tell(1)
    (closed,) = desk.of(ev.RoundClosed)
    assert (closed.included, closed.late, closed.tokens) == (2, 0, 300)
    assert closed.local_loss == pytest.approx(3.0)
    assert closed.raw_bytes == {"sent": 980, "received": 2 * 1000}


async def test_a_round_of_an_earlier_leader_is_told_without_what_only_that_one_knew() -> None:
    desk = Desk(base=4)
    desk.chronicle.committed(header_of(5, result_of(OTTER, HERON), result_of()), [None, None], 3)
    await desk.tell(5)
    (closed,) = desk.of(ev.RoundClosed)
    assert (closed.round, closed.included, closed.late, closed.tokens, closed.local_loss) == (5, 2, 0, 100, None)
    assert closed.raw_bytes == {"sent": 0, "received": 3 * 500}
    assert closed.digest == RIGHT


async def test_a_void_round_says_so_first() -> None:
    desk = Desk()
    desk.hold(1)
    await desk.tell(1)
    assert [type(event) for event in desk.told[-2:]] == [ev.RoundVoid, ev.RoundClosed]
    assert desk.of(ev.RoundClosed)[0].local_loss is None


async def test_rounds_that_a_downloaded_state_stepped_over_are_told_without_digest_and_loss() -> None:
    desk = Desk()
    for round in (1, 2, 3):
        desk.hold(round, OTTER)
    early = waiting(desk.chronicle.report(report_of(OTTER, 1, WRONG)))
    await turns()
    assert not early.done()
    await desk.tell(3)
    assert [(c.round, c.digest, c.loss) for c in desk.of(ev.RoundClosed)] == [
        (1, "", None),
        (2, "", None),
        (3, RIGHT, 2.5),
    ]
    assert not (await early).resync
    assert desk.of(ev.DigestMismatch) == []


async def test_a_next_round_that_is_open_already_stays_the_one_that_is_shown() -> None:
    """The bytes of a round that stands are read from disk, and the next one opens meanwhile."""
    desk = Desk()
    desk.chronicle.opened(plan_of(1), frozenset(PEERS), 3)
    desk.now += 5.0
    desk.chronicle.opened(plan_of(2), frozenset(PEERS), 3)
    desk.chronicle.committed(header_of(1, result_of(OTTER)), [None], 3)
    assert [event.phase for event in desk.of(ev.PhaseChanged)] == ["train", "train"]
    desk.chronicle.arrived(2, OTTER, 1.25)
    desk.chronicle.arrived(2, OTTER, 9.0)  # its shards have moved, and it has sent them anew
    assert [(event.name, event.seconds) for event in desk.of(ev.PayloadReceived)] == [("otter", 1.25)]
    await desk.tell(1)
    assert [(event.seconds, event.late) for event in desk.of(ev.RoundClosed)] == [(5.0, 2)]
    desk.chronicle.explained(Explain(2, "exchange", 3.0, "median"))
    assert desk.told[-1] == ev.PhaseChanged(round=2, phase="exchange", deadline=3.0, reason="median")


async def test_a_report_that_comes_before_this_node_has_applied_the_round_waits_for_it() -> None:
    desk = Desk()
    desk.hold(1, OTTER, HERON)
    right, wrong = (
        waiting(desk.chronicle.report(report_of(peer, 1, d))) for peer, d in ((OTTER, RIGHT), (HERON, WRONG))
    )
    ahead = waiting(desk.chronicle.report(report_of(LYNX, 2)))
    await turns()
    assert not right.done()
    desk.chronicle.applied(1, RIGHT, None)
    assert not (await right).resync
    assert (await wrong).resync
    assert [event.peer for event in desk.of(ev.DigestReported)] == [OTTER, HERON]
    assert [(e.peer, e.expected, e.digest) for e in desk.of(ev.DigestMismatch)] == [(HERON, RIGHT, WRONG)]
    assert not ahead.done()
    desk.hold(2, LYNX)
    desk.chronicle.applied(2, RIGHT, None)
    assert not (await ahead).resync
    assert [peer.applied for peer in desk.roster.here() if peer.trains] == [1, -1, 2]


@pytest.mark.parametrize("round", [3, 7, 9, 2**40])
async def test_a_report_of_a_round_that_this_leader_does_not_know_counts_its_bytes_at_once(round: int) -> None:
    desk = Desk(base=7)
    assert not (await desk.chronicle.report(report_of(OTTER, round, WRONG))).resync
    assert not (await desk.chronicle.report(report_of(OTTER, round, WRONG))).resync
    peer = desk.roster.get(OTTER)
    assert peer is not None
    assert sum(counts["core"] for counts in peer.traffic.values()) == 7
    assert desk.told == []


async def test_a_stranger_and_a_report_out_of_bounds_change_nothing() -> None:
    desk = Desk()
    assert not (await desk.chronicle.report(report_of("e" * 32, 1))).resync
    with pytest.raises(PeerError, match="digest"):
        await desk.chronicle.report(pb.ReportRequest(peer_id=OTTER, round=1, digest=b"short"))
    assert desk.told == []


async def test_what_the_coordinator_moves_is_counted_at_the_peers_ends_and_its_digest_is_compared() -> None:
    desk = Desk()
    desk.hold(1, OTTER)
    desk.chronicle.applied(1, RIGHT, None)
    assert (await desk.chronicle.report(report_of(COORDINATOR, 1, WRONG, sent=1000))).resync
    await desk.chronicle.report(report_of(OTTER, 1))
    await desk.chronicle.finish()
    assert [event.name for event in desk.of(ev.DigestMismatch)] == ["coordinator"]
    (closed,) = desk.of(ev.RoundClosed)
    assert closed.wire_bytes["sent"] == {"core": 7}
    assert set(closed.per_peer) == {"otter"}


async def test_a_peer_shows_its_progress_once_a_second() -> None:
    desk = Desk()
    desk.chronicle.opened(plan_of(1), frozenset(PEERS), 3)
    for now, round, step in ((0.0, 1, 1), (0.5, 1, 2), (1.0, 1, 3), (2.0, 2, 4), (3.0, 1, 0)):
        desk.now = 200.0 + now
        desk.chronicle.progressed(OTTER, pb.Progress(round=round, step=step, tokens_per_second=2.0))
    desk.chronicle.progressed("e" * 32, pb.Progress(round=1, step=1))
    assert [(event.step, event.steps) for event in desk.of(ev.PeerProgress)] == [(1, 4), (3, 4)]


async def test_a_refusal_is_shown_of_a_peer_that_is_known_and_not_too_often() -> None:
    desk = Desk()

    def header(peer: str) -> ContributionHeader:
        return ContributionHeader(
            protocol=PROTOCOL_VERSION,
            manifest_digest=b"m" * 32,
            round=2,
            parent=b"p" * 32,
            peer_id=peer,
            shard=0,
            tokens=1,
            steps=1,
            local_loss=0.0,
            sections=(),
        )

    desk.chronicle.refused(header(OTTER), PeerError("length", "too long"))
    desk.chronicle.refused(header(OTTER), PeerError("length", "too long"))
    desk.chronicle.refused(header("e" * 32), PeerError("length", "too long"))
    desk.chronicle.refused(header(HERON), PeerError("round", "It came too late."))
    desk.chronicle.late(2, LYNX, "closed")
    assert [(event.name, event.message) for event in desk.of(ev.PayloadRefused)] == [("otter", "too long")]
    late = [(event.round, event.name, event.reason) for event in desk.of(ev.PayloadLate)]
    assert late == [(2, "heron", "It came too late."), (2, "lynx", "closed")]


# --- the roster -----------------------------------------------------------------------------------------------------


@given(wishes=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3), st.booleans()), max_size=12))
def test_those_who_train_have_numbers_of_their_own_and_the_others_have_none(
    wishes: list[tuple[int, int, bool]],
) -> None:
    roster = Roster()
    for who, number, trains in wishes:
        peer = roster.admit(f"{who:032x}", "otter", trains=trains, number=number)
        assert peer.trains == trains
        numbers = [other.number for other in roster.here() if other.trains]
        assert len(set(numbers)) == len(numbers)
        assert min(numbers, default=1) >= 1
        assert all(other.number == 0 for other in roster.here() if not other.trains)


def test_a_number_that_an_earlier_leader_gave_is_kept_unless_somebody_has_it() -> None:
    roster = Roster()
    assert roster.admit(OTTER, "peer-3", number=8).number == 8
    assert roster.admit(HERON, "heron", number=8).number == 1
    assert roster.admit(LYNX, "peer-3").number == 3
    assert roster.admit(COORDINATOR, "coordinator", trains=False, number=5).number == 0


def test_of_the_reports_of_a_peer_only_the_newest_rounds_are_remembered() -> None:
    peer = Roster().admit(OTTER, "otter")
    peer.reported.extend(range(1000))
    assert len(peer.reported) == KEPT_REPORTS
