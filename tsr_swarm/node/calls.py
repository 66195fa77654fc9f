"""Calls to one other node: the first one, hello; and to whoever leads: polls, admission, reports and goodbye."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from tsr_swarm import __version__
from tsr_swarm.config.manifest import PROTOCOL_VERSION
from tsr_swarm.config.round_plan import RoundPlan
from tsr_swarm.errors import ConfigError, PeerError, RefusedError, SwarmError, UnreachableError
from tsr_swarm.node import message_codec
from tsr_swarm.node.address_book import AddressBook, ClientPool
from tsr_swarm.node.context import NodeContext
from tsr_swarm.node.data_leases import DataLeases
from tsr_swarm.node.poll_replies import nodes_named
from tsr_swarm.node.trainer_task import TrainerTask
from tsr_swarm.optim.periods import follows_manifest
from tsr_swarm.process.tasks import Signal
from tsr_swarm.rounds import protocol as pt
from tsr_swarm.telemetry import events
from tsr_swarm.telemetry.byte_counter import Direction
from tsr_swarm.transport.address import parse_address
from tsr_swarm.transport.client import SwarmClient
from tsr_swarm.wire import checks
from tsr_swarm.wire.v1 import swarm_pb2 as pb

OTHERS_SECONDS = 10.0  # for all that were seen before
GOODBYE_SECONDS = 2.0
LAST_REPORT_SECONDS = 5.0  # says whether all weights agree at the end
REPORT_SECONDS = 90.0  # a leader may be slower than we are, and answers when it has applied the round

Accept = Callable[[pb.HelloReply], None]  # refuses an answer by raising a SwarmError


@dataclass(frozen=True, slots=True)
class Handshake:
    """What the node that was called first has answered, and from which host."""

    hello: pb.HelloReply
    host: str

    @property
    def known(self) -> tuple[str, ...]:
        """peer_ids of nodes that may know the leader."""
        return tuple(dict.fromkeys([self.hello.peer_id, *(contact.peer_id for contact in self.hello.contacts)]))


def accept_any(hello: pb.HelloReply) -> None:
    """Take any run for the one that is meant."""


async def say_hello(clients: ClientPool, book: AddressBook, address: str, accept: Accept = accept_any) -> Handshake:
    """Say hello at ``address``, or else to a node that was seen before. Raises UnreachableError or RefusedError."""
    try:
        return await greet(clients, book, address, accept)
    except UnreachableError as error:
        until = time.monotonic() + OTHERS_SECONDS
        for other in book.addresses:
            if time.monotonic() < until and other != address:
                try:
                    return await greet(clients, book, other, accept)
                except (UnreachableError, RefusedError, PeerError, ConfigError):
                    continue
        raise error


async def greet(clients: ClientPool, book: AddressBook, address: str, accept: Accept) -> Handshake:
    """Say hello at one address. What ``accept`` refuses, by raising a SwarmError, leaves the book as it was."""
    client = await clients.at(address)
    hello = await client.hello(pb.HelloRequest(protocol=PROTOCOL_VERSION, package_version=__version__))
    checks.check(hello)
    accept(hello)
    host, _ = parse_address(client.address)
    book.update_from(host, hello.contacts)
    book.update(hello.peer_id, client.address)  # whatever it calls itself, this is how it is reached from here
    return Handshake(hello, host)


class LeaderClient:
    """Polls whoever leads or may know who does, has this node admitted, and sends reports and goodbye."""

    def __init__(self, context: NodeContext, data_leases: DataLeases, trainer_task: TrainerTask) -> None:
        self._context, self._data_leases, self._trainer_task = context, data_leases, trainer_task
        self._contacts, self._reporter = KnownContacts(), PeerReporter(context.clients, context.me)
        self._newest_poll = 0  # its number
        self._news: pt.RoundUpdate | None = None  # the newest that was read, since this node led
        self._reporting = 0  # reports under way
        self._reported = Signal()

    def poll(self, to: str, message: pt.Poll) -> None:
        """Have the answer, or that there is none, put to the decisions."""
        self._newest_poll = message.number
        self._context.background.start(self._poll(to, message))

    def follows(self, sender: str, term: int) -> bool:
        """Whether this node does not lead, and read the newest news of ``sender``, of this term or before."""
        return self._news is not None and self._news.leader == sender and self._news.term <= term

    def forget_news(self) -> None:
        """This node leads now, and follows nobody."""
        self._news = None

    async def _poll(self, to: str, message: pt.Poll) -> None:
        context, known = self._context, message.known
        try:
            client = await context.clients.to(to)
            reply = await client.poll(self._request(message))
            is_unknown, kind = reply.HasField("unknown"), reply.WhichOneof("answer")
            lacks_news = kind == "unchanged" and self._unchanged(to, reply.unchanged) is None
            # A node that was started anew before it was missed is known there, but has no number yet.
            if is_unknown or (kind == "news" and context.info.trains and not context.number):
                await self._join(client)
            if is_unknown or lacks_news:
                if message.number != self._newest_poll:
                    return  # another one is held there by now
                known = 0 if lacks_news else known
                reply = await client.poll(self._request(replace(message, known=known)))
            checks.check(reply)
            answer = self._read(to, reply)
            contacts: Iterable[pb.Contact] = reply.contacts
            if isinstance(answer, pt.RoundUpdate):
                news = answer if reply.HasField("news") else None
                contacts = self._contacts.update(to, known, news, reply.contacts)
            host, _ = parse_address(client.address)
            context.book.update_from(host, contacts)
            context.book.update(to, client.address)  # whatever is said of it, this is how it is reached from here
        except (UnreachableError, PeerError, RefusedError, ConfigError):
            if message.number == self._newest_poll:  # else whoever holds it was told of the newer one
                context.put(pt.Unreachable(to, message))
            return
        context.reached_at = time.monotonic()
        context.note_committed(answer.base)
        context.put(pt.Received(to, answer))

    def _request(self, message: pt.Poll) -> pb.PollRequest:
        context, request = self._context, message_codec.poll_to_proto(message)
        request.manifest_digest, request.address = bytes.fromhex(context.manifest.digest), context.info.address
        context.clients.sample()
        request.progress.CopyFrom(self._trainer_task.progress)
        self._data_leases.ask(request)
        return request

    def _read(self, sender: str, reply: pb.PollReply) -> pt.RoundUpdate | pt.Redirect:
        match reply.WhichOneof("answer"):
            case "news":
                manifest = self._context.manifest
                news, plan = message_codec.news_from_proto(reply.news, manifest.blocks, len(manifest.shard_blocks))
                if news.leader != sender:
                    raise PeerError("leader", f"News of {news.leader[:8]} came from where {sender[:8]} was asked.")
                if plan is not None:
                    self._add_plan(plan)
                if reply.news.HasField("rules"):
                    self._context.update_rules(news.leader, reply.news.rules)
                self._data_leases.update(reply)
                self._news = news
                return news
            case "unchanged":
                known = self._unchanged(sender, reply.unchanged)
                if known is None:
                    raise UnreachableError("It says that nothing has changed, of news that it has not told here.")
                self._data_leases.update(reply)
                return known
            case "redirect":
                return message_codec.redirect_from_proto(reply.redirect)
            case _:
                raise UnreachableError("It leads, and does not know this peer although it has just joined.")

    def _unchanged(self, sender: str, message: pb.Unchanged) -> pt.RoundUpdate | None:
        """The news that did not change, as an answer to the newer call; None where they are not here."""
        news = self._news
        if news is None or (news.leader, news.term, news.version) != (sender, message.term, message.version):
            return None
        return replace(news, number=message.number)

    def _add_plan(self, plan: RoundPlan) -> None:
        if not follows_manifest(plan, self._context.manifest):
            error = RefusedError(f"The plan of round {plan.round} is not what this run's manifest says; leaving.")
            self._context.fail(error)
            raise error  # nothing of this answer counts: training would begin without a plan
        self._context.round_cache.add_plan(plan)

    def join_request(self) -> pb.JoinRequest:
        """What this node says of itself to be admitted."""
        context, info = self._context, self._context.info
        return pb.JoinRequest(
            manifest_digest=bytes.fromhex(context.manifest.digest),
            peer_id=info.peer_id,
            name=info.name,
            address=info.address,
            local_space=info.local_space,
            device=info.device,
            number=context.number,
            trains=info.trains,
        )

    async def _join(self, client: SwarmClient) -> None:
        """Have this node admitted. A refusal is the end: it names what has to change first."""
        context = self._context
        try:
            reply = await client.join(self.join_request())
        except RefusedError as error:
            context.fail(error)
            raise
        checks.check(reply)
        context.admitted_by = client
        if not context.info.trains:
            return
        context.name = reply.name
        self._trainer_task.take_number(reply.number)  # the worker may be training: the leader is polled now
        context.emit(
            events.Joined(
                run=context.config.run.name,
                name=reply.name,
                number=reply.number,
                address=client.address,
                round=max(0, context.state.peer.applied),
            )
        )

    def report(self, round: int, digest: bytes) -> pb.ReportRequest:
        """Tell the leader of a round that was applied just now, beside everything else. Returns what it is told.

        A digest that differs sends this node back to the state. A report that is lost is not sent again: bytes told
        once too seldom are better than bytes told twice.
        """
        report = self._reporter.prepare(round, digest)
        self._reporting += 1
        self._context.background.start(self._report(report))
        return report

    async def _report(self, report: pb.ReportRequest) -> None:
        context = self._context
        try:
            if context.leader is not None:
                reply = await context.leader.round_reporter.report(report)
            else:
                reply = await (await context.clients.to(context.last_leader)).report(report, REPORT_SECONDS)
        except SwarmError:
            return
        finally:
            self._reporting -= 1
            self._reported.notify()
        if reply.resync:
            context.driver.change(lambda node: replace(node, peer=replace(node.peer, needs_state=True)))
            context.warn(f"This peer's weights differ after round {report.round}; it fetches the state again.")
            context.put(pt.Tick())

    async def wait_for_reports(self) -> None:
        """Return once all reports are answered, or after a while."""
        await self._reported.wait_for(lambda: not self._reporting, LAST_REPORT_SECONDS)

    async def say_goodbye(self, leader: str) -> None:
        """Leave, once reports are answered: a leader waits for no report of who has left."""
        await self.wait_for_reports()
        with suppress(UnreachableError, ConfigError):  # it will be missed
            await self.leave(await self._context.clients.to(leader), self._context.reason or "it said goodbye")

    async def leave(self, leader: SwarmClient, reason: str) -> None:
        with suppress(UnreachableError, PeerError, RefusedError):
            await leader.leave(pb.LeaveRequest(peer_id=self._context.me, reason=reason), GOODBYE_SECONDS)


class KnownContacts:
    """Where nodes can be dialled, as told by the leader that is polled; see poll_replies.py, which tells each once."""

    def __init__(self) -> None:
        self._leader = ""
        self._contacts: dict[str, pb.Contact] = {}

    def update(
        self, leader: str, known: int, news: pt.RoundUpdate | None = None, new: Iterable[pb.Contact] = ()
    ) -> Sequence[pb.Contact]:
        """All that counts now, whatever others have said meanwhile.

        known: the version that was polled with; 0: this leader tells all of them. news: None if they did not change;
        else ``new`` came with them.
        """
        if not known or leader != self._leader:
            self._leader, self._contacts = leader, {}
        if news is not None:
            contacts = {**self._contacts, **{contact.peer_id: contact for contact in new}}
            self._contacts = {peer: contacts[peer] for peer in nodes_named(news) if peer in contacts}
        return list(self._contacts.values())


class PeerReporter:
    """Makes a peer's reports: the digest of its weights, and its bytes, each of which is in one report only."""

    def __init__(self, clients: ClientPool, peer_id: str) -> None:
        self._clients, self._peer_id = clients, peer_id
        self._reported: dict[Direction, Counter[str]] = {direction: Counter() for direction in Direction}
        self._overhead = 0

    def prepare(self, round: int, digest: bytes) -> pb.ReportRequest:
        """Make the report of a round that was applied just now, with all bytes since the last report."""
        sent, received = (self._take_unreported(direction) for direction in (Direction.SENT, Direction.RECEIVED))
        return pb.ReportRequest(
            peer_id=self._peer_id,
            round=round,
            digest=digest,
            sent=sent,
            received=received,
            overhead_bytes=self._take_overhead(),
        )

    def _take_unreported(self, direction: Direction) -> Counter[str]:
        new = Counter(self._clients.counter.totals(direction)) - self._reported[direction]
        self._reported[direction] += new
        return new

    def _take_overhead(self) -> int:
        """Bytes that the kernel moved beyond those counted here: framing, headers, retransmissions. Call when idle."""
        totals = self._clients.kernel.sample()
        counted = sum(sum(self._clients.counter.totals(direction).values()) for direction in Direction)
        total = totals.sent + totals.received - counted if totals is not None else 0
        new = max(0, total - self._overhead)
        self._overhead += new
        return new
