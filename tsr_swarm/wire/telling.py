"""Bounds of what nodes that can be dialled tell each other. Each function raises PeerError, which names the field.

They bound the form only. Whether the sender votes, leads or reduces is for the decisions of a round to say.
"""

from tsr_swarm.wire.fields import (
    MAX_COUNT,
    MAX_REASON,
    MAX_ROUND,
    MAX_TERM,
    require,
    require_ascending,
    require_between,
    require_chain,
    require_digest,
    require_real,
    require_text,
    require_voters,
)
from tsr_swarm.wire.messages import MAX_LOSS, MAX_SHARDS, require_measured
from tsr_swarm.wire.v1 import swarm_pb2 as pb


def check_told(message: pb.TellRequest) -> None:
    """What is told; a ShardDone's result is bounded by ``messages.result_from_proto``."""
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
    """A round's result by its hashes, and who decides about what follows. ``field``: what the refusal calls it."""
    require_between(f"{field}.round", message.round, 0, MAX_ROUND)
    require_chain(f"{field}.chain", message.chain, message.round)
    require_chain(f"{field}.parent", message.parent, message.round - 1)
    require_voters(f"{field}.voters", message.voters, 1)


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
