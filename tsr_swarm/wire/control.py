"""Bounds of the control messages, checked where they come in. Each function raises PeerError.

They bound the form only. Whether the peer is known, the round open or the digest right is for the caller to say.
"""

import math
from collections.abc import Mapping, Sequence

from tsr_swarm.config.layout import PayloadKind
from tsr_swarm.wire.fields import (
    MAX_ROUND,
    MAX_STEPS,
    MAX_WAIT_MS,
    require,
    require_address,
    require_between,
    require_digest,
    require_name,
    require_peer_id,
    require_real,
    require_text,
)
from tsr_swarm.wire.v1 import swarm_pb2 as pb

MAX_CHUNK_BYTES = 4 << 20
MAX_STATE_BYTES = 2**40
MAX_PEERS = 10**6
MAX_DONORS = 8
_MAX_COUNT = 2**50
_KINDS = frozenset(kind.value for kind in PayloadKind)


def check_join(message: pb.JoinRequest) -> None:
    """Who wants to take part."""
    require_digest("manifest_digest", message.manifest_digest)
    require_peer_id("peer_id", message.peer_id)
    require_name("name", message.name)
    require_address("address", message.address)
    require(message.local_space in ("core", "full"), "local_space", message.local_space, '"core" or "full"')
    require_text("device", message.device, 64)


def check_join_reply(message: pb.JoinReply) -> None:
    """The number and the name as admitted."""
    require_between("number", message.number, 1, MAX_PEERS)
    require_text("name", message.name, 48)
    _require_donors(message.donors)


def check_hello(message: pb.HelloRequest) -> None:
    """The first call of a peer or a monitor."""
    require_text("package_version", message.package_version, 32)


def check_hello_reply(message: pb.HelloReply) -> None:
    """The manifest itself is checked by ``decode_manifest``."""
    require_text("package_version", message.package_version, 32)
    require(len(message.initial_peers) <= 16, "initial_peers", len(message.initial_peers), "at most 16")
    for address in message.initial_peers:
        require_text("initial_peers", address, 256)
    require_real("unix_time", message.unix_time, 0.0, 2.0**40)


def check_describe_state(message: pb.DescribeStateRequest) -> None:
    """Whose state, and which one."""
    require_digest("manifest_digest", message.manifest_digest)
    require_between("round", message.round, 0, MAX_ROUND)


def check_state_description(message: pb.StateDescription) -> None:
    """As many hashes as chunks, and sizes that can be."""
    require_between("round", message.round, 0, MAX_ROUND)
    require_digest("digest", message.digest)
    require(len(message.chain) == (32 if message.round else 0), "chain", message.chain, "32 bytes, empty at round 0")
    require_between("total_bytes", message.total_bytes, 1, MAX_STATE_BYTES)
    require_between("chunk_bytes", message.chunk_bytes, 1, MAX_CHUNK_BYTES)
    count = math.ceil(message.total_bytes / message.chunk_bytes)
    require(len(message.chunk_hashes) == count, "chunk_hashes", len(message.chunk_hashes), f"one for each of {count}")
    for value in message.chunk_hashes:
        require_digest("chunk_hashes", value)


def check_follow(message: pb.FollowRequest) -> None:
    """The heartbeat and the progress in it."""
    require_peer_id("peer_id", message.peer_id)
    require_between("wait_ms", message.wait_ms, 0, MAX_WAIT_MS)
    progress = message.progress
    require_between("progress.round", progress.round, 0, MAX_ROUND)
    require_between("progress.step", progress.step, 0, MAX_STEPS)
    require_real("progress.tokens_per_second", progress.tokens_per_second, 0.0, 1e12)
    require_between("applied", message.applied, 0, MAX_ROUND)


def check_catch_up(message: pb.CatchUp) -> None:
    """Bytes that can be, and donors; whether these can be dialled is for the caller to say."""
    require_between("round_bytes", message.round_bytes, 0, _MAX_COUNT)
    require_between("state_round", message.state_round, 0, MAX_ROUND)
    require_between("state_bytes", message.state_bytes, 0, MAX_STATE_BYTES)
    require_between("rest_bytes", message.rest_bytes, 0, _MAX_COUNT)
    _require_donors(message.donors)


def check_report(message: pb.ReportRequest) -> None:
    """A digest, and bytes by payload kinds that exist."""
    require_peer_id("peer_id", message.peer_id)
    require_between("round", message.round, 1, MAX_ROUND)
    require_digest("digest", message.digest)
    require_between("overhead_bytes", message.overhead_bytes, 0, _MAX_COUNT)
    for field, counts in (("sent", message.sent), ("received", message.received)):
        _require_counts(field, counts)


def check_leave(message: pb.LeaveRequest) -> None:
    """A reason that can be shown."""
    require_peer_id("peer_id", message.peer_id)
    require_text("reason", message.reason, 128)


def check_watch(message: pb.WatchRequest) -> None:
    """How long a monitor waits."""
    require_between("wait_ms", message.wait_ms, 0, MAX_WAIT_MS)


def _require_donors(addresses: Sequence[str]) -> None:
    require(len(addresses) <= MAX_DONORS, "donors", len(addresses), f"at most {MAX_DONORS}")
    for address in addresses:
        require_address("donors", address)


def _require_counts(field: str, counts: Mapping[str, int]) -> None:
    require(set(counts) <= _KINDS, field, sorted(counts)[:4], f"bytes by payload kind ({', '.join(sorted(_KINDS))})")
    for value in counts.values():
        require_between(field, value, 0, _MAX_COUNT)
