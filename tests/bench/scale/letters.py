"""Messages of rehearsed nodes, encoded as node/messenger.py and its neighbours send them, and weighed.

Names of nodes are peer ids. What a rehearsal leaves out, such as addresses, progress and leases, is filled in with
values of the usual length.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from google.protobuf.message import Message

from tests.bench.scale.cargo import Cargo, wire_bytes
from tsr_swarm.config.manifest import PROTOCOL_VERSION
from tsr_swarm.node import message_codec
from tsr_swarm.node.events.run_log import WATCH_MS
from tsr_swarm.node.round_cache import VOID, ReducedShard
from tsr_swarm.rounds import protocol as pt
from tsr_swarm.rounds.leases import Coverage, Lease
from tsr_swarm.rounds.raft_state import RoundRecord
from tsr_swarm.transport.base import PIECE_BYTES
from tsr_swarm.wire.log_lines import lines_to_proto
from tsr_swarm.wire.messages import (
    ContributionHeader,
    PublishedHeader,
    ShardResult,
    published_to_proto,
    seal,
)
from tsr_swarm.wire.roster import Members, members_to_proto
from tsr_swarm.wire.run_rules import rules_to_proto
from tsr_swarm.wire.v1 import swarm_pb2 as pb

STALE = "PollReply, nothing new"
_LIFE = 1_700_000_000_000  # an incarnation as it is in a run: milliseconds since 1970
TOKENS = 655_360  # of a contribution: 20 steps of 32768


@dataclass(frozen=True, eq=False)
class Letter:
    """A message's bytes of control, by field; the payload that goes with it, by kind. Equal only to itself."""

    kind: str
    fields: Mapping[str, int]
    payload: Mapping[str, int] = field(default_factory=dict)

    @property
    def control(self) -> int:
        return sum(self.fields.values())

    @property
    def size(self) -> int:
        return self.control + sum(self.payload.values())


def bytes_by_field(message: Message, name: str = "") -> dict[str, int]:
    """Where a message's bytes are. A message in a message is counted by its own fields, its frame by its name."""
    counts: dict[str, int] = {}
    for descriptor, value in message.ListFields():
        path = f"{name}.{descriptor.name}" if name else descriptor.name
        alone = type(message)()
        _put(alone, descriptor.name, value)
        counts[path] = alone.ByteSize()
        is_map = descriptor.message_type is not None and descriptor.message_type.GetOptions().map_entry
        if descriptor.message_type is None or is_map:
            continue
        for part in [value] if isinstance(value, Message) else value:
            for inner, size in bytes_by_field(part, path).items():
                counts[inner] = counts.get(inner, 0) + size
                counts[path] -= size
    return counts


def _put(message: Any, name: str, value: Any) -> None:
    if isinstance(value, Message):
        getattr(message, name).CopyFrom(value)
    elif hasattr(value, "MergeFrom"):
        getattr(message, name).MergeFrom(value)
    else:
        setattr(message, name, value)


def frames(payload: int) -> int:
    """Bytes around the pieces in which a payload is streamed."""
    pieces = [PIECE_BYTES] * (payload // PIECE_BYTES) + ([payload % PIECE_BYTES] if payload % PIECE_BYTES else [])
    return sum(pb.ShardPart(data=bytes(piece)).ByteSize() - piece for piece in pieces)


class Office:
    """Weighs letters; one that was weighed before is not encoded again.

    addresses: of the nodes that can be dialled. numbers: of the peers.
    """

    def __init__(self, cargo: Cargo, addresses: Mapping[str, str], numbers: Mapping[str, int]) -> None:
        self._cargo, self._addresses, self._numbers = cargo, addresses, numbers
        self._digest = bytes.fromhex(cargo.manifest.digest)
        self._members = Members.of(numbers)
        self._known: dict[Any, Letter] = {}
        self._has: dict[str, frozenset[str]] = {}  # by caller: whose addresses it has; nobody moves

    # --- what the decisions send --------------------------------------------------------------------------------------

    def poll(self, poll: pt.Poll, step: int) -> Letter:
        key = ("poll", replace(poll, peer="", number=_alike(poll.number)), bool(step))
        if key not in self._known:
            request = message_codec.poll_to_proto(replace(poll, incarnation=_LIFE))
            request.manifest_digest, request.address = self._digest, self._addresses.get(poll.peer, "")
            if poll.trains:
                progress = pb.Progress(round=max(1, poll.applied + 1), step=step, tokens_per_second=27306.5)
                request.progress.CopyFrom(progress)
                lease = message_codec.lease_to_proto(Lease(1, len(self._numbers) // 2), 5 * TOKENS, 12_345_678)
                request.lease.CopyFrom(lease)
            self._keep(key, "Poll", request)
        return self._known[key]

    def answer(self, message: pt.RoundUpdate | pt.Redirect, peer: str, poll: pt.Poll) -> Letter:
        """To a poll of ``peer``, which may know it already."""
        alike = replace(message, number=_alike(message.number)) if isinstance(message, pt.RoundUpdate) else message
        is_old = isinstance(message, pt.RoundUpdate) and poll.known == message.version
        has = self._has.get(peer, frozenset()) if poll.known else frozenset()
        listed = frozenset(self._listed(message))
        if isinstance(message, pt.RoundUpdate) and not is_old:
            self._has[peer] = listed
        key = ("answer", alike, is_old, listed - has)
        if key not in self._known:
            self._keep(key, STALE if is_old else "PollReply", self._answer(message, peer, is_old, listed - has))
        return self._known[key]

    def _listed(self, message: pt.RoundUpdate | pt.Redirect) -> list[str]:
        """Nodes that who hears it may have to dial, as far as they can be."""
        told = [message.leader, *message.base.voters]
        if isinstance(message, pt.RoundUpdate):
            reducers = [] if message.plan is None else [place.node for place in message.plan.places]
            told += [*message.nodes, *message.sources, *reducers]
        return [node for node in dict.fromkeys(told) if node in self._addresses]

    def _answer(
        self, message: pt.RoundUpdate | pt.Redirect, peer: str, is_old: bool, listed: Collection[str]
    ) -> pb.PollReply:
        contacts = message_codec.contacts_to_proto((node, self._addresses[node]) for node in sorted(listed))
        if isinstance(message, pt.Redirect):
            redirect = message_codec.redirect_to_proto(replace(message, base=_record(message.base)))
            return pb.PollReply(redirect=redirect, contacts=contacts)
        if is_old:
            reply = pb.PollReply(unchanged=message_codec.unchanged_to_proto(message))
        else:
            reply = pb.PollReply(news=self._news(message), contacts=contacts)
            parts = frozenset(range(len(self._numbers)))
            reply.coverage.CopyFrom(message_codec.coverage_to_proto(Coverage(1, parts, frozenset())))
        if peer in self._numbers:
            reply.lease.CopyFrom(message_codec.lease_to_proto(Lease(1, len(self._numbers) // 2)))
        return reply

    def _news(self, message: pt.RoundUpdate) -> pb.News:
        news = replace(message, base=_record(message.base))
        plan = None
        if message.plan is not None:
            plan = self._cargo.plan(message.plan.round, _chain(message.plan.parent))
            places = tuple(replace(place, incarnation=_LIFE) for place in message.plan.places)
            news = replace(news, plan=replace(message.plan, parent=plan.parent, places=places))
        text = message_codec.news_to_proto(news, plan)
        text.rules.CopyFrom(rules_to_proto(self._cargo.manifest.config))
        return text

    def decode_message(self, message: Any, sender: str) -> Letter:
        """One way, between nodes that can be dialled."""
        key = ("told", message, sender if isinstance(message, pt.ShardDone) else "")
        if key not in self._known:
            request = self._told(message)
            request.manifest_digest, request.sender = self._digest, sender
            request.address = self._addresses[sender]
            self._keep(key, type(message).__name__, request)
        return self._known[key]

    def _told(self, message: Any) -> pb.TellRequest:
        match message:
            case pt.ShardDone(_, _, shard, result):
                made = VOID if result.is_void else ReducedShard(self.result(shard, result.included), 3.21, 10**8)
                return message_codec.done_to_proto(message, made, None if result.is_void else self._members)
            case pt.Close():
                return message_codec.close_to_proto(replace(message, parent=_chain(message.parent)), self._members)
        changes: dict[str, Any] = {}
        for name in ("base", "proposal"):
            if getattr(message, name, None) is not None:
                changes[name] = _record(getattr(message, name))
        if getattr(message, "accepted", ""):
            changes["accepted"] = _chain(message.accepted)
        return message_codec.tell_to_proto(replace(message, **changes))

    # --- what their shells send ---------------------------------------------------------------------------------------

    def submission(self, term: int, round: int, shard: int, peer: str) -> Letter:
        """A contribution's shard."""
        key = ("submission", term, round, shard)
        if key not in self._known:
            sections = self._cargo.uploads[shard]
            header = ContributionHeader(
                protocol=PROTOCOL_VERSION,
                manifest_digest=self._digest,
                round=round,
                parent=bytes.fromhex(_chain("aa")) if round > 1 else b"",
                peer_id=peer,
                shard=shard,
                tokens=TOKENS,
                steps=self._cargo.manifest.config.periods.k_x,
                local_loss=3.21,
                sections=sections,
                term=term,
            )
            payload = {section.kind: section.wire_bytes for section in sections}
            extra = frames(sum(payload.values()))
            self._keep(key, "Submit", pb.SubmitRequest(envelope=seal(header)), payload, extra)
        return self._known[key]

    def receipt(self, counted: bool, reason: str) -> Letter:
        """The answer to it."""
        key = ("receipt", counted, reason)
        if key not in self._known:
            self._keep(key, "SubmitReply", pb.SubmitReply(counted=counted, reason=reason))
        return self._known[key]

    def shard_request(self, round: int, shard: int) -> Letter:
        key = ("shard request", round, shard)
        if key not in self._known:
            hashes = [section.hash for section in self._cargo.published[shard]]
            self._keep(key, "FetchShard", pb.FetchShardRequest(round=round, shard=shard, hashes=hashes))
        return self._known[key]

    def shard(self, shard: int) -> Letter:
        """Its bytes."""
        key = ("shard", shard)
        if key not in self._known:
            payload = {section.kind: section.wire_bytes for section in self._cargo.published[shard]}
            self._known[key] = Letter("ShardPart", {"data": frames(sum(payload.values()))}, payload)
        return self._known[key]

    def header_request(self, round: int, peer: str) -> Letter:
        key = ("header request", round)
        if key not in self._known:
            chain = bytes.fromhex(_chain("aa"))
            request = pb.FetchPublishedRequest(peer_id=peer, round=round, chain=chain, header_only=True)
            self._keep(key, "FetchPublished", request)
        return self._known[key]

    def header(self, record: RoundRecord, results: Sequence[Any]) -> Letter:
        """Of a round; results: by shard, as the decisions know them."""
        key = ("header", record.chain)
        if key not in self._known:
            header = PublishedHeader(
                plan=self._cargo.plan(record.round, _chain(record.parent)),
                shard_blocks=self._cargo.shard_blocks,
                shards=tuple(self.result(shard, result.included) for shard, result in enumerate(results)),
                chain=bytes.fromhex(_chain(record.chain)),
                voters=record.voters,
            )
            self._keep(key, "PublishedPart", pb.PublishedPart(header=published_to_proto(header)))
        return self._known[key]

    def result(self, shard: int, included: Iterable[str]) -> ShardResult:
        """Of a shard."""
        peers = tuple(sorted(included))
        return ShardResult(not peers, peers, TOKENS * len(peers), self._cargo.published[shard] if peers else ())

    def peers_request(self, has_list: bool) -> Letter:
        key = ("peers request", has_list)
        if key not in self._known:
            request = pb.ListPeersRequest(manifest_digest=self._digest, known=self._members.digest if has_list else b"")
            self._keep(key, "ListPeers", request)
        return self._known[key]

    def peers(self, has_list: bool) -> Letter:
        """To who has the list already, or has it not."""
        key = ("peers", has_list)
        if key not in self._known:
            members = [] if has_list else members_to_proto(self._members)
            self._keep(key, "ListPeersReply", pb.ListPeersReply(members=members, unchanged=has_list))
        return self._known[key]

    def report(self, round: int, peer: str) -> Letter:
        """A digest and what was counted."""
        key = ("report", round)
        if key not in self._known:
            down = {section.kind: 0 for sections in self._cargo.published for section in sections}
            sent = {**dict.fromkeys(down, 1_111_111), "control": 55_555}
            request = pb.ReportRequest(
                peer_id=peer, round=round, digest=bytes([1] * 32), sent=sent, received=sent, overhead_bytes=55_555
            )
            self._keep(key, "Report", request)
        return self._known[key]

    def watch(self, after: int) -> Letter:
        key = ("watch", after.bit_length() // 7)
        if key not in self._known:
            self._keep(key, "Watch", pb.WatchRequest(after=after, wait_ms=WATCH_MS, without_progress=True))
        return self._known[key]

    def events(self, lines: Sequence[str], last: int) -> Letter:
        """Of a leader's log."""
        return Letter("WatchReply", bytes_by_field(lines_to_proto(lines, last)))

    def _keep(
        self, key: Any, kind: str, message: Message, payload: Mapping[str, int] | None = None, extra: int = 0
    ) -> None:
        fields = bytes_by_field(message)
        if extra:
            fields["data"] = extra
        self._known[key] = Letter(kind, fields, payload or {})


def payload_bytes(cargo: Cargo) -> tuple[int, int]:
    """Of one whole contribution, and of one whole average."""
    return sum(map(wire_bytes, cargo.uploads)), sum(map(wire_bytes, cargo.published))


def _alike(number: int) -> int:
    """A number that is written as long."""
    return 1 << 7 * ((number.bit_length() - 1) // 7) if number else 0


def _chain(short: str) -> str:
    """A rehearsal's hashes are shorter than those of a run."""
    return short and short.ljust(64, "0")


def _record(record: RoundRecord) -> RoundRecord:
    return RoundRecord(record.round, _chain(record.chain), _chain(record.parent), record.voters)
