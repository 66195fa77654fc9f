import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from tsr_swarm.errors import PeerError
from tsr_swarm.wire import control
from tsr_swarm.wire.v1 import swarm_pb2 as pb

PEER = "0123456789abcdef" * 2
DIGEST = b"d" * 32
JOIN: dict[str, Any] = {
    "manifest_digest": DIGEST,
    "peer_id": PEER,
    "name": "ann-2",
    "address": "192.0.2.7:7700",
    "local_space": "core",
    "device": "cpu, 2 cores",
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
    control.check_hello: pb.HelloRequest(protocol=1, package_version="0.1.0"),
    control.check_hello_reply: pb.HelloReply(initial_peers=["/ip4/192.0.2.7/tcp/1/p2p/Q"], unix_time=1.7e9),
    control.check_join: pb.JoinRequest(**JOIN),
    control.check_join_reply: pb.JoinReply(number=1, name="ann-2"),
    control.check_state_description: pb.StateDescription(**STATE),
    control.check_follow: pb.FollowRequest(peer_id=PEER, wait_ms=20_000, progress=pb.Progress(step=3)),
    control.check_report: pb.ReportRequest(peer_id=PEER, round=1, digest=DIGEST, sent={"core": 5}),
    control.check_describe_state: pb.DescribeStateRequest(manifest_digest=DIGEST, round=5),
    control.check_catch_up: pb.CatchUp(round_bytes=1, state_bytes=10**9, donors=["192.0.2.7:7702"] * 8),
    control.check_leave: pb.LeaveRequest(peer_id=PEER, reason="Ctrl-C"),
    control.check_watch: pb.WatchRequest(after=5, wait_ms=0),
}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_message_within_bounds_passes(check: Callable[[Any], None]) -> None:
    check(CHECKS[check])


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
    ],
)
def test_a_join_out_of_bounds_is_refused_by_field(field: str, value: object) -> None:
    with pytest.raises(PeerError) as refusal:
        control.check_join(pb.JoinRequest(**{**JOIN, field: value}))
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
        control.check_state_description(pb.StateDescription(**{**STATE, field: value}))


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (control.check_hello, pb.HelloRequest(package_version="x" * 33)),
        (control.check_hello_reply, pb.HelloReply(initial_peers=["x"] * 17)),
        (control.check_hello_reply, pb.HelloReply(initial_peers=["x" * 257])),
        (control.check_hello_reply, pb.HelloReply(unix_time=math.nan)),
        (control.check_join_reply, pb.JoinReply(number=0)),
        (control.check_join_reply, pb.JoinReply(number=1, name="ann", donors=["a:1"] * 9)),
        (control.check_join_reply, pb.JoinReply(number=1, name="ann", donors=["x" * 300])),
        (control.check_describe_state, pb.DescribeStateRequest(manifest_digest=b"short")),
        (control.check_describe_state, pb.DescribeStateRequest(manifest_digest=DIGEST, round=2**50)),
        (control.check_catch_up, pb.CatchUp(state_bytes=2**60)),
        (control.check_catch_up, pb.CatchUp(round_bytes=2**60)),
        (control.check_catch_up, pb.CatchUp(donors=["no address"])),
        (control.check_follow, pb.FollowRequest(peer_id=PEER, wait_ms=20_001)),
        (control.check_follow, pb.FollowRequest(peer_id="")),
        (control.check_follow, pb.FollowRequest(peer_id=PEER, applied=2**50)),
        (control.check_follow, pb.FollowRequest(peer_id=PEER, progress=pb.Progress(tokens_per_second=math.inf))),
        (control.check_report, pb.ReportRequest(peer_id=PEER, round=1, digest=DIGEST, sent={"gold": 5})),
        (control.check_report, pb.ReportRequest(peer_id=PEER, round=1, digest=DIGEST, received={"core": 2**60})),
        (control.check_report, pb.ReportRequest(peer_id=PEER, round=0, digest=DIGEST)),
        (control.check_leave, pb.LeaveRequest(peer_id=PEER, reason="x" * 129)),
        (control.check_leave, pb.LeaveRequest(peer_id=PEER, reason="a\x07b")),
        (control.check_watch, pb.WatchRequest(wait_ms=2**31)),
    ],
)
def test_out_of_bounds_is_refused(check: Callable[[Any], None], message: Any) -> None:
    with pytest.raises(PeerError):
        check(message)
