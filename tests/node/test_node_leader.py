"""A leader: its copies of reduced shards have the right bytes or count as void, and no two peers have one number."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from tests.node_context import make_node, open_node, serving
from tests.published_rounds import History, small_manifest
from tsr_swarm.errors import PeerError, RefusedError
from tsr_swarm.node import leader as module
from tsr_swarm.node.context import NodeContext
from tsr_swarm.node.leader import Leader, ShardCollector
from tsr_swarm.node.round_cache import KEPT_ROUNDS, ReducedShard
from tsr_swarm.rounds.protocol import ShardDigest, ShardDone
from tsr_swarm.rounds.raft_state import RoundRecord
from tsr_swarm.transport.base import Caller
from tsr_swarm.wire.codec import hash_bytes
from tsr_swarm.wire.compression import compress
from tsr_swarm.wire.messages import sections_to_proto
from tsr_swarm.wire.v1 import swarm_pb2 as pb

REDUCER, STRANGER = "b" * 32, "c" * 32
Twist = Callable[[bytes], bytes | Awaitable[bytes]]


@dataclass
class Reducer:
    """Gives the shards of round 1; what a test puts in ``twist`` happens to their bytes first."""

    history: History
    twist: Twist = lambda data: data
    asked: list[pb.FetchShardRequest] = field(default_factory=list)
    is_asked: asyncio.Event = field(default_factory=asyncio.Event)
    has_hung_up: asyncio.Event = field(default_factory=asyncio.Event)

    async def fetch_shard(self, request: pb.FetchShardRequest, caller: Caller) -> tuple[Sequence[pb.Section], bytes]:
        self.asked.append(request)
        self.is_asked.set()
        result = self.history.at(1).header.shards[request.shard]
        twisted = self.twist(self.history.shard(1, request.shard)[1])
        data = twisted if isinstance(twisted, bytes) else await twisted
        return sections_to_proto(result.sections), data

    async def never(self) -> bytes:
        try:
            return bytes(await asyncio.get_running_loop().create_future())
        except asyncio.CancelledError:
            self.has_hung_up.set()
            raise


@dataclass
class AskingLeader:
    """Asked REDUCER for the shards of round 1, which starts from nothing."""

    is_asking: bool = True

    def parent_asked(self, reducer: str, done: ShardDone) -> str | None:
        return "" if self.is_asking and reducer == REDUCER and done.round == 1 else None


@dataclass
class Rig:
    history: History
    reducer: Reducer
    context: NodeContext
    collector: ShardCollector
    leader: AskingLeader

    def reduced(self, shard: int) -> ReducedShard:
        return ReducedShard(self.history.at(1).header.shards[shard])

    async def fetch(self, shard: int = 0, reduced: Any = None, sender: str = REDUCER) -> ShardDigest | None:
        reduced = reduced or self.reduced(shard)
        return await self.collector.fetch(sender, ShardDone(3, 1, shard, reduced.decided), reduced)


@pytest.fixture
async def rig(history: History) -> AsyncIterator[Rig]:
    reducer = Reducer(history)
    async with AsyncExitStack() as stack:
        address = await stack.enter_async_context(serving(reducer))
        node = await stack.enter_async_context(open_node("a" * 32, history.manifest))
        context = node.context
        context.leader = leader = AskingLeader()
        for name in (REDUCER, STRANGER):
            context.book.update(name, address)
        context.round_cache.add_plan(history.at(1).header.plan)
        yield Rig(history, reducer, context, node.messenger.shard_collector, leader)


async def test_a_shard_counts_once_its_bytes_are_here(rig: Rig) -> None:
    for shard in range(3):
        done = rig.reduced(shard).decided
        assert await rig.fetch(shard) == done
        assert rig.context.round_cache.reduced_shard(1, shard, done) == (
            rig.reduced(shard),
            rig.history.shard(1, shard)[1],
        )
    assert await rig.fetch(1) == rig.reduced(1).decided
    assert len(rig.reducer.asked) == 3, "what is here is not fetched again"
    assert rig.context.host.warnings == []


def raising(error: Exception) -> Twist:
    def twist(data: bytes) -> bytes:
        raise error

    return twist


WRONG: dict[str, Twist] = {
    "changed": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    "cut": lambda data: data[:-1],
    "longer": lambda data: data + b"x",
    "nothing": lambda data: b"",
    "noise": lambda data: bytes(len(data)),
}


@pytest.mark.parametrize("twist", WRONG.values(), ids=WRONG)
async def test_a_shard_with_wrong_bytes_counts_as_void(twist: Twist, rig: Rig) -> None:
    rig.reducer.twist = twist
    assert await rig.fetch() == ShardDigest()
    assert rig.context.round_cache.reduced_shard(1, 0, rig.reduced(0).decided) is None
    assert len(rig.context.host.warnings) == 1
    assert rig.context.host.warnings[0].startswith("Shard 0 of round 1 by bbbbbbbb counts for nothing: ")


async def test_sections_that_the_round_does_not_have_are_refused_before_their_bytes_come(rig: Rig) -> None:
    sections = rig.reduced(0).result.sections
    wrong = [
        replace(sections[0], raw_bytes=sections[0].raw_bytes + 1),
        replace(sections[0], wire_bytes=2**40),
        replace(sections[0], kind="norm"),
    ]
    for section in wrong:
        reduced = ReducedShard(replace(rig.reduced(0).result, sections=(section, *sections[1:])))
        assert await rig.fetch(reduced=reduced) == ShardDigest()
    assert await rig.fetch(reduced=ReducedShard(replace(rig.reduced(0).result, sections=()))) == ShardDigest()
    assert await rig.fetch(0, rig.reduced(1)) == ShardDigest(), "those of another shard"
    assert rig.reducer.asked == []


async def test_bytes_of_the_right_hash_that_cannot_be_decoded_are_refused(rig: Rig) -> None:
    """Everybody would have to open them: a round with them in it could not be applied by anybody."""
    blocks, shard_blocks = rig.history.manifest.blocks, rig.history.at(1).header.shard_blocks
    shard = next(shard for shard, of in enumerate(shard_blocks) if any(blocks[index].is_low_rank for index in of))
    result = rig.reduced(shard).result
    raw = [b"\x7f" * section.raw_bytes for section in result.sections]
    frames = [compress(data, 1) for data in raw]
    sections = tuple(
        replace(section, wire_bytes=len(frame), hash=hash_bytes(data))
        for section, frame, data in zip(result.sections, frames, raw, strict=True)
    )
    rig.reducer.twist = lambda data: b"".join(frames)
    assert await rig.fetch(shard, ReducedShard(replace(result, sections=sections))) == ShardDigest()
    assert len(rig.reducer.asked) == 1


async def test_a_reducer_that_stalls_is_asked_again_later(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FETCH_SECONDS", 0.1)
    rig.reducer.twist = lambda data: rig.reducer.never()
    assert await rig.fetch() is None, "its work may still come"
    async with asyncio.timeout(10):
        await rig.reducer.has_hung_up.wait()
    rig.reducer.twist = lambda data: data
    assert await rig.fetch() == rig.reduced(0).decided


async def test_a_reducer_that_has_gone_or_refuses_is_asked_again_later(rig: Rig) -> None:
    rig.reducer.twist = raising(RefusedError("It is not kept here."))
    assert await rig.fetch() is None
    rig.context.book.update(REDUCER, "127.0.0.1:1")
    assert await rig.fetch() is None
    assert rig.context.host.warnings == []


async def test_a_shard_whose_reducer_finds_fault_with_the_request_counts_as_void(rig: Rig) -> None:
    rig.reducer.twist = raising(PeerError("hashes", "There are too many."))
    assert await rig.fetch() == ShardDigest()


async def test_nothing_is_fetched_from_a_node_that_was_asked_for_nothing(rig: Rig) -> None:
    """Else anybody could have a leader take in as many bytes as there are names of shards."""
    assert await rig.fetch(sender=STRANGER) is None
    rig.leader.is_asking = False
    assert await rig.fetch() is None
    rig.leader.is_asking = True
    rig.context.round_cache.add_plan(replace(rig.history.at(1).header.plan, round=1 + KEPT_ROUNDS, parent="1" * 64))
    assert await rig.fetch() is None, "the round is over"
    assert rig.reducer.asked == []


async def test_a_shard_is_fetched_once_at_a_time(rig: Rig) -> None:
    """The leader asks every second, and is answered as often."""
    gate = asyncio.Event()

    async def held(data: bytes) -> bytes:
        await gate.wait()
        return data

    rig.reducer.twist = lambda data: held(data)
    first = asyncio.create_task(rig.fetch())
    await rig.reducer.is_asked.wait()
    assert await rig.fetch() is None
    other = ReducedShard(replace(rig.reduced(0).result, tokens=rig.reduced(0).result.tokens + 1))
    assert await rig.fetch(reduced=other) is None
    gate.set()
    assert await first == rig.reduced(0).decided
    assert len(rig.reducer.asked) == 1


def joining(letter: str, name: str) -> pb.JoinRequest:
    digest = bytes.fromhex(small_manifest().digest)
    return pb.JoinRequest(manifest_digest=digest, peer_id=letter * 32, name=name, local_space="core", trains=True)


def test_no_two_peers_have_the_same_number_even_when_one_of_them_has_left() -> None:
    """A list of members with one number twice would be refused by every reducer."""
    leader = Leader(make_node("f" * 32, small_manifest()).context, RoundRecord(voters=("f" * 32,)), {})
    for letter in "cb":
        leader.admit(joining(letter, letter))
    assert leader.numbers == {"c" * 32: 1, "b" * 32: 2}
    gone = leader.roster.get("c" * 32)
    gone.is_here = False
    assert leader.numbers == {"c" * 32: 1, "b" * 32: 2}, "what it sent before it went counts"
    assert leader.admit(joining("a", "a")).number == 1
    assert leader.numbers == {"a" * 32: 1, "b" * 32: 2}
    assert [leader.has_trained(letter * 32) for letter in "abcd"] == [True, True, True, False]
