"""A leader's copy of what reducers made: right bytes or nothing; and round_cache that do not grow, whoever is heard."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.published_rounds import History, small_history
from tests.steady import steady
from tsr_swarm.config.manifest import make_manifest
from tsr_swarm.config.run import PeriodsConfig, RunConfig
from tsr_swarm.errors import PeerError, RefusedError
from tsr_swarm.node import shard_collector as module
from tsr_swarm.node.address_book import AddressBook, ClientPool
from tsr_swarm.node.round_cache import KEPT_ROSTERS, KEPT_ROUNDS, ReducedShard, RoundCache
from tsr_swarm.node.shard_collector import ShardCollector
from tsr_swarm.optim.periods import plan_round
from tsr_swarm.rounds.gather import ShardDigest
from tsr_swarm.rounds.protocol import ShardDone
from tsr_swarm.telemetry.byte_counter import ByteCounter
from tsr_swarm.transport.base import Caller
from tsr_swarm.transport.server import serve
from tsr_swarm.transport.tcp_info import KernelBytes
from tsr_swarm.wire.codec import hash_bytes
from tsr_swarm.wire.compression import compress
from tsr_swarm.wire.messages import sections_to_proto
from tsr_swarm.wire.roster import Members
from tsr_swarm.wire.v1 import swarm_pb2 as pb

REDUCER, STRANGER = "b" * 32, "c" * 32
Twist = Callable[[bytes], bytes | Awaitable[bytes]]


@pytest.fixture(scope="module")
def history() -> History:
    return small_history(1)


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
class Rig:
    """A leader of round 1 that asked REDUCER for its shards, and said so if ``is_leading``."""

    history: History
    reducer: Reducer
    gathering: ShardCollector
    round_cache: RoundCache
    warnings: list[str]
    is_leading: bool = True

    def asked(self, reducer: str, done: ShardDone) -> str | None:
        return "" if self.is_leading and reducer == REDUCER and done.round == 1 else None

    def made(self, shard: int) -> ReducedShard:
        return ReducedShard(self.history.at(1).header.shards[shard])

    async def fetch(
        self, shard: int = 0, made: ReducedShard | None = None, sender: str = REDUCER
    ) -> ShardDigest | None:
        made = made if made is not None else self.made(shard)
        return await self.gathering.fetch(sender, ShardDone(3, 1, shard, made.decided), made)


@pytest.fixture
async def rig(history: History) -> AsyncIterator[Rig]:
    reducer, book, round_cache, warnings = Reducer(history), AddressBook("a" * 32), RoundCache(), list[str]()
    async with AsyncExitStack() as stack:
        port = await stack.enter_async_context(serve(reducer, "127.0.0.1:0", ByteCounter(), stop_seconds=0.1))  # type: ignore[arg-type]
        clients = await stack.enter_async_context(ClientPool(book, ByteCounter(), KernelBytes([])))
        for name in (REDUCER, STRANGER):
            book.update(name, f"127.0.0.1:{port}")
        gathering = ShardCollector(
            history.manifest, clients, round_cache, lambda who, done: made.asked(who, done), warnings.append
        )
        made = Rig(history, reducer, gathering, round_cache, warnings)
        round_cache.add_plan(history.at(1).header.plan)
        yield made


# --- right bytes or nothing -------------------------------------------------------------------------------------------


async def test_a_shard_counts_once_its_bytes_are_here(rig: Rig) -> None:
    for shard in range(3):
        done = rig.made(shard).decided
        assert await rig.fetch(shard) == done
        assert rig.round_cache.reduced_shard(1, shard, done) == (rig.made(shard), rig.history.shard(1, shard)[1])
    assert await rig.fetch(1) == rig.made(1).decided
    assert len(rig.reducer.asked) == 3, "what is here is not fetched again"
    assert rig.warnings == []


def other_number(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


WRONG: dict[str, Twist] = {
    "changed": other_number,
    "cut": lambda data: data[:-1],
    "longer": lambda data: data + b"x",
    "nothing": lambda data: b"",
    "noise": lambda data: bytes(len(data)),
}


@pytest.mark.parametrize("twist", WRONG.values(), ids=WRONG)
async def test_wrong_bytes_are_nothing_made(twist: Twist, rig: Rig) -> None:
    rig.reducer.twist = twist
    assert await rig.fetch() == ShardDigest()
    assert rig.round_cache.reduced_shard(1, 0, rig.made(0).decided) is None
    assert len(rig.warnings) == 1
    assert rig.warnings[0].startswith("Shard 0 of round 1 by bbbbbbbb counts for nothing: ")


async def test_sections_that_the_round_has_not_are_refused_before_their_bytes_come(rig: Rig) -> None:
    sections = rig.made(0).result.sections
    wrong = [
        replace(sections[0], raw_bytes=sections[0].raw_bytes + 1),
        replace(sections[0], wire_bytes=2**40),
        replace(sections[0], kind="norm"),
    ]
    for section in wrong:
        made = ReducedShard(replace(rig.made(0).result, sections=(section, *sections[1:])))
        assert await rig.fetch(made=made) == ShardDigest()
    assert await rig.fetch(made=ReducedShard(replace(rig.made(0).result, sections=()))) == ShardDigest()
    assert await rig.fetch(0, rig.made(1)) == ShardDigest(), "those of another shard"
    assert rig.reducer.asked == []


async def test_bytes_that_are_what_their_hash_says_and_no_numbers_are_refused(rig: Rig) -> None:
    """Everybody would have to open them: a round with them in it could not be applied by anybody."""
    low_rank = next(index for index, block in enumerate(rig.history.manifest.blocks) if block.is_low_rank)
    shard_blocks = rig.history.at(1).header.shard_blocks
    shard = next(index for index, blocks in enumerate(shard_blocks) if low_rank in blocks)
    result = rig.made(shard).result
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
    assert await rig.fetch() == rig.made(0).decided


async def test_a_reducer_that_has_gone_or_refuses_is_asked_again_later(rig: Rig) -> None:
    async def refuse() -> bytes:
        raise RefusedError("It is not kept here.")

    rig.reducer.twist = lambda data: refuse()
    assert await rig.fetch() is None
    rig.gathering.clients._book.update(REDUCER, "127.0.0.1:1")
    assert await rig.fetch() is None
    assert rig.warnings == []


async def test_a_reducer_that_finds_fault_with_the_question_has_made_nothing(rig: Rig) -> None:
    async def complain() -> bytes:
        raise PeerError("hashes", "There are too many.")

    rig.reducer.twist = lambda data: complain()
    assert await rig.fetch() == ShardDigest()


async def test_nothing_is_fetched_of_whom_nothing_was_asked(rig: Rig) -> None:
    """Else anybody could have a leader take in as many bytes as there are names of shards."""
    assert await rig.fetch(sender=STRANGER) is None
    rig.is_leading = False
    assert await rig.fetch() is None
    rig.is_leading = True
    rig.round_cache.add_plan(replace(rig.history.at(1).header.plan, round=1 + KEPT_ROUNDS, parent="1" * 64))
    assert await rig.fetch() is None, "the round is over"
    assert rig.reducer.asked == []


async def test_one_fetch_of_a_shard_at_a_time_whatever_is_said_of_it(rig: Rig) -> None:
    """The leader asks every second, and is answered as often."""
    gate = asyncio.Event()

    async def held(data: bytes) -> bytes:
        await gate.wait()
        return data

    rig.reducer.twist = lambda data: held(data)
    first = asyncio.create_task(rig.fetch())
    await rig.reducer.is_asked.wait()
    assert await rig.fetch() is None
    other = ReducedShard(replace(rig.made(0).result, tokens=rig.made(0).result.tokens + 1))
    assert await rig.fetch(made=other) is None
    gate.set()
    assert await first == rig.made(0).decided
    assert len(rig.reducer.asked) == 1


# --- the round cache --------------------------------------------------------------------------------------------------

CONFIG = RunConfig(optimizer=steady(rank=4, embedding_rank=4), periods=PeriodsConfig(k_x=5, k_r=50))
MANIFEST = make_manifest("run", CONFIG, {"a.weight": (40, 30)})
ROUNDS = range(1, 12)
TERMS = range(1, 5)

heard = (
    st.tuples(st.just("plan"), st.sampled_from(ROUNDS), st.just(0))
    | st.tuples(st.just("numbers"), st.sampled_from(ROUNDS), st.sampled_from(TERMS))
    | st.tuples(st.just("made"), st.sampled_from(ROUNDS), st.sampled_from(TERMS))
)


def parent(round: int) -> str:
    return f"{round:064x}" if round > 1 else ""


@given(story=st.lists(heard, max_size=40))
def test_notes_are_of_a_few_rounds_whatever_is_heard(story: list[tuple[str, int, int]]) -> None:
    round_cache, newest = RoundCache(), 0
    announced = set[int]()
    for kind, round, term in story:
        if kind == "plan":
            round_cache.add_plan(plan_round(CONFIG, MANIFEST.blocks, round, parent(round)))
            newest = round
            announced.add(round)
        elif kind == "numbers":
            round_cache.add_close(round, term, Members.of({REDUCER: term}))
    known = [round for round in ROUNDS if round_cache.plan(round, parent(round)) is not None]
    assert all(round > newest - KEPT_ROUNDS for round in known)
    assert newest in known or not newest
    numbered = [(round, term) for round in ROUNDS for term in TERMS if round_cache.numbers(round, term)]
    assert {round for round, _ in numbered} <= announced, "anybody can name rounds that nobody announced"
    assert len({round for round, _ in numbered}) == len(numbered), "of the newest term alone"


def test_an_older_term_s_numbers_do_not_take_the_place_of_newer_ones() -> None:
    round_cache = RoundCache()
    round_cache.add_plan(plan_round(CONFIG, MANIFEST.blocks, 1, ""))
    round_cache.add_close(1, 2, Members.of({REDUCER: 2}))
    round_cache.add_close(1, 1, Members.of({REDUCER: 1}))
    assert round_cache.numbers(1, 2) == {REDUCER: 2}
    assert round_cache.numbers(1, 1) == {}
    round_cache.add_close(2**40, 1, Members.of({REDUCER: 1}))
    assert round_cache.numbers(2**40, 1) == {}


def test_a_shard_is_told_of_by_a_list_that_has_all_who_are_in_it() -> None:
    """Somebody may have gone since the shard was closed first."""
    round_cache = RoundCache()
    round_cache.add_plan(plan_round(CONFIG, MANIFEST.blocks, 1, ""))
    both, one = Members.of({REDUCER: 1, STRANGER: 2}), Members.of({STRANGER: 2})
    for members in (both, one, both, one):
        round_cache.add_close(1, 3, members)
    assert round_cache.numbers(1, 3) == one.numbers
    assert round_cache.members(1, 3, {STRANGER}) == one
    assert round_cache.members(1, 3, {REDUCER}) == both
    assert round_cache.members(1, 3, {"d" * 32}) is None
    assert round_cache.members(1, 2, {STRANGER}) is None
    for number in range(1, 3 * KEPT_ROSTERS):
        round_cache.add_close(1, 3, Members.of({REDUCER: number}))
    assert round_cache.members(1, 3, {STRANGER}) is None
    round_cache.add_close(1, 4, one)
    assert round_cache.members(1, 4, {REDUCER}) is None, "that was of an older term"


def test_bytes_of_shards_go_with_their_round(history: History) -> None:
    round_cache, made = RoundCache(), ReducedShard(history.at(1).header.shards[0])
    round_cache.add_reduced_shard(1, 0, made, b"bytes")
    for round in range(1, KEPT_ROUNDS + 1):
        assert round_cache.reduced_shard(1, 0, made.decided) is not None
        round_cache.add_plan(plan_round(CONFIG, MANIFEST.blocks, round, parent(round)))
    round_cache.add_plan(plan_round(CONFIG, MANIFEST.blocks, KEPT_ROUNDS + 1, parent(KEPT_ROUNDS + 1)))
    assert round_cache.reduced_shard(1, 0, made.decided) is None
