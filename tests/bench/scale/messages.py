"""Sizes of the messages of rehearsed nodes, encoded as node/messenger.py and its neighbours send them.

Names of nodes are peer ids. What a rehearsal leaves out, such as addresses, progress and leases, is filled in with
values of the usual length.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from google.protobuf.message import Message

from tests.bench.scale.payloads import RoundPayloads, wire_bytes
from tsr_swarm.config.manifest import PROTOCOL_VERSION
from tsr_swarm.node import message_codec
from tsr_swarm.node.events.run_log import WATCH_MS
from tsr_swarm.node.round_cache import VOID, ReducedShard
from tsr_swarm.rounds import protocol as pt
from tsr_swarm.rounds.leases import Coverage, Lease
from tsr_swarm.rounds.raft_state import RoundRecord
from tsr_swarm.transport.base import PIECE_BYTES
from tsr_swarm.wire.messages import (
    ContributionHeader,
    PublishedHeader,
    ShardResult,
    lines_to_proto,
    published_to_proto,
    rules_to_proto,
    seal,
)
from tsr_swarm.wire.roster import Members, members_to_proto
from tsr_swarm.wire.v1 import swarm_pb2 as pb

UNCHANGED = "PollReply, nothing new"
_INCARNATION = 1_700_000_000_000  # as it is in a run: milliseconds since 1970
TOKENS = 655_360  # of a contribution: 20 steps of 32768


@dataclass(frozen=True, eq=False)
class SizedMessage:
    """A message's control bytes by field, and the payload that goes with it by kind. Equal only to itself."""

    kind: str
    fields: Mapping[str, int]
    payloads: Mapping[str, int] = field(default_factory=dict)

    @property
    def control(self) -> int:
        return sum(self.fields.values())

    @property
    def payload(self) -> int:
        return sum(self.payloads.values())

    @property
    def size(self) -> int:
        return self.control + self.payload


def bytes_by_field(message: Message, name: str = "") -> dict[str, int]:
    """Return where a message's bytes are. A message in a message is counted by its fields, its frame by its name."""
    counts: dict[str, int] = {}
    for descriptor, value in message.ListFields():
        path = f"{name}.{descriptor.name}" if name else descriptor.name
        alone = type(message)()
        _set_field(alone, descriptor.name, value)
        counts[path] = alone.ByteSize()
        is_map = descriptor.message_type is not None and descriptor.message_type.GetOptions().map_entry
        if descriptor.message_type is None or is_map:
            continue
        for part in [value] if isinstance(value, Message) else value:
            for inner, size in bytes_by_field(part, path).items():
                counts[inner] = counts.get(inner, 0) + size
                counts[path] -= size
    return counts


def _set_field(message: Any, name: str, value: Any) -> None:
    if isinstance(value, Message):
        getattr(message, name).CopyFrom(value)
    elif hasattr(value, "MergeFrom"):
        getattr(message, name).MergeFrom(value)
    else:
        setattr(message, name, value)


def framing_bytes(payload: int) -> int:
    """Bytes around the pieces in which a payload is streamed."""
    pieces = [PIECE_BYTES] * (payload // PIECE_BYTES) + ([payload % PIECE_BYTES] if payload % PIECE_BYTES else [])
    return sum(pb.ShardPart(data=bytes(piece)).ByteSize() - piece for piece in pieces)


# --- counts -----------------------------------------------------------------------------------------------------------


@dataclass
class Traffic:
    """The messages that one node sent and received."""

    sent: Counter[SizedMessage] = field(default_factory=Counter)
    received: Counter[SizedMessage] = field(default_factory=Counter)

    @property
    def control(self) -> int:
        """Bytes, both ways."""
        return control_bytes(self.sent) + control_bytes(self.received)

    @property
    def payload(self) -> int:
        """Bytes, both ways."""
        return payload_bytes(self.sent) + payload_bytes(self.received)


def control_bytes(messages: Counter[SizedMessage]) -> int:
    return sum(message.control * count for message, count in messages.items())


def payload_bytes(messages: Counter[SizedMessage]) -> int:
    return sum(message.payload * count for message, count in messages.items())


# --- sizes ------------------------------------------------------------------------------------------------------------


class MessageSizer:
    """Encodes the messages of a swarm to size them, each kind of content once.

    addresses: of the nodes that can be dialled. numbers: of the peers.
    """

    def __init__(self, payloads: RoundPayloads, addresses: Mapping[str, str], numbers: Mapping[str, int]) -> None:
        self._payloads, self._addresses, self._numbers = payloads, addresses, numbers
        self._digest = bytes.fromhex(payloads.manifest.digest)
        self._members = Members.of(numbers)
        self._known: dict[Any, SizedMessage] = {}
        self._has: dict[str, frozenset[str]] = {}  # by caller: the nodes whose addresses it has; no address changes

    def _once(self, key: Any, kind: str, encode: Callable[[], Message]) -> SizedMessage:
        """Return the message that is known by ``key``, encoded if there is none yet."""
        if key not in self._known:
            self._known[key] = SizedMessage(kind, bytes_by_field(encode()))
        return self._known[key]

    # --- what the decisions send --------------------------------------------------------------------------------------

    def poll(self, poll: pt.Poll, step: int) -> SizedMessage:
        def encode() -> Message:
            request = message_codec.poll_to_proto(replace(poll, incarnation=_INCARNATION))
            request.manifest_digest, request.address = self._digest, self._addresses.get(poll.peer, "")
            if poll.trains:
                progress = pb.Progress(round=max(1, poll.applied + 1), step=step, tokens_per_second=27306.5)
                request.progress.CopyFrom(progress)
                lease = message_codec.lease_to_proto(Lease(1, len(self._numbers) // 2), 5 * TOKENS, 12_345_678)
                request.lease.CopyFrom(lease)
            return request

        return self._once(("poll", replace(poll, peer="", number=_rounded(poll.number)), bool(step)), "Poll", encode)

    def poll_reply(self, message: pt.RoundUpdate | pt.Redirect, peer: str, poll: pt.Poll) -> SizedMessage:
        """The reply to a poll of ``peer``, which may know its content already."""
        is_update = isinstance(message, pt.RoundUpdate)
        alike = replace(message, number=_rounded(message.number)) if is_update else message
        is_known = is_update and poll.known == message.version
        has = self._has.get(peer, frozenset()) if poll.known else frozenset()
        listed = frozenset(self._to_dial(message))
        if is_update and not is_known:
            self._has[peer] = listed
        return self._once(
            ("poll reply", alike, is_known, listed - has),
            UNCHANGED if is_known else "PollReply",
            lambda: self._poll_reply(message, peer, is_known, listed - has),
        )

    def _to_dial(self, message: pt.RoundUpdate | pt.Redirect) -> list[str]:
        """Nodes that the receiver may have to dial, as far as they can be dialled."""
        nodes = [message.leader, *message.base.voters]
        if isinstance(message, pt.RoundUpdate):
            reducers = [] if message.plan is None else [slot.node for slot in message.plan.reducers]
            nodes += [*message.nodes, *message.sources, *reducers]
        return [node for node in dict.fromkeys(nodes) if node in self._addresses]

    def _poll_reply(
        self, message: pt.RoundUpdate | pt.Redirect, peer: str, is_known: bool, listed: Collection[str]
    ) -> pb.PollReply:
        contacts = message_codec.contacts_to_proto((node, self._addresses[node]) for node in sorted(listed))
        if isinstance(message, pt.Redirect):
            redirect = message_codec.redirect_to_proto(replace(message, base=_long_record(message.base)))
            return pb.PollReply(redirect=redirect, contacts=contacts)
        if is_known:
            reply = pb.PollReply(unchanged=message_codec.unchanged_to_proto(message))
        else:
            reply = pb.PollReply(news=self._news(message), contacts=contacts)
            parts = frozenset(range(len(self._numbers)))
            reply.coverage.CopyFrom(message_codec.coverage_to_proto(Coverage(1, parts, frozenset())))
        if peer in self._numbers:
            reply.lease.CopyFrom(message_codec.lease_to_proto(Lease(1, len(self._numbers) // 2)))
        return reply

    def _news(self, message: pt.RoundUpdate) -> pb.News:
        update = replace(message, base=_long_record(message.base))
        plan = None
        if message.plan is not None:
            plan = self._payloads.plan(message.plan.round, _long_hash(message.plan.parent))
            slots = tuple(replace(slot, incarnation=_INCARNATION) for slot in message.plan.reducers)
            update = replace(update, plan=replace(message.plan, parent=plan.parent, reducers=slots))
        news = message_codec.news_to_proto(update, plan)
        news.rules.CopyFrom(rules_to_proto(self._payloads.manifest.config))
        return news

    def one_way(self, message: Any, sender: str) -> SizedMessage:
        """A message between nodes that can be dialled."""

        def encode() -> Message:
            request = self._one_way(message)
            request.manifest_digest, request.sender = self._digest, sender
            request.address = self._addresses[sender]
            return request

        key = ("one way", message, sender if isinstance(message, pt.ShardDone) else "")
        return self._once(key, type(message).__name__, encode)

    def _one_way(self, message: Any) -> pb.TellRequest:
        match message:
            case pt.ShardDone(_, _, shard, result):
                made = VOID if result.is_void else ReducedShard(self._result(shard, result.included), 3.21, 10**8)
                return message_codec.done_to_proto(message, made, None if result.is_void else self._members)
            case pt.Close():
                return message_codec.close_to_proto(replace(message, parent=_long_hash(message.parent)), self._members)
        changes: dict[str, Any] = {}
        for name in ("base", "proposal"):
            if getattr(message, name, None) is not None:
                changes[name] = _long_record(getattr(message, name))
        if getattr(message, "accepted", ""):
            changes["accepted"] = _long_hash(message.accepted)
        return message_codec.tell_to_proto(replace(message, **changes))

    # --- what the drivers send ----------------------------------------------------------------------------------------

    def submission(self, term: int, round: int, shard: int, peer: str) -> SizedMessage:
        """A contribution's shard."""
        key = ("submission", term, round, shard)
        if key not in self._known:
            sections = self._payloads.uploads[shard]
            header = ContributionHeader(
                protocol=PROTOCOL_VERSION,
                manifest_digest=self._digest,
                round=round,
                parent=bytes.fromhex(_long_hash("aa")) if round > 1 else b"",
                peer_id=peer,
                shard=shard,
                tokens=TOKENS,
                steps=self._payloads.manifest.config.periods.k_x,
                local_loss=3.21,
                sections=sections,
                term=term,
            )
            fields = bytes_by_field(pb.SubmitRequest(envelope=seal(header)))
            fields["data"] = framing_bytes(wire_bytes(sections))
            self._known[key] = SizedMessage("Submit", fields, {s.kind: s.wire_bytes for s in sections})
        return self._known[key]

    def submit_reply(self, counted: bool, reason: str) -> SizedMessage:
        key = ("submit reply", counted, reason)
        return self._once(key, "SubmitReply", lambda: pb.SubmitReply(counted=counted, reason=reason))

    def shard_request(self, round: int, shard: int) -> SizedMessage:
        def encode() -> Message:
            hashes = [section.hash for section in self._payloads.published[shard]]
            return pb.FetchShardRequest(round=round, shard=shard, hashes=hashes)

        return self._once(("shard request", round, shard), "FetchShard", encode)

    def shard(self, shard: int) -> SizedMessage:
        """The bytes of a shard's average."""
        key = ("shard", shard)
        if key not in self._known:
            sections = self._payloads.published[shard]
            fields, payloads = {"data": framing_bytes(wire_bytes(sections))}, {s.kind: s.wire_bytes for s in sections}
            self._known[key] = SizedMessage("ShardPart", fields, payloads)
        return self._known[key]

    def header_request(self, round: int, peer: str) -> SizedMessage:
        def encode() -> Message:
            chain = bytes.fromhex(_long_hash("aa"))
            return pb.FetchPublishedRequest(peer_id=peer, round=round, chain=chain, header_only=True)

        return self._once(("header request", round), "FetchPublished", encode)

    def header(self, record: RoundRecord, results: Sequence[Any]) -> SizedMessage:
        """The header of a round; results: by shard, as the decisions know them."""

        def encode() -> Message:
            header = PublishedHeader(
                plan=self._payloads.plan(record.round, _long_hash(record.parent)),
                shard_blocks=self._payloads.shard_blocks,
                shards=tuple(self._result(shard, result.included) for shard, result in enumerate(results)),
                chain=bytes.fromhex(_long_hash(record.chain)),
                voters=record.voters,
            )
            return pb.PublishedPart(header=published_to_proto(header))

        return self._once(("header", record.chain), "PublishedPart", encode)

    def _result(self, shard: int, included: Iterable[str]) -> ShardResult:
        peers = tuple(sorted(included))
        return ShardResult(not peers, peers, TOKENS * len(peers), self._payloads.published[shard] if peers else ())

    def peers_request(self, has_list: bool) -> SizedMessage:
        known = self._members.digest if has_list else b""
        request = pb.ListPeersRequest(manifest_digest=self._digest, known=known)
        return self._once(("peers request", has_list), "ListPeers", lambda: request)

    def peers_reply(self, has_list: bool) -> SizedMessage:
        """The reply to a node that has the list already, or does not have it."""

        def encode() -> Message:
            members = [] if has_list else members_to_proto(self._members)
            return pb.ListPeersReply(members=members, unchanged=has_list)

        return self._once(("peers reply", has_list), "ListPeersReply", encode)

    def report(self, round: int, peer: str) -> SizedMessage:
        """A digest and counts of bytes."""

        def encode() -> Message:
            down = {section.kind: 0 for sections in self._payloads.published for section in sections}
            sent = {**dict.fromkeys(down, 1_111_111), "control": 55_555}
            return pb.ReportRequest(
                peer_id=peer, round=round, digest=bytes([1] * 32), sent=sent, received=sent, overhead_bytes=55_555
            )

        return self._once(("report", round), "Report", encode)

    def watch(self, after: int) -> SizedMessage:
        key = ("watch", after.bit_length() // 7)
        return self._once(key, "Watch", lambda: pb.WatchRequest(after=after, wait_ms=WATCH_MS, without_progress=True))

    def watch_reply(self, lines: Sequence[str], last: int) -> SizedMessage:
        """Lines of a leader's log."""
        return SizedMessage("WatchReply", bytes_by_field(lines_to_proto(lines, last)))


def _rounded(number: int) -> int:
    """The smallest number of as many bytes on the wire."""
    return 1 << 7 * ((number.bit_length() - 1) // 7) if number else 0


def _long_hash(short: str) -> str:
    """A rehearsal's hashes are shorter than those of a run."""
    return short and short.ljust(64, "0")


def _long_record(record: RoundRecord) -> RoundRecord:
    return RoundRecord(record.round, _long_hash(record.chain), _long_hash(record.parent), record.voters)
