"""Messages of the decisions, out and in. What cannot be delivered is told to them as Unreachable; nothing is repeated.

A shard that is done is told of only while its bytes, and the list that its peers were named by, are here: without them
there is nothing to fetch, and whoever leads asks again.

A poll is a call whose answer is held by whoever leads; everything else is told one way, between nodes that can be
dialled.
"""

from dataclasses import dataclass, replace

from tsr_swarm.discovery.addresses import dialable_address
from tsr_swarm.errors import ConfigError, PeerError, RefusedError, UnreachableError
from tsr_swarm.node import message_codec
from tsr_swarm.node.calls import LeaderClient
from tsr_swarm.node.context import NodeContext
from tsr_swarm.node.leader import ShardCollector
from tsr_swarm.node.poll_replies import PollReplies
from tsr_swarm.node.roster_cache import RosterCache
from tsr_swarm.node.round_cache import VOID, ReducedShard
from tsr_swarm.rounds import protocol as pt
from tsr_swarm.rounds.raft_state import Heartbeat
from tsr_swarm.transport.base import Caller
from tsr_swarm.wire.v1 import swarm_pb2 as pb

TELL_SECONDS = 3.0  # whatever matters is said again every second or two


@dataclass(frozen=True, slots=True, eq=False)
class Messenger:
    """Sends what the decisions send, and puts to them what other nodes tell."""

    context: NodeContext
    roster_cache: RosterCache
    shard_collector: ShardCollector
    leader_client: LeaderClient
    poll_replies: PollReplies

    def send(self, to: str, message: pt.Message) -> None:
        """Have ``message`` delivered, or its loss told. Returns at once."""
        match message:
            case pt.Poll():
                self.leader_client.poll(to, message)
            case pt.RoundUpdate():
                self.leader_client.forget_news()
                self.poll_replies.answer(to, message)
            case pt.Redirect():
                self.poll_replies.answer(to, message)
            case _:
                request = self._encode(message)  # now: what it says may be over in a moment
                if request is not None:
                    self.context.background.start(self._tell(to, message, request))

    async def _tell(self, to: str, message: pt.Message, request: pb.TellRequest) -> None:
        info = self.context.info
        request.manifest_digest = bytes.fromhex(self.context.manifest.digest)
        request.sender, request.address = info.peer_id, info.address
        try:
            await (await self.context.clients.to(to)).tell(request, TELL_SECONDS)
        except (UnreachableError, PeerError, RefusedError, ConfigError):
            self.context.put(pt.Unreachable(to, message))

    def _encode(self, message: pt.Message) -> pb.TellRequest | None:
        match message:
            case pt.ShardDone(term, round, shard, result):
                if result.is_void:
                    return message_codec.done_to_proto(message, VOID)
                found = self.context.round_cache.reduced_shard(round, shard, result)
                members = self.context.round_cache.members(round, term, result.included)
                if found is None or members is None:
                    return None
                return message_codec.done_to_proto(message, found[0], members)
            case pt.Close(admitted=admitted):
                leader = self.context.leader
                numbers = leader.numbers if leader is not None else {}
                members = self.roster_cache.name({peer: numbers[peer] for peer in admitted & numbers.keys()})
                return message_codec.close_to_proto(message, members)
            case pt.Poll() | pt.RoundUpdate() | pt.Redirect():
                raise AssertionError("not told one way")
            case _:
                return message_codec.tell_to_proto(message)

    async def tell(self, request: pb.TellRequest, caller: Caller) -> pb.TellReply:
        context, sender = self.context, request.sender
        context.require_run(request.manifest_digest)
        if sender == context.me:
            raise PeerError("sender", "A node tells itself nothing.")
        try:
            decoded = message_codec.decode_message(request, context.manifest, self.roster_cache.get)
        except message_codec.UnknownRosterError as unknown:
            if not request.HasField("close"):
                raise
            # Only the leader is asked who takes part: a few strangers that do not answer would keep this node from it.
            if self.leader_client.follows(sender, request.close.term):
                context.background.start(self._close_once_known(request, unknown.digest))
            decoded = None
        context.book.update(sender, dialable_address(caller.address, request.address))
        if decoded is not None:
            self._take_in(sender, decoded)
        return pb.TellReply()

    async def _close_once_known(self, request: pb.TellRequest, digest: bytes) -> None:
        """Ask whoever closes a round whose work counts; without an answer, it is as if it had said nothing."""
        members = await self.roster_cache.fetch(request.sender, digest)
        if members is not None:
            decoded = message_codec.decode_message(request, self.context.manifest, lambda _: members)
            self._take_in(request.sender, decoded)

    def _take_in(self, sender: str, decoded: message_codec.DecodedMessage) -> None:
        match decoded.message:
            case Heartbeat(base=base):
                self.context.note_committed(base)
            case pt.Close(term, round):
                assert decoded.members is not None, "they come with a Close"
                self.context.round_cache.add_close(round, term, decoded.members)
            case pt.ShardDone() as done if not done.result.is_void:
                assert decoded.reduced is not None, "it comes with a shard"
                self.context.background.start(self._collect(sender, done, decoded.reduced))
                return
        self.context.put(pt.Received(sender, decoded.message))

    async def _collect(self, sender: str, done: pt.ShardDone, reduced: ReducedShard) -> None:
        """A shard counts as done when its bytes are here; what is not there is asked for again."""
        result = await self.shard_collector.fetch(sender, done, reduced)
        if result is not None:
            self.context.put(pt.Received(sender, replace(done, result=result)))
