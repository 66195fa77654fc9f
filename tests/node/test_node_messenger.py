"""Two small nodes and real calls between them: a poll is held, answered once, and never answered for somebody else."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from tests.fixtures import assert_no_task_is_left
from tests.node_context import open_node, serving
from tests.published_rounds import plan_of, small_manifest
from tsr_swarm.errors import PeerError, RefusedError, UnreachableError
from tsr_swarm.node import message_codec, poll_replies
from tsr_swarm.node.leader import ShardCollector
from tsr_swarm.node.node import SwarmNode
from tsr_swarm.node.roster_cache import MOST_QUESTIONS, RosterCache
from tsr_swarm.node.round_cache import ReducedShard
from tsr_swarm.node.service import StartingService
from tsr_swarm.rounds import protocol as pt
from tsr_swarm.rounds import raft_state
from tsr_swarm.rounds.raft_state import RoundRecord
from tsr_swarm.telemetry.byte_counter import ByteCounter
from tsr_swarm.transport.base import Caller
from tsr_swarm.transport.client import SwarmClient
from tsr_swarm.wire.messages import ShardResult as Published
from tsr_swarm.wire.v1 import swarm_pb2 as pb

A, B, C = (letter * 32 for letter in "abc")
MANIFEST = small_manifest(shards=2)
CONFIG, DIGEST = MANIFEST.config, bytes.fromhex(MANIFEST.digest)
PLAN = plan_of(MANIFEST)
BASE = RoundRecord(voters=(B,))
STANDS = RoundRecord(1, "1" * 64, "", (B,))
OPEN = pt.OpenRound(1, "", 1, 1, (pt.ReducerSlot(A, 1), pt.ReducerSlot(B, 2)))
ASKED = pt.Poll(A, 1, 0, True, False, (0, 0, 0), 0, number=1)
TOLD = pt.RoundUpdate(1, B, 1, BASE, (), None, (), False, number=1)
BEAT = raft_state.Heartbeat(3, BASE, None)


@dataclass
class SmallLeader:
    is_admitting: bool = True
    numbers: Mapping[str, int] = field(default_factory=dict)

    def is_admitted(self, peer: str) -> bool:
        return self.is_admitting


class SmallWorkspace:
    """Takes a number, and trains nothing."""

    is_on_shared_data, consensus = False, None

    def take_number(self, number: int) -> None:
        pass


class Small:
    """A node that decides nothing: what its messenger puts to the decisions is for the test to see."""

    def __init__(self, node: SwarmNode) -> None:
        self.context, self.book, self.driver = node.context, node.context.book, node.context.driver
        self.round_cache, self.roster_cache = node.context.round_cache, node.roster_cache
        self.replies, self.poll = node.poll_replies, node.poll_replies.poll
        self.tell, self.send = node.messenger.tell, node.messenger.send
        self.events, self.seen = self.driver.events, self.driver.seen
        self.leader = SmallLeader()
        self.refusal: RefusedError | None = None
        self.listed: list[pb.ListPeersRequest] = []

    async def list_peers(self, request: pb.ListPeersRequest, caller: Caller) -> pb.ListPeersReply:
        self.listed.append(request)
        return self.roster_cache.answer(request, self.leader.numbers)

    async def join(self, request: pb.JoinRequest, caller: Caller) -> pb.JoinReply:
        if self.refusal is not None:
            raise self.refusal
        self.leader.is_admitting = True
        return pb.JoinReply(number=1, name=request.name)


@asynccontextmanager
async def small(me: str, is_dialable: bool) -> AsyncIterator[Small]:
    """A node; B leads."""
    async with AsyncExitStack() as stack:
        service, address = StartingService(), ""
        if is_dialable:
            address = await stack.enter_async_context(serving(service))
        parts = await stack.enter_async_context(open_node(me, MANIFEST, SmallWorkspace(), address=address, first=B))
        service.node_service = node = Small(parts)  # type: ignore[assignment]
        parts.context.leader = node.leader if me == B else None  # type: ignore[assignment]
        yield node


@pytest.fixture
async def b() -> AsyncIterator[Small]:
    """The leader."""
    async with small(B, True) as node:
        yield node


@pytest.fixture
async def a(b: Small) -> AsyncIterator[Small]:
    """A node that nobody can dial, and that knows the leader's address."""
    async with small(A, False) as node:
        node.book.update(B, b.context.info.address)
        yield node


async def polled(a: Small, b: Small, poll: pt.Poll = ASKED) -> None:
    """A's poll is held at B."""
    a.send(B, poll)
    assert (await b.seen(pt.Event, len(b.events) + 1))[-1] == pt.Received(A, poll)


async def answered(a: Small, b: Small, answer: pt.RoundUpdate | pt.Redirect = TOLD, poll: pt.Poll = ASKED) -> pt.Event:
    """A's poll is held at B, which answers it: returns what A takes in."""
    await polled(a, b, poll)
    b.send(A, answer)
    return (await a.seen(pt.Event, len(a.events) + 1))[-1]


async def test_a_poll_is_held_until_there_is_news(a: Small, b: Small) -> None:
    b.round_cache.add_plan(PLAN)
    b.book.update(C, "127.0.0.1:7")
    b.context.config = replace(CONFIG, run=replace(CONFIG.run, rounds=77))
    news = replace(TOLD, plan=OPEN, nodes=(C,))
    assert await answered(a, b, news) == pt.Received(B, news)
    assert a.round_cache.plan(1, "") == PLAN, "what to train comes with it"
    assert a.book.address(C) == "127.0.0.1:7"
    assert a.context.config.run.rounds == 77, "and the rules"


async def test_a_poll_without_news_is_answered_with_the_last_news_again(a: Small, b: Small) -> None:
    b.round_cache.add_plan(PLAN)
    b.book.update(C, "127.0.0.1:7")
    news, again = replace(TOLD, plan=OPEN, nodes=(C,)), replace(ASKED, known=1, number=2)
    await answered(a, b, news)
    a.book.update(C, "127.0.0.1:8")  # as anybody may say
    assert await answered(a, b, replace(news, number=2), again) == pt.Received(B, replace(news, number=2))
    assert [event.message for event in await b.seen(pt.Received)] == [ASKED, again]
    assert a.book.address(C) == "127.0.0.1:7", "what the leader said still counts"
    b.replies.forget(A)
    third = replace(news, number=3)
    assert await answered(a, b, third, replace(again, number=3)) == pt.Received(B, third)


@pytest.mark.parametrize("change", [{"term": 2}, {"version": 2}])
async def test_a_node_that_lacks_the_unchanged_news_asks_for_all_of_it(
    change: dict[str, Any], a: Small, b: Small
) -> None:
    await answered(a, b)
    answer, other = b.poll, {"term": 1, "version": 1, **change}

    async def unchanged(request: pb.PollRequest, caller: Caller) -> pb.PollReply:
        b.poll = answer
        return pb.PollReply(unchanged=pb.Unchanged(number=request.number, **other))

    b.poll = unchanged
    a.send(B, replace(ASKED, known=1, number=2))
    (_, whole) = await b.seen(pt.Received, 2)
    assert whole == pt.Received(A, replace(ASKED, known=0, number=2))
    b.send(A, replace(TOLD, number=2))
    assert (await a.seen(pt.Received, 2))[-1] == pt.Received(B, replace(TOLD, number=2))


async def test_a_leader_that_always_answers_unchanged_counts_as_unreachable(a: Small, b: Small) -> None:
    async def unchanged(request: pb.PollRequest, caller: Caller) -> pb.PollReply:
        return pb.PollReply(unchanged=pb.Unchanged(term=1, version=1, number=request.number))

    b.poll = unchanged
    a.send(B, ASKED)
    assert await a.seen(pt.Unreachable) == [pt.Unreachable(B, ASKED)]


async def test_news_that_answers_another_poll_is_not_given(a: Small, b: Small) -> None:
    await polled(a, b)
    b.send(A, replace(TOLD, number=7))
    b.send(C, TOLD)
    b.send(A, TOLD)
    b.send(A, replace(TOLD, version=2))
    assert await a.seen(pt.Received) == [pt.Received(B, TOLD)]


async def test_a_redirect_answers_a_held_poll(a: Small, b: Small) -> None:
    b.book.update(C, "127.0.0.1:7")
    redirect = pt.Redirect(2, C, STANDS)
    assert await answered(a, b, redirect) == pt.Received(B, redirect)
    assert a.book.address(C) == "127.0.0.1:7"
    assert a.context.newest == STANDS


async def test_a_newer_poll_takes_the_place_of_an_older_one_which_counts_as_no_loss(a: Small, b: Small) -> None:
    await polled(a, b)
    news = replace(TOLD, number=2)
    assert await answered(a, b, news, replace(ASKED, number=2)) == pt.Received(B, news)
    await a.context.background.close()
    assert [type(event) for event in a.events] == [pt.Received]
    assert [type(event) for event in b.events] == [pt.Received, pt.Received]


async def test_a_poll_that_was_replaced_ends_at_once(a: Small, b: Small) -> None:
    older = asyncio.create_task(call(b, asking(number=1)))
    async with asyncio.timeout(10):
        await b.driver.changed.wait()
    await polled(a, b, replace(ASKED, number=2))
    with pytest.raises(UnreachableError, match="Another poll of this peer came after this one"):
        await older


async def test_a_poll_that_breaks_is_told_to_the_decisions_at_once(a: Small, b: Small) -> None:
    """Else its leader waits for the peer until it counts as silent."""
    await polled(a, b)
    await a.context.background.close()
    assert await b.seen(pt.PollBroken) == [pt.PollBroken(A)]
    b.send(A, TOLD)  # to nobody
    await answered(a, b, replace(TOLD, number=2), replace(ASKED, number=2))


async def test_a_poll_that_nobody_answers_is_given_up(monkeypatch: pytest.MonkeyPatch, a: Small, b: Small) -> None:
    monkeypatch.setattr(poll_replies, "HOLD_SECONDS", 0.05)
    await polled(a, b)
    assert await a.seen(pt.Unreachable) == [pt.Unreachable(B, ASKED)]
    assert not [event for event in b.events if isinstance(event, pt.PollBroken)]


async def test_a_peer_that_is_not_known_joins_and_polls_again(a: Small, b: Small) -> None:
    b.leader.is_admitting = False
    await polled(a, b)
    (joined,) = a.context.host.events
    assert (joined.name, joined.number, a.context.number) == ("peer", 1, 1)
    b.send(A, TOLD)
    assert await a.seen(pt.Received) == [pt.Received(B, TOLD)]


async def test_a_peer_that_is_turned_away_ends_with_the_reason(a: Small, b: Small) -> None:
    b.leader.is_admitting, b.refusal = False, RefusedError("The run is full.")
    a.send(B, ASKED)
    await a.seen(pt.Unreachable)
    assert [str(a.context.failure)] == ["The run is full."]


async def test_a_node_that_answers_is_kept_under_the_address_that_was_called(a: Small, b: Small) -> None:
    """A leader may call itself by a name that is of no use here, as one behind a router does."""
    reached_at = b.context.info.address
    b.context.info = replace(b.context.info, address="192.0.2.7:1")
    await answered(a, b)
    assert a.book.address(B) == reached_at


@pytest.mark.parametrize(
    "change",
    [{"leader": C, "plan": OPEN}, {"plan": replace(OPEN, reducers=(pt.ReducerSlot(A, 1),) * 3)}],
    ids=["another leader's", "a shard too many"],
)
async def test_news_that_its_sender_may_not_tell_changes_nothing(change: dict[str, Any], a: Small, b: Small) -> None:
    """Rules count only if the coordinator tells them, and a node has no more shards than the run."""
    b.round_cache.add_plan(PLAN)
    b.context.config = replace(CONFIG, run=replace(CONFIG.run, rounds=77))
    assert await answered(a, b, replace(TOLD, **change)) == pt.Unreachable(B, ASKED)
    assert (a.context.config, a.round_cache.plan(1, "")) == (CONFIG, None)


@pytest.mark.parametrize("change", [{"steps": 10**6}, {"lr_last": 0.5}, {"seed": 7}])
async def test_a_plan_that_the_manifest_does_not_allow_is_not_trained_for(
    change: dict[str, Any], a: Small, b: Small
) -> None:
    b.round_cache.add_plan(replace(PLAN, **change))
    answer = await answered(a, b, replace(TOLD, plan=OPEN))
    assert answer == pt.Unreachable(B, ASKED), "training for it would begin with the answer"
    assert [str(a.context.failure)] == ["The plan of round 1 is not what this run's manifest says; leaving."]
    assert a.round_cache.plan(1, "") is None


async def call(b: Small, request: pb.PollRequest) -> pb.PollReply:
    async with SwarmClient(b.context.info.address, ByteCounter()) as client:
        return await client.poll(request)


def asking(**changes: Any) -> pb.PollRequest:
    request = message_codec.poll_to_proto(ASKED)
    request.manifest_digest = DIGEST
    for name, value in changes.items():
        setattr(request, name, value)
    return request


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (asking(manifest_digest=bytes(32)), RefusedError),
        (asking(manifest_digest=b""), RefusedError),
        (asking(peer_id=B), PeerError),
        (asking(address="no address at all"), PeerError),
    ],
)
async def test_a_malformed_poll_is_refused(request_: pb.PollRequest, error: type[Exception], b: Small) -> None:
    with pytest.raises(error):
        await call(b, request_)
    assert b.events == []
    assert b.book.addresses == []


async def test_a_poll_of_an_unknown_peer_leaves_no_address(b: Small) -> None:
    """Else whoever calls under ever new names would push out those whom this node needs."""
    b.leader.is_admitting = False
    reply = await call(b, asking(peer_id=C, address="192.0.2.7:7700"))
    assert reply.unknown
    assert b.book.addresses == []


SAID: Sequence[pt.Message] = (
    raft_state.VoteRequest(3, A, (1, 2), True),
    raft_state.VoteReply(3, 2, True, False, "granted"),
    raft_state.Heartbeat(3, STANDS, RoundRecord(2, "2" * 64, "1" * 64, (A, B))),
    raft_state.HeartbeatReply(3, 1, "2" * 64, "accepted"),
    pt.Goodbye(A),
    pt.ShardDone(3, 1, 1, pt.ShardDigest()),
)


@pytest.mark.parametrize("message", SAID, ids=lambda message: type(message).__name__)
async def test_a_message_arrives_as_it_was_sent(message: pt.Message, a: Small, b: Small) -> None:
    a.send(B, message)
    assert await b.seen(pt.Received) == [pt.Received(A, message)]
    assert b.context.newest == (message.base if isinstance(message, raft_state.Heartbeat) else BASE)


@pytest.fixture
async def reducer(b: Small) -> AsyncIterator[Small]:
    """A, which has read the leader's news and can be dialled: it can ask it who takes part."""
    async with small(A, True) as reducer:
        reducer.book.update(B, b.context.info.address)
        b.book.update(A, reducer.context.info.address)
        reducer.round_cache.add_plan(PLAN)
        await answered(reducer, b, poll=replace(ASKED, is_dialable=True))
        b.events.clear()
        reducer.events.clear()
        yield reducer


ALL = pt.Close(3, 1, "", (0, 1), frozenset({A, B, C}))


async def test_a_close_names_the_members_at_its_decision_and_their_list_is_fetched_once(
    b: Small, reducer: Small
) -> None:
    b.leader.numbers = {A: 2, C: 1}
    b.send(A, ALL)
    b.leader.numbers = {A: 2, C: 1, B: 3}
    (received,) = await reducer.seen(pt.Received)
    assert received == pt.Received(B, replace(ALL, admitted=frozenset({A, C}))), "who does not train has no work"
    assert reducer.round_cache.numbers(1, 3) == {A: 2, C: 1}
    b.leader.numbers = {A: 2, C: 1}
    b.send(A, replace(ALL, shards=(1,)))
    await reducer.seen(pt.Received, 2)
    assert len(b.listed) == 1
    b.leader.numbers = {A: 2, C: 1, B: 3}
    b.send(A, ALL)
    await reducer.seen(pt.Received, 3)
    assert len(b.listed) == 2


async def test_a_close_whose_list_cannot_be_fetched_is_dropped(b: Small, reducer: Small) -> None:
    b.leader.numbers = {A: 2}
    asked = asyncio.Event()

    async def refuse(request: pb.ListPeersRequest, caller: Caller) -> pb.ListPeersReply:
        asked.set()
        raise UnreachableError("Not now.")

    b.list_peers = refuse  # type: ignore[method-assign]
    b.send(A, ALL)
    await asked.wait()
    b.send(A, pt.Goodbye(B))
    assert await reducer.seen(pt.Received) == [pt.Received(B, pt.Goodbye(B))]
    assert reducer.round_cache.numbers(1, 3) == {}


async def test_unknown_senders_that_do_not_answer_do_not_keep_a_node_from_its_leader(b: Small, reducer: Small) -> None:
    hangs = asyncio.Event()
    asked: list[pb.ListPeersRequest] = []

    class Stranger:
        async def list_peers(self, request: pb.ListPeersRequest, caller: Caller) -> pb.ListPeersReply:
            asked.append(request)
            await hangs.wait()
            return pb.ListPeersReply()

    async with serving(Stranger()) as address:
        for number in range(MOST_QUESTIONS):
            request = closing(term=9, roster=bytes([number]) * 32)
            request.sender, request.address = f"{number:032x}", address
            await tell(reducer, request)
        b.leader.numbers = {A: 2, C: 1}
        b.send(A, ALL)
        assert await reducer.seen(pt.Received) == [pt.Received(B, replace(ALL, admitted=frozenset({A, C})))]
        assert asked == []
        hangs.set()


@pytest.mark.parametrize("what", ["", "an older term", "this node leads"])
async def test_a_close_of_a_former_leader_is_dropped(
    monkeypatch: pytest.MonkeyPatch, what: str, b: Small, reducer: Small
) -> None:
    wanted: list[str] = []

    async def fetch(roster_cache: RosterCache, leader: str, digest: bytes) -> None:
        wanted.append(leader)

    monkeypatch.setattr(RosterCache, "fetch", fetch)
    if what == "an older term":
        reducer.send(B, replace(ASKED, number=2))
        await b.seen(pt.Received)
        b.send(A, replace(TOLD, term=4, number=2))
        await reducer.seen(pt.Received)
    elif what == "this node leads":
        reducer.send(C, replace(TOLD, leader=A, term=2))
    for request in (closing(term=3), telling(pt.Goodbye(B))):
        request.sender, request.address = B, b.context.info.address
        await tell(reducer, request)
    assert wanted == ([] if what else [B])
    assert (await reducer.seen(pt.Received))[-1] == pt.Received(B, pt.Goodbye(B))


async def test_a_shard_done_names_its_peers_by_the_list_of_the_close(
    monkeypatch: pytest.MonkeyPatch, b: Small, reducer: Small
) -> None:
    fetched: list[tuple[str, pt.ShardDone, ReducedShard]] = []

    async def fetch(sender: str, done: pt.ShardDone, reduced: ReducedShard) -> pt.ShardDigest:
        fetched.append((sender, done, reduced))
        return done.result

    monkeypatch.setattr(ShardCollector, "fetch", lambda _, *what: fetch(*what))
    b.leader.numbers = {A: 2, B: 3, C: 1}
    b.send(A, ALL)
    await reducer.seen(pt.Received)
    reduced = ReducedShard(Published(included=(A, C), tokens=5))
    reducer.round_cache.add_reduced_shard(1, 0, reduced, b"bytes")
    done = pt.ShardDone(3, 1, 0, reduced.decided)
    reducer.send(B, done)
    assert await b.seen(pt.Received) == [pt.Received(A, done)]
    assert fetched == [(A, done, reduced)]
    reducer.send(B, replace(done, term=2))  # of which nothing was heard here
    reducer.send(B, pt.Goodbye(A))
    assert (await b.seen(pt.Received, 2))[-1] == pt.Received(A, pt.Goodbye(A))


async def test_a_shard_done_with_an_unknown_list_is_refused(b: Small) -> None:
    request = telling(pt.Goodbye(A))
    request.shard_done.CopyFrom(pb.ShardDone(term=1, round=1, result=pb.ShardResult(tokens=1), roster=bytes(32)))
    with pytest.raises(PeerError, match="is not known here"):
        await tell(b, request)
    assert b.events == []


async def test_a_message_that_cannot_be_delivered_is_told_to_the_decisions(a: Small, b: Small) -> None:
    a.book.update(C, "127.0.0.1:1")
    a.send(C, BEAT)
    assert await a.seen(pt.Unreachable) == [pt.Unreachable(C, BEAT)]
    b.send(A, BEAT)  # which nobody can dial
    assert await b.seen(pt.Unreachable) == [pt.Unreachable(A, BEAT)]


async def test_a_shard_whose_bytes_are_gone_is_not_announced(a: Small, b: Small) -> None:
    a.send(B, pt.ShardDone(3, 1, 0, pt.ShardDigest(frozenset({A}), "0" * 32)))
    a.send(B, pt.Goodbye(A))
    assert await b.seen(pt.Received) == [pt.Received(A, pt.Goodbye(A))]


async def tell(node: Small, request: pb.TellRequest) -> None:
    async with SwarmClient(node.context.info.address, ByteCounter()) as client:
        await client.tell(request)


def telling(message: pt.Message, **changes: Any) -> pb.TellRequest:
    request = message_codec.tell_to_proto(message)  # type: ignore[arg-type]
    request.manifest_digest, request.sender, request.address = DIGEST, A, "192.0.2.7:7700"
    request.MergeFrom(pb.TellRequest(**changes))
    return request


def closing(**changes: Any) -> pb.TellRequest:
    request = telling(pt.Goodbye(A))
    good: dict[str, Any] = {"term": 3, "round": 1, "shards": [0, 1], "roster": bytes(32)}
    request.close.CopyFrom(pb.Close(**{**good, **changes}))
    return request


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (telling(BEAT, manifest_digest=bytes(32)), RefusedError),
        (telling(BEAT, sender="../../journal"), PeerError),
        (telling(BEAT, sender=B), PeerError),
        (telling(BEAT, address="a b"), PeerError),
        (pb.TellRequest(manifest_digest=DIGEST, sender=A), PeerError),
    ],
)
async def test_a_malformed_message_is_refused_and_changes_nothing(
    request_: pb.TellRequest, error: type[Exception], b: Small
) -> None:
    with pytest.raises(error):
        await tell(b, request_)
    assert (b.events, b.context.newest, b.book.addresses) == ([], BASE, [])


async def test_an_address_that_nobody_can_dial_does_not_replace_a_known_one(b: Small) -> None:
    for said in (telling(BEAT), telling(BEAT, address="0.0.0.0:7700")):
        await tell(b, said)
        assert b.book.address(A) == "192.0.2.7:7700"


async def test_closing_leaves_no_call_behind() -> None:
    before = asyncio.all_tasks()
    async with small(B, True) as b, small(A, False) as a:
        a.book.update(B, b.context.info.address)
        await polled(a, b)
    with pytest.raises(UnreachableError):
        await call(b, asking())
    await assert_no_task_is_left(before)
