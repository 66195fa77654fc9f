"""What rounds cost as the swarm grows: the lines' arithmetic, and that every byte is counted once at both ends."""

from collections import Counter
from functools import cache, partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.bench.scale.cargo import cargo
from tests.bench.scale.costs import FIRST, LAST, Cost, shards_for, simulate
from tests.bench.scale.letters import STALE, Letter, bytes_by_field, payload_bytes
from tests.bench.scale.lines import SMALL_BYTES, Lines
from tests.bench.scale.tally import control, payload
from tests.rehearsal.clock import Clock
from tsr_swarm.rounds.catch_up import BRANCHES
from tsr_swarm.wire.v1 import swarm_pb2 as pb

PEERS, MEDIUM = 8, 32
ROUNDS = LAST - FIRST + 1


@cache
def small() -> Cost:
    return simulate(PEERS)


@cache
def medium() -> Cost:
    return simulate(MEDIUM)


def everything(cost: Cost) -> tuple[Counter[Letter], Counter[Letter]]:
    sent, received = Counter[Letter](), Counter[Letter]()
    for traffic in cost.traffic.values():
        sent.update(traffic.sent)
        received.update(traffic.received)
    return sent, received


# --- lines ------------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(SMALL_BYTES + 1, 10**6), min_size=1, max_size=20))
def test_a_line_is_never_faster_than_its_rate_and_never_idle_while_something_waits(sizes: list[int]) -> None:
    clock, arrived = Clock(), list[float]()
    lines = Lines(clock, up=8e6, down=8e9, latency=0.02)
    for size in sizes:
        lines.carry("a", "b", size, lambda: arrived.append(clock.now))
    clock.run(lambda: False, 10**6)
    assert len(arrived) == len(sizes)
    assert max(arrived) == pytest.approx(0.02 + sum(sizes) / 1e6, rel=0.01)


def test_many_senders_wait_for_one_receiver() -> None:
    clock, arrived = Clock(), list[float]()
    lines = Lines(clock, up=8e6, down=8e6, latency=0.0)
    for sender in range(10):
        lines.carry(f"{sender}", "b", 100_000, lambda: arrived.append(clock.now))
    clock.run(lambda: False, 10**6)
    assert arrived == pytest.approx([0.1 * (place + 1) for place in range(10)])


def test_a_small_message_does_not_wait_for_a_large_one_but_takes_its_time_from_it() -> None:
    clock, arrived = Clock(), dict[str, float]()

    def arrive(name: str) -> None:
        arrived[name] = clock.now

    lines = Lines(clock, up=8e6, down=8e9, latency=0.0)
    for name, size in (("large", 10**6), ("small", 10**4), ("next", 10**6)):
        lines.carry("a", name, size, partial(arrive, name))
    clock.run(lambda: False, 10**6)
    assert arrived["small"] == pytest.approx(0.01, abs=1e-3)
    assert arrived["next"] == pytest.approx(2.01, abs=1e-3)


# --- counting ---------------------------------------------------------------------------------------------------------


def test_the_fields_of_a_message_have_all_its_bytes() -> None:
    record = pb.Record(round=300, chain=bytes(32), voters=["0" * 32, "1" * 32])
    news = pb.News(term=1, base=record, nodes=["a" * 32], plan=pb.OpenPlan(key=pb.PlanKey(round=300)))
    reply = pb.PollReply(news=news, contacts=[pb.Contact(peer_id="b" * 32, address="203.0.113.7:41234")])
    counts = bytes_by_field(reply)
    assert sum(counts.values()) == reply.ByteSize()
    assert counts["news.nodes"] == 34
    assert counts["news.base.voters"] == 68
    assert counts["contacts.address"] == 2 + len("203.0.113.7:41234")


def test_a_map_is_counted_whole() -> None:
    report = pb.ReportRequest(sent={"core": 10**6, "control": 300})
    assert bytes_by_field(report) == {"sent": report.ByteSize()}


def test_what_one_sends_another_receives() -> None:
    sent, received = everything(small())
    assert sent == received
    assert sum(sent.values()) > 0


def test_a_peer_that_cannot_be_dialled_sends_one_contribution_and_receives_one_average() -> None:
    up, down = payload_bytes(cargo(PEERS, shards_for(PEERS)))
    for name in small().groups["others"]:
        traffic = small().traffic[name]
        assert payload(traffic.sent) == ROUNDS * up
        assert payload(traffic.received) == pytest.approx(ROUNDS * down, rel=0.13)  # the first may end just before


def test_a_header_names_every_peer_once_with_18_bytes() -> None:
    sent, _ = everything(small())
    headers = [letter for letter in sent if letter.kind == "PublishedPart"]
    assert headers
    for letter in headers:
        assert letter.fields["header.included"] == 18 * PEERS


def test_a_poll_without_news_is_answered_in_a_few_bytes() -> None:
    assert small().letters[STALE][1] <= 16


def test_nothing_that_must_not_happen_does_and_the_round_is_longer_than_its_training() -> None:
    assert small().complaints == ()
    assert 0 < small().overhead < 10


# --- who is asked for what --------------------------------------------------------------------------------------------


def received_by(kind: str) -> dict[str, int]:
    """How many letters of this kind each node received, of those that received any."""
    counts = {
        name: sum(count for letter, count in traffic.received.items() if letter.kind == kind)
        for name, traffic in medium().traffic.items()
    }
    return {name: count for name, count in counts.items() if count}


def test_who_leads_is_asked_for_shards_about_as_often_as_others_who_make_some() -> None:
    asked = received_by("FetchShard")
    (leader,) = medium().traffic.keys() - set(all_peers(medium()))
    others = [asked[name] for name in medium().groups["dialable"]]
    assert asked[leader] <= 1.5 * max(others)  # it made more in the first round
    assert max(others) <= 1.5 * min(others)


def test_everybody_gets_a_header_once_and_nobody_gives_it_to_many() -> None:
    asked, got = received_by("FetchPublished"), received_by("PublishedPart")
    assert set(got) == set(all_peers(medium()))
    assert all(count <= ROUNDS + 1 for count in got.values())  # one at the end of the first round
    assert max(asked.values()) <= (ROUNDS + 1) * (BRANCHES + 2 * MEDIUM / len(medium().groups["dialable"]))


def test_voters_copy_the_log_and_nobody_else_does() -> None:
    readers = received_by("WatchReply")
    assert len(readers) == 4  # and who leads
    assert set(readers) <= set(medium().groups["dialable"])


def test_a_peers_control_is_little_beside_its_payload() -> None:
    cost = medium()
    for name in all_peers(cost):
        traffic = cost.traffic[name]
        assert 20 * (control(traffic.sent) + control(traffic.received)) < payload(traffic.sent) + payload(
            traffic.received
        )
    assert cost.included == 1.0
    assert cost.complaints == ()


def all_peers(cost: Cost) -> list[str]:
    return [*cost.groups["dialable"], *cost.groups["others"]]
