"""Who takes part is told once, and asked again only when somebody has come or gone."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.node_context import FIRST, follow, make_node, open_node, serving
from tests.published_rounds import small_manifest
from tsr_swarm.errors import PeerError, UnreachableError
from tsr_swarm.node.context import NodeContext
from tsr_swarm.node.roster_cache import KEPT, MOST_QUESTIONS, RosterCache
from tsr_swarm.transport.base import Caller
from tsr_swarm.wire.roster import Members, members_to_proto
from tsr_swarm.wire.v1 import swarm_pb2 as pb

A, B, C, REDUCER = (letter * 32 for letter in "abcd")
LEADER = FIRST
MANIFEST = small_manifest()
RUN = bytes.fromhex(MANIFEST.digest)


@dataclass
class Leader:
    """Answers as it is: ``numbers`` of all that take part."""

    roster_cache: RosterCache
    numbers: dict[str, int] = field(default_factory=lambda: {A: 1, B: 2})
    asked: list[pb.ListPeersRequest] = field(default_factory=list)
    lie: pb.ListPeersReply | None = None
    gate: asyncio.Event | None = None
    is_asked: asyncio.Event = field(default_factory=asyncio.Event)

    async def list_peers(self, request: pb.ListPeersRequest, caller: Caller) -> pb.ListPeersReply:
        self.asked.append(request)
        self.is_asked.set()
        if self.gate is not None:
            await self.gate.wait()
        return self.lie or self.roster_cache.answer(request, self.numbers)


@dataclass
class Rig:
    leader: Leader
    context: NodeContext  # the reducer's
    reducer: RosterCache


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with AsyncExitStack() as stack:
        leader = Leader(make_node(LEADER, MANIFEST).roster_cache)
        address = await stack.enter_async_context(serving(leader))
        node = await stack.enter_async_context(open_node(REDUCER, MANIFEST))
        node.context.book.update(LEADER, address)
        follow(node.context, LEADER)
        yield Rig(leader, node.context, node.roster_cache)


async def test_the_list_comes_once_and_again_when_somebody_has_come(rig: Rig) -> None:
    assert not rig.reducer.is_member(A), "who is not known is asked for"
    await rig.leader.is_asked.wait()
    await rig.reducer.ask()
    assert rig.reducer.is_member(A)
    await rig.reducer.ask()
    known = rig.leader.asked[-1]
    assert known.known == Members.of({A: 1, B: 2}).digest
    assert rig.leader.roster_cache.answer(known, rig.leader.numbers) == pb.ListPeersReply(unchanged=True)
    assert rig.reducer.is_member(B)
    rig.leader.numbers = {B: 2, C: 3}
    await rig.reducer.ask()
    assert rig.reducer.is_member(C)
    assert not rig.reducer.is_member(A)


async def test_one_question_at_a_time(rig: Rig) -> None:
    rig.leader.gate = asyncio.Event()
    for _ in range(5):
        rig.reducer.ask()
    await rig.leader.is_asked.wait()
    rig.leader.gate.set()
    await rig.reducer.ask()
    assert rig.reducer.is_member(A)
    assert len(rig.leader.asked) == 1


async def test_a_known_list_is_not_asked_for_by_its_hash(rig: Rig) -> None:
    await rig.reducer.ask()
    named = rig.leader.roster_cache.name({B: 2, A: 1})
    assert await rig.reducer.fetch(LEADER, named.digest) == named
    assert len(rig.leader.asked) == 1


async def test_a_list_that_is_only_named_is_asked_for_once(rig: Rig) -> None:
    named = rig.leader.roster_cache.name({A: 1, C: 7, B: 0})
    for _ in range(2):
        assert await rig.reducer.fetch(LEADER, named.digest) == Members.of({A: 1, C: 7})
    assert rig.reducer.get(named.digest) == named
    assert [request.roster for request in rig.leader.asked] == [named.digest]
    assert not rig.reducer.is_member(C), "whoever names a list need not lead"


async def test_a_list_of_another_hash_is_not_taken(rig: Rig) -> None:
    wanted = rig.leader.roster_cache.name({A: 1})
    for lie in (
        pb.ListPeersReply(members=members_to_proto(Members.of({A: 2}))),
        pb.ListPeersReply(members=[pb.Member(peer_id=b"short", number=1)]),
        pb.ListPeersReply(unchanged=True),
        pb.ListPeersReply(),
    ):
        rig.leader.lie = lie
        assert await rig.reducer.fetch(LEADER, wanted.digest) is None
    assert rig.reducer.get(wanted.digest) is None
    rig.leader.lie = None
    assert await rig.reducer.fetch(LEADER, wanted.digest) == wanted


async def test_a_leader_that_cannot_be_reached_is_asked_again_later(rig: Rig) -> None:
    assert await rig.reducer.fetch(C, bytes(32)) is None
    assert await rig.reducer.fetch(LEADER, bytes(32)) is None, "it does not keep that"
    follow(rig.context, C)
    await rig.reducer.ask()
    assert not rig.reducer.is_member(A)
    await rig.reducer.ask()  # what that has asked of C
    follow(rig.context, LEADER)
    await rig.reducer.ask()
    assert rig.reducer.is_member(A)


async def test_only_a_few_lists_are_asked_for_at_a_time(rig: Rig) -> None:
    rig.leader.gate = asyncio.Event()
    asking = [
        asyncio.create_task(rig.reducer.fetch(LEADER, bytes([number % 8] * 32))) for number in range(4 * MOST_QUESTIONS)
    ]
    await rig.leader.is_asked.wait()
    rig.leader.gate.set()
    assert await asyncio.gather(*asking) == [None] * len(asking)
    assert len(rig.leader.asked) == MOST_QUESTIONS


@example(named=[{A: number} for number in range(1, KEPT + 3)])
@given(named=st.lists(st.dictionaries(st.sampled_from([A, B, C]), st.integers(1, 9), max_size=3), max_size=60))
def test_a_leader_keeps_the_newest_lists_that_it_named(named: list[dict[str, int]]) -> None:
    leader = make_node(LEADER, MANIFEST).roster_cache
    lists = [leader.name(numbers) for numbers in named]
    for numbers, members in zip(named, lists, strict=True):
        assert members == Members.of(numbers)
    newest = list(dict.fromkeys(members.digest for members in reversed(lists)))
    for digest in newest[:KEPT]:
        reply = leader.answer(pb.ListPeersRequest(manifest_digest=RUN, roster=digest), {})
        assert [member.peer_id.hex() for member in reply.members] == list(leader.get(digest).peers)  # type: ignore[union-attr]
    for digest in newest[KEPT:]:
        with pytest.raises(UnreachableError, match="is not known here"):
            leader.answer(pb.ListPeersRequest(manifest_digest=RUN, roster=digest), {})


def test_a_malformed_request_is_refused() -> None:
    leader = make_node(LEADER, MANIFEST).roster_cache
    with pytest.raises(PeerError) as refusal:
        leader.answer(pb.ListPeersRequest(manifest_digest=RUN, roster=b"short"), {})
    assert refusal.value.reason == "roster"
