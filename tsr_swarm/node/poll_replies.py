"""The answering end of polls: each is held until there is news, and told no more than its caller lacks.

News goes to callers that lack it, contacts are told once: they count on at the caller, see KnownContacts in calls.py.
"""

import asyncio
import itertools
from collections.abc import Iterable
from dataclasses import dataclass, replace

from tsr_swarm.config.run import RunConfig
from tsr_swarm.discovery.addresses import dialable_address
from tsr_swarm.errors import PeerError, UnreachableError
from tsr_swarm.node import message_codec
from tsr_swarm.node.context import NodeContext
from tsr_swarm.node.data_leases import DataLeases
from tsr_swarm.rounds import protocol as pt
from tsr_swarm.transport.base import Caller
from tsr_swarm.wire.checks import MAX_CONTACTS
from tsr_swarm.wire.messages import rules_to_proto
from tsr_swarm.wire.v1 import swarm_pb2 as pb

MOST_CALLERS = 10_000  # that are remembered
HOLD_SECONDS = 4.5  # a poll that nobody answers by then is given up; a leader holds it for two
GOING = "This node is leaving; ask another one."

Answer = pt.RoundUpdate | pt.Redirect


@dataclass(frozen=True, slots=True)
class _Told:
    """What was answered to a caller last. It has arrived if the caller then polls as one that knows this version."""

    incarnation: int
    term: int
    version: int
    contacts: frozenset[tuple[str, str]]
    changes: int  # of addresses, until then


class PollReplies:
    """Polls that this node holds, and their answers."""

    def __init__(self, context: NodeContext, data_leases: DataLeases) -> None:
        self._context, self._data_leases = context, data_leases
        self._told: dict[str, _Told] = {}  # by caller, the one answered last at the end
        self._newest: tuple[pt.RoundUpdate, RunConfig, pb.News] | None = None  # that was told to anybody
        self._contacts: frozenset[tuple[str, str]] = frozenset()  # likewise: most callers are told the same
        self._held: dict[str, tuple[int, asyncio.Future[Answer]]] = {}  # by peer: number of the poll
        self._has_hung_up = False

    async def poll(self, request: pb.PollRequest, caller: Caller) -> pb.PollReply:
        """Answer when there is news for this peer, or when a leader says so. Doubles as its heartbeat."""
        context = self._context
        context.require_run(request.manifest_digest)
        message = message_codec.poll_from_proto(request)
        peer, address = message.peer, dialable_address(caller.address, request.address)
        if peer == context.me:
            raise PeerError("peer_id", "A node does not poll itself.")
        if self._has_hung_up:
            raise UnreachableError(GOING)
        if context.leader is not None and not context.leader.is_admitted(peer):
            return pb.PollReply(unknown=True)
        context.book.update(peer, address)
        if self._data_leases.issuer is not None:
            self._data_leases.issuer.take_claim(request)
        if (older := self._held.pop(peer, None)) is not None and not older[1].done():
            older[1].set_exception(UnreachableError("Another poll of this peer came after this one."))
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._held[peer] = message.number, answer
        context.put(pt.Received(peer, replace(message, is_dialable=bool(address))))
        try:
            async with asyncio.timeout(HOLD_SECONDS):
                reply = self.reply(request, await answer, caller)
            if self._data_leases.issuer is not None and not reply.HasField("redirect"):
                self._data_leases.issuer.answer(request, reply)
            return reply
        except TimeoutError:
            raise UnreachableError("This node has no answer now; poll again.") from None
        except asyncio.CancelledError:
            if self._held.get(peer, (0, None))[1] is answer:
                context.put(pt.PollBroken(peer))  # it hung up while it was listening: it died, or its line did
            raise
        finally:
            if self._held.get(peer, (0, None))[1] is answer:
                del self._held[peer]

    def answer(self, to: str, message: Answer) -> None:
        """Answer the poll that is held of this peer, if it is the one that ``message`` answers."""
        number, answer = self._held.get(to, (0, None))
        is_its = isinstance(message, pt.Redirect) or message.number == number
        if answer is not None and is_its and not answer.done():
            answer.set_result(message)

    def hang_up(self) -> None:
        """This node goes: whoever polls it looks for another at once."""
        self._has_hung_up = True
        for _, answer in self._held.values():
            if not answer.done():
                answer.set_exception(UnreachableError(GOING))

    def forget(self, peer_id: str) -> None:
        self._told.pop(peer_id, None)

    def reply(self, request: pb.PollRequest, message: Answer, caller: Caller) -> pb.PollReply:
        """The reply to a poll that was checked, but for its lease and the coverage."""
        told, changes = self._told.pop(request.peer_id, None), self._context.book.changes
        if isinstance(message, pt.Redirect):
            reply = pb.PollReply(redirect=message_codec.redirect_to_proto(message))
            seen = self._seen(caller, [message.leader, *message.base.voters])
            reply.contacts.extend(message_codec.contacts_to_proto(seen.items()))
            return reply
        told_key = None if told is None else (told.incarnation, told.term, told.version)
        if told_key != (request.incarnation, message.term, request.known):
            told = None  # its answer may have been lost
        if told is not None and (told.version, told.changes) == (message.version, changes):
            self._told[request.peer_id] = told
            return pb.PollReply(unchanged=message_codec.unchanged_to_proto(message))
        seen = self._seen(caller, nodes_named(message))
        contacts = frozenset(seen.items())
        self._remember(request, message, contacts)
        if told is not None and told.version == message.version and told.contacts == contacts:
            return pb.PollReply(unchanged=message_codec.unchanged_to_proto(message))
        reply = pb.PollReply(news=self._news(message))
        reply.news.number = message.number
        new = (contact for contact in seen.items() if told is None or contact not in told.contacts)
        reply.contacts.extend(message_codec.contacts_to_proto(new))
        return reply

    def _seen(self, caller: Caller, peer_ids: Iterable[str]) -> dict[str, str]:
        """Not more than one answer may have; this node comes last, which the caller has just dialled."""
        return dict(itertools.islice(self._context.seen_by(caller, peer_ids).items(), MAX_CONTACTS))

    def _news(self, message: pt.RoundUpdate) -> pb.News:
        """Built once: all but its number is the same for everybody."""
        update, config = replace(message, number=0), self._context.config
        if self._newest is None or self._newest[:2] != (update, config):
            plan = (
                None if update.plan is None else self._context.round_cache.plan(update.plan.round, update.plan.parent)
            )
            news = message_codec.news_to_proto(update, plan)
            news.rules.CopyFrom(rules_to_proto(config))
            self._newest = update, config, news
        return self._newest[2]

    def _remember(self, request: pb.PollRequest, message: pt.RoundUpdate, contacts: frozenset[tuple[str, str]]) -> None:
        self._contacts = self._contacts if contacts == self._contacts else contacts  # kept once, however many were told
        self._told[request.peer_id] = _Told(
            request.incarnation, message.term, message.version, self._contacts, self._context.book.changes
        )
        if len(self._told) > MOST_CALLERS:
            del self._told[next(iter(self._told))]


def nodes_named(message: pt.RoundUpdate) -> list[str]:
    """Nodes that whoever reads it may have to dial."""
    reducers = () if message.plan is None else message.plan.nodes
    return [message.leader, *message.base.voters, *message.nodes, *message.sources, *reducers]
