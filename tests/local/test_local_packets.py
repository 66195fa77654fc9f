"""What home links do to packets: rate, queue, delay, order and loss, then addresses, NAT and partitions."""

import struct
from ipaddress import IPv4Address
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsr_swarm.local.network import packets
from tsr_swarm.local.network.packets import TCP, UDP, HomeLine, Network, Pipe, pipes

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
        assert when - now <= packets.QUEUE_SECONDS + 8 * size / rate + 1e-9


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


def packet(source: int, target: int, *, ports: tuple[int, int] = (5, 6), protocol: int = UDP, size: int = 100) -> bytes:
    """An IPv4 packet between two nodes."""
    ends = [int(IPv4Address(packets.address_of(who))) for who in (source, target)]
    header = struct.pack("!BBHHHBBHII", 0x45, 0, size, 0, 0, 64, protocol, 0, *ends)
    return (header + struct.pack("!HH", *ports)).ljust(size, b".")


def net(**lines: HomeLine) -> Network:
    """Three nodes; ``a``, ``b`` and ``c`` are the lines of 0, 1 and 2."""
    return Network({who: lines.get(name, HomeLine()) for who, name in enumerate("abc")}, seed=0)


def passes(network: Network, now: float, source: int, target: int, **about: object) -> bool:
    data = packet(source, target, **about)  # type: ignore[arg-type]
    network.send(now, source, data)
    return (target, data) in list(network.due(now))


@given(ab=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_a_round_trip_is_the_sum_of_both_shares(ab: tuple[float, float]) -> None:
    network = net(a=HomeLine(rtt=ab[0]), b=HomeLine(rtt=ab[1]))
    network.send(0.0, 0, packet(0, 1))
    while list(network.due(now := network.next_time() or 0.0)) == []:
        continue
    network.send(now, 1, packet(1, 0))
    while list(network.due(now := network.next_time() or now)) == []:
        continue
    assert now == pytest.approx(sum(ab))


def test_packets_of_two_senders_share_the_downlink_of_a_third() -> None:
    network = net(c=HomeLine(down=8000.0), a=HomeLine(rtt=0.2))
    network.send(0.0, 0, packet(0, 2))
    network.send(0.05, 1, packet(1, 2))
    assert list(network.due(0.149)) == []
    assert [data for _, data in network.due(0.151)] == [packet(1, 2)]
    assert list(network.due(0.249)) == []
    assert [data for _, data in network.due(0.251)] == [packet(0, 2)]


@given(
    st.binary(max_size=64)
    | st.sampled_from([packet(1, 2), packet(0, 0), packet(0, 7), packet(0, 1)[:19], b"\x60" + packet(0, 1)])
)
def test_anything_but_a_packet_from_its_sender_to_another_node_is_dropped(data: bytes) -> None:
    network = net()
    network.send(0.0, 0, data)
    assert list(network.due(9.0)) == []


def test_the_packets_in_flight_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packets, "MAX_IN_FLIGHT", 10)
    network = net(a=HomeLine(rtt=2.0))
    for _ in range(20):
        network.send(0.0, 0, packet(0, 1))
    assert list(network.due(0.5)) == []
    assert len(list(network.due(1.0))) == 10


def test_a_partition_drops_between_its_sides_until_it_is_over_and_nothing_else() -> None:
    network = net(b=HomeLine(rtt=1.0))
    network.send(0.0, 0, packet(0, 1))
    network.cut([frozenset((0, 1)), frozenset((0, 2))])
    assert list(network.due(1.0)) == [], "what was under way is gone too"
    assert not passes(network, 1.0, 0, 1)
    assert not passes(network, 1.0, 2, 0)
    network.send(1.0, 2, packet(2, 1))
    assert [who for who, _ in network.due(2.0)] == [1]
    network.cut([])
    assert passes(network, 2.0, 2, 0)


def test_nothing_comes_in_through_nat_that_was_not_asked_for() -> None:
    network = net(b=HomeLine(nat=True))
    assert not passes(network, 0.0, 0, 1)
    assert passes(network, 1.0, 1, 0, ports=(5, 6))
    assert passes(network, 2.0, 0, 1, ports=(6, 5))
    assert not passes(network, 2.0, 0, 1, ports=(7, 5)), "another port of the one that was asked"
    assert not passes(network, 2.0, 2, 1, ports=(6, 5)), "somebody else"
    assert not passes(network, 2.0, 0, 1, ports=(6, 5), protocol=TCP), "another protocol"


@pytest.mark.parametrize(("protocol", "seconds"), [(UDP, packets.OTHER_SECONDS), (TCP, packets.TCP_SECONDS)])
def test_a_flow_that_was_silent_too_long_is_forgotten(protocol: int, seconds: float) -> None:
    flow, table = (protocol, 1, 2, 3, 4), packets.FlowTable()
    table.add(0.0, flow)
    assert table.admits(seconds, flow)
    assert not table.admits(seconds + 1, flow)


@given(flows=st.lists(st.integers(0, 50), max_size=200), limit=st.integers(1, 20))
def test_the_table_of_flows_is_bounded_and_keeps_the_newest(flows: list[int], limit: int) -> None:
    table = packets.FlowTable(limit)
    for now, port in enumerate(flows):
        table.add(float(now), (UDP, 1, port, 2, 2))
    newest = list(dict.fromkeys(reversed(flows)))[:limit]
    known = [port for port in range(51) if table.admits(float(len(flows)), (UDP, 1, port, 2, 2))]
    assert sorted(newest) == known


def test_ports_of_fragments_and_of_other_protocols_are_not_read() -> None:
    first = packets.read_packet(packet(0, 1))
    assert (first.source_port, first.target_port) == (5, 6)
    fragment = bytearray(packet(0, 1))
    fragment[7] = 9
    for data in (bytes(fragment), packet(0, 1, protocol=1)):
        read = packets.read_packet(data)
        assert (read.source_port, read.target_port) == (0, 0)
