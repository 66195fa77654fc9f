"""Each message has a good example, and a table of what is changed in it and the field that the refusal names."""

import math
from contextlib import suppress
from typing import Any

import pytest
from google.protobuf.message import DecodeError, Message
from hypothesis import given
from hypothesis import strategies as st

from tests.wire.examples import CROWD, OTHER, PEER, but, each, flip, refusal_of
from tsr_swarm.errors import PeerError
from tsr_swarm.wire.checks import check
from tsr_swarm.wire.v1 import swarm_pb2 as pb

DIGEST, SHORT = b"d" * 32, b"d" * 31
ADDRESS = "192.0.2.7:7700"
RECORD = pb.Record(round=4, chain=DIGEST, parent=DIGEST, voters=[PEER, OTHER])
KEY = pb.PlanKey(round=5, term=2, version=1)
PLACE = pb.Place(peer_id=bytes.fromhex(PEER), incarnation=2**63 - 1)
CONTACT = pb.Contact(peer_id=PEER, address=ADDRESS)
LEASE = pb.DataLease(epoch=2**40, part=8191, tokens=2**50, size=2**50)
MEMBER = pb.Member(peer_id=bytes(16), number=1)
NEWS = pb.News(
    term=2,
    leader=PEER,
    version=7,
    base=RECORD,
    reducers=[PLACE, pb.Place(peer_id=bytes.fromhex(PEER)), pb.Place(peer_id=bytes.fromhex(OTHER))],
    sources=[1, 2] * 512,
    nodes=[OTHER] * 8,
    plan=pb.OpenPlan(key=KEY, places=[0, 2] * 512),
)
EXAMPLES: list[Any] = [
    pb.HelloRequest(protocol=1, package_version="0.1.0"),
    pb.HelloReply(
        initial_peers=["/ip4/1.2.3.4/tcp/1/p2p/Q"], unix_time=1.7e9, peer_id=OTHER, first=PEER, contacts=[CONTACT] * 16
    ),
    pb.JoinRequest(
        manifest_digest=DIGEST, peer_id=PEER, name="ann-2", address=ADDRESS, local_space="core", device="cpu, 2 cores"
    ),
    pb.JoinReply(number=0, name="ann-2"),
    pb.StateDescription(round=3, digest=DIGEST, chain=DIGEST, total_bytes=10, chunk_bytes=4, chunk_hashes=[DIGEST] * 3),
    pb.PollRequest(
        manifest_digest=DIGEST,
        peer_id=PEER,
        address=ADDRESS,
        applied=5,
        sent=KEY,
        progress=pb.Progress(step=3),
        lease=LEASE,
    ),
    pb.PollReply(news=NEWS, lease=pb.DataLease(epoch=1, part=3)),
    NEWS,
    pb.Redirect(base=RECORD),
    RECORD,
    pb.ListPeersRequest(manifest_digest=DIGEST, roster=DIGEST, known=DIGEST),
    pb.ListPeersReply(members=[MEMBER]),
    pb.FetchShardRequest(round=1, shard=1023, hashes=[DIGEST] * 16),
    pb.FetchPublishedRequest(round=1),
    pb.ReportRequest(peer_id=PEER, round=1, digest=DIGEST, sent={"core": 5}),
    pb.DescribeStateRequest(manifest_digest=DIGEST, round=5),
    pb.CatchUpRequest(manifest_digest=DIGEST, applied=0),
    pb.CatchUpReply(round_bytes=1, state_bytes=10**9),
    pb.LeaveRequest(peer_id=PEER, reason="Ctrl-C"),
    pb.WatchRequest(after=5, wait_ms=0),
    pb.TellRequest(manifest_digest=DIGEST, sender=PEER, goodbye=pb.Goodbye()),
    pb.VoteRequest(term=1),
    pb.VoteReply(term=1, reason="granted"),
    pb.Beat(term=1, base=RECORD, proposal=RECORD),
    pb.BeatReply(term=1, accepted=DIGEST, reason="accepted"),
    pb.Close(term=1, round=5, parent=DIGEST, shards=[0, 2], roster=DIGEST),
    pb.ShardDone(term=1, round=5, shard=3, local_loss=2.5, raw_sent=10**9, kappas=[0.5], energies=[2.0], roster=DIGEST),
]
GOOD: dict[type[Message], Any] = {type(message): message for message in EXAMPLES}
TOLD: dict[str, Any] = {
    field.name: getattr(pb, field.message_type.name)
    for field in pb.TellRequest.DESCRIPTOR.oneofs_by_name["message"].fields
    if field.name != "goodbye"
}


@pytest.mark.parametrize(
    "message",
    [
        *EXAMPLES,
        pb.PollReply(unknown=True),
        pb.PollReply(redirect=pb.Redirect(base=RECORD)),
        *(but(GOOD[pb.TellRequest], **{name: GOOD[kind]}) for name, kind in TOLD.items()),
        but(GOOD[pb.Beat], base=pb.Record(voters=CROWD[:1]), proposal=None),
        but(GOOD[pb.BeatReply], accepted=b""),
        but(GOOD[pb.Close], round=1, parent=b""),
        but(GOOD[pb.ShardDone], roster=b"", result=pb.ShardResult(void=True)),
        but(GOOD[pb.ShardDone], kappas=[], energies=[]),
    ],
)
def test_a_message_within_bounds_passes(message: Any) -> None:
    check(message)


@given(data=st.binary(max_size=200))
def test_random_bytes_raise_only_peer_errors(data: bytes) -> None:
    for kind in GOOD:
        with suppress(PeerError, DecodeError):
            check(kind.FromString(data))


@given(bit=st.integers(0, 10**5), example=st.sampled_from(EXAMPLES))
def test_flipped_bits_raise_only_peer_errors(bit: int, example: Message) -> None:
    with suppress(PeerError, DecodeError):
        check(type(example).FromString(flip(example.SerializeToString(), bit)))


# By kind of message and the field that the refusal names: its wrong values, or all that is changed.
WRONG: dict[type[Message], dict[str, list[Any]]] = {
    pb.HelloRequest: {"package_version": ["x" * 33]},
    pb.HelloReply: {
        "initial_peers": [["x"] * 17, ["x" * 257]],
        "unix_time": [math.nan],
        "peer_id": [""],
        "first": [PEER[:-1]],
        "contacts": [[CONTACT] * 17, [pb.Contact()]],
    },
    pb.JoinRequest: {
        "manifest_digest": [b""],
        "peer_id": [PEER[:-1]],
        "name": ["", "x" * 33, "ann 2", "ann\n", "änn"],
        "address": ["no spaces:1"],
        "local_space": ["mixed"],
        "device": ["x" * 65, "\x1b[2J"],
        "number": [10**6 + 1],
    },
    pb.JoinReply: {"number": [10**6 + 1], "name": ["ann" * 17]},
    pb.StateDescription: {
        "digest": [SHORT],
        "chain": [b""],
        "total_bytes": [0, 2**63],
        "chunk_hashes": [{"total_bytes": 13}, [DIGEST] * 2, [DIGEST, DIGEST, b""]],
        "chunk_bytes": [0, (4 << 20) + 1],
    },
    pb.DescribeStateRequest: {"manifest_digest": [SHORT], "round": [2**50]},
    pb.CatchUpRequest: {"manifest_digest": [SHORT], "applied": [2**50]},
    pb.CatchUpReply: {"state_round": [2**41], "state_bytes": [2**60], "round_bytes": [2**60], "rest_bytes": [2**60]},
    pb.PollRequest: {
        "manifest_digest": [b""],
        "peer_id": [""],
        "address": ["no address"],
        "incarnation": [2**63],
        "applied": [2**40 + 2],
        "sent.round": [pb.PlanKey(), pb.PlanKey(round=2**41, term=1, version=1)],
        "sent.term": [pb.PlanKey(round=1)],
        "sent.version": [pb.PlanKey(round=1, term=1)],
        "known": [2**60],
        "number": [2**60],
        "progress.round": [pb.Progress(round=2**41)],
        "progress.step": [pb.Progress(step=2**31)],
        "progress.tokens_per_second": [pb.Progress(tokens_per_second=math.inf)],
        "lease.part": [pb.DataLease(epoch=1, part=8192)],
        "lease.tokens": [pb.DataLease(tokens=2**51)],
        "lease.size": [pb.DataLease(size=2**51)],
    },
    pb.News: {
        "term": [0, 2**40 + 1],
        "leader": [""],
        "version": [2**60],
        "base.voters": [pb.Record()],
        "base.chain": [pb.Record(round=4, parent=DIGEST, voters=[PEER])],
        "reducers": [
            [pb.Place(peer_id=bytes(16), incarnation=number) for number in range(2049)],
            [PLACE, PLACE],
            [pb.Place(peer_id=PEER.encode())],
            [pb.Place(peer_id=bytes(16), incarnation=2**63)],
        ],
        "sources": [{"reducers": []}, [1] * 1025, [3]],
        "nodes": [[PEER] * 9, [""]],
        "number": [2**60],
        "key.round": [{"plan": pb.OpenPlan()}],
        "places": [{"plan": pb.OpenPlan(key=KEY, places=[0] * 1025)}, {"plan": pb.OpenPlan(key=KEY, places=[3])}],
    },
    pb.PollReply: {
        "answer": [{"news": None}],
        "version": [{"news": but(NEWS, version=2**60)}, {"unchanged": pb.Unchanged(term=1, version=2**60)}],
        "lease.epoch": [pb.DataLease(epoch=2**41)],
        "lease.part": [pb.DataLease(epoch=1, part=8192)],
        "term": [{"redirect": pb.Redirect(term=2**41, base=RECORD)}, {"unchanged": pb.Unchanged()}],
        "leader": [{"redirect": pb.Redirect(leader="me", base=RECORD)}],
        "base.voters": [{"redirect": pb.Redirect()}],
        "contacts": [[CONTACT] * 1025, [pb.Contact(address="a:1")], [pb.Contact(peer_id=PEER, address="x")]],
        "coverage.epoch": [pb.Coverage(epoch=2**41)],
        "coverage.done": [pb.Coverage(epoch=1, done=bytes(1025))],
        "coverage.ahead": [pb.Coverage(epoch=1, ahead=bytes(1025))],
        "number": [{"unchanged": pb.Unchanged(term=1, number=2**60)}],
    },
    pb.TellRequest: {
        "manifest_digest": [b""],
        "sender": [""],
        "address": ["\n\n\n"],
        "message": [{"goodbye": None}],
        "term": [{name: kind()} for name, kind in TOLD.items()],
    },
    pb.VoteRequest: {"term": [0, 2**40 + 1], "round": [2**41], "tail_term": [2**41]},
    pb.VoteReply: {"term": [2**40 + 1], "voter_term": [2**41], "reason": ["x" * 161, "\x1b[2J"]},
    pb.Beat: {"term": [2**40 + 1], "base.voters": [{"base": None}], "proposal.parent": [but(RECORD, parent=b"")]},
    pb.BeatReply: {"term": [2**40 + 1], "round": [2**41], "accepted": [SHORT], "reason": ["a\nb"]},
    pb.Close: {
        "term": [2**40 + 1],
        "round": [{"round": 0, "parent": b""}],
        "parent": [b"", {"round": 1}],
        "shards": [[1024], [2, 0], [1, 1]],
        "roster": [b"", DIGEST + b"x"],
    },
    pb.ShardDone: {
        "term": [2**40 + 1],
        "round": [0],
        "shard": [1024],
        "local_loss": [math.nan, -1e7],
        "raw_sent": [2**60],
        "kappas": [[1.5], [math.nan]],
        "energies": [[-1.0], [math.inf], []],
        "roster": [b"", SHORT],
    },
    pb.Record: {
        "round": [2**41],
        "chain": [b"", DIGEST + b"x", {"round": 0}],
        "parent": [b"", {"round": 1}, {"round": 0, "chain": b""}],
        "voters": [[], CROWD, [CROWD[1], CROWD[0]], [CROWD[0], CROWD[0]], ["no id"]],
    },
    pb.ListPeersRequest: {"manifest_digest": [b""], "roster": [SHORT], "known": [DIGEST + b"x"]},
    pb.ListPeersReply: {"unchanged": [True], "members": [[pb.Member(peer_id=bytes(16))]]},
    pb.FetchShardRequest: {"round": [0], "shard": [1024], "hashes": [[], [DIGEST] * 17, [b""]]},
    pb.FetchPublishedRequest: {"round": [0], "chain": [bytes(1000)]},
    pb.ReportRequest: {"sent": [{"sent": {"gold": 5}}], "received": [{"received": {"core": 2**60}}], "round": [0]},
    pb.LeaveRequest: {"reason": ["x" * 129, "a\x07b"]},
    pb.WatchRequest: {"wait_ms": [2**31]},
}


@pytest.mark.parametrize(("kind", "field", "change"), [(kind, *fault) for kind in WRONG for fault in each(WRONG[kind])])
def test_out_of_bounds_is_refused_by_field(kind: type[Message], field: str, change: Any) -> None:
    changes = change if isinstance(change, dict) else {field.partition(".")[0]: change}
    assert refusal_of(check, but(GOOD[kind], **changes)) == field
