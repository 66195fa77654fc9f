import asyncio

from hypothesis import given
from hypothesis import strategies as st

from tests.telemetry.examples import ANY_EVENT, STARTED, closed, joined, leads, log_of, progress
from tsr_swarm.telemetry import events as e
from tsr_swarm.telemetry.events import decode, decode_stamped, encode
from tsr_swarm.telemetry.log import NEWEST, EventLog, SeenLines


def warned(text: str) -> e.Warned:
    return e.Warned(message=text)


def events_of(lines: list[str]) -> list[e.Event | None]:
    return [decode(line) for line in lines]


@given(count=st.integers(0, 30), after=st.integers(0, 30), limit=st.integers(1, 400))
def test_a_follower_gets_every_event_once_and_in_order(count: int, after: int, limit: int) -> None:
    log = log_of()
    for index in range(count):
        assert log.append(warned(str(index))) == index + 1
    seen, newest = [], min(after, count)
    while newest < log.last:
        lines, newest = log.since(newest, limit)
        assert lines
        seen += lines
    assert events_of(seen) == [warned(str(index)) for index in range(min(after, count), count)]


@given(sent=st.lists(ANY_EVENT, max_size=12), keep=st.integers(1, 5))
def test_lines_are_returned_in_order_beside_the_totals_of_earlier_rounds(sent: list[e.Event], keep: int) -> None:
    log = log_of(*sent, keep=keep, keep_rounds=2)
    lines, newest = log.since(0, limit=10**9)
    remaining = iter(encode(event, 10.0) for event in sent)
    assert newest == len(sent)
    assert all(line in remaining for line in lines if not isinstance(decode(line), e.EarlierRounds))


def test_progress_is_left_out_where_it_is_not_wanted() -> None:
    log = log_of(warned("1"), progress("otter", 1, 4), warned("2"), progress("otter", 1, 5))
    assert (events_of(log.since(0, with_progress=False)[0]), log.last) == ([warned("1"), warned("2")], 4)
    assert log.since(3, with_progress=False) == ([], 4)
    assert events_of(log.since(3)[0]) == [progress("otter", 1, 5)]


def test_old_events_go_but_peers_that_are_here_the_newest_leader_and_the_first_loss_stay() -> None:
    first, kept, gone = e.Evaluated(round=0, loss=5.0), joined("otter"), joined("lynx")
    leave = e.PeerLeft(peer="id-lynx", name="lynx", reason="asked to")
    log = log_of(first, kept, gone, leave, leads("otter"), leads("lynx"), warned("1"), warned("2"), keep=2)
    assert events_of(log.since(0)[0]) == [first, kept, leads("lynx"), warned("1"), warned("2")]


def test_only_the_newest_progress_of_a_peer_is_kept() -> None:
    log = log_of(joined("otter"), *(progress("otter", 1, step) for step in range(5)))
    assert events_of(log.since(0)[0]) == [joined("otter"), progress("otter", 1, 4)]
    assert log.since(6) == ([], 6)


def test_a_follower_from_before_a_restart_gets_everything_and_one_may_ask_for_the_newest_number_alone() -> None:
    log = log_of(warned("again"))
    assert events_of(log.since(5000)[0]) == [warned("again")]
    assert log.since(NEWEST) == ([], 1)


async def test_waiting_ends_with_the_next_event_at_once_for_an_older_one_and_else_after_its_time() -> None:
    log = log_of()
    await log.wait(0, seconds=0.0)
    waiting = asyncio.create_task(log.wait(0, seconds=60))
    await asyncio.sleep(0)
    assert not waiting.done()
    log.append(warned("news"))
    await waiting
    await log.wait(0, seconds=60)


def test_a_sink_that_fails_is_given_up_with_a_warning() -> None:
    def full(line: str) -> None:
        raise OSError(28, "No space left on device")

    log = EventLog(lambda: 10.0, [full])
    log.append(warned("one"))
    log.append(warned("two"))
    events = events_of(log.since(0)[0])
    assert len(events) == 3
    assert isinstance(events[1], e.Warned)
    assert "No space left on device" in events[1].message


OWN = tuple(f'{{"event": "{name}"' for name in ("joined", "state_received", "catching_up", "round_applied", "left"))


@given(
    events=st.lists(ANY_EVENT.filter(lambda event: not isinstance(event, e.RunStarted | e.EarlierRounds)), max_size=8)
)
def test_a_line_is_taken_as_it_is_and_only_once(events: list[e.Event]) -> None:
    lines = [encode(event, 5.0) for event in events]
    written: list[str] = []
    log = EventLog(lambda: 5.0, [written.append])
    for line in [*lines, *lines]:
        log.take(line)
    assert written == [line for line in dict.fromkeys(lines) if not line.startswith(OWN)]
    assert all(log.has(line) for line in written)


def test_a_line_that_a_node_wrote_or_restored_is_not_taken_from_another() -> None:
    log, other = log_of(warned("one")), log_of()
    other.restore(read for line in log.since(0)[0] if (read := decode_stamped(line)))
    other.append(warned("two"))
    assert [log.take(line) is not None for line in other.since(0)[0]] == [False, True]
    assert other.take(log.since(0)[0][0]) is None


def test_peers_of_a_run_that_started_again_are_new_and_damaged_lines_never_are() -> None:
    log = log_of()
    line = encode(joined("otter"), 1.0)
    assert log.take(line) is not None
    assert log.take(line) is None
    log.append(STARTED)
    assert log.take(line) is not None
    of_a_peer = encode(e.Joined(run="x", name="otter", number=1, address="", round=1), 1.0)
    assert [log.take(text) for text in ("", "damage", of_a_peer)] == [None, None, None]


def test_many_lines_of_one_kind_push_out_none_of_another() -> None:
    seen = SeenLines(keep=10)
    assert seen.is_new("otter joined", joined("otter"))
    for step in range(100):
        assert seen.is_new(str(step), progress("otter", 1, step))
    assert not seen.is_new("otter joined", joined("otter"))
    assert not seen.is_new("99", progress("otter", 1, 99))
    assert seen.has("95", progress("otter", 1, 95))
    assert not seen.has("3", progress("otter", 1, 3))


def test_the_newest_closed_round_is_known_from_any_node() -> None:
    log = log_of()
    assert log.closed_round == 0
    log.take(encode(closed(7), 1.0))
    log.append(closed(6))
    assert log.closed_round == 7


def test_a_reader_misses_nothing_after_a_restart_though_progress_is_not_recorded() -> None:
    """The earlier process counted its progress too: its newest number is far above that of what was recorded."""
    kept = [closed(1), closed(2)]
    before = log_of(*kept, *(progress("otter", 1, step) for step in range(50)))
    after = log_of()
    after.restore(e.Stamped(time=10.0, event=event) for event in kept)
    for event in (STARTED, closed(3), *(progress("otter", 1, step) for step in range(200))):
        after.append(event)
    lines, newest = after.since(before.last)
    kinds = [type(decode(line)) for line in lines]
    assert kinds == [e.RoundClosed, e.RoundClosed, e.RunStarted, e.RoundClosed, e.PeerProgress]
    assert after.since(newest) == ([], newest)
