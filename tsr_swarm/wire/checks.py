"""Bounds of the control messages, checked where they come in. Each function raises PeerError, which names the field.

They bound the form only: whether a peer is known, votes or leads, or a round is open, is for the caller to say.
"""

import math
from collections.abc import Mapping, Sequence

from tsr_swarm.config.layout import PayloadKind
from tsr_swarm.wire.fields import (
    MAX_COUNT,
    MAX_INCARNATION,
    MAX_REASON,
    MAX_ROUND,
    MAX_STEPS,
    MAX_TERM,
    MAX_WAIT_MS,
    require,
    require_address,
    require_ascending,
    require_between,
    require_chain,
    require_digest,
    require_name,
    require_peer_bytes,
    require_peer_id,
    require_real,
    require_text,
    require_voters,
)
from tsr_swarm.wire.messages import MAX_LOSS, MAX_SECTIONS, MAX_SHARDS, require_measured
from tsr_swarm.wire.roster import MAX_NUMBER, require_members
from tsr_swarm.wire.v1 import swarm_pb2 as pb

MAX_CHUNK_BYTES = 4 << 20
MAX_STATE_BYTES = 2**40
MAX_CONTACTS = 1024  # of one answer
MAX_HELLO_CONTACTS = 16
MAX_EPOCH = 2**40
MAX_PARTS = 8192  # of the shared data: as many as can be tracked
MAX_NODES = 8  # listed in news, beside the voters
_KINDS = frozenset(kind.value for kind in PayloadKind)


def check_join(message: pb.JoinRequest) -> None:
    """Check the request of a node that wants to take part."""
    require_digest("manifest_digest", message.manifest_digest)
    require_peer_id("peer_id", message.peer_id)
    require_name("name", message.name)
    require_address("address", message.address)
    require(message.local_space in ("core", "full"), "local_space", message.local_space, '"core" or "full"')
    require_text("device", message.device, 64)
    require_between("number", message.number, 0, MAX_NUMBER)


def check_join_reply(message: pb.JoinReply) -> None:
    """Check the admitted name and the number, which is 0 for a node that does not train."""
    require_between("number", message.number, 0, MAX_NUMBER)
    require_text("name", message.name, 48)


def check_hello(message: pb.HelloRequest) -> None:
    """Check the first call of a peer or a monitor."""
    require_text("package_version", message.package_version, 32)


def check_hello_reply(message: pb.HelloReply) -> None:
    """Check all but the manifest, which ``decode_manifest`` checks."""
    require_text("package_version", message.package_version, 32)
    require(len(message.initial_peers) <= 16, "initial_peers", len(message.initial_peers), "at most 16")
    for address in message.initial_peers:
        require_text("initial_peers", address, 256)
    require_real("unix_time", message.unix_time, 0.0, 2.0**40)
    require_peer_id("peer_id", message.peer_id)
    require_peer_id("first", message.first)
    _require_contacts(message.contacts, MAX_HELLO_CONTACTS)


def check_describe_state(message: pb.DescribeStateRequest) -> None:
    """Check which state is asked for."""
    require_digest("manifest_digest", message.manifest_digest)
    require_between("round", message.round, 0, MAX_ROUND)


def check_state_description(message: pb.StateDescription) -> None:
    """Check that there are as many hashes as chunks, and that the sizes are possible."""
    require_between("round", message.round, 0, MAX_ROUND)
    require_digest("digest", message.digest)
    require_chain("chain", message.chain, message.round)
    require_between("total_bytes", message.total_bytes, 1, MAX_STATE_BYTES)
    require_between("chunk_bytes", message.chunk_bytes, 1, MAX_CHUNK_BYTES)
    count = math.ceil(message.total_bytes / message.chunk_bytes)
    require(len(message.chunk_hashes) == count, "chunk_hashes", len(message.chunk_hashes), f"one for each of {count}")
    for value in message.chunk_hashes:
        require_digest("chunk_hashes", value)


def check_poll(message: pb.PollRequest) -> None:
    """Check a heartbeat: what the caller has and has sent, and its progress."""
    require_digest("manifest_digest", message.manifest_digest)
    require_peer_id("peer_id", message.peer_id)
    require_address("address", message.address)
    require_between("incarnation", message.incarnation, 0, MAX_INCARNATION)
    require_between("applied", message.applied, 0, MAX_ROUND + 1)
    if message.HasField("sent"):
        _check_key(message.sent, "sent")
    require_between("known", message.known, 0, MAX_COUNT)
    require_between("number", message.number, 0, MAX_COUNT)
    progress = message.progress
    require_between("progress.round", progress.round, 0, MAX_ROUND)
    require_between("progress.step", progress.step, 0, MAX_STEPS)
    require_real("progress.tokens_per_second", progress.tokens_per_second, 0.0, 1e12)
    require_real("progress.local_loss", progress.local_loss, -1e6, 1e6)
    require_between("progress.wire_bytes", progress.wire_bytes, 0, MAX_COUNT)
    _check_lease(message.lease)


def check_poll_reply(message: pb.PollReply) -> None:
    """Check an answer and its contacts; whether these can be dialled is for the caller to say."""
    match message.WhichOneof("answer"):
        case "news":
            check_news(message.news)
        case "redirect":
            check_redirect(message.redirect)
        case "unchanged":
            require_between("term", message.unchanged.term, 1, MAX_TERM)
            require_between("version", message.unchanged.version, 0, MAX_COUNT)
            require_between("number", message.unchanged.number, 0, MAX_COUNT)
        case kind:
            require(kind == "unknown", "answer", kind, "one that this version knows")
    _require_contacts(message.contacts, MAX_CONTACTS)
    _check_lease(message.lease)
    _check_coverage(message.coverage)


def check_news(message: pb.News) -> None:
    """Check a leader's news, but for the plan and the rules: see ``messages.plan_from_proto`` and ``with_rules``."""
    require_between("term", message.term, 1, MAX_TERM)
    require_peer_id("leader", message.leader)
    require_between("version", message.version, 0, MAX_COUNT)
    check_record(message.base, "base")
    _check_reducers(message.reducers)
    _check_indices("sources", message.sources, len(message.reducers))
    require(len(message.nodes) <= MAX_NODES, "nodes", len(message.nodes), f"at most {MAX_NODES}")
    for node in message.nodes:
        require_peer_id("nodes", node)
    require_between("number", message.number, 0, MAX_COUNT)
    if message.HasField("plan"):
        _check_key(message.plan.key, "key")
        _check_indices("places", message.plan.places, len(message.reducers))


def check_redirect(message: pb.Redirect) -> None:
    """Check who leads instead, as far as known."""
    require_between("term", message.term, 0, MAX_TERM)
    if message.leader:
        require_peer_id("leader", message.leader)
    check_record(message.base, "base")


def check_tell(message: pb.TellRequest) -> None:
    """Check the sender and the message of a node; a ShardDone's result is bounded by ``messages.result_from_proto``."""
    require_digest("manifest_digest", message.manifest_digest)
    require_peer_id("sender", message.sender)
    require_address("address", message.address)
    match message.WhichOneof("message"):
        case "vote_request":
            _check_vote_request(message.vote_request)
        case "vote_reply":
            _check_vote_reply(message.vote_reply)
        case "beat":
            _check_beat(message.beat)
        case "beat_reply":
            _check_beat_reply(message.beat_reply)
        case "close":
            _check_close(message.close)
        case "shard_done":
            _check_shard_done(message.shard_done)
        case kind:
            require(kind == "goodbye", "message", kind, "one that this version knows")


def check_record(message: pb.Record, field: str = "record") -> None:
    """Check a round's hashes and the voters on what follows. ``field``: what the refusal calls it."""
    require_between(f"{field}.round", message.round, 0, MAX_ROUND)
    require_chain(f"{field}.chain", message.chain, message.round)
    require_chain(f"{field}.parent", message.parent, message.round - 1)
    require_voters(f"{field}.voters", message.voters, 1)


def check_list_peers(message: pb.ListPeersRequest) -> None:
    """Check which run is meant, and which list."""
    require_digest("manifest_digest", message.manifest_digest)
    for field, value in (("roster", message.roster), ("known", message.known)):
        if value:
            require_digest(field, value)


def check_list_peers_reply(message: pb.ListPeersReply) -> None:
    """Check a list of members, which is empty if the caller has it already."""
    require(not (message.unchanged and message.members), "unchanged", len(message.members), "without members")
    require_members("members", message.members)


def check_fetch_shard(message: pb.FetchShardRequest) -> None:
    """Check which bytes are asked for."""
    require_between("round", message.round, 1, MAX_ROUND)
    require_between("shard", message.shard, 0, MAX_SHARDS - 1)
    count = len(message.hashes)
    require(1 <= count <= MAX_SECTIONS, "hashes", count, f"1 to {MAX_SECTIONS}")
    for value in message.hashes:
        require_digest("hashes", value)


def check_fetch_published(message: pb.FetchPublishedRequest) -> None:
    """Check which round is asked for, and which of its results."""
    require_between("round", message.round, 1, MAX_ROUND)
    if message.chain:
        require_digest("chain", message.chain)


def check_catch_up(message: pb.CatchUpRequest) -> None:
    """Check which run is meant, and which round the caller is at."""
    require_digest("manifest_digest", message.manifest_digest)
    require_between("applied", message.applied, 0, MAX_ROUND)


def check_catch_up_reply(message: pb.CatchUpReply) -> None:
    """Check that the numbers of bytes are possible."""
    require_between("round_bytes", message.round_bytes, 0, MAX_COUNT)
    require_between("state_round", message.state_round, 0, MAX_ROUND)
    require_between("state_bytes", message.state_bytes, 0, MAX_STATE_BYTES)
    require_between("rest_bytes", message.rest_bytes, 0, MAX_COUNT)


def check_report(message: pb.ReportRequest) -> None:
    """Check a digest, and bytes by payload kinds that exist."""
    require_peer_id("peer_id", message.peer_id)
    require_between("round", message.round, 1, MAX_ROUND)
    require_digest("digest", message.digest)
    require_between("overhead_bytes", message.overhead_bytes, 0, MAX_COUNT)
    for field, counts in (("sent", message.sent), ("received", message.received)):
        _require_counts(field, counts)


def check_leave(message: pb.LeaveRequest) -> None:
    """Check that the reason can be shown."""
    require_peer_id("peer_id", message.peer_id)
    require_text("reason", message.reason, 128)


def check_watch(message: pb.WatchRequest) -> None:
    """Check how long a monitor waits."""
    require_between("wait_ms", message.wait_ms, 0, MAX_WAIT_MS)


def _check_vote_request(message: pb.VoteRequest) -> None:
    require_between("term", message.term, 1, MAX_TERM)
    require_between("round", message.round, 0, MAX_ROUND)
    require_between("tail_term", message.tail_term, 0, MAX_TERM)


def _check_vote_reply(message: pb.VoteReply) -> None:
    require_between("term", message.term, 1, MAX_TERM)
    require_between("voter_term", message.voter_term, 0, MAX_TERM)
    require_text("reason", message.reason, MAX_REASON)


def _check_beat(message: pb.Beat) -> None:
    require_between("term", message.term, 1, MAX_TERM)
    check_record(message.base, "base")
    if message.HasField("proposal"):
        check_record(message.proposal, "proposal")


def _check_beat_reply(message: pb.BeatReply) -> None:
    require_between("term", message.term, 1, MAX_TERM)
    require_between("round", message.round, 0, MAX_ROUND)
    if message.accepted:
        require_digest("accepted", message.accepted)
    require_text("reason", message.reason, MAX_REASON)


def _check_close(message: pb.Close) -> None:
    require_between("term", message.term, 1, MAX_TERM)
    require_between("round", message.round, 1, MAX_ROUND)
    require_chain("parent", message.parent, message.round - 1)
    require_ascending("shards", message.shards, MAX_SHARDS)
    require_digest("roster", message.roster)


def _check_shard_done(message: pb.ShardDone) -> None:
    require_between("term", message.term, 1, MAX_TERM)
    require_between("round", message.round, 1, MAX_ROUND)
    require_between("shard", message.shard, 0, MAX_SHARDS - 1)
    require_real("local_loss", message.local_loss, -MAX_LOSS, MAX_LOSS)
    require_between("raw_sent", message.raw_sent, 0, MAX_COUNT)
    require_measured(message.kappas, message.energies)
    if not message.result.void:
        require_digest("roster", message.roster)


def _check_reducers(reducers: Sequence[pb.Place]) -> None:
    most = 2 * MAX_SHARDS
    require(len(reducers) <= most, "reducers", len(reducers), f"at most {most}")
    for reducer in reducers:
        require_peer_bytes("reducers", reducer.peer_id)
        require_between("reducers", reducer.incarnation, 0, MAX_INCARNATION)
    different = len({(reducer.peer_id, reducer.incarnation) for reducer in reducers})
    require(different == len(reducers), "reducers", different, f"{len(reducers)} different ones")


def _check_indices(field: str, indices: Sequence[int], end: int) -> None:
    require(len(indices) <= MAX_SHARDS, field, len(indices), f"at most {MAX_SHARDS}")
    require(all(index < end for index in indices), field, list(indices[:8]), f"indices below {end}")


def _check_lease(message: pb.DataLease) -> None:
    require_between("lease.epoch", message.epoch, 0, MAX_EPOCH)
    require_between("lease.part", message.part, 0, MAX_PARTS - 1)
    require_between("lease.tokens", message.tokens, 0, MAX_COUNT)
    require_between("lease.size", message.size, 0, MAX_COUNT)


def _check_coverage(message: pb.Coverage) -> None:
    require_between("coverage.epoch", message.epoch, 0, MAX_EPOCH)
    for field, parts in (("coverage.done", message.done), ("coverage.ahead", message.ahead)):
        require(len(parts) <= MAX_PARTS // 8, field, len(parts), f"at most {MAX_PARTS // 8} bytes")


def _check_key(message: pb.PlanKey, field: str) -> None:
    require_between(f"{field}.round", message.round, 1, MAX_ROUND)
    require_between(f"{field}.term", message.term, 1, MAX_TERM)
    require_between(f"{field}.version", message.version, 1, MAX_COUNT)


def _require_contacts(contacts: Sequence[pb.Contact], most: int) -> None:
    require(len(contacts) <= most, "contacts", len(contacts), f"at most {most}")
    for contact in contacts:
        require_peer_id("contacts", contact.peer_id)
        require_address("contacts", contact.address)


def _require_counts(field: str, counts: Mapping[str, int]) -> None:
    require(set(counts) <= _KINDS, field, sorted(counts)[:4], f"bytes by payload kind ({', '.join(sorted(_KINDS))})")
    for value in counts.values():
        require_between(field, value, 0, MAX_COUNT)
