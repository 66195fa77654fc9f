"""The driver of a node's decisions: nothing is done before it is journaled, and nothing keeps its timer from ringing.

It runs on a virtual clock, without an event loop: minutes pass at once.
"""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fixtures import round_policy
from tests.rehearsal.clock import Clock, Timer
from tsr_swarm.node import driver as module
from tsr_swarm.node.driver import AGAIN_SECONDS, Driver
from tsr_swarm.rounds import protocol as pt
from tsr_swarm.rounds import raft_state
from tsr_swarm.rounds.raft_state import HardState, RoundRecord
from tsr_swarm.rounds.state import Node, NodeIdentity, PeerState
from tsr_swarm.rounds.step import begin, wake_at
from tsr_swarm.storage.journal import Journal

ME, OTHER, THIRD = (letter * 32 for letter in "abc")
VOTERS = (ME, OTHER, THIRD)


class VirtualLoop:
    """Makes the calls that were ordered, each a little after its time, and keeps what they raise."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.faults: list[Exception] = []

    def call_at(self, when: float, call: Callable[[], None]) -> Timer:
        return self.clock.at(when + 1e-6, call)

    def run_until(self, seconds: float) -> None:
        done: list[bool] = []
        self.clock.at(seconds, lambda: done.append(True))
        while not done:
            try:
                self.clock.run(lambda: bool(done), 10_000)
            except Exception as fault:
                self.faults.append(fault)


class Rig:
    """A driver and its journal in ``folder``, and what it handed out, as an ActionHandler."""

    def __init__(self, folder: Path, voters: tuple[str, ...] = VOTERS) -> None:
        self.loop, self.warnings = VirtualLoop(), list[str]()
        self.actions: list[pt.Action] = []
        self.hard_states: list[tuple[HardState, HardState]] = []  # the node's, and the one on disk
        self.steps = 0
        self.meanwhile: Callable[[pt.Action], None] = lambda action: None
        self.writes: list[float] = []
        self.folder, self.genesis = folder / "run", HardState(RoundRecord(voters=voters))
        self.journal = Journal(self.folder, ME, "1" * 64)
        policy = round_policy(floor_seconds=5.0, last_round=3)
        identity = NodeIdentity(
            me=ME, incarnation=1, trains=False, is_dialable=True, first=voters[0], sizes=(1,), policy=policy
        )
        node = begin(identity, self.genesis, PeerState(applied=0), 0.0)
        self.driver = Driver(node, self, self.warnings.append, lambda: self.loop.clock.now, self.loop.call_at)
        self.driver.handler = self

    def write(self, hard_state: HardState) -> None:
        self.writes.append(self.loop.clock.now)
        self.journal.write(hard_state)

    def on_step(self, before: Node, after: Node) -> None:
        self.steps += 1
        assert self.driver.node is after
        self.look()

    def carry_out(self, action: pt.Action) -> None:
        self.look()
        self.actions.append(action)
        self.meanwhile(action)

    def look(self) -> None:
        on_disk = self.genesis if self.folder.is_file() else self.journal.load(print) or self.genesis
        self.hard_states.append((self.driver.node.voter.hard_state, on_disk))

    def sent(self, kind: type[Any]) -> list[Any]:
        sent = [action.message for action in self.actions if isinstance(action, pt.Send)]
        return [message for message in sent if isinstance(message, kind)]

    def fill_the_disk(self) -> None:
        """The journal cannot be written: where its folder would be is a file."""
        self.folder.write_bytes(b"")

    def free_the_disk(self) -> None:
        self.folder.unlink()


terms = st.integers(0, 6)
hashes = st.sampled_from(["1" * 64, "2" * 64])
records = st.builds(RoundRecord, st.just(1), hashes, st.just(""), st.just(VOTERS)) | st.builds(
    RoundRecord, st.integers(2, 3), hashes, hashes, st.just(VOTERS)
)
messages = (
    st.builds(
        raft_state.VoteRequest, terms, st.sampled_from(VOTERS[1:]), st.tuples(st.integers(0, 2), terms), st.booleans()
    )
    | st.builds(raft_state.VoteReply, terms, terms, st.booleans(), st.booleans(), st.just(""))
    | st.builds(raft_state.Heartbeat, terms, st.just(RoundRecord(voters=VOTERS)) | records, st.none() | records)
    | st.builds(raft_state.HeartbeatReply, terms, st.integers(0, 2), st.sampled_from(["", "1" * 64]), st.just(""))
    | st.builds(pt.Redirect, terms, st.sampled_from(["", *VOTERS]), records)
)
events: st.SearchStrategy[pt.Event] = (
    st.builds(pt.Received, st.sampled_from(VOTERS[1:]), messages)
    | st.builds(pt.Applied, records)
    | st.just(pt.Tick())
    | st.builds(pt.Unreachable, st.sampled_from(VOTERS[1:]), st.just(pt.Poll(ME, 1, 0, False, True, (0, 0, 0), 0)))
)


@settings(max_examples=40, deadline=None)
@given(story=st.lists(st.tuples(events, st.booleans()), max_size=25))
def test_actions_begin_only_after_their_promise_is_in_the_journal(story: list[tuple[pt.Event, bool]]) -> None:
    with TemporaryDirectory() as folder:
        rig = Rig(Path(folder))
        for event, waits in story:
            rig.driver.put(event)
            if waits:
                rig.loop.run_until(rig.loop.clock.now + 2.0)
        assert rig.steps >= len(story)
        assert all(promised == on_disk for promised, on_disk in rig.hard_states)
        assert not rig.loop.faults


@settings(max_examples=40, deadline=None)
@given(story=st.lists(events, max_size=25))
def test_an_event_whose_promise_cannot_be_written_has_not_happened(story: list[pt.Event]) -> None:
    with TemporaryDirectory() as folder:
        rig = Rig(Path(folder))
        rig.fill_the_disk()
        for event in story:
            before, done = rig.driver.node, rig.steps
            rig.driver.put(event)
            assert rig.driver.node is before or rig.steps == done + 1
            assert rig.driver.node.voter.hard_state == rig.genesis
        assert not [reply for reply in rig.sent(raft_state.VoteReply) if reply.granted and not reply.is_pre_vote]
        assert not [reply for reply in rig.sent(raft_state.HeartbeatReply) if reply.accepted]


def test_an_own_event_is_put_again_and_a_message_is_not(tmp_path: Path) -> None:
    record, rig = RoundRecord(1, "1" * 64, "", VOTERS), Rig(tmp_path)
    rig.fill_the_disk()
    rig.driver.put(pt.Received(OTHER, raft_state.Heartbeat(7, RoundRecord(voters=VOTERS), None)))
    rig.driver.put(pt.Applied(record))
    assert rig.driver.node.voter.hard_state.base.round == 0
    rig.loop.run_until(3.5 * AGAIN_SECONDS)
    assert len(rig.warnings) == 1, "once, however often it is tried"
    assert "waits until it can be written" in rig.warnings[0]
    rig.free_the_disk()
    rig.loop.run_until(5 * AGAIN_SECONDS)
    assert rig.driver.node.voter.hard_state.base == record
    assert rig.driver.node.voter.term < 7, "whoever said so says it again"
    assert not rig.loop.faults


def test_an_event_that_comes_of_another_waits_for_its_end(tmp_path: Path) -> None:
    rig, put = Rig(tmp_path), [pt.Received(OTHER, raft_state.VoteRequest(2, OTHER, (0, 0), False))]
    rig.meanwhile = lambda action: rig.driver.put(put.pop()) if put else None
    rig.driver.put(pt.Received(THIRD, raft_state.VoteRequest(1, THIRD, (0, 0), False)))
    assert [reply.term for reply in rig.sent(raft_state.VoteReply)] == [1, 2]


def test_timers_ring_when_they_are_due_and_no_more_often(tmp_path: Path) -> None:
    """Nobody answers this voter: it stands for election again and again, and polls whoever may lead."""
    rig = Rig(tmp_path)
    rig.driver.put(pt.Tick())
    rig.loop.run_until(60.0)
    assert len(rig.sent(raft_state.VoteRequest)) > 2 * 60 / 8
    assert len(rig.sent(pt.Poll)) >= 60 / 7
    assert rig.steps < 60
    assert wake_at(rig.driver.node) > rig.loop.clock.now
    assert not rig.loop.faults
    rig.driver.close()
    steps = rig.steps
    rig.loop.run_until(120.0)
    assert rig.steps == steps, "a driver that is closed is silent"


def test_a_full_disk_is_tried_every_second_until_it_is_not_full(tmp_path: Path) -> None:
    """It wants to lead at once, being alone; a timer that is due all the time must not take the whole machine."""
    rig = Rig(tmp_path, voters=(ME,))
    rig.fill_the_disk()
    rig.driver.put(pt.Tick())
    rig.loop.run_until(30.5)
    assert 25 <= len(rig.writes) <= 32
    assert not rig.driver.node.voter.leads
    rig.free_the_disk()
    rig.loop.run_until(32.0)
    assert rig.driver.node.voter.leads
    assert not rig.loop.faults


@pytest.mark.parametrize("where", ["decisions", "actions"])
def test_a_fault_is_told_again_and_again_but_not_in_a_hurry(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step that fails leaves the node as it was, and so what is due stays due."""
    rig, times = Rig(tmp_path, voters=(ME,) if where == "decisions" else VOTERS), list[float]()

    def fail(*_: object) -> None:
        times.append(rig.loop.clock.now)
        assert len(times) < 100, "it does nothing else"
        raise ValueError("a fault of this program")

    if where == "decisions":
        monkeypatch.setattr(module, "step", fail)
    rig.meanwhile = fail
    with pytest.raises(ValueError, match="fault of this program"):
        rig.driver.put(pt.Tick())
    rig.loop.run_until(20.5)
    assert {type(fault) for fault in rig.loop.faults} == {ValueError}
    assert (15 if where == "decisions" else 2) <= len(times) <= 22


def test_the_timer_follows_what_changes_between_events(tmp_path: Path) -> None:
    """A poll that is answered brings the next one forward."""
    rig = Rig(tmp_path)
    rig.driver.put(pt.Tick())
    (poll,) = rig.sent(pt.Poll)
    asked = rig.driver.node.tracking.asked
    rig.driver.put(
        pt.Received(asked, pt.RoundUpdate(1, asked, 1, RoundRecord(voters=VOTERS), (), None, (), False, poll.number))
    )
    rig.loop.run_until(0.1)
    assert [sent.number for sent in rig.sent(pt.Poll)] == [poll.number, poll.number + 1]


def test_the_clock_does_not_run_backwards() -> None:
    first = module.awake_clock()
    assert module.awake_clock() >= first
