"""Messages of the decisions, out and in. What cannot be delivered is told to them as Unreachable; nothing is repeated.

A shard that is done is told of only while its bytes, and the list that its peers were named by, are here: without them
there is nothing to fetch, and whoever leads asks again.

A poll is a call whose answer is held by whoever leads; everything else is told one way, between nodes that can be
dialled. A node that leads admits whoever polls it first, by Join.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from tsr_swarm.config.manifest import Manifest
from tsr_swarm.config.plan import RoundPlan
from tsr_swarm.config.run import RunConfig
from tsr_swarm.errors import ConfigError, PeerError, RefusedError, UnreachableError
from tsr_swarm.optim.periods import follows_manifest
from tsr_swarm.rounds import protocol as pt
from tsr_swarm.rounds.council import Beat, Record
from tsr_swarm.runtime.background import Background
from tsr_swarm.runtime.node import letters
from tsr_swarm.runtime.node.answers import Answers, Heard
from tsr_swarm.runtime.node.book import AddressBook, Lines
from tsr_swarm.runtime.node.gathering import Gathering
from tsr_swarm.runtime.node.lending import Lending
from tsr_swarm.runtime.node.made import VOID, MadeShard
from tsr_swarm.runtime.node.membership import Membership
from tsr_swarm.runtime.node.notes import Notes
from tsr_swarm.runtime.node.same_run import require_run
from tsr_swarm.swarm.addresses import address_for, dialable_address, split_address
from tsr_swarm.transport.base import Caller
from tsr_swarm.transport.client import SwarmClient
from tsr_swarm.wire import control
from tsr_swarm.wire.v1 import swarm_pb2 as pb

TELL_SECONDS = 3.0  # whatever matters is said again every second or two
HOLD_SECONDS = 4.5  # a poll that nobody answers by then is given up; a leader holds it for two
GOING = "This node is leaving; ask another one."


Put = Callable[[pt.Event], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Introduction:
    """What a node says of itself."""

    peer_id: str
    name: str
    address: str  # host:port where it can be dialled; empty: client-only
    local_space: str
    device: str
    trains: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """What the post asks the rest of the node for."""

    put: Put
    fail: Callable[[Exception], None]  # this node cannot go on
    config: Callable[[], RunConfig]  # with the rules that count now
    hear_rules: Callable[[str, pb.Rules], None]  # who leads, and what it says
    hear: Callable[[Record], None]  # this round stands, as others say
    numbers: Callable[[], Mapping[str, int]]  # of everybody who takes part, as this leader knows them
    is_admitted: Callable[[str], bool]  # by this leader
    number: Callable[[], int]  # this peer's own; 0: none yet
    admitted: Callable[[SwarmClient, pb.JoinReply], Awaitable[None]]  # this node, by a leader
    progress: Callable[[], pb.Progress]
    reached: Callable[[], None]  # somebody has answered


class Post:
    """One node's. Its event loop owns it."""

    def __init__(
        self,
        who: Introduction,
        manifest: Manifest,
        book: AddressBook,
        lines: Lines,
        notes: Notes,
        gathering: Gathering,
        membership: Membership,
        lending: Lending,
        desk: Desk,
        background: Background,
    ) -> None:
        self._who, self._manifest = who, manifest
        self._digest = bytes.fromhex(manifest.digest)
        self._book, self._lines, self._notes, self._gathering = book, lines, notes, gathering
        self._membership, self._lending, self._desk, self._background = membership, lending, desk, background
        self._answers = Answers(notes, desk.config, self.seen_by, lambda: book.changes)
        self._heard = Heard()
        self._newest_poll = 0  # its number
        self._news: pt.News | None = None  # the newest that was read, since this node led
        self._held: dict[str, tuple[int, asyncio.Future[pt.News | pt.Redirect]]] = {}  # by peer: number of the poll
        self._has_hung_up = False

    # --- out ----------------------------------------------------------------------------------------------------

    def send(self, to: str, message: pt.Message) -> None:
        """Have ``message`` delivered, or its loss told. Returns at once."""
        match message:
            case pt.Poll():
                self._newest_poll = message.number
                self._background.start(self._poll(to, message))
            case pt.News() | pt.Redirect():
                self._answer(to, message)
            case _:
                request = self._letter(message)  # now: what it says may be over in a moment
                if request is not None:
                    self._background.start(self._tell(to, message, request))

    async def _tell(self, to: str, message: pt.Message, request: pb.TellRequest) -> None:
        request.manifest_digest, request.sender, request.address = self._digest, self._who.peer_id, self._who.address
        try:
            await (await self._lines.to(to)).tell(request, TELL_SECONDS)
        except (UnreachableError, PeerError, RefusedError, ConfigError):
            self._desk.put(pt.Unreachable(to, message))

    def _letter(self, message: pt.Message) -> pb.TellRequest | None:
        match message:
            case pt.ShardDone(term, round, shard, result):
                if result.is_void:
                    return letters.done_to_proto(message, VOID)
                found = self._notes.made(round, shard, result)
                members = self._notes.members(round, term, result.included)
                return None if found is None or members is None else letters.done_to_proto(message, found[0], members)
            case pt.Close(admitted=admitted):
                numbers = {peer: number for peer, number in self._desk.numbers().items() if peer in admitted}
                return letters.close_to_proto(message, self._membership.name(numbers))
            case pt.Poll() | pt.News() | pt.Redirect():
                raise AssertionError("not told one way")
            case _:
                return letters.tell_to_proto(message)

    async def _poll(self, to: str, message: pt.Poll) -> None:
        known = message.known
        try:
            client = await self._lines.to(to)
            reply = await client.poll(self._request(message))
            if reply.WhichOneof("answer") == "unknown":
                await self._join(client)
                if message.number != self._newest_poll:
                    return  # another one is held there by now
                reply = await client.poll(self._request(message))
            elif reply.WhichOneof("answer") == "news" and self._who.trains and not self._desk.number():
                await self._join(client)  # started anew before it was missed: it is known there, but has no number yet
            elif reply.WhichOneof("answer") == "unchanged" and self._again(to, reply.unchanged) is None:
                if message.number != self._newest_poll:
                    return
                known = 0
                reply = await client.poll(self._request(replace(message, known=known)))
            control.check_poll_reply(reply)
            answer = self._read(to, reply)
            host, _ = split_address(client.address)
            self._book.hear_from(host, self._contacts(to, known, reply))
            self._book.hear(to, client.address)  # whatever is said of it, this is how it is reached from here
        except (UnreachableError, PeerError, RefusedError, ConfigError):
            if message.number == self._newest_poll:  # else whoever holds it was told of the newer one
                self._desk.put(pt.Unreachable(to, message))
            return
        self._desk.reached()
        self._desk.hear(answer.base)
        self._desk.put(pt.Received(to, answer))

    def _contacts(self, sender: str, known: int, reply: pb.PollReply) -> Iterable[pb.Contact]:
        match reply.WhichOneof("answer"):
            case "news":
                return self._heard.hear(sender, known, self._news, reply.contacts)
            case "unchanged":
                return self._heard.hear(sender, known)
            case _:
                return reply.contacts

    def _request(self, message: pt.Poll) -> pb.PollRequest:
        request = letters.poll_to_proto(message)
        request.manifest_digest, request.address = self._digest, self._who.address
        request.progress.CopyFrom(self._desk.progress())
        self._lending.ask(request)
        return request

    async def _join(self, client: SwarmClient) -> None:
        """Have this node admitted. A refusal is the end: it names what has to change first."""
        try:
            reply = await client.join(self.join_request())
        except RefusedError as error:
            self._desk.fail(error)
            raise
        control.check_join_reply(reply)
        await self._desk.admitted(client, reply)

    def join_request(self) -> pb.JoinRequest:
        """What this node says of itself to be admitted."""
        who = self._who
        return pb.JoinRequest(
            manifest_digest=self._digest,
            peer_id=who.peer_id,
            name=who.name,
            address=who.address,
            local_space=who.local_space,
            device=who.device,
            number=self._desk.number(),
            trains=who.trains,
        )

    def _read(self, sender: str, reply: pb.PollReply) -> pt.News | pt.Redirect:
        match reply.WhichOneof("answer"):
            case "news":
                news, plan = letters.news_from_proto(
                    reply.news, self._manifest.blocks, len(self._manifest.shard_blocks)
                )
                if news.leader != sender:
                    raise PeerError("leader", f"News of {news.leader[:8]} came from where {sender[:8]} was asked.")
                if plan is not None:
                    self._hear_plan(plan)
                if reply.news.HasField("rules"):
                    self._desk.hear_rules(news.leader, reply.news.rules)
                self._lending.hear(reply)
                self._news = news
                return news
            case "unchanged":
                known = self._again(sender, reply.unchanged)
                if known is None:
                    raise UnreachableError("It says that nothing has changed, of news that it has not told here.")
                self._lending.hear(reply)
                return known
            case "redirect":
                return letters.redirect_from_proto(reply.redirect)
            case _:
                raise UnreachableError("It leads, and does not know this peer although it has just joined.")

    def _again(self, sender: str, message: pb.Unchanged) -> pt.News | None:
        """The news that did not change, as an answer to the newer call; None where they are not here."""
        news = self._news
        if news is None or (news.leader, news.term, news.version) != (sender, message.term, message.version):
            return None
        return replace(news, number=message.number)

    def _hear_plan(self, plan: RoundPlan) -> None:
        if not follows_manifest(plan, self._manifest):
            error = RefusedError(f"The plan of round {plan.round} is not what this run's manifest says; leaving.")
            self._desk.fail(error)
            raise error  # nothing of this answer counts: training would begin without a plan
        self._notes.hear_plan(plan)

    # --- in -----------------------------------------------------------------------------------------------------

    async def poll(self, request: pb.PollRequest, caller: Caller) -> pb.PollReply:
        """Answer when there is news for this peer, or when a leader says so. Doubles as its heartbeat."""
        require_run(self._manifest, request.manifest_digest)
        message = letters.poll_from_proto(request)
        peer, address = message.peer, dialable_address(caller.address, request.address)
        if peer == self._who.peer_id:
            raise PeerError("peer_id", "A node does not poll itself.")
        if self._has_hung_up:
            raise UnreachableError(GOING)
        if not self._desk.is_admitted(peer):
            return pb.PollReply(unknown=True)
        self._book.hear(peer, address)
        self._lending.asked(request)
        if (older := self._held.pop(peer, None)) is not None and not older[1].done():
            older[1].set_exception(UnreachableError("Another poll of this peer came after this one."))
        answer: asyncio.Future[pt.News | pt.Redirect] = asyncio.get_running_loop().create_future()
        self._held[peer] = message.number, answer
        self._desk.put(pt.Received(peer, replace(message, is_dialable=bool(address))))
        try:
            async with asyncio.timeout(HOLD_SECONDS):
                reply = self._answers.reply(request, await answer, caller)
            if not reply.HasField("redirect"):
                self._lending.answer(request, reply)
            return reply
        except TimeoutError:
            raise UnreachableError("This node has no answer now; poll again.") from None
        except asyncio.CancelledError:
            if self._held.get(peer, (0, None))[1] is answer:
                self._desk.put(pt.Hung(peer))  # it hung up while it was listening: it died, or its line did
            raise
        finally:
            if self._held.get(peer, (0, None))[1] is answer:
                del self._held[peer]

    def hang_up(self) -> None:
        """This node goes: whoever polls it looks for another at once."""
        self._has_hung_up = True
        for _, answer in self._held.values():
            if not answer.done():
                answer.set_exception(UnreachableError(GOING))

    def _answer(self, to: str, message: pt.News | pt.Redirect) -> None:
        if isinstance(message, pt.News):
            self._news = None  # who leads follows nobody
        number, answer = self._held.get(to, (0, None))
        is_its = isinstance(message, pt.Redirect) or message.number == number
        if answer is not None and is_its and not answer.done():
            answer.set_result(message)

    def forget(self, peer_id: str) -> None:
        """This caller has gone."""
        self._answers.forget(peer_id)

    def seen_by(self, caller: Caller, peer_ids: Iterable[str]) -> dict[str, str]:
        """Where a caller can dial ``peer_ids``, and this node, which it is told of itself."""
        seen = self._book.seen_by(caller.address, peer_ids)
        mine = address_for(caller.address, self._who.address) if self._who.address else ""
        return {**seen, self._who.peer_id: mine} if mine else seen

    async def tell(self, request: pb.TellRequest, caller: Caller) -> pb.TellReply:
        """Take in a message of another node."""
        require_run(self._manifest, request.manifest_digest)
        sender = request.sender
        if sender == self._who.peer_id:
            raise PeerError("sender", "A node tells itself nothing.")
        try:
            told = letters.told(request, self._manifest, self._membership.get)
        except letters.UnknownRosterError as unknown:
            if not request.HasField("close"):
                raise
            if self._follows(sender, request.close.term):
                self._background.start(self._close_once_known(request, unknown.digest))
            told = None
        self._book.hear(sender, dialable_address(caller.address, request.address))
        if told is not None:
            self._take_in(sender, told)
        return pb.TellReply()

    def _follows(self, sender: str, term: int) -> bool:
        """Whether this node does not lead, and heard the news from ``sender`` last, of this term or before.

        Nobody else is asked who takes part: a few strangers that do not answer would keep it from asking its leader.
        """
        return self._news is not None and self._news.leader == sender and self._news.term <= term

    async def _close_once_known(self, request: pb.TellRequest, digest: bytes) -> None:
        """Who closes a round says whose work counts; where it does not, it is as if it had said nothing."""
        members = await self._membership.have(request.sender, digest)
        if members is not None:
            told = letters.told(request, self._manifest, lambda _: members)
            self._take_in(request.sender, told)

    def _take_in(self, sender: str, told: letters.Told) -> None:
        match told.message:
            case Beat(base=base):
                self._desk.hear(base)
            case pt.Close(term, round):
                assert told.members is not None, "they come with a Close"
                self._notes.hear_close(round, term, told.members)
            case pt.ShardDone() as done if not done.result.is_void:
                assert told.made is not None, "it comes with a shard"
                self._background.start(self._gather(sender, done, told.made))
                return
        self._desk.put(pt.Received(sender, told.message))

    async def _gather(self, sender: str, done: pt.ShardDone, made: MadeShard) -> None:
        """A shard counts as done when its bytes are here; what is not there is asked for again."""
        result = await self._gathering.fetch(sender, done, made)
        if result is not None:
            self._desk.put(pt.Received(sender, replace(done, result=result)))
