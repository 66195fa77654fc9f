"""Bounds of the control messages, checked where they come in; a refusal is a PeerError that names the field.

``_FIELDS`` holds the bound of each field by kind of message, ``_RELATIONS`` what must hold between fields. They bound
the form only: whether a peer is known, votes or leads, or a round is open, is for the caller to say.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from google.protobuf.message import Message

from tsr_swarm.config.layout import PayloadKind
from tsr_swarm.wire import fields
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

Check = Callable[[str, Any], None]  # of a field's name and its value


def check(message: Message, prefix: str = "") -> None:
    """Check all fields of ``message``; ``prefix`` stands before their names. Raises PeerError.

    The plan, the rules, the results and the manifest inside are checked by what reads them.
    """
    for name, check_value in _FIELDS[type(message)].items():
        if check_value not in (_check_set, _check_alternative) or message.HasField(name):
            check_value(prefix + name, getattr(message, name))
    if type(message) in _RELATIONS:
        _RELATIONS[type(message)](prefix, message)


def _check_inside(field: str, message: Message) -> None:
    check(message, f"{field}.")


def _check_set(field: str, message: Message) -> None:
    """As ``_check_inside``, only where it is set."""
    check(message, f"{field}.")


def _check_alternative(_: str, message: Message) -> None:
    """One of several kinds of message, only where it is set; its fields have names of their own."""
    check(message)


def _between(low: int, high: int) -> Check:
    return partial(fields.require_between, low=low, high=high)


def _text(limit: int) -> Check:
    return partial(fields.require_text, limit=limit)


def _unless_empty(check_value: Check) -> Check:
    return lambda field, value: check_value(field, value) if value else None


def _each(check_value: Check, most: int, least: int = 0) -> Check:
    def check_values(field: str, values: Sequence[Any]) -> None:
        legal = f"{least} to {most}" if least else f"at most {most}"
        fields.require(least <= len(values) <= most, field, len(values), legal)
        for value in values:
            check_value(field, value)

    return check_values


def _check_local_space(field: str, value: str) -> None:
    fields.require(value in ("core", "full"), field, value, '"core" or "full"')


def _check_contact(field: str, contact: pb.Contact) -> None:
    fields.require_peer_id(field, contact.peer_id)
    fields.require_address(field, contact.address)


def _check_reducers(field: str, reducers: Sequence[pb.Place]) -> None:
    most = 2 * MAX_SHARDS
    fields.require(len(reducers) <= most, field, len(reducers), f"at most {most}")
    for reducer in reducers:
        fields.require_peer_bytes(field, reducer.peer_id)
        fields.require_between(field, reducer.incarnation, 0, fields.MAX_INCARNATION)
    different = len({(reducer.peer_id, reducer.incarnation) for reducer in reducers})
    fields.require(different == len(reducers), field, different, f"{len(reducers)} different ones")


def _check_bits(field: str, parts: bytes) -> None:
    fields.require(len(parts) <= MAX_PARTS // 8, field, len(parts), f"at most {MAX_PARTS // 8} bytes")


def _check_counts(field: str, counts: Mapping[str, int]) -> None:
    fields.require(
        set(counts) <= _KINDS, field, sorted(counts)[:4], f"bytes by payload kind ({', '.join(sorted(_KINDS))})"
    )
    for value in counts.values():
        fields.require_between(field, value, 0, fields.MAX_COUNT)


_ROUND, _OPEN_ROUND = _between(0, fields.MAX_ROUND), _between(1, fields.MAX_ROUND)
_TERM, _KNOWN_TERM = _between(0, fields.MAX_TERM), _between(1, fields.MAX_TERM)
_COUNT, _NUMBER, _EPOCH = _between(0, fields.MAX_COUNT), _between(0, MAX_NUMBER), _between(0, MAX_EPOCH)
_SHARD, _REASON = _between(0, MAX_SHARDS - 1), _text(fields.MAX_REASON)

_ANSWERS = ("news", "redirect", "unchanged")
_TOLD = ("vote_request", "vote_reply", "beat", "beat_reply", "close", "shard_done")

_FIELDS: Mapping[type[Message], Mapping[str, Check]] = {
    pb.HelloRequest: {"package_version": _text(32)},
    pb.HelloReply: {
        "package_version": _text(32),
        "initial_peers": _each(_text(256), 16),
        "unix_time": partial(fields.require_real, low=0.0, high=2.0**40),
        "peer_id": fields.require_peer_id,
        "first": fields.require_peer_id,
        "contacts": _each(_check_contact, MAX_HELLO_CONTACTS),
    },
    pb.JoinRequest: {
        "manifest_digest": fields.require_digest,
        "peer_id": fields.require_peer_id,
        "name": fields.require_name,
        "address": fields.require_address,
        "local_space": _check_local_space,
        "device": _text(64),
        "number": _NUMBER,
    },
    pb.JoinReply: {"number": _NUMBER, "name": _text(48)},
    pb.DescribeStateRequest: {"manifest_digest": fields.require_digest, "round": _ROUND},
    pb.StateDescription: {
        "round": _ROUND,
        "digest": fields.require_digest,
        "total_bytes": _between(1, MAX_STATE_BYTES),
        "chunk_bytes": _between(1, MAX_CHUNK_BYTES),
    },
    pb.PollRequest: {
        "manifest_digest": fields.require_digest,
        "peer_id": fields.require_peer_id,
        "address": fields.require_address,
        "incarnation": _between(0, fields.MAX_INCARNATION),
        "applied": _between(0, fields.MAX_ROUND + 1),
        "sent": _check_set,
        "known": _COUNT,
        "number": _COUNT,
        "progress": _check_inside,
        "lease": _check_inside,
    },
    pb.PlanKey: {"round": _OPEN_ROUND, "term": _KNOWN_TERM, "version": _between(1, fields.MAX_COUNT)},
    pb.Progress: {
        "round": _ROUND,
        "step": _between(0, fields.MAX_STEPS),
        "tokens_per_second": partial(fields.require_real, low=0.0, high=1e12),
        "local_loss": partial(fields.require_real, low=-1e6, high=1e6),
        "wire_bytes": _COUNT,
    },
    pb.DataLease: {"epoch": _EPOCH, "part": _between(0, MAX_PARTS - 1), "tokens": _COUNT, "size": _COUNT},
    pb.PollReply: {
        **dict.fromkeys(_ANSWERS, _check_alternative),
        "contacts": _each(_check_contact, MAX_CONTACTS),
        "lease": _check_inside,
        "coverage": _check_inside,
    },
    pb.News: {
        "term": _KNOWN_TERM,
        "leader": fields.require_peer_id,
        "version": _COUNT,
        "base": _check_inside,
        "reducers": _check_reducers,
        "nodes": _each(fields.require_peer_id, MAX_NODES),
        "number": _COUNT,
        "plan": _check_alternative,
    },
    pb.OpenPlan: {"key": _check_inside},
    pb.Redirect: {"term": _TERM, "leader": _unless_empty(fields.require_peer_id), "base": _check_inside},
    pb.Unchanged: {"term": _KNOWN_TERM, "version": _COUNT, "number": _COUNT},
    pb.Coverage: {"epoch": _EPOCH, "done": _check_bits, "ahead": _check_bits},
    pb.Record: {"round": _ROUND, "voters": partial(fields.require_voters, least=1)},
    pb.TellRequest: {
        "manifest_digest": fields.require_digest,
        "sender": fields.require_peer_id,
        "address": fields.require_address,
        **dict.fromkeys(_TOLD, _check_alternative),
    },
    pb.VoteRequest: {"term": _KNOWN_TERM, "round": _ROUND, "tail_term": _TERM},
    pb.VoteReply: {"term": _KNOWN_TERM, "voter_term": _TERM, "reason": _REASON},
    pb.Beat: {"term": _KNOWN_TERM, "base": _check_inside, "proposal": _check_set},
    pb.BeatReply: {
        "term": _KNOWN_TERM,
        "round": _ROUND,
        "accepted": _unless_empty(fields.require_digest),
        "reason": _REASON,
    },
    pb.Close: {
        "term": _KNOWN_TERM,
        "round": _OPEN_ROUND,
        "shards": partial(fields.require_ascending, end=MAX_SHARDS),
        "roster": fields.require_digest,
    },
    pb.ShardDone: {
        "term": _KNOWN_TERM,
        "round": _OPEN_ROUND,
        "shard": _SHARD,
        "local_loss": partial(fields.require_real, low=-MAX_LOSS, high=MAX_LOSS),
        "raw_sent": _COUNT,
    },
    pb.ListPeersRequest: {
        "manifest_digest": fields.require_digest,
        "roster": _unless_empty(fields.require_digest),
        "known": _unless_empty(fields.require_digest),
    },
    pb.ListPeersReply: {"members": require_members},
    pb.FetchShardRequest: {
        "round": _OPEN_ROUND,
        "shard": _SHARD,
        "hashes": _each(fields.require_digest, MAX_SECTIONS, least=1),
    },
    pb.FetchPublishedRequest: {"round": _OPEN_ROUND, "chain": _unless_empty(fields.require_digest)},
    pb.CatchUpRequest: {"manifest_digest": fields.require_digest, "applied": _ROUND},
    pb.CatchUpReply: {
        "round_bytes": _COUNT,
        "state_round": _ROUND,
        "state_bytes": _between(0, MAX_STATE_BYTES),
        "rest_bytes": _COUNT,
    },
    pb.ReportRequest: {
        "peer_id": fields.require_peer_id,
        "round": _OPEN_ROUND,
        "digest": fields.require_digest,
        "overhead_bytes": _COUNT,
        "sent": _check_counts,
        "received": _check_counts,
    },
    pb.LeaveRequest: {"peer_id": fields.require_peer_id, "reason": _text(128)},
    pb.WatchRequest: {"wait_ms": _between(0, fields.MAX_WAIT_MS)},
}


def _relate_state(_: str, message: pb.StateDescription) -> None:
    fields.require_chain("chain", message.chain, message.round)
    count = math.ceil(message.total_bytes / message.chunk_bytes)
    fields.require(
        len(message.chunk_hashes) == count, "chunk_hashes", len(message.chunk_hashes), f"one for each of {count}"
    )
    for value in message.chunk_hashes:
        fields.require_digest("chunk_hashes", value)


def _relate_record(prefix: str, message: pb.Record) -> None:
    fields.require_chain(f"{prefix}chain", message.chain, message.round)
    fields.require_chain(f"{prefix}parent", message.parent, message.round - 1)


def _relate_news(_: str, message: pb.News) -> None:
    for field, indices in (("sources", message.sources), ("places", message.plan.places)):
        fields.require(len(indices) <= MAX_SHARDS, field, len(indices), f"at most {MAX_SHARDS}")
        end = len(message.reducers)
        fields.require(all(index < end for index in indices), field, list(indices[:8]), f"indices below {end}")


def _relate_shard_done(_: str, message: pb.ShardDone) -> None:
    require_measured(message.kappas, message.energies)
    if not message.result.void:
        fields.require_digest("roster", message.roster)


def _relate_members(_: str, message: pb.ListPeersReply) -> None:
    fields.require(not (message.unchanged and message.members), "unchanged", len(message.members), "without members")


def _require_known(_: str, message: Message, oneof: str, kinds: Sequence[str]) -> None:
    kind = message.WhichOneof(oneof)
    fields.require(kind in kinds, oneof, kind, "one that this version knows")


_RELATIONS: Mapping[type[Message], Check] = {
    pb.StateDescription: _relate_state,
    pb.Record: _relate_record,
    pb.News: _relate_news,
    pb.Close: lambda _, message: fields.require_chain("parent", message.parent, message.round - 1),
    pb.ShardDone: _relate_shard_done,
    pb.ListPeersReply: _relate_members,
    pb.PollReply: partial(_require_known, oneof="answer", kinds=(*_ANSWERS, "unknown")),
    pb.TellRequest: partial(_require_known, oneof="message", kinds=(*_TOLD, "goodbye")),
}
