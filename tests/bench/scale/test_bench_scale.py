"""What rounds cost as the swarm grows: the time that links take, and that every byte is counted once at both ends."""

from collections import Counter
from functools import cache, partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.bench.scale.costs import ROUNDS, Cost, shards_for, simulate
from tests.bench.scale.messages import UNCHANGED, SizedMessage, bytes_by_field, payload_bytes
from tests.bench.scale.network import SMALL_BYTES, Links
from tests.bench.scale.payloads import round_payloads, whole_bytes
from tests.rehearsal.clock import Clock
from tsr_swarm.rounds.header_tree import BRANCHES
from tsr_swarm.wire.v1 import swarm_pb2 as pb

PEERS, MEDIUM = 8, 32


@cache
def small() -> Cost:
    return simulate(PEERS)


@cache
def medium() -> Cost:
    return simulate(MEDIUM)


def everything(cost: Cost) -> tuple[Counter[SizedMessage], Counter[SizedMessage]]:
    sent, received = Counter[SizedMessage](), Counter[SizedMessage]()
    for traffic in cost.traffic.values():
        sent.update(traffic.sent)
        received.update(traffic.received)
    return sent, received


# --- links ------------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(SMALL_BYTES + 1, 10**6), min_size=1, max_size=20))
def test_a_link_is_never_faster_than_its_rate_and_never_idle_while_something_waits(sizes: list[int]) -> None:
    clock, arrived = Clock(), list[float]()
    links = Links(clock, up=8e6, down=8e9, latency=0.02)
    for size in sizes:
        links.carry("a", "b", size, lambda: arrived.append(clock.now))
    clock.run(lambda: False, 10**6)
    assert len(arrived) == len(sizes)
    assert max(arrived) == pytest.approx(0.02 + sum(sizes) / 1e6, rel=0.01)


def test_many_senders_share_the_link_of_one_receiver() -> None:
    clock, arrived = Clock(), list[float]()
    links = Links(clock, up=8e6, down=8e6, latency=0.0)
    for sender in range(10):
        links.carry(f"{sender}", "b", 100_000, lambda: arrived.append(clock.now))
    clock.run(lambda: False, 10**6)
    assert arrived == pytest.approx([0.1 * (place + 1) for place in range(10)])


def test_a_small_message_does_not_wait_for_a_large_one_but_takes_its_time_from_it() -> None:
    clock, arrived = Clock(), dict[str, float]()

    def arrive(name: str) -> None:
        arrived[name] = clock.now

    links = Links(clock, up=8e6, down=8e9, latency=0.0)
    for name, size in (("large", 10**6), ("small", 10**4), ("next", 10**6)):
        links.carry("a", name, size, partial(arrive, name))
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


def test_all_that_is_sent_is_received() -> None:
    sent, received = everything(small())
    assert sent == received
    assert sum(sent.values()) > 0


def test_a_peer_that_cannot_be_dialled_sends_one_contribution_and_receives_one_average() -> None:
    up, down = whole_bytes(round_payloads(PEERS, shards_for(PEERS)))
    for name in small().groups["others"]:
        traffic = small().traffic[name]
        assert payload_bytes(traffic.sent) == ROUNDS * up
        # the first download may end just before the count begins
        assert payload_bytes(traffic.received) == pytest.approx(ROUNDS * down, rel=0.13)


def test_a_header_has_18_bytes_for_every_peer() -> None:
    sent, _ = everything(small())
    headers = [message for message in sent if message.kind == "PublishedPart"]
    assert headers
    for message in headers:
        assert message.fields["header.included"] == 18 * PEERS


def test_a_poll_without_news_is_answered_in_a_few_bytes() -> None:
    assert small().messages[UNCHANGED][1] <= 16


def test_no_invariant_is_broken_and_a_round_is_longer_than_its_training() -> None:
    assert small().complaints == ()
    assert 0 < small().overhead < 10


# --- which node is asked --------------------------------------------------------------------------------------------


def received_by(kind: str) -> dict[str, int]:
    """How many messages of this kind each node received, of those that received any."""
    counts = {
        name: sum(count for message, count in traffic.received.items() if message.kind == kind)
        for name, traffic in medium().traffic.items()
    }
    return {name: count for name, count in counts.items() if count}


def test_the_leader_is_asked_for_shards_about_as_often_as_other_reducers() -> None:
    asked = received_by("FetchShard")
    (leader,) = medium().traffic.keys() - set(all_peers(medium()))
    others = [asked[name] for name in medium().groups["who can be dialled"]]
    assert asked[leader] <= 1.5 * max(others)  # it reduced more in the first round
    assert max(others) <= 1.5 * min(others)


def test_every_peer_fetches_a_header_once_and_no_node_sends_it_to_many() -> None:
    asked, got = received_by("FetchPublished"), received_by("PublishedPart")
    assert set(got) == set(all_peers(medium()))
    assert all(count <= ROUNDS + 1 for count in got.values())  # one at the end of the first round
    assert max(asked.values()) <= (ROUNDS + 1) * (BRANCHES + 2 * MEDIUM / len(medium().groups["who can be dialled"]))


def test_only_voters_copy_the_log() -> None:
    readers = received_by("WatchReply")
    assert len(readers) == 4  # beside the leader
    assert set(readers) <= set(medium().groups["who can be dialled"])


def test_control_is_less_than_5_percent_of_payload() -> None:
    cost = medium()
    for name in all_peers(cost):
        traffic = cost.traffic[name]
        assert 20 * traffic.control < traffic.payload
    assert cost.included == 1.0
    assert cost.complaints == ()


def all_peers(cost: Cost) -> list[str]:
    return [*cost.groups["who can be dialled"], *cost.groups["others"]]
