import math
from contextlib import suppress
from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from tsr_swarm.errors import PeerError
from tsr_swarm.wire.telling import check_record, check_told
from tsr_swarm.wire.v1 import swarm_pb2 as pb

HASH = b"h" * 32
PEERS = tuple(f"{number:032x}" for number in range(6))


def record(**changes: Any) -> pb.Record:
    return pb.Record(**{"round": 4, "chain": HASH, "parent": HASH, "voters": PEERS[:3], **changes})


GOOD: dict[str, Any] = {
    "vote_request": pb.VoteRequest(term=1),
    "vote_reply": pb.VoteReply(term=1, reason="granted"),
    "beat": pb.Beat(term=1, base=record(), proposal=record(round=5)),
    "beat_reply": pb.BeatReply(term=1, accepted=HASH, reason="accepted"),
    "close": pb.Close(term=1, round=5, parent=HASH, shards=[0, 2], roster=HASH),
    "shard_done": pb.ShardDone(
        term=1, round=5, shard=3, local_loss=2.5, raw_sent=10**9, kappas=[0.5], energies=[2.0], roster=HASH
    ),
    "goodbye": pb.Goodbye(),
}


def told(kind: str, **changes: Any) -> pb.TellRequest:
    """A good message of this kind, with some of its fields set otherwise."""
    good = GOOD[kind]
    fields = {field.name: getattr(good, field.name) for field, _ in good.ListFields()}
    return pb.TellRequest(**{kind: type(good)(**{**fields, **changes})})


@pytest.mark.parametrize("kind", GOOD)
def test_a_message_within_bounds_passes(kind: str) -> None:
    check_told(told(kind))


def test_what_may_be_left_out_may_be() -> None:
    check_told(pb.TellRequest(beat=pb.Beat(term=1, base=pb.Record(voters=PEERS[:1]))))
    check_told(told("beat_reply", accepted=b""))
    check_told(told("close", round=1, parent=b""))
    check_told(told("shard_done", roster=b"", result=pb.ShardResult(void=True)))
    check_told(told("shard_done", kappas=[], energies=[]))


@pytest.mark.parametrize(
    ("reason", "kind", "changes"),
    [
        *(("term", kind, {"term": term}) for kind in list(GOOD)[:-1] for term in (0, 2**40 + 1)),
        ("round", "vote_request", {"round": 2**41}),
        ("tail_term", "vote_request", {"tail_term": 2**41}),
        ("voter_term", "vote_reply", {"voter_term": 2**41}),
        ("reason", "vote_reply", {"reason": "x" * 161}),
        ("reason", "vote_reply", {"reason": "\x1b[2J"}),
        ("base.voters", "beat", {"base": pb.Record()}),
        ("proposal.parent", "beat", {"proposal": record(parent=b"")}),
        ("round", "beat_reply", {"round": 2**41}),
        ("accepted", "beat_reply", {"accepted": b"short"}),
        ("reason", "beat_reply", {"reason": "a\nb"}),
        ("round", "close", {"round": 0, "parent": b""}),
        ("parent", "close", {"parent": b""}),
        ("parent", "close", {"round": 1}),
        ("shards", "close", {"shards": [1024]}),
        ("shards", "close", {"shards": [2, 0]}),
        ("shards", "close", {"shards": [1, 1]}),
        ("roster", "close", {"roster": b""}),
        ("roster", "close", {"roster": HASH + b"x"}),
        ("round", "shard_done", {"round": 0}),
        ("shard", "shard_done", {"shard": 1024}),
        ("local_loss", "shard_done", {"local_loss": math.nan}),
        ("local_loss", "shard_done", {"local_loss": -1e7}),
        ("raw_sent", "shard_done", {"raw_sent": 2**60}),
        ("kappas", "shard_done", {"kappas": [1.5]}),
        ("kappas", "shard_done", {"kappas": [math.nan]}),
        ("energies", "shard_done", {"energies": [-1.0]}),
        ("energies", "shard_done", {"energies": [math.inf]}),
        ("energies", "shard_done", {"energies": []}),
        ("roster", "shard_done", {"roster": b""}),
        ("roster", "shard_done", {"roster": HASH[:31]}),
    ],
)
def test_out_of_bounds_is_refused_by_field(reason: str, kind: str, changes: dict[str, Any]) -> None:
    with pytest.raises(PeerError) as refusal:
        check_told(told(kind, **changes))
    assert refusal.value.reason == reason


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("round", {"round": 2**41}),
        ("chain", {"chain": b""}),
        ("chain", {"chain": HASH + b"x"}),
        ("chain", {"round": 0}),
        ("parent", {"parent": b""}),
        ("parent", {"round": 1}),
        ("parent", {"round": 0, "chain": b""}),
        ("voters", {"voters": []}),
        ("voters", {"voters": PEERS}),  # six
        ("voters", {"voters": [PEERS[1], PEERS[0]]}),
        ("voters", {"voters": [PEERS[0], PEERS[0]]}),
        ("voters", {"voters": ["somebody"]}),
    ],
)
def test_a_record_out_of_bounds_is_refused_by_field(field: str, changes: dict[str, Any]) -> None:
    with pytest.raises(PeerError) as refusal:
        check_record(record(**changes))
    assert refusal.value.reason == f"record.{field}"


@given(data=st.binary(max_size=200))
def test_random_bytes_raise_only_peer_errors(data: bytes) -> None:
    with suppress(PeerError, DecodeError):
        check_told(pb.TellRequest.FromString(data))


@given(data=st.data(), kind=st.sampled_from(list(GOOD)))
def test_flipped_bits_raise_only_peer_errors(data: st.DataObject, kind: str) -> None:
    flipped = bytearray(told(kind).SerializeToString())
    bit = data.draw(st.integers(0, 8 * len(flipped) - 1))
    flipped[bit // 8] ^= 1 << bit % 8
    with suppress(PeerError, DecodeError):
        check_told(pb.TellRequest.FromString(bytes(flipped)))
