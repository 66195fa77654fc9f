"""Who takes part, as a leader says it: the whole list once, and from then on its hash, until somebody comes or goes."""

import asyncio
from collections.abc import Mapping

from tsr_swarm.errors import ConfigError, PeerError, RefusedError, UnreachableError
from tsr_swarm.node.context import NodeContext
from tsr_swarm.wire.checks import check
from tsr_swarm.wire.roster import Members, members_from_proto, members_to_proto
from tsr_swarm.wire.v1 import swarm_pb2 as pb

KEPT = 16  # lists: a leader closes a round again every second, for a quarter of a minute at most
MOST_QUESTIONS = 4  # under way: in a leader's name, anybody may say that it closes a round


class RosterCache:
    """Lists of members by their hash: those that this node named as a leader, or received as a follower."""

    def __init__(self, context: NodeContext) -> None:
        self._context = context
        self._run = bytes.fromhex(context.manifest.digest)
        self._kept: dict[bytes, Members] = {}  # by hash, the newest last
        self._newest = Members.of({})
        self._asking: asyncio.Task[None] | None = None
        self._wanted: set[bytes] = set()  # asked for by hash

    def get(self, digest: bytes) -> Members | None:
        """The list of this hash, if it is known here."""
        return self._kept.get(digest)

    def is_member(self, peer_id: str) -> bool:
        """Whether this peer takes part; where that is not known yet, the leader is asked."""
        if self._context.leader is not None:
            return self._context.leader.is_admitted(peer_id)
        if peer_id == self._context.me or peer_id in self._newest.numbers:
            return True
        self.ask()
        return False

    def name(self, numbers: Mapping[str, int]) -> Members:
        """These take part. Whoever is told only their hash may ask for them for a while."""
        return self._keep(self._members(numbers))

    def answer(self, request: pb.ListPeersRequest, numbers: Mapping[str, int]) -> pb.ListPeersReply:
        """``numbers``: of all that take part now. Raises PeerError, or UnreachableError where a list is not kept."""
        check(request)
        members = self._kept.get(request.roster) if request.roster else self._members(numbers)
        if members is None:
            raise UnreachableError("That list of peers is not known here; ask for the newest one.")
        if members.digest == request.known:
            return pb.ListPeersReply(unchanged=True)
        return pb.ListPeersReply(members=members_to_proto(members))

    def _members(self, numbers: Mapping[str, int]) -> Members:
        """Not hashed again while nobody comes or goes."""
        numbers = {peer: number for peer, number in numbers.items() if number}
        if numbers != self._newest.numbers:
            self._newest = Members.of(numbers)
        return self._newest

    def ask(self) -> asyncio.Task[None]:
        """Ask the leader who takes part now. One question at a time, however many strangers send something."""
        if self._asking is None or self._asking.done():
            self._asking = self._context.background.start(self._ask(self._context.known_leader))
        return self._asking

    async def _ask(self, leader: str) -> None:
        request = pb.ListPeersRequest(manifest_digest=self._run, known=self._newest.digest)
        reply = await self._list(leader, request)
        if reply is not None and not reply.unchanged:
            self._newest = self._keep(members_from_proto(reply.members))

    async def fetch(self, leader: str, digest: bytes) -> Members | None:
        """The list of this hash, from ``leader`` unless it is known; None where it cannot be had now."""
        known = self._kept.get(digest)
        if known is not None or digest in self._wanted or len(self._wanted) >= MOST_QUESTIONS:
            return known
        self._wanted.add(digest)
        try:
            reply = await self._list(leader, pb.ListPeersRequest(manifest_digest=self._run, roster=digest))
        finally:
            self._wanted.discard(digest)
        members = None if reply is None else members_from_proto(reply.members)
        return self._keep(members) if members is not None and members.digest == digest else None

    async def _list(self, leader: str, request: pb.ListPeersRequest) -> pb.ListPeersReply | None:
        """Who does not answer, or answers with nonsense, is asked again when there is reason to."""
        try:
            reply = await (await self._context.clients.to(leader)).list_peers(request)
            check(reply)
        except (UnreachableError, PeerError, RefusedError, ConfigError):
            return None
        return reply

    def _keep(self, members: Members) -> Members:
        self._kept.pop(members.digest, None)
        self._kept[members.digest] = members
        if len(self._kept) > KEPT:
            del self._kept[next(iter(self._kept))]
        return members
