"""Two small nodes and real calls between them: a poll is held, answered once, and never answered for somebody else."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import pytest
from steady import steady

from tsr_swarm.config.manifest import make_manifest
from tsr_swarm.config.run import PeriodsConfig, RoundConfig, RunConfig
from tsr_swarm.errors import PeerError, RefusedError, UnreachableError
from tsr_swarm.optim.periods import plan_round
from tsr_swarm.rounds import council as cl
from tsr_swarm.rounds import protocol as pt
from tsr_swarm.rounds.council import Record
from tsr_swarm.rounds.gather import ShardResult
from tsr_swarm.rounds.leases import Coverage
from tsr_swarm.rounds.protocol import Close, Hung, News, Place, Plan, Poll, Received, Redirect, ShardDone, Unreachable
from tsr_swarm.runtime.background import Background
from tsr_swarm.runtime.node import letters
from tsr_swarm.runtime.node import post as module
from tsr_swarm.runtime.node.book import AddressBook, Lines
from tsr_swarm.runtime.node.gathering import Gathering
from tsr_swarm.runtime.node.lending import Lending
from tsr_swarm.runtime.node.made import MadeShard
from tsr_swarm.runtime.node.membership import MOST_QUESTIONS, Membership
from tsr_swarm.runtime.node.notes import Notes
from tsr_swarm.runtime.node.post import Desk, Introduction, Post
from tsr_swarm.telemetry.ledger import ByteLedger
from tsr_swarm.transport.base import Caller
from tsr_swarm.transport.client import SwarmClient
from tsr_swarm.transport.kernel_bytes import KernelBytes
from tsr_swarm.transport.server import serve
from tsr_swarm.wire.messages import ShardResult as Published
from tsr_swarm.wire.v1 import swarm_pb2 as pb

A, B, C = (letter * 32 for letter in "abc")
SHAPES = {"a.weight": (40, 30), "b.weight": (48, 24), "norm.weight": (30,)}
CONFIG = RunConfig(
    optimizer=steady(rank=4, embedding_rank=4), periods=PeriodsConfig(k_x=5, k_r=50), round=RoundConfig(shards=2)
)
MANIFEST = make_manifest("run", CONFIG, SHAPES)
DIGEST = bytes.fromhex(MANIFEST.digest)
SHARD_BLOCKS = MANIFEST.shard_blocks
PLAN = plan_round(MANIFEST.config, MANIFEST.blocks, 1, "")
BASE = Record(voters=(B,))
OPEN = Plan(1, "", 1, 1, (Place(A, 1), Place(B, 2)))
ASKED = Poll(A, 1, 0, True, False, (0, 0, 0), 0, number=1)
TOLD = News(1, B, 1, BASE, (), None, (), False, number=1)

E = TypeVar("E", bound=pt.Event)


@dataclass
class Small:
    """A node that decides nothing: what its post puts is for the test to see."""

    me: str
    book: AddressBook
    notes: Notes
    background: Background
    post: Post
    membership: Membership
    address: str = ""
    is_admitting: bool = True
    refusal: RefusedError | None = None
    events: list[pt.Event] = field(default_factory=list)
    failures: list[Exception] = field(default_factory=list)
    heard: list[Record] = field(default_factory=list)
    rules: list[str] = field(default_factory=list)
    joined: list[str] = field(default_factory=list)
    listed: list[pb.ListPeersRequest] = field(default_factory=list)
    numbers: Mapping[str, int] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def put(self, event: pt.Event) -> None:
        self.events.append(event)
        self.changed.set()

    async def seen(self, kind: type[E], count: int = 1) -> list[E]:
        """So many events of this kind have come."""
        async with asyncio.timeout(10):
            while True:
                found: list[E] = [event for event in self.events if isinstance(event, kind)]
                if len(found) >= count:
                    return found
                self.changed.clear()
                await self.changed.wait()

    async def admitted(self, client: SwarmClient, reply: pb.JoinReply) -> None:
        self.joined.append(reply.name)

    # --- as a server ----------------------------------------------------------------------------------------------

    async def poll(self, request: pb.PollRequest, caller: Caller) -> pb.PollReply:
        return await self.post.poll(request, caller)

    async def tell(self, request: pb.TellRequest, caller: Caller) -> pb.TellReply:
        return await self.post.tell(request, caller)

    async def list_peers(self, request: pb.ListPeersRequest, caller: Caller) -> pb.ListPeersReply:
        self.listed.append(request)
        return self.membership.answer(request, self.numbers)

    async def join(self, request: pb.JoinRequest, caller: Caller) -> pb.JoinReply:
        if self.refusal is not None:
            raise self.refusal
        self.is_admitting = True
        return pb.JoinReply(number=1, name=request.name)


def make_small(me: str, lines: Lines, book: AddressBook, address: str) -> Small:
    notes, background = Notes(), Background()
    gathering = Gathering(MANIFEST, lines, notes, lambda reducer, done: None, lambda message: None)
    desk = Desk(
        put=lambda event: small.put(event),
        fail=lambda error: small.failures.append(error),
        config=lambda: MANIFEST.config,
        hear_rules=lambda leader, rules: small.rules.append(leader),
        hear=lambda record: small.heard.append(record),
        numbers=lambda: small.numbers,
        is_admitted=lambda peer: small.is_admitting,
        number=lambda: 0,
        admitted=lambda client, reply: small.admitted(client, reply),
        progress=pb.Progress,
        reached=lambda: None,
    )
    who = Introduction(peer_id=me, name="peer", address=address, local_space="core", device="cpu")
    lending, membership = Lending(me, 1, Coverage(), None), Membership(DIGEST, lines, background)
    post = Post(who, MANIFEST, book, lines, notes, gathering, membership, lending, desk, background)
    small = Small(me, book, notes, background, post, membership, address)
    return small


class Late:
    """A handler that is known once its port is."""

    def __init__(self) -> None:
        self.small: Small | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.small, name)


@asynccontextmanager
async def pair() -> AsyncIterator[tuple[Small, Small]]:
    """A cannot be dialled, B can."""
    async with AsyncExitStack() as stack:
        smalls = []
        handler = Late()
        port = await stack.enter_async_context(serve(handler, "127.0.0.1:0", ByteLedger(), stop_seconds=0.1))
        for me, address in ((A, ""), (B, f"127.0.0.1:{port}")):
            book = AddressBook(me)
            lines = await stack.enter_async_context(Lines(book, ByteLedger(), KernelBytes([])))
            smalls.append(make_small(me, lines, book, address))
            stack.push_async_callback(smalls[-1].background.close)
        a, b = smalls
        handler.small = b
        a.book.hear(B, b.address)
        yield a, b


async def polled(a: Small, b: Small, poll: Poll = ASKED) -> None:
    """A's poll is held at B."""
    before = len(b.events)
    a.post.send(B, poll)
    async with asyncio.timeout(10):
        while len(b.events) == before:
            b.changed.clear()
            await b.changed.wait()
    assert b.events[-1] == Received(A, poll)


# --- polls ------------------------------------------------------------------------------------------------------------


async def test_a_poll_is_held_until_there_is_news() -> None:
    async with pair() as (a, b):
        b.notes.hear_plan(PLAN)
        b.book.hear(C, "127.0.0.1:7")
        await polled(a, b)
        news = replace(TOLD, plan=OPEN, nodes=(C,))
        b.post.send(A, news)
        assert await a.seen(Received) == [Received(B, news)]
        assert a.notes.plan(1, "") == PLAN, "what to train comes with it"
        assert a.heard == [BASE]
        assert a.book.address(C) == "127.0.0.1:7"
        assert a.rules == [B]


async def test_who_waits_in_vain_hears_its_last_news_again() -> None:
    async with pair() as (a, b):
        b.notes.hear_plan(PLAN)
        b.book.hear(C, "127.0.0.1:7")
        news = replace(TOLD, plan=OPEN, nodes=(C,))
        await polled(a, b)
        b.post.send(A, news)
        await a.seen(Received)
        again = replace(ASKED, known=1, number=2)
        a.book.hear(C, "127.0.0.1:8")  # as anybody may say
        await polled(a, b, again)
        b.post.send(A, replace(news, number=2))
        assert (await a.seen(Received, 2))[-1] == Received(B, replace(news, number=2))
        assert [event.message for event in await b.seen(Received)] == [ASKED, again]
        assert a.rules == [B], "it was told once"
        assert a.book.address(C) == "127.0.0.1:7", "the leader's word counts on"
        b.post.forget(A)
        await polled(a, b, replace(again, number=3))
        b.post.send(A, replace(news, number=3))
        assert (await a.seen(Received, 3))[-1] == Received(B, replace(news, number=3))
        assert a.rules == [B, B]


@pytest.mark.parametrize("change", [{"term": 2}, {"version": 2}, {"leader": C}])
async def test_who_has_not_the_news_that_did_not_change_asks_for_all_of_it(change: dict[str, Any]) -> None:
    async with pair() as (a, b):
        await polled(a, b)
        b.post.send(A, TOLD)
        await a.seen(Received)
        assert a.post._news == TOLD
        a.post._news = replace(TOLD, **change)
        await polled(a, b, replace(ASKED, known=1, number=2))
        b.changed.clear()
        b.post.send(A, replace(TOLD, number=2))
        (_, _, whole) = await b.seen(Received, 3)
        assert whole == Received(A, replace(ASKED, known=0, number=2))
        b.post.send(A, replace(TOLD, number=2))
        assert (await a.seen(Received, 2))[-1] == Received(B, replace(TOLD, number=2))


async def test_a_leader_that_only_ever_says_that_nothing_has_changed_is_no_leader() -> None:
    async with pair() as (a, b):

        async def unchanged(request: pb.PollRequest, caller: Caller) -> pb.PollReply:
            return pb.PollReply(unchanged=pb.Unchanged(term=1, version=1, number=request.number))

        b.poll = unchanged  # type: ignore[method-assign]
        a.post.send(B, ASKED)
        assert await a.seen(Unreachable) == [Unreachable(B, ASKED)]


async def test_news_that_answers_another_poll_is_not_given() -> None:
    async with pair() as (a, b):
        await polled(a, b)
        b.post.send(A, replace(TOLD, number=7))
        b.post.send(C, TOLD)
        b.post.send(A, TOLD)
        b.post.send(A, replace(TOLD, version=2))
        assert await a.seen(Received) == [Received(B, TOLD)]


async def test_whoever_leads_no_more_says_so_to_all_that_wait() -> None:
    async with pair() as (a, b):
        b.book.hear(C, "127.0.0.1:7")
        await polled(a, b)
        redirect = Redirect(2, C, BASE)
        b.post.send(A, redirect)
        assert await a.seen(Received) == [Received(B, redirect)]
        assert a.book.address(C) == "127.0.0.1:7"
        assert a.heard == [BASE]


async def test_a_newer_poll_takes_the_place_of_an_older_one() -> None:
    """The older one's end is neither a loss of the leader nor of the peer."""
    async with pair() as (a, b):
        await polled(a, b)
        await polled(a, b, replace(ASKED, number=2))
        news = replace(TOLD, number=2)
        b.post.send(A, news)
        assert await a.seen(Received) == [Received(B, news)]
        await a.background.close()
        assert [type(event) for event in a.events] == [Received]
        assert [type(event) for event in b.events] == [Received, Received]


async def test_a_poll_whose_place_is_taken_ends_at_once() -> None:
    async with pair() as (a, b):
        older = asyncio.create_task(call(b, asking(number=1)))
        async with asyncio.timeout(10):
            await b.changed.wait()
        await polled(a, b, replace(ASKED, number=2))
        with pytest.raises(UnreachableError, match="Another poll of this peer came after this one"):
            await older


async def test_a_peer_that_hangs_up_is_missed_at_once() -> None:
    """Its line broke while it was listening. Without that, its leader waits for it until it is taken for silent."""
    async with pair() as (a, b):
        await polled(a, b)
        await a.background.close()
        assert await b.seen(Hung) == [Hung(A)]
        b.post.send(A, TOLD)  # to nobody
        await polled(a, b, replace(ASKED, number=2))
        b.post.send(A, replace(TOLD, number=2))
        await a.seen(Received)


async def test_a_poll_that_nobody_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HOLD_SECONDS", 0.05)
    async with pair() as (a, b):
        await polled(a, b)
        assert await a.seen(Unreachable) == [Unreachable(B, ASKED)]
        assert not [event for event in b.events if isinstance(event, Hung)]


async def test_a_peer_that_is_not_known_joins_and_polls_again() -> None:
    async with pair() as (a, b):
        b.is_admitting = False
        await polled(a, b)
        assert a.joined == ["peer"]
        b.post.send(A, TOLD)
        assert await a.seen(Received) == [Received(B, TOLD)]


async def test_a_peer_that_is_turned_away_ends_with_the_reason() -> None:
    async with pair() as (a, b):
        b.is_admitting, b.refusal = False, RefusedError("The run is full.")
        a.post.send(B, ASKED)
        await a.seen(Unreachable)
        assert [str(error) for error in a.failures] == ["The run is full."]


async def test_whoever_answers_is_where_it_was_called() -> None:
    """A leader may call itself by a name that is of no use here, as one behind a router does."""
    async with pair() as (a, b):
        liar = replace(b.post._who, address="192.0.2.7:1")
        b.post._who = liar
        await polled(a, b)
        b.post.send(A, TOLD)
        await a.seen(Received)
        assert a.book.address(B) == b.address


async def test_nobody_speaks_for_another_leader() -> None:
    """Rules count as the coordinator's word: they must not come from a node that only says that it is."""
    async with pair() as (a, b):
        b.notes.hear_plan(PLAN)
        await polled(a, b)
        b.post.send(A, replace(TOLD, leader=C, plan=OPEN))
        assert await a.seen(Unreachable) == [Unreachable(B, ASKED)]
        assert (a.rules, a.heard, a.notes.plan(1, "")) == ([], [], None)


@pytest.mark.parametrize("change", [{"steps": 10**6}, {"lr_last": 0.5}, {"seed": 7}])
async def test_a_plan_that_the_manifest_does_not_allow_is_not_trained_for(change: dict[str, Any]) -> None:
    async with pair() as (a, b):
        b.notes.hear_plan(replace(PLAN, **change))
        await polled(a, b)
        b.post.send(A, replace(TOLD, plan=OPEN))
        assert await a.seen(Unreachable) == a.events, "training for it would begin with the answer"
        assert [str(error) for error in a.failures] == [
            "The plan of round 1 is not what this run's manifest says; leaving."
        ]
        assert a.notes.plan(1, "") is None


async def test_shards_are_the_run_s_own() -> None:
    """A plan with more shards than the run has would have this node send what there is not."""
    async with pair() as (a, b):
        b.notes.hear_plan(PLAN)
        await polled(a, b)
        b.post.send(A, replace(TOLD, plan=replace(OPEN, places=(Place(A, 1),) * 3)))
        assert await a.seen(Unreachable) == [Unreachable(B, ASKED)]
        assert a.notes.plan(1, "") is None


async def call(b: Small, request: pb.PollRequest) -> pb.PollReply:
    async with SwarmClient(b.address, ByteLedger()) as client:
        return await client.poll(request)


def asking(**changes: Any) -> pb.PollRequest:
    request = letters.poll_to_proto(ASKED)
    request.manifest_digest = DIGEST
    for name, value in changes.items():
        setattr(request, name, value)
    return request


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (asking(manifest_digest=bytes(32)), RefusedError),
        (asking(manifest_digest=b""), RefusedError),
        (asking(peer_id="A" * 32), PeerError),
        (asking(peer_id=B), PeerError),
        (asking(address="no address at all"), PeerError),
        (asking(number=2**60), PeerError),
        (asking(incarnation=2**63), PeerError),
    ],
)
async def test_a_poll_that_makes_no_sense_is_refused(request_: pb.PollRequest, error: type[Exception]) -> None:
    async with pair() as (_, b):
        with pytest.raises(error):
            await call(b, request_)
        assert b.events == []
        assert b.book.addresses == []


async def test_a_stranger_does_not_get_into_the_book() -> None:
    """Else whoever calls under ever new names would push out those whom this node needs."""
    async with pair() as (_, b):
        b.is_admitting = False
        reply = await call(b, asking(peer_id=C, address="192.0.2.7:7700"))
        assert reply.unknown
        assert b.book.addresses == []


# --- told one way -----------------------------------------------------------------------------------------------------

SAID: Sequence[pt.Message] = (
    cl.VoteRequest(3, A, (1, 2), True),
    cl.VoteReply(3, 2, True, False, "granted"),
    cl.Beat(3, Record(1, "1" * 64, "", (B,)), Record(2, "2" * 64, "1" * 64, (A, B))),
    cl.BeatReply(3, 1, "2" * 64, "accepted"),
    pt.Goodbye(A),
    ShardDone(3, 1, 1, ShardResult()),
)


@pytest.mark.parametrize("message", SAID, ids=lambda message: type(message).__name__)
async def test_what_is_told_arrives_as_it_was_said(message: pt.Message) -> None:
    async with pair() as (a, b):
        a.post.send(B, message)
        assert await b.seen(Received) == [Received(A, message)]
        assert b.heard == ([message.base] if isinstance(message, cl.Beat) else [])


@asynccontextmanager
async def leader_and_reducer() -> AsyncIterator[tuple[Small, Small]]:
    """B leads, of which A has heard; A, which is told, can ask it who takes part."""
    async with AsyncExitStack() as stack:
        smalls = []
        for me in (A, B):
            handler, book = Late(), AddressBook(me)
            port = await stack.enter_async_context(serve(handler, "127.0.0.1:0", ByteLedger(), stop_seconds=0.1))
            lines = await stack.enter_async_context(Lines(book, ByteLedger(), KernelBytes([])))
            handler.small = make_small(me, lines, book, f"127.0.0.1:{port}")
            smalls.append(handler.small)
            stack.push_async_callback(handler.small.background.close)
        reducer, leader = smalls
        leader.book.hear(A, reducer.address)
        reducer.notes.hear_plan(PLAN)
        reducer.book.hear(B, leader.address)
        reducer.post.send(B, ASKED)
        await leader.seen(Received)
        leader.post.send(A, TOLD)
        await reducer.seen(Received)
        leader.events.clear()
        reducer.events.clear()
        yield leader, reducer


ALL = Close(3, 1, "", (0, 1), frozenset({A, B, C}))


async def test_a_close_names_those_who_counted_when_it_was_decided_and_the_list_is_fetched_once() -> None:
    async with leader_and_reducer() as (leader, reducer):
        leader.numbers = {A: 2, C: 1}
        leader.post.send(A, ALL)
        leader.numbers = {A: 2, C: 1, B: 3}
        (received,) = await reducer.seen(Received)
        assert received == Received(B, replace(ALL, admitted=frozenset({A, C}))), "who does not train has no work"
        assert reducer.notes.numbers(1, 3) == {A: 2, C: 1}
        leader.numbers = {A: 2, C: 1}
        leader.post.send(A, replace(ALL, shards=(1,)))
        await reducer.seen(Received, 2)
        assert len(leader.listed) == 1
        leader.numbers = {A: 2, C: 1, B: 3}
        leader.post.send(A, ALL)
        await reducer.seen(Received, 3)
        assert len(leader.listed) == 2


async def test_a_close_whose_list_cannot_be_had_is_as_if_lost() -> None:
    async with leader_and_reducer() as (leader, reducer):
        leader.numbers = {A: 2}
        asked = asyncio.Event()

        async def refuse(request: pb.ListPeersRequest, caller: Caller) -> pb.ListPeersReply:
            asked.set()
            raise UnreachableError("Not now.")

        leader.list_peers = refuse  # type: ignore[method-assign]
        leader.post.send(A, ALL)
        await asked.wait()
        leader.post.send(A, pt.Goodbye(B))
        assert await reducer.seen(Received) == [Received(B, pt.Goodbye(B))]
        assert reducer.notes.numbers(1, 3) == {}


async def test_strangers_that_hang_keep_nobody_from_its_leader() -> None:
    hangs = asyncio.Event()
    asked: list[pb.ListPeersRequest] = []

    class Stranger:
        async def list_peers(self, request: pb.ListPeersRequest, caller: Caller) -> pb.ListPeersReply:
            asked.append(request)
            await hangs.wait()
            return pb.ListPeersReply()

    async with (
        leader_and_reducer() as (leader, reducer),
        SwarmClient(reducer.address, ByteLedger()) as client,
        serve(Stranger(), "127.0.0.1:0", ByteLedger(), stop_seconds=0.1) as port,  # type: ignore[arg-type]
    ):
        for number in range(MOST_QUESTIONS):
            request = closing(term=9, roster=bytes([number]) * 32)
            request.sender, request.address = f"{number:032x}", f"127.0.0.1:{port}"
            await client.tell(request)
        leader.numbers = {A: 2, C: 1}
        leader.post.send(A, ALL)
        assert await reducer.seen(Received) == [Received(B, replace(ALL, admitted=frozenset({A, C})))]
        assert asked == []
        hangs.set()


@pytest.mark.parametrize("what", ["", "an older term", "this node leads"])
async def test_a_close_of_who_leads_no_more_is_as_if_lost(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    wanted: list[str] = []

    async def have(membership: Membership, leader: str, digest: bytes) -> None:
        wanted.append(leader)

    monkeypatch.setattr(Membership, "have", have)
    async with leader_and_reducer() as (leader, reducer), SwarmClient(reducer.address, ByteLedger()) as client:
        if what == "an older term":
            reducer.post.send(B, replace(ASKED, number=2))
            await leader.seen(Received)
            leader.post.send(A, replace(TOLD, term=4, number=2))
            await reducer.seen(Received)
        elif what == "this node leads":
            reducer.post.send(C, replace(TOLD, leader=A, term=2))
        close, goodbye = closing(term=3), telling(pt.Goodbye(B))
        for request in (close, goodbye):
            request.sender, request.address = B, leader.address
            await client.tell(request)
        assert wanted == ([] if what else [B])
        assert (await reducer.seen(Received))[-1] == Received(B, pt.Goodbye(B))


async def test_a_shard_is_told_of_by_who_of_the_close_is_not_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[tuple[str, ShardDone, MadeShard]] = []
    async with leader_and_reducer() as (leader, reducer):

        async def fetch(sender: str, done: ShardDone, made: MadeShard) -> ShardResult:
            heard.append((sender, done, made))
            return done.result

        monkeypatch.setattr(Gathering, "fetch", lambda _, *what: fetch(*what))
        leader.numbers = {A: 2, B: 3, C: 1}
        leader.post.send(A, ALL)
        await reducer.seen(Received)
        made = MadeShard(Published(included=(A, C), tokens=5))
        reducer.notes.keep(1, 0, made, b"bytes")
        done = ShardDone(3, 1, 0, made.decided)
        reducer.post.send(B, done)
        assert await leader.seen(Received) == [Received(A, done)]
        assert heard == [(A, done, made)]
        reducer.post.send(B, replace(done, term=2))  # of which nothing was heard here
        reducer.post.send(B, pt.Goodbye(A))
        assert (await leader.seen(Received, 2))[-1] == Received(A, pt.Goodbye(A))


async def test_a_shard_of_a_list_that_was_never_named_is_refused() -> None:
    async with leader_and_reducer() as (leader, _), SwarmClient(leader.address, ByteLedger()) as client:
        request = telling(pt.Goodbye(A))
        request.shard_done.CopyFrom(pb.ShardDone(term=1, round=1, result=pb.ShardResult(tokens=1), roster=bytes(32)))
        with pytest.raises(PeerError, match="is not known here"):
            await client.tell(request)
        assert leader.events == []


async def test_what_cannot_be_delivered_is_told_to_the_decisions() -> None:
    async with pair() as (a, b):
        a.book.hear(C, "127.0.0.1:1")
        beat = cl.Beat(3, BASE, None)
        a.post.send(C, beat)
        assert await a.seen(Unreachable) == [Unreachable(C, beat)]
        b.post.send(A, beat)  # which nobody can dial
        assert await b.seen(Unreachable) == [Unreachable(A, beat)]


async def test_a_shard_whose_bytes_are_not_here_any_more_is_not_told_of() -> None:
    async with pair() as (a, b):
        a.post.send(B, ShardDone(3, 1, 0, ShardResult(frozenset({A}), "0" * 32)))
        a.post.send(B, pt.Goodbye(A))
        assert await b.seen(Received) == [Received(A, pt.Goodbye(A))]


def telling(message: pt.Message, **changes: Any) -> pb.TellRequest:
    request = letters.tell_to_proto(message)  # type: ignore[arg-type]
    request.manifest_digest, request.sender, request.address = DIGEST, A, "192.0.2.7:7700"
    for name, value in changes.items():
        setattr(request, name, value)
    return request


def shard_of_nobody(shard: int) -> pb.TellRequest:
    request = telling(pt.Goodbye(A))
    request.shard_done.CopyFrom(pb.ShardDone(term=1, round=1, shard=shard, result=pb.ShardResult(void=True)))
    return request


def spoiled(change: Callable[[pb.TellRequest], object], message: pt.Message) -> pb.TellRequest:
    request = telling(message)
    change(request)
    return request


def closing(**changes: Any) -> pb.TellRequest:
    request = telling(pt.Goodbye(A))
    good: dict[str, Any] = {"term": 3, "round": 1, "shards": [0, 1], "roster": bytes(32)}
    request.close.CopyFrom(pb.Close(**{**good, **changes}))
    return request


BEAT = cl.Beat(3, BASE, None)


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (telling(BEAT, manifest_digest=bytes(32)), RefusedError),
        (telling(BEAT, sender="../../journal"), PeerError),
        (telling(BEAT, sender=""), PeerError),
        (telling(BEAT, sender=B), PeerError),
        (telling(BEAT, address="a b"), PeerError),
        (pb.TellRequest(manifest_digest=DIGEST, sender=A), PeerError),
        (spoiled(lambda told: told.beat.base.voters.append("x"), BEAT), PeerError),
        (spoiled(lambda told: told.beat.base.ClearField("voters"), BEAT), PeerError),
        (closing(shards=[2]), PeerError),
        (closing(roster=b"short"), PeerError),
        (shard_of_nobody(2), PeerError),
        (shard_of_nobody(2**31), PeerError),
    ],
)
async def test_what_makes_no_sense_is_refused_and_changes_nothing(
    request_: pb.TellRequest, error: type[Exception]
) -> None:
    async with pair() as (_, b):
        async with SwarmClient(b.address, ByteLedger()) as client:
            with pytest.raises(error):
                await client.tell(request_)
        assert (b.events, b.heard, b.book.addresses) == ([], [], [])


async def test_an_address_is_believed_as_far_as_its_sender_can_know() -> None:
    async with pair() as (_, b), SwarmClient(b.address, ByteLedger()) as client:
        await client.tell(telling(BEAT))
        assert b.book.address(A) == "192.0.2.7:7700"
        await client.tell(telling(BEAT, address="0.0.0.0:7700"))
        assert b.book.address(A) == "192.0.2.7:7700"


async def test_closing_leaves_no_call_behind() -> None:
    before = asyncio.all_tasks()
    async with pair() as (a, b):
        await polled(a, b)
    with pytest.raises(UnreachableError):
        await call(b, asking())
    assert asyncio.all_tasks() <= before
