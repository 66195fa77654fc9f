"""What a line does to packets: rate, queue, delay, order and loss."""

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from tsr_swarm.local.network.link import QUEUE_SECONDS, HomeLine, Pipe, pipes

SIZES = st.integers(40, 1500)
PAUSES = st.floats(0, 0.2)
SENT = st.lists(st.tuples(PAUSES, SIZES), min_size=1, max_size=120)
RATES = st.floats(1e4, 1e9)
DELAYS = st.floats(0, 2)


def pipe(rate: float | None = None, delay: float = 0.0, loss: float = 0.0) -> Pipe:
    return Pipe(rate=rate, delay=delay, loss=loss, random=Random(1))


def through(line: Pipe, sent: list[tuple[float, int]]) -> list[tuple[float, float, int]]:
    """When each packet was sent, when it arrived, and its size; only of those that did."""
    now, arrived = 0.0, []
    for pause, size in sent:
        now += pause
        when = line.send(now, size)
        if when is not None:
            arrived.append((now, when, size))
    return arrived


@given(sent=SENT, rate=RATES, delay=DELAYS)
def test_the_rate_is_not_exceeded_over_any_stretch_of_time(
    sent: list[tuple[float, int]], rate: float, delay: float
) -> None:
    arrived = through(pipe(rate, delay), sent)
    for first in range(len(arrived)):
        total = 0
        for start, end in ((first, last) for last in range(first + 1, len(arrived))):
            total += arrived[end][2]  # all but the packet that opens the stretch
            seconds = arrived[end][1] - arrived[start][1]
            assert 8 * total <= rate * seconds * (1 + 1e-9) + 1e-6 * rate


@given(sent=SENT, rate=st.none() | RATES, delay=DELAYS)
def test_packets_keep_their_order_and_take_at_least_the_delay(
    sent: list[tuple[float, int]], rate: float | None, delay: float
) -> None:
    arrived = through(pipe(rate, delay), sent)
    assert all(when >= now + delay for now, when, _ in arrived)
    assert [when for _, when, _ in arrived] == sorted(when for _, when, _ in arrived)


@given(sent=SENT, rate=RATES)
def test_nothing_waits_longer_than_the_queue_holds(sent: list[tuple[float, int]], rate: float) -> None:
    for now, when, size in through(pipe(rate), sent):
        assert when - now <= QUEUE_SECONDS + 8 * size / rate + 1e-9


def test_a_full_queue_drops_and_an_idle_line_takes_again() -> None:
    line = pipe(rate=8000.0)  # a thousand bytes a second
    assert [line.send(0.0, 200) for _ in range(4)] == [0.2, 0.4, None, None]
    assert line.send(10.0, 200) == 10.2


@given(delay=DELAYS)
def test_a_line_without_a_rate_only_delays(delay: float) -> None:
    line = pipe(delay=delay)
    assert [line.send(1.0, 1500) for _ in range(1000)] == [1.0 + delay] * 1000


@given(loss=st.floats(0.0, 0.95), seed=st.integers(0, 1000))
def test_the_share_that_is_lost_is_the_one_asked_for_and_the_same_again(loss: float, seed: int) -> None:
    def lost() -> list[bool]:
        up, _ = pipes({3: HomeLine(loss=loss)}, seed)[3]
        return [up.send(0.0, 100) is None for _ in range(4000)]

    first = lost()
    assert abs(sum(first) / len(first) - loss) < 0.045  # more than five standard deviations
    assert lost() == first


def test_both_directions_and_all_nodes_lose_packets_of_their_own() -> None:
    lines = pipes({who: HomeLine(loss=0.5) for who in range(3)}, seed=0)
    patterns = {tuple(way.loses() for _ in range(64)) for both in lines.values() for way in both}
    assert len(patterns) == 6
