import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from tsr_swarm.errors import PeerError
from tsr_swarm.wire import checks
from tsr_swarm.wire.v1 import swarm_pb2 as pb

PEER = "0123456789abcdef" * 2
OTHER = "f" * 32
DIGEST = b"d" * 32
JOIN: dict[str, Any] = {
    "manifest_digest": DIGEST,
    "peer_id": PEER,
    "name": "ann-2",
    "address": "192.0.2.7:7700",
    "local_space": "core",
    "device": "cpu, 2 cores",
}
RECORD = pb.Record(round=4, chain=DIGEST, parent=DIGEST, voters=[PEER, OTHER])
PLACE = pb.Place(peer_id=bytes.fromhex(PEER), incarnation=2**63 - 1)
NEWS: dict[str, Any] = {
    "term": 2,
    "leader": PEER,
    "version": 7,
    "base": RECORD,
    "reducers": [PLACE, pb.Place(peer_id=bytes.fromhex(PEER)), pb.Place(peer_id=bytes.fromhex(OTHER))],
    "sources": [1, 2] * 512,
    "nodes": [OTHER] * 8,
    "plan": pb.OpenPlan(key=pb.PlanKey(round=5, term=2, version=1), places=[0, 2] * 512),
}
POLL: dict[str, Any] = {
    "manifest_digest": DIGEST,
    "peer_id": PEER,
    "address": "192.0.2.7:7700",
    "incarnation": 1700000000,
    "applied": 5,
    "sent": pb.PlanKey(round=5, term=2, version=1),
    "progress": pb.Progress(step=3),
    "lease": pb.DataLease(epoch=2**40, part=8191, tokens=2**50, size=2**50),
}
HELLO: dict[str, Any] = {
    "initial_peers": ["/ip4/192.0.2.7/tcp/1/p2p/Q"],
    "unix_time": 1.7e9,
    "peer_id": OTHER,
    "first": PEER,
    "contacts": [pb.Contact(peer_id=PEER, address="192.0.2.7:7700")] * 16,
}
STATE: dict[str, Any] = {
    "round": 3,
    "digest": DIGEST,
    "chain": DIGEST,
    "total_bytes": 10,
    "chunk_bytes": 4,
    "chunk_hashes": [DIGEST] * 3,
}
CHECKS: dict[Callable[[Any], None], Any] = {
    checks.check_hello: pb.HelloRequest(protocol=1, package_version="0.1.0"),
    checks.check_hello_reply: pb.HelloReply(**HELLO),
    checks.check_join: pb.JoinRequest(**JOIN),
    checks.check_join_reply: pb.JoinReply(number=0, name="ann-2"),
    checks.check_state_description: pb.StateDescription(**STATE),
    checks.check_poll: pb.PollRequest(**POLL),
    checks.check_poll_reply: pb.PollReply(news=pb.News(**NEWS), lease=pb.DataLease(epoch=1, part=3)),
    checks.check_news: pb.News(**NEWS),
    checks.check_redirect: pb.Redirect(base=RECORD),
    checks.check_tell: pb.TellRequest(manifest_digest=DIGEST, sender=PEER, goodbye=pb.Goodbye()),
    checks.check_list_peers: pb.ListPeersRequest(manifest_digest=DIGEST, roster=DIGEST, known=DIGEST),
    checks.check_list_peers_reply: pb.ListPeersReply(members=[pb.Member(peer_id=bytes(16), number=1)]),
    checks.check_fetch_shard: pb.FetchShardRequest(round=1, shard=1023, hashes=[DIGEST] * 16),
    checks.check_fetch_published: pb.FetchPublishedRequest(round=1),
    checks.check_report: pb.ReportRequest(peer_id=PEER, round=1, digest=DIGEST, sent={"core": 5}),
    checks.check_describe_state: pb.DescribeStateRequest(manifest_digest=DIGEST, round=5),
    checks.check_catch_up: pb.CatchUpRequest(manifest_digest=DIGEST, applied=0),
    checks.check_catch_up_reply: pb.CatchUpReply(round_bytes=1, state_bytes=10**9),
    checks.check_leave: pb.LeaveRequest(peer_id=PEER, reason="Ctrl-C"),
    checks.check_watch: pb.WatchRequest(after=5, wait_ms=0),
}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_message_within_bounds_passes(check: Callable[[Any], None]) -> None:
    check(CHECKS[check])


@pytest.mark.parametrize("answer", [pb.PollReply(unknown=True), pb.PollReply(redirect=pb.Redirect(base=RECORD))])
def test_an_answer_may_be_that_of_who_does_not_lead(answer: pb.PollReply) -> None:
    checks.check_poll_reply(answer)


@given(data=st.binary(max_size=200))
def test_random_bytes_raise_only_peer_errors(data: bytes) -> None:
    for check, example in CHECKS.items():
        with suppress(PeerError, DecodeError):
            check(type(example).FromString(data))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("manifest_digest", b""),
        ("peer_id", PEER[:-1]),
        ("name", ""),
        ("name", "x" * 33),
        ("name", "ann 2"),
        ("name", "ann\n"),
        ("name", "änn"),
        ("address", "no spaces:1"),
        ("local_space", "mixed"),
        ("device", "x" * 65),
        ("device", "\x1b[2J"),
        ("number", 10**6 + 1),
    ],
)
def test_a_join_out_of_bounds_is_refused_by_field(field: str, value: object) -> None:
    with pytest.raises(PeerError) as refusal:
        checks.check_join(pb.JoinRequest(**{**JOIN, field: value}))
    assert refusal.value.reason == field


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("digest", b"d" * 31),
        ("chain", b""),
        ("total_bytes", 0),
        ("total_bytes", 2**63),
        ("total_bytes", 13),
        ("chunk_bytes", 0),
        ("chunk_bytes", (4 << 20) + 1),
        ("chunk_hashes", [DIGEST] * 2),
        ("chunk_hashes", [DIGEST, DIGEST, b""]),
    ],
)
def test_a_state_out_of_bounds_is_refused(field: str, value: object) -> None:
    with pytest.raises(PeerError):
        checks.check_state_description(pb.StateDescription(**{**STATE, field: value}))


@pytest.mark.parametrize(
    ("reason", "field", "value"),
    [
        ("manifest_digest", "manifest_digest", b""),
        ("peer_id", "peer_id", ""),
        ("address", "address", "no address"),
        ("incarnation", "incarnation", 2**63),
        ("applied", "applied", 2**40 + 2),
        ("sent.round", "sent", pb.PlanKey()),
        ("sent.term", "sent", pb.PlanKey(round=1)),
        ("sent.version", "sent", pb.PlanKey(round=1, term=1)),
        ("sent.round", "sent", pb.PlanKey(round=2**41, term=1, version=1)),
        ("known", "known", 2**60),
        ("number", "number", 2**60),
        ("progress.round", "progress", pb.Progress(round=2**41)),
        ("progress.step", "progress", pb.Progress(step=2**31)),
        ("progress.tokens_per_second", "progress", pb.Progress(tokens_per_second=math.inf)),
    ],
)
def test_a_poll_out_of_bounds_is_refused_by_field(reason: str, field: str, value: object) -> None:
    with pytest.raises(PeerError) as refusal:
        checks.check_poll(pb.PollRequest(**{**POLL, field: value}))
    assert refusal.value.reason == reason


KEY = pb.PlanKey(round=5, term=2, version=1)


@pytest.mark.parametrize(
    ("reason", "field", "value"),
    [
        ("term", "term", 0),
        ("term", "term", 2**40 + 1),
        ("leader", "leader", ""),
        ("version", "version", 2**60),
        ("base.voters", "base", pb.Record()),
        ("base.chain", "base", pb.Record(round=4, parent=DIGEST, voters=[PEER])),
        ("reducers", "reducers", [pb.Place(peer_id=bytes(16), incarnation=number) for number in range(2049)]),
        ("reducers", "reducers", [PLACE, PLACE]),
        ("reducers", "reducers", [pb.Place(peer_id=PEER.encode())]),
        ("reducers", "reducers", [pb.Place(peer_id=bytes(16), incarnation=2**63)]),
        ("sources", "reducers", []),
        ("sources", "sources", [1] * 1025),
        ("sources", "sources", [3]),
        ("nodes", "nodes", [PEER] * 9),
        ("nodes", "nodes", [""]),
        ("number", "number", 2**60),
        ("key.round", "plan", pb.OpenPlan()),
        ("places", "plan", pb.OpenPlan(key=KEY, places=[0] * 1025)),
        ("places", "plan", pb.OpenPlan(key=KEY, places=[3])),
    ],
)
def test_news_out_of_bounds_are_refused_by_field(reason: str, field: str, value: object) -> None:
    news = pb.News(**{**NEWS, field: value})
    for check, message in ((checks.check_news, news), (checks.check_poll_reply, pb.PollReply(news=news))):
        with pytest.raises(PeerError) as refusal:
            check(message)  # type: ignore[arg-type]
        assert refusal.value.reason == reason


def answer(**fields: Any) -> pb.PollReply:
    return pb.PollReply(**{"unchanged": pb.Unchanged(term=1, version=2**50, number=2**50), **fields})


CONTACT = pb.Contact(peer_id=PEER, address="192.0.2.7:7700")


@pytest.mark.parametrize(
    ("reason", "check", "message"),
    [
        ("package_version", checks.check_hello, pb.HelloRequest(package_version="x" * 33)),
        ("initial_peers", checks.check_hello_reply, pb.HelloReply(**{**HELLO, "initial_peers": ["x"] * 17})),
        ("initial_peers", checks.check_hello_reply, pb.HelloReply(**{**HELLO, "initial_peers": ["x" * 257]})),
        ("unix_time", checks.check_hello_reply, pb.HelloReply(**{**HELLO, "unix_time": math.nan})),
        ("peer_id", checks.check_hello_reply, pb.HelloReply(**{**HELLO, "peer_id": ""})),
        ("first", checks.check_hello_reply, pb.HelloReply(**{**HELLO, "first": PEER[:-1]})),
        ("contacts", checks.check_hello_reply, pb.HelloReply(**{**HELLO, "contacts": [CONTACT] * 17})),
        ("contacts", checks.check_hello_reply, pb.HelloReply(**{**HELLO, "contacts": [pb.Contact()]})),
        ("number", checks.check_join_reply, pb.JoinReply(number=10**6 + 1)),
        ("name", checks.check_join_reply, pb.JoinReply(number=1, name="ann" * 17)),
        ("manifest_digest", checks.check_describe_state, pb.DescribeStateRequest(manifest_digest=b"short")),
        ("round", checks.check_describe_state, pb.DescribeStateRequest(manifest_digest=DIGEST, round=2**50)),
        ("manifest_digest", checks.check_catch_up, pb.CatchUpRequest(manifest_digest=b"short")),
        ("applied", checks.check_catch_up, pb.CatchUpRequest(manifest_digest=DIGEST, applied=2**50)),
        ("state_round", checks.check_catch_up_reply, pb.CatchUpReply(state_round=2**41)),
        ("state_bytes", checks.check_catch_up_reply, pb.CatchUpReply(state_bytes=2**60)),
        ("round_bytes", checks.check_catch_up_reply, pb.CatchUpReply(round_bytes=2**60)),
        ("rest_bytes", checks.check_catch_up_reply, pb.CatchUpReply(rest_bytes=2**60)),
        ("answer", checks.check_poll_reply, pb.PollReply()),
        ("lease.epoch", checks.check_poll_reply, pb.PollReply(unknown=True, lease=pb.DataLease(epoch=2**41))),
        ("lease.part", checks.check_poll_reply, pb.PollReply(unknown=True, lease=pb.DataLease(epoch=1, part=8192))),
        ("lease.part", checks.check_poll, pb.PollRequest(**{**POLL, "lease": pb.DataLease(epoch=1, part=8192)})),
        ("lease.tokens", checks.check_poll, pb.PollRequest(**{**POLL, "lease": pb.DataLease(tokens=2**51)})),
        ("lease.size", checks.check_poll, pb.PollRequest(**{**POLL, "lease": pb.DataLease(size=2**51)})),
        ("term", checks.check_poll_reply, pb.PollReply(redirect=pb.Redirect(term=2**41, base=RECORD))),
        ("leader", checks.check_poll_reply, pb.PollReply(redirect=pb.Redirect(leader="me", base=RECORD))),
        ("base.voters", checks.check_poll_reply, pb.PollReply(redirect=pb.Redirect())),
        ("contacts", checks.check_poll_reply, pb.PollReply(unknown=True, contacts=[CONTACT] * 1025)),
        ("coverage.epoch", checks.check_poll_reply, answer(coverage=pb.Coverage(epoch=2**41))),
        ("coverage.done", checks.check_poll_reply, answer(coverage=pb.Coverage(epoch=1, done=bytes(1025)))),
        ("coverage.ahead", checks.check_poll_reply, answer(coverage=pb.Coverage(epoch=1, ahead=bytes(1025)))),
        ("term", checks.check_poll_reply, answer(unchanged=pb.Unchanged())),
        ("version", checks.check_poll_reply, answer(unchanged=pb.Unchanged(term=1, version=2**60))),
        ("number", checks.check_poll_reply, answer(unchanged=pb.Unchanged(term=1, number=2**60))),
        ("contacts", checks.check_poll_reply, pb.PollReply(unknown=True, contacts=[pb.Contact(address="a:1")])),
        (
            "contacts",
            checks.check_poll_reply,
            pb.PollReply(unknown=True, contacts=[pb.Contact(peer_id=PEER, address="x")]),
        ),
        ("manifest_digest", checks.check_tell, pb.TellRequest(sender=PEER, goodbye=pb.Goodbye())),
        ("sender", checks.check_tell, pb.TellRequest(manifest_digest=DIGEST, goodbye=pb.Goodbye())),
        ("address", checks.check_tell, pb.TellRequest(manifest_digest=DIGEST, sender=PEER, address="\n\n\n")),
        ("message", checks.check_tell, pb.TellRequest(manifest_digest=DIGEST, sender=PEER)),
        ("manifest_digest", checks.check_list_peers, pb.ListPeersRequest()),
        ("roster", checks.check_list_peers, pb.ListPeersRequest(manifest_digest=DIGEST, roster=b"short")),
        ("known", checks.check_list_peers, pb.ListPeersRequest(manifest_digest=DIGEST, known=DIGEST + b"x")),
        (
            "unchanged",
            checks.check_list_peers_reply,
            pb.ListPeersReply(members=[pb.Member(peer_id=bytes(16), number=1)], unchanged=True),
        ),
        ("members", checks.check_list_peers_reply, pb.ListPeersReply(members=[pb.Member(peer_id=bytes(16))])),
        ("round", checks.check_fetch_shard, pb.FetchShardRequest(hashes=[DIGEST])),
        ("shard", checks.check_fetch_shard, pb.FetchShardRequest(round=1, shard=1024, hashes=[DIGEST])),
        ("hashes", checks.check_fetch_shard, pb.FetchShardRequest(round=1)),
        ("hashes", checks.check_fetch_shard, pb.FetchShardRequest(round=1, hashes=[DIGEST] * 17)),
        ("hashes", checks.check_fetch_shard, pb.FetchShardRequest(round=1, hashes=[b""])),
        ("round", checks.check_fetch_published, pb.FetchPublishedRequest()),
        ("chain", checks.check_fetch_published, pb.FetchPublishedRequest(round=1, chain=bytes(1000))),
        ("sent", checks.check_report, pb.ReportRequest(peer_id=PEER, round=1, digest=DIGEST, sent={"gold": 5})),
        (
            "received",
            checks.check_report,
            pb.ReportRequest(peer_id=PEER, round=1, digest=DIGEST, received={"core": 2**60}),
        ),
        ("round", checks.check_report, pb.ReportRequest(peer_id=PEER, round=0, digest=DIGEST)),
        ("reason", checks.check_leave, pb.LeaveRequest(peer_id=PEER, reason="x" * 129)),
        ("reason", checks.check_leave, pb.LeaveRequest(peer_id=PEER, reason="a\x07b")),
        ("wait_ms", checks.check_watch, pb.WatchRequest(wait_ms=2**31)),
    ],
)
def test_out_of_bounds_is_refused_by_field(reason: str, check: Callable[[Any], None], message: Any) -> None:
    with pytest.raises(PeerError) as refusal:
        check(message)
    assert refusal.value.reason == reason
