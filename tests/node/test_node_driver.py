"""The shell around a node's decisions: nothing is done before it is journaled, and nothing keeps it from ringing.

Its loop has a clock of its own, which jumps to the next timer: minutes pass at once.
"""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsr_swarm.node import driver as module
from tsr_swarm.node.driver import AGAIN_SECONDS, Driver
from tsr_swarm.rounds import raft_state as cl
from tsr_swarm.rounds.deadlines import DeadlinePolicy
from tsr_swarm.rounds.peer import PeerState
from tsr_swarm.rounds.protocol import (
    Action,
    Applied,
    Event,
    Poll,
    Received,
    Redirect,
    RoundUpdate,
    Send,
    Tick,
    Unreachable,
)
from tsr_swarm.rounds.raft_state import HardState, RoundRecord
from tsr_swarm.rounds.round_phases import LeaderPolicy
from tsr_swarm.rounds.state import Node, NodeIdentity
from tsr_swarm.rounds.step import begin, wake_at
from tsr_swarm.storage.journal import Journal

ME, OTHER, THIRD = (letter * 32 for letter in "abc")
VOTERS = (ME, OTHER, THIRD)


class QuickLoop(asyncio.SelectorEventLoop):
    """Nobody else is waited for, so when nothing is ready it is the time of the next timer."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0
        self.faults: list[BaseException] = []
        self.set_exception_handler(lambda _, context: self.faults.append(context["exception"]))
        selector: Any = self._selector  # type: ignore[attr-defined]
        select = selector.select

        def jump(timeout: float | None) -> Any:
            assert timeout is not None, "nothing will ever happen again"
            self.seconds += timeout
            return select(0)

        selector.select = jump

    def time(self) -> float:
        return self.seconds

    async def at(self, seconds: float) -> None:
        """It is so late."""
        reached = self.create_future()
        self.call_at(seconds, reached.set_result, None)
        await reached


def quickly(story: Callable[[QuickLoop], Coroutine[Any, Any, None]]) -> QuickLoop:
    loop = QuickLoop()
    try:
        loop.run_until_complete(story(loop))
    finally:
        loop.close()
    return loop


class Hands:
    """What was done, and what stood in the journal then."""

    def __init__(self, journal: Journal, genesis: RoundRecord) -> None:
        self.actions: list[Action] = []
        self.ledgers: list[tuple[HardState, HardState]] = []  # the node's, and the one on disk
        self.steps = 0
        self.shell: Driver
        self.meanwhile: Callable[[Action], None] = lambda action: None
        self._journal, self._genesis = journal, genesis
        self._is_busy = False

    def on_step(self, before: Node, after: Node) -> None:
        self.steps += 1
        assert self.shell.node is after
        self._look()

    def carry_out(self, action: Action) -> None:
        assert not self._is_busy, "one event after the other"
        self._is_busy = True
        self._look()
        self.actions.append(action)
        self.meanwhile(action)
        self._is_busy = False

    def _look(self) -> None:
        self.ledgers.append((self.shell.node.council.ledger, self._journal.load(print) or HardState(self._genesis)))

    def sent(self, kind: type[Any]) -> list[Any]:
        return [
            action.message for action in self.actions if isinstance(action, Send) and isinstance(action.message, kind)
        ]


class Rig:
    def __init__(self, folder: Path, loop: QuickLoop, voters: tuple[str, ...] = VOTERS) -> None:
        genesis = RoundRecord(voters=voters)
        identity = NodeIdentity(
            me=ME,
            incarnation=1,
            trains=False,
            is_dialable=True,
            first=voters[0],
            sizes=(1,),
            policy=LeaderPolicy(DeadlinePolicy(quorum=1, floor_seconds=5.0, ceiling_seconds=60.0), 1, 3),
        )
        node = begin(identity, HardState(genesis), PeerState(applied=0), loop.time())
        self.place = folder / "run"
        journal = Journal(self.place, ME, "1" * 64)
        self.hands, self.warnings = Hands(journal, genesis), list[str]()
        self.hands.shell = self.shell = Driver(node, journal, self.warnings.append, loop.time)
        self.shell.handler = self.hands

    def fill_the_disk(self) -> None:
        """The journal cannot be written: where its folder would be is a file."""
        self.place.write_bytes(b"")

    def free_the_disk(self) -> None:
        self.place.unlink()


# --- promises ---------------------------------------------------------------------------------------------------------

terms = st.integers(0, 6)
hashes = st.sampled_from(["1" * 64, "2" * 64])
records = st.builds(RoundRecord, st.just(1), hashes, st.just(""), st.just(VOTERS)) | st.builds(
    RoundRecord, st.integers(2, 3), hashes, hashes, st.just(VOTERS)
)
messages = (
    st.builds(cl.VoteRequest, terms, st.sampled_from(VOTERS[1:]), st.tuples(st.integers(0, 2), terms), st.booleans())
    | st.builds(cl.VoteReply, terms, terms, st.booleans(), st.booleans(), st.just(""))
    | st.builds(cl.Heartbeat, terms, st.just(RoundRecord(voters=VOTERS)) | records, st.none() | records)
    | st.builds(cl.HeartbeatReply, terms, st.integers(0, 2), st.sampled_from(["", "1" * 64]), st.just(""))
    | st.builds(Redirect, terms, st.sampled_from(["", *VOTERS]), records)
)
events: st.SearchStrategy[Event] = (
    st.builds(Received, st.sampled_from(VOTERS[1:]), messages)
    | st.builds(Applied, records)
    | st.just(Tick())
    | st.builds(Unreachable, st.sampled_from(VOTERS[1:]), st.just(Poll(ME, 1, 0, False, True, (0, 0, 0), 0)))
)


@settings(max_examples=40, deadline=None)
@given(story=st.lists(st.tuples(events, st.booleans()), max_size=25))
def test_whatever_is_done_the_journal_held_it_before(story: list[tuple[Event, bool]]) -> None:
    with TemporaryDirectory() as folder:

        async def run(loop: QuickLoop) -> None:
            rig = Rig(Path(folder), loop)
            for event, waits in story:
                rig.shell.put(event)
                if waits:
                    await loop.at(loop.time() + 2.0)
            rig.shell.close()
            assert rig.hands.steps >= len(story)
            assert all(promised == on_disk for promised, on_disk in rig.hands.ledgers)

        assert not quickly(run).faults


@settings(max_examples=40, deadline=None)
@given(story=st.lists(events, max_size=25))
def test_what_the_disk_refuses_has_not_happened(story: list[Event]) -> None:
    with TemporaryDirectory() as folder:

        async def run(loop: QuickLoop) -> None:
            rig = Rig(Path(folder), loop)
            rig.fill_the_disk()
            hands, ledger = rig.hands, rig.shell.node.council.ledger
            hands.ledgers, hands._look = [], lambda: None  # type: ignore[method-assign]
            for event in story:
                before, done = rig.shell.node, hands.steps
                rig.shell.put(event)
                assert rig.shell.node is before or hands.steps == done + 1
                assert rig.shell.node.council.ledger == ledger
            rig.shell.close()
            assert not [reply for reply in hands.sent(cl.VoteReply) if reply.granted and not reply.is_trial]
            assert not [reply for reply in hands.sent(cl.HeartbeatReply) if reply.accepted]

        assert not quickly(run).faults


def test_an_own_event_is_put_again_and_a_message_is_not(tmp_path: Path) -> None:
    record = RoundRecord(1, "1" * 64, "", VOTERS)

    async def run(loop: QuickLoop) -> None:
        rig = Rig(tmp_path, loop)
        rig.fill_the_disk()
        rig.shell.put(Received(OTHER, cl.Heartbeat(7, RoundRecord(voters=VOTERS), None)))
        rig.shell.put(Applied(record))
        assert rig.shell.node.council.ledger.base.round == 0
        await loop.at(3.5 * AGAIN_SECONDS)
        assert len(rig.warnings) == 1, "once, however often it is tried"
        assert "waits until it can be written" in rig.warnings[0]
        rig.free_the_disk()
        await loop.at(5 * AGAIN_SECONDS)
        assert rig.shell.node.council.ledger.base == record
        assert rig.shell.node.council.term < 7, "whoever said so says it again"
        rig.shell.close()

    assert not quickly(run).faults


def test_an_event_that_comes_of_another_waits_for_its_end(tmp_path: Path) -> None:
    async def run(loop: QuickLoop) -> None:
        rig = Rig(tmp_path, loop)
        put = [Received(OTHER, cl.VoteRequest(2, OTHER, (0, 0), False))]
        rig.hands.meanwhile = lambda action: rig.shell.put(put.pop()) if put else None
        rig.shell.put(Received(THIRD, cl.VoteRequest(1, THIRD, (0, 0), False)))
        assert [reply.term for reply in rig.hands.sent(cl.VoteReply)] == [1, 2]
        rig.shell.close()

    quickly(run)


# --- timers -----------------------------------------------------------------------------------------------------------


def test_timers_ring_when_they_are_due_and_no_oftener(tmp_path: Path) -> None:
    """Nobody answers this voter: it stands for election again and again, and polls whoever may lead."""

    async def run(loop: QuickLoop) -> None:
        rig = Rig(tmp_path, loop)
        rig.shell.put(Tick())
        await loop.at(60.0)
        assert len(rig.hands.sent(cl.VoteRequest)) > 2 * 60 / 8
        assert len(rig.hands.sent(Poll)) >= 60 / 7
        assert rig.hands.steps < 60
        assert wake_at(rig.shell.node) > loop.time()
        rig.shell.close()
        steps = rig.hands.steps
        await loop.at(120.0)
        assert rig.hands.steps == steps, "a shell that is closed is silent"

    assert not quickly(run).faults


def test_a_full_disk_is_tried_every_second_until_it_is_not_full(tmp_path: Path) -> None:
    """It wants to lead at once, being alone; a timer that is due all the time must not take the whole machine."""
    tries = list[float]()

    async def run(loop: QuickLoop) -> None:
        rig = Rig(tmp_path, loop, voters=(ME,))
        journal = rig.shell._journal
        assert journal is not None
        write = journal.write

        def counted(ledger: HardState) -> None:
            tries.append(loop.time())
            write(ledger)

        journal.write = counted  # type: ignore[method-assign]
        rig.fill_the_disk()
        rig.shell.put(Tick())
        await loop.at(30.5)
        assert 25 <= len(tries) <= 32
        assert not rig.shell.node.council.leads
        rig.free_the_disk()
        await loop.at(32.0)
        assert rig.shell.node.council.leads
        rig.shell.close()

    assert not quickly(run).faults


def test_a_fault_in_one_step_does_not_stop_the_clock(tmp_path: Path) -> None:
    async def run(loop: QuickLoop) -> None:
        rig = Rig(tmp_path, loop)

        def fail(action: Action) -> None:
            rig.hands._is_busy = False
            raise AssertionError("a fault of this program")

        rig.hands.meanwhile = fail
        with pytest.raises(AssertionError, match="fault of this program"):
            rig.shell.put(Tick())
        await loop.at(20.0)
        rig.shell.close()

    faults = quickly(run).faults
    assert 1 <= len(faults) <= 22, "it is told, and not in a hurry"


def test_a_fault_in_the_decisions_is_not_met_as_fast_as_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that fails leaves the node as it was, and so what is due stays due."""
    steps = 0

    def fail(*_: object) -> None:
        nonlocal steps
        steps += 1
        assert steps < 100, "it does nothing else"
        raise ValueError("a fault of this program")

    async def run(loop: QuickLoop) -> None:
        rig = Rig(tmp_path, loop, voters=(ME,))
        monkeypatch.setattr(module, "step", fail)
        with pytest.raises(ValueError, match="fault of this program"):
            rig.shell.put(Tick())
        await loop.at(20.5)
        rig.shell.close()

    assert {type(fault) for fault in quickly(run).faults} == {ValueError}
    assert 15 <= steps <= 22


def test_the_timer_follows_what_changes_between_events(tmp_path: Path) -> None:
    """A poll that is answered brings the next one forward."""

    async def run(loop: QuickLoop) -> None:
        rig = Rig(tmp_path, loop)
        rig.shell.put(Tick())
        (poll,) = rig.hands.sent(Poll)
        asked = rig.shell.node.guide.asked
        news = RoundUpdate(1, asked, 1, RoundRecord(voters=VOTERS), (), None, (), False, poll.number)
        rig.shell.put(Received(asked, news))
        await loop.at(0.1)
        assert [sent.number for sent in rig.hands.sent(Poll)] == [poll.number, poll.number + 1]
        rig.shell.close()

    quickly(run)


def test_the_clock_does_not_run_backwards() -> None:
    first = module.awake_clock()
    assert module.awake_clock() >= first
