"""Downloads against real donors over loopback: some dead, some lying, some silent, some that have not got it."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.published_rounds import FIRST, History, small_history
from tsr_swarm.errors import PeerError, RefusedError, UnreachableError
from tsr_swarm.exchange.reduction import Published
from tsr_swarm.node.address_book import AddressBook, ClientPool
from tsr_swarm.node.sync import rounds as round_download
from tsr_swarm.node.sync import shard_givers
from tsr_swarm.node.sync.catch_up import Fetcher
from tsr_swarm.node.sync.donors import Donors
from tsr_swarm.node.sync.state import StateDownload
from tsr_swarm.rounds.header_tree import BRANCHES, header_givers
from tsr_swarm.rounds.raft_state import RoundRecord
from tsr_swarm.storage import state_file
from tsr_swarm.storage.round_log import RoundLog
from tsr_swarm.storage.state_file import StateAssembly
from tsr_swarm.storage.state_store import StateStore
from tsr_swarm.telemetry.byte_counter import ByteCounter, Direction
from tsr_swarm.telemetry.events import CatchingUp, Event, Warned
from tsr_swarm.transport.base import Caller
from tsr_swarm.transport.client import SwarmClient
from tsr_swarm.transport.server import serve
from tsr_swarm.transport.tcp_info import KernelBytes
from tsr_swarm.wire.compression import compress, decompress
from tsr_swarm.wire.messages import PublishedHeader, chain_hash, published_from_proto
from tsr_swarm.wire.v1 import swarm_pb2 as pb

ROUNDS = 20
ME = "0" * 32


@pytest.fixture(scope="module")
def history() -> History:
    return small_history(ROUNDS)


class Node:
    """A real donor at a port of its own. What a test puts in ``twist`` happens to every answer before it goes out."""

    def __init__(
        self, folder: Path, history: History, rounds: Sequence[int] = (), proposals: Sequence[int] = ()
    ) -> None:
        self.history, self.asked = history, list[Any]()
        log = RoundLog(folder / "published", 1 << 24)
        log.open()
        self.donor = StateStore(history.manifest, folder / "states", log)
        self.donor.open()
        self.twist: Callable[[Any], Any] = lambda answer: answer
        self.state_round = max(rounds, default=0)
        for round in sorted({*rounds, *proposals}):
            log.store(history.message(round), history.at(round).data)
            if round in rounds:
                log.commit(round, history.at(round).header.chain)

    def names(self) -> list[str]:
        return [type(request).__name__.removesuffix("Request") for request in self.asked]

    async def describe_state(self, request: pb.DescribeStateRequest, caller: Caller) -> pb.StateDescription:
        self.asked.append(request)
        description = self.donor.describe(request.round)
        if description is None:
            raise RefusedError("No state is kept here yet.")
        return self.twist(description)

    async def fetch_state(self, request: pb.FetchStateRequest, caller: Caller) -> Iterator[pb.StateChunk]:
        self.asked.append(request)
        return (self.twist(chunk) for chunk in self.donor.chunks(request))

    async def fetch_published(
        self, request: pb.FetchPublishedRequest, caller: Caller
    ) -> tuple[pb.PublishedHeader, bytes]:
        self.asked.append(request)
        kept = self.donor.delta_log.get(request.round, request.chain)
        if kept is None:
            raise RefusedError(f"Round {request.round} is not kept here.")
        return await self.twisted(kept)

    async def fetch_shard(self, request: pb.FetchShardRequest, caller: Caller) -> tuple[Sequence[Any], bytes]:
        self.asked.append(request)
        kept = self.donor.delta_log.shard(request.round, request.shard, list(request.hashes))
        if kept is None:
            raise RefusedError(f"Shard {request.shard} of round {request.round} is not kept here.")
        return await self.twisted(kept)

    async def catch_up(self, request: pb.CatchUpRequest, caller: Caller) -> pb.CatchUpReply:
        self.asked.append(request)
        log = self.donor.delta_log
        return self.twist(
            pb.CatchUpReply(
                round_bytes=log.bytes_since(request.applied),
                state_round=self.state_round,
                state_bytes=10**9,  # as in a run of some size
                rest_bytes=log.bytes_since(self.state_round),
            )
        )

    async def twisted(self, answer: Any) -> Any:
        answer = self.twist(answer)
        return await answer if asyncio.iscoroutine(answer) else answer


@dataclass
class Rig:
    """A node that downloads, and those that it downloads from. ``ids`` are in the order in which they were given."""

    fetcher: Fetcher
    ids: list[str]
    nodes: list[Node]
    events: list[Event]
    ledger: ByteCounter
    log: RoundLog
    addresses: list[str]

    def warnings(self) -> list[str]:
        return [event.message for event in self.events if isinstance(event, Warned)]

    def payload(self) -> int:
        """Bytes of rounds that came."""
        counts = self.ledger.totals(Direction.RECEIVED)
        return sum(count for kind, count in counts.items() if kind != "control")

    async def newest(self, round: int, history: History, sources: Sequence[str] = ()) -> Published | None:
        """Fetch the round that was decided just now."""
        found = await self.fetcher.round(
            round, history.record(round), history.record(round - 1).chain, sources, self.ids
        )
        if found is None:
            return None
        message, data, published = found
        assert (message, data) == (history.message(round), history.at(round).data)
        assert published.header == history.at(round).header
        assert published.data == data
        assert published.grids.keys() == history.at(round).grids.keys()
        return published

    async def replay(self, first: int, last: int, history: History) -> int | None:
        """Fetch rounds one after the other; returns where a state is to be taken instead."""
        for round in range(first, last + 1):
            before = history.record(round - 1).chain
            found = await self.fetcher.round(round, history.record(last), before, (), self.ids)
            if found is None:
                return round
            assert found[:2] == (history.message(round), history.at(round).data)
        return None


@asynccontextmanager
async def rig_of(
    folder: Path, history: History, nodes: Sequence[Node | None], own: Any = None, me: str = ME
) -> AsyncIterator[Rig]:
    """``nodes``: None is one that is dead."""
    async with AsyncExitStack() as stack:
        book, ledger, events = AddressBook(me), ByteCounter(), list[Event]()
        ids, addresses = [f"{number:032x}" for number in range(1, len(nodes) + 1)], []
        for peer_id, node in zip(ids, nodes, strict=True):
            async with AsyncExitStack() as alive:
                server = serve(node or Node(folder / "dead", history), "127.0.0.1:0", ByteCounter(), stop_seconds=0.1)  # type: ignore[arg-type]
                addresses.append(f"127.0.0.1:{await alive.enter_async_context(server)}")
                if node is not None:
                    stack.push_async_exit(alive.pop_all())
            book.update(peer_id, addresses[-1])
        lines = await stack.enter_async_context(ClientPool(book, ledger, KernelBytes([])))
        sources = Donors(lines, events.append)
        log = RoundLog(folder / "mine" / "published", 1 << 24)
        log.open()
        states = StateDownload(sources, history.manifest, folder / "mine" / "states")
        more = {} if own is None else {"own": own}
        fetcher = Fetcher(history.manifest, me=me, first=FIRST, sources=sources, states=states, log=log, **more)
        yield Rig(fetcher, ids, [node for node in nodes if node is not None], events, ledger, log, addresses)


def nodes_in(folder: Path, history: History, count: int, rounds: Sequence[int]) -> list[Node]:
    return [Node(folder / f"node-{number}", history, rounds) for number in range(count)]


def flipped(answer: tuple[Any, bytes]) -> tuple[Any, bytes]:
    """The bytes as they are not, but as many."""
    return answer[0], bytes([*answer[1][:-1], answer[1][-1] ^ 1])


async def never(answer: Any) -> Any:
    await asyncio.Event().wait()


def forged(history: History, **changes: Any) -> Callable[[tuple[pb.PublishedHeader, bytes]], Any]:
    """Another history, with a chain hash that fits: anybody can compute one."""

    def forge(answer: tuple[pb.PublishedHeader, bytes]) -> tuple[pb.PublishedHeader, bytes]:
        message = pb.PublishedHeader.FromString(answer[0].SerializeToString())
        if "voters" in changes:
            message.voters[:] = changes["voters"]
        else:
            message.shards[0].tokens += 1
        header = published_from_proto(message, history.manifest)
        parent = message.plan.parent
        message.chain = chain_hash(parent, header.plan, header.shard_blocks, header.shards, header.voters)
        return message, answer[1]

    return forge


# --- the newest round -----------------------------------------------------------------------------------------------


async def test_each_shard_comes_from_who_made_it_and_every_byte_once(tmp_path: Path, history: History) -> None:
    nodes = nodes_in(tmp_path, history, 3, [1])
    async with rig_of(tmp_path, history, nodes) as rig:
        assert await rig.newest(1, history, sources=rig.ids) is not None
    assert [node.names().count("FetchShard") for node in nodes] == [1, 1, 1]
    assert [node.asked[-1].shard for node in nodes] == [0, 1, 2]
    assert sum(node.names().count("FetchPublished") for node in nodes) == 1
    assert rig.payload() == len(history.at(1).data)
    assert rig.warnings() == []


async def test_what_a_node_made_itself_is_not_downloaded(tmp_path: Path, history: History) -> None:
    def own(round: int, shard: int, hashes: Sequence[bytes]) -> tuple[object, bytes] | None:
        known, data = history.shard(round, shard)
        return ((), data) if shard == 1 and known == list(hashes) else None

    nodes = nodes_in(tmp_path, history, 2, [1])
    async with rig_of(tmp_path, history, nodes, own) as rig:
        assert await rig.newest(1, history, sources=[rig.ids[0], ME, rig.ids[1]]) is not None
        assert rig.payload() == len(history.at(1).data) - len(history.shard(1, 1)[1])


@pytest.mark.parametrize("fault", ["dead", "lacks", "lies", "stalls", "too short", "nowhere"])
async def test_a_shard_that_its_maker_does_not_give_comes_from_a_donor(
    tmp_path: Path, history: History, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setattr(round_download, "CONTROL_SECONDS", 0.2)
    good, maker = nodes_in(tmp_path, history, 2, [1])
    if fault == "lacks":
        maker = Node(tmp_path / "lacking", history)
    twists = {"lies": flipped, "stalls": never, "too short": lambda answer: (answer[0], answer[1][:-1])}
    maker.twist = twists.get(fault, maker.twist)
    async with rig_of(tmp_path, history, [good, None if fault == "dead" else maker]) as rig:
        donor, other = rig.ids
        sources = [donor, "e" * 32 if fault == "nowhere" else other, donor]
        rig.ids.pop()
        assert await rig.newest(1, history, sources) is not None
        assert sorted(request.shard for request in good.asked if isinstance(request, pb.FetchShardRequest)) == [0, 1, 2]
        assert [rig.addresses[1] in message for message in rig.warnings()] == [True] * (fault in ("lies", "too short"))


@pytest.mark.parametrize("me", ["a" * 32, "b" * 32])
async def test_a_liar_is_named_once_and_asked_last_from_then_on(tmp_path: Path, history: History, me: str) -> None:
    liar, good = nodes_in(tmp_path, history, 2, [1, 2, 3])
    liar.twist = lambda answer: flipped(answer) if isinstance(answer[0], tuple) else answer
    order = [liar, good] if int(me, 16) % 2 == 0 else [good, liar]  # it is this node's first choice
    async with rig_of(tmp_path, history, order, me=me) as rig:
        for round in (1, 2, 3):
            assert await rig.newest(round, history) is not None
        (warning,) = rig.warnings()
        assert "the payload is refused" in warning
    assert {request.round for request in liar.asked if isinstance(request, pb.FetchShardRequest)} == {1}


async def test_nodes_begin_with_different_donors(tmp_path: Path, history: History) -> None:
    nodes = nodes_in(tmp_path, history, 3, [1])
    first = set()
    for number in range(3):
        async with rig_of(tmp_path / f"{number}", history, nodes, me=f"a{number:031x}") as rig:
            for node in nodes:
                node.asked.clear()
            assert await rig.newest(1, history, sources=[FIRST] * 3) is not None
        (asked,) = [index for index, node in enumerate(nodes) if node.asked]
        first.add(asked)
    assert first == {0, 1, 2}


async def test_a_header_comes_from_one_of_those_who_made_the_shards(tmp_path: Path, history: History) -> None:
    nodes = nodes_in(tmp_path, history, 3, [1])
    async with rig_of(tmp_path, history, nodes) as rig:
        donor, *makers = rig.ids
        rig.ids = [donor]
        assert await rig.newest(1, history, [makers[0], makers[1], makers[0]]) is not None
    assert nodes[0].asked == []
    assert sum(node.names().count("FetchPublished") for node in nodes) == 1


async def test_headers_are_checked_beside_the_event_loop(
    tmp_path: Path, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that names as many peers and shards as may be takes seconds."""
    threads, check = set[int](), round_download.check_published

    def noted(*arguments: Any, **more: Any) -> PublishedHeader:
        threads.add(threading.get_ident())
        return check(*arguments, **more)

    monkeypatch.setattr(round_download, "check_published", noted)
    async with rig_of(tmp_path, history, nodes_in(tmp_path, history, 1, [1])) as rig:
        assert await rig.newest(1, history) is not None
    assert threads
    assert threading.get_ident() not in threads


@pytest.mark.parametrize("fault", ["dead", "lacks", "lies"])
async def test_a_header_that_no_maker_gives_comes_from_a_donor(tmp_path: Path, history: History, fault: str) -> None:
    good, maker = nodes_in(tmp_path, history, 2, [1])
    if fault == "lacks":
        maker = Node(tmp_path / "lacking", history)
    if fault == "lies":
        maker.twist = forged(history)
    async with rig_of(tmp_path, history, [good, None if fault == "dead" else maker]) as rig:
        donor, other = rig.ids
        rig.ids = [donor]
        assert await rig.newest(1, history, [other] * 3) is not None
        assert good.names().count("FetchPublished") == 1
        assert [rig.addresses[1] in message for message in rig.warnings()] == [True] * (fault == "lies")


@pytest.mark.parametrize("fault", ["", "dead", "lacks"])
async def test_who_makes_shards_has_the_header_from_another_who_does_or_else_from_a_voter(
    tmp_path: Path, history: History, fault: str
) -> None:
    record, ids = history.record(1), [f"{number:032x}" for number in range(1, 4)]
    away = [f"{number:032x}" for number in range(100, 400)]  # nobody knows where they are
    me, giver, makers = next(
        (node, giver, nodes)
        for giver in ids
        for first in range(200)
        for nodes in [[giver, *away[first : first + BRANCHES + 1]]]
        for node in nodes
        if header_givers(node, record.chain, nodes) == [giver]
    )
    donor, voter = (node for node in ids if node != giver)
    nodes: dict[str, Node | None] = dict(zip(ids, nodes_in(tmp_path, history, 3, [1]), strict=True))
    if fault:
        nodes[giver] = Node(tmp_path / "lacking", history) if fault == "lacks" else None
    async with rig_of(tmp_path, history, list(nodes.values()), me=me) as rig:
        record = RoundRecord(record.round, record.chain, record.parent, (voter,))
        assert await rig.fetcher.round(1, record, "", makers, [donor, voter]) is not None
    asked = {name: node.names().count("FetchPublished") for name, node in nodes.items() if node is not None}
    assert asked.get(giver, 0) == (fault != "dead")
    assert (asked[donor], asked[voter]) == (0, bool(fault))


async def test_the_first_who_make_shards_ask_those_who_decided(tmp_path: Path, history: History) -> None:
    """Others wait for it to have the header."""
    nodes = nodes_in(tmp_path, history, 4, [1])
    async with rig_of(tmp_path, history, nodes) as rig:
        record = history.record(1)
        record = RoundRecord(record.round, record.chain, record.parent, (rig.ids[2],))
        found = await rig.fetcher.round(1, record, "", [ME, rig.ids[0], rig.ids[1]], rig.ids)
        assert found is not None
    assert [node.names().count("FetchPublished") for node in nodes] == [0, 0, 1, 0]


async def test_a_round_on_disk_is_not_downloaded_and_a_damaged_one_is_downloaded_anew(
    tmp_path: Path, history: History
) -> None:
    (node,) = nodes_in(tmp_path, history, 1, [1, 2])
    async with rig_of(tmp_path, history, [node]) as rig:
        for round in (1, 2):
            rig.log.store(history.message(round), history.at(round).data)
        rig.log.commit(1, history.at(1).header.chain)
        assert await rig.replay(1, 2, history) is None
        assert node.asked == []
        (file,) = rig.log.folder.glob("round-000000002-*")
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
        assert await rig.newest(2, history) is not None
        assert "Round 2 on disk is damaged" in rig.warnings()[0]
        rig.log.store(history.message(2), history.at(2).data)
        node.asked.clear()
        assert await rig.newest(2, history) is not None
        assert node.asked == []


async def test_a_round_that_does_not_follow_this_node_s_weights_means_a_state(tmp_path: Path, history: History) -> None:
    (node,) = nodes_in(tmp_path, history, 1, [1, 2, 3])
    async with rig_of(tmp_path, history, [node]) as rig:
        elsewhere = "9" * 64
        assert await rig.fetcher.round(3, history.record(3), elsewhere, (), rig.ids) is None
        assert await rig.fetcher.round(2, history.record(3), elsewhere, (), rig.ids) is None


async def test_a_round_that_nobody_has_yet_is_waited_for_and_one_that_is_gone_means_a_state(
    tmp_path: Path, history: History
) -> None:
    behind = Node(tmp_path / "behind", history, [1, 2])
    async with rig_of(tmp_path, history, [behind, None]) as rig:
        with pytest.raises(UnreachableError, match="It may come"):
            await rig.newest(3, history)
        behind.state_round = 3
        assert await rig.newest(3, history) is None
    async with rig_of(tmp_path, history, [None, None]) as rig:
        with pytest.raises(UnreachableError, match="Round 3 cannot be had from anybody"):
            await rig.newest(3, history)
    async with rig_of(tmp_path, history, []) as rig:
        with pytest.raises(UnreachableError):
            await rig.replay(1, 3, history)


async def test_a_decided_round_can_be_had_from_a_voter_that_knows_it_as_a_proposal_only(
    tmp_path: Path, history: History
) -> None:
    """Its leader died as the round came to stand."""
    voter = Node(tmp_path / "voter", history, [1], proposals=[2])
    async with rig_of(tmp_path, history, [None, voter]) as rig:
        assert await rig.newest(2, history, sources=[rig.ids[0]] * 3) is not None


# --- proposals ------------------------------------------------------------------------------------------------------


async def test_a_proposal_is_on_disk_afterwards_and_does_not_stand(tmp_path: Path, history: History) -> None:
    (leader,) = nodes_in(tmp_path, history, 1, [1])
    async with rig_of(tmp_path, history, [None, leader]) as rig:
        await rig.fetcher.proposal(history.record(1), (), rig.ids)
        assert rig.log.get(1) is None
        assert rig.log.get(1, history.at(1).header.chain) == (history.message(1), history.at(1).data)
        seen = len(leader.asked)
        await rig.fetcher.proposal(history.record(1), (), rig.ids)
        assert await rig.newest(1, history) is not None
        assert len(leader.asked) == seen


async def test_a_proposal_s_shards_come_from_who_made_them_and_its_header_from_who_proposes_it(
    tmp_path: Path, history: History
) -> None:
    leader, *makers = nodes_in(tmp_path, history, 3, [1])
    lacking = Node(tmp_path / "lacking", history)
    async with rig_of(tmp_path, history, [leader, *makers, lacking]) as rig:
        sources = [rig.ids[1], rig.ids[2], rig.ids[3]]
        await rig.fetcher.proposal(history.record(1), sources, rig.ids[:1])
        assert rig.log.get(1, history.at(1).header.chain) == (history.message(1), history.at(1).data)
        assert rig.payload() == len(history.at(1).data)
    assert leader.names() == ["FetchPublished", "FetchShard"], "what its maker does not give"
    assert [node.names() for node in (*makers, lacking)] == [["FetchShard"]] * 3


@pytest.mark.parametrize("at_a_time", [1, 8])
async def test_a_maker_that_stalls_holds_no_voter_and_is_asked_for_nothing_more(
    tmp_path: Path, history: History, monkeypatch: pytest.MonkeyPatch, at_a_time: int
) -> None:
    """It died between saying that its shards are done and being asked for them."""
    monkeypatch.setattr(shard_givers, "MAKER_SECONDS", 0.2)
    monkeypatch.setattr(round_download, "CONTROL_SECONDS", 1e6)
    monkeypatch.setattr(round_download, "SHARDS_AT_A_TIME", at_a_time)
    leader, maker, other = nodes_in(tmp_path, history, 3, [1])
    maker.twist = never
    async with rig_of(tmp_path, history, [leader, maker, other]) as rig:
        ids = [rig.ids[0], rig.ids[2]]
        await rig.fetcher.proposal(history.record(1), [rig.ids[1]] * 3, ids)
        assert rig.log.get(1, history.at(1).header.chain) == (history.message(1), history.at(1).data)
        assert rig.warnings() == []
    assert leader.names() == ["FetchPublished", "FetchShard", "FetchShard", "FetchShard"]
    assert len(maker.asked) == min(at_a_time, 3)
    assert other.asked == []


async def test_a_proposal_that_is_found_to_stand_while_it_comes_is_fetched_once(
    tmp_path: Path, history: History
) -> None:
    (leader,) = nodes_in(tmp_path, history, 1, [1])
    async with rig_of(tmp_path, history, [leader]) as rig:
        await asyncio.gather(
            rig.fetcher.proposal(history.record(1), (), rig.ids),
            rig.newest(1, history),
            rig.fetcher.proposal(history.record(1), (), rig.ids),
        )
        assert rig.payload() == len(history.at(1).data)


@pytest.mark.parametrize("what", ["voters", "tokens", "round", "bytes"])
async def test_no_donor_can_make_a_voter_store_anything_else(tmp_path: Path, history: History, what: str) -> None:
    liar, good = nodes_in(tmp_path, history, 2, [1, 2])
    twists: dict[str, Callable[[Any], Any]] = {
        "voters": forged(history, voters=["d" * 32]),
        "tokens": forged(history),
        "round": lambda answer: (history.message(2), answer[1]),
        "bytes": flipped,
    }
    is_of_header = what != "bytes"
    liar.twist = lambda answer: (
        twists[what](answer) if isinstance(answer[0], pb.PublishedHeader) == is_of_header else answer
    )
    async with rig_of(tmp_path, history, [liar]) as rig:
        with pytest.raises(UnreachableError):
            await rig.fetcher.proposal(history.record(1), (), rig.ids)
        assert list(rig.log.folder.iterdir()) == []
    async with rig_of(tmp_path, history, [liar, good]) as rig:
        await rig.fetcher.proposal(history.record(1), (), rig.ids)
        (warning,) = rig.warnings()
        assert rig.addresses[0] in warning
        assert rig.log.get(1, history.at(1).header.chain) == (history.message(1), history.at(1).data)


async def test_a_record_that_is_not_what_its_bytes_say_is_not_stored(tmp_path: Path, history: History) -> None:
    """Whoever proposes it names other voters than the chain hash covers: they would decide about what follows."""
    (leader,) = nodes_in(tmp_path, history, 1, [1, 2])
    true = history.record(2)
    async with rig_of(tmp_path, history, [leader]) as rig:
        for false in (
            RoundRecord(true.round, true.chain, true.parent, ("d" * 32,)),
            RoundRecord(true.round, true.chain, "9" * 64, true.voters),
        ):
            with pytest.raises(RefusedError, match="another parent or voters"):
                await rig.fetcher.proposal(false, (), rig.ids)
        assert list(rig.log.folder.iterdir()) == []


# --- several rounds -------------------------------------------------------------------------------------------------


async def test_twenty_missed_rounds_cost_the_bytes_that_a_present_peer_downloaded(
    tmp_path: Path, history: History
) -> None:
    nodes = nodes_in(tmp_path, history, 3, range(1, ROUNDS + 1))
    async with rig_of(tmp_path, history, nodes) as rig:
        async with SwarmClient(rig.addresses[0], ledger := ByteCounter()) as client:
            for round in range(1, ROUNDS + 1):
                await client.fetch_published(pb.FetchPublishedRequest(peer_id=ME, round=round), 1 << 24)
        assert await rig.replay(1, ROUNDS, history) is None
        wanted, found = (counted.totals(Direction.RECEIVED) for counted in (ledger, rig.ledger))
        (choice,) = [event for event in rig.events if isinstance(event, CatchingUp)]
        assert (choice.takes_state, choice.missed) == (False, ROUNDS)
        assert "instead of" in choice.reason
    assert 0 <= found.pop("control") - wanted.pop("control") < 100, "headers, and how to catch up"
    assert found == wanted
    assert sum(found.values()) == sum(len(published.data) for published in history.rounds)
    given = [sum(isinstance(asked, pb.FetchPublishedRequest) and bool(asked.chain) for asked in n.asked) for n in nodes]
    assert given == [0, 10, 10], "load is spread, and who leads has enough to do"


@pytest.mark.parametrize("fault", ["dead", "lies", "voters", "lacks"])
async def test_missed_rounds_come_from_the_donors_that_have_them(tmp_path: Path, history: History, fault: str) -> None:
    good, bad = nodes_in(tmp_path, history, 2, range(1, 7))
    if fault == "lacks":
        bad = Node(tmp_path / "lacking", history, [1, 2, 6])
    forge = {"lies": forged(history), "voters": forged(history, voters=["d" * 32])}.get(fault)
    if forge is not None:
        bad.twist = lambda answer: forge(answer) if isinstance(answer, tuple) else answer
    async with rig_of(tmp_path, history, [good, None if fault == "dead" else bad]) as rig:
        assert await rig.replay(1, 6, history) is None
        assert forge is None or bad.names().count("FetchPublished") == 1
        assert len(rig.warnings()) == (forge is not None)
        assert all("not that round of this run" in message for message in rig.warnings())
        assert len([event for event in rig.events if isinstance(event, CatchingUp)]) == 1


async def test_a_broken_replay_is_gone_on_with_and_the_way_not_chosen_again(tmp_path: Path, history: History) -> None:
    (node,) = nodes_in(tmp_path, history, 1, range(1, 7))
    node.donor.delta_log.forget(3)
    node.state_round = 0
    async with rig_of(tmp_path, history, [node]) as rig:
        node.twist = lambda answer: (
            pb.CatchUpReply(round_bytes=1) if isinstance(answer, pb.CatchUpReply) else answer
        )  # it does not know of the damage yet, and has no state
        for _ in range(2):
            with pytest.raises(UnreachableError, match="Round 3 is not kept"):
                await rig.replay(2, 6, history)
        node.donor.delta_log.store(history.message(3), history.at(3).data)
        assert await rig.replay(2, 6, history) is None
        assert len([event for event in rig.events if isinstance(event, CatchingUp)]) == 1


async def test_what_is_on_disk_of_missed_rounds_is_not_downloaded(tmp_path: Path, history: History) -> None:
    (node,) = nodes_in(tmp_path, history, 1, range(1, 7))
    async with rig_of(tmp_path, history, [node]) as rig:
        rig.log.store(history.message(4), history.at(4).data)  # a proposal that it voted for
        assert await rig.replay(3, 6, history) is None
        asked = [request.round for request in node.asked if isinstance(request, pb.FetchPublishedRequest)]
        assert sorted(asked) == [3, 5, 6]


async def test_a_state_is_taken_where_it_is_less_or_the_rounds_are_gone(tmp_path: Path, history: History) -> None:
    cheap, forgetful = nodes_in(tmp_path, history, 2, range(3, 7))
    cheap.donor.delta_log.store(history.message(2), history.at(2).data)
    cheap.donor.delta_log.commit(2, history.at(2).header.chain)
    cheap.twist = lambda answer: (
        pb.CatchUpReply(round_bytes=10**6, state_round=6, state_bytes=1)
        if isinstance(answer, pb.CatchUpReply)
        else answer
    )
    for node in (cheap, forgetful):
        async with rig_of(tmp_path / node.donor.folder.parent.name, history, [node]) as rig:
            assert await rig.replay(2, 6, history) == 2
            (choice,) = [event for event in rig.events if isinstance(event, CatchingUp)]
            assert choice.takes_state
            assert rig.payload() == 0


async def test_a_donor_that_is_behind_too_does_not_decide_the_way(tmp_path: Path, history: History) -> None:
    """It has none of the rounds after ours, as one that does not keep them any more."""
    behind, good = Node(tmp_path / "behind", history, [1]), Node(tmp_path / "good", history, range(1, 7))
    async with rig_of(tmp_path, history, [behind, good]) as rig:
        assert await rig.replay(2, 6, history) is None
        (choice,) = [event for event in rig.events if isinstance(event, CatchingUp)]
        assert not choice.takes_state


async def test_rounds_that_are_dropped_while_they_are_fetched_mean_a_state(tmp_path: Path, history: History) -> None:
    node = Node(tmp_path / "node", history, range(1, 7))
    async with rig_of(tmp_path, history, [node]) as rig:
        node.donor.delta_log.forget(3)
        node.twist = lambda answer: (
            pb.CatchUpReply(round_bytes=100, state_round=6, state_bytes=10**9)
            if isinstance(answer, pb.CatchUpReply)
            else answer
        )
        assert await rig.replay(2, 6, history) == 2


# --- states ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_file, "CHUNK_BYTES", 512)


async def givers_in(folder: Path, history: History, count: int, round: int = 5) -> list[Node]:
    """The first of them is the leader."""
    nodes = nodes_in(folder, history, count, range(1, round + 1))
    for node in nodes:
        chain = bytes.fromhex(history.record(round).chain)
        await node.donor.keep_state(history.states[round], round, chain)
    return nodes


def go_on() -> bool:
    return False


async def check_state(rig: Rig, history: History, givers: int | None = None, round: int = 5) -> None:
    state, given, record = await rig.fetcher.state(rig.ids, go_on)
    consensus = await asyncio.to_thread(state.consensus, history.manifest)
    assert consensus.digest() == history.states[round].digest()
    assert record == history.record(round)
    assert givers is None or given == givers


@pytest.mark.usefixtures("small_chunks")
async def test_a_state_comes_from_all_donors_but_the_leader_and_with_its_voters(
    tmp_path: Path, history: History
) -> None:
    nodes = await givers_in(tmp_path, history, 4)
    async with rig_of(tmp_path, history, nodes) as rig:
        await check_state(rig, history, givers=3)
        assert rig.warnings() == []
    assert [node.names().count("FetchState") > 0 for node in nodes] == [False, True, True, True]
    assert [node.names().count("DescribeState") for node in nodes] == [1, 0, 0, 0]


@pytest.mark.usefixtures("small_chunks")
async def test_with_few_others_the_leader_gives_chunks_too_and_the_first_state_is_voted_for_by_the_coordinator(
    tmp_path: Path, history: History
) -> None:
    nodes = await givers_in(tmp_path, history, 1, round=0)
    async with rig_of(tmp_path, history, nodes) as rig:
        await check_state(rig, history, givers=1, round=0)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("fault", ["dead", "has no state", "describes nonsense"])
async def test_without_the_leader_another_describes_the_state(tmp_path: Path, history: History, fault: str) -> None:
    leader, *others = await givers_in(tmp_path, history, 3)
    if fault == "has no state":
        leader = Node(tmp_path / "new", history, range(1, 6))
    if fault == "describes nonsense":
        leader.twist = lambda answer: (
            pb.StateDescription(round=5, total_bytes=2**40) if isinstance(answer, pb.StateDescription) else answer
        )
    async with rig_of(tmp_path, history, [None if fault == "dead" else leader, *others]) as rig:
        await check_state(rig, history)
        assert len(rig.warnings()) == (fault == "describes nonsense")


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("fault", ["lies", "dies", "stalls", "lacks"])
async def test_what_a_bad_donor_was_asked_for_comes_from_the_others(
    tmp_path: Path, history: History, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    leader, bad, *others = await givers_in(tmp_path, history, 4)
    is_over = threading.Event()

    def twist(chunk: Any) -> Any:
        if not isinstance(chunk, pb.StateChunk):
            return chunk
        if fault == "lies":
            data = bytearray(decompress(chunk.data, 512))
            data[17] ^= 1
            return pb.StateChunk(index=chunk.index, data=compress(bytes(data), 1))
        if fault == "dies":
            raise RuntimeError("gone")
        assert is_over.wait(60)
        return chunk

    if fault == "lacks":
        bad = Node(tmp_path / "lacking", history)
    else:
        bad.twist = twist
    async with rig_of(tmp_path, history, [leader, bad, *others]) as rig:
        await check_state(rig, history, givers=2)
        is_over.set()
        assert [rig.addresses[1] in message for message in rig.warnings()] == [True] * (fault == "lies")


@pytest.mark.usefixtures("small_chunks")
async def test_a_broken_download_of_a_state_goes_on_where_it_was(tmp_path: Path, history: History) -> None:
    nodes = await givers_in(tmp_path, history, 3)
    taken: list[int] = []
    async with rig_of(tmp_path, history, nodes) as rig:
        with pytest.raises(UnreachableError, match="stopped after"):
            await rig.fetcher.state(rig.ids, lambda: len(nodes[1].asked) + len(nodes[2].asked) > 2)
        assert 0 < (before := _chunks_here(tmp_path, nodes[0])) < len(_description(nodes[0]).chunk_hashes)
    for node in nodes:
        node.asked.clear()

        def note(answer: Any) -> Any:
            if isinstance(answer, pb.StateChunk):
                taken.append(answer.index)
            return answer

        node.twist = note
    async with rig_of(tmp_path, history, nodes) as rig:  # another process
        await check_state(rig, history, givers=2)
    assert len(set(taken)) == len(_description(nodes[0]).chunk_hashes) - before


def _description(node: Node) -> pb.StateDescription:
    description = node.donor.describe()
    assert description is not None
    return description


def _chunks_here(folder: Path, node: Node) -> int:
    description = _description(node)
    assembly = StateAssembly(description, node.history.manifest, folder / "mine" / "states")
    return len(description.chunk_hashes) - len(assembly.missing)


@pytest.mark.usefixtures("small_chunks")
async def test_a_state_whose_voters_nobody_knows_is_not_downloaded(tmp_path: Path, history: History) -> None:
    nodes = await givers_in(tmp_path, history, 2)
    for node in nodes:
        node.donor.delta_log.forget(5)
    async with rig_of(tmp_path, history, nodes) as rig:
        with pytest.raises(UnreachableError, match="Another state will be fetched"):
            await rig.fetcher.state(rig.ids, go_on)
        assert not [name for node in nodes for name in node.names() if name == "FetchState"]


@pytest.mark.usefixtures("small_chunks")
async def test_after_a_state_the_rounds_since_are_replayed_without_another_choice(
    tmp_path: Path, history: History
) -> None:
    nodes = await givers_in(tmp_path, history, 2)
    for node in nodes:
        for round in range(6, 10):
            await node.donor.keep_round(history.message(round), history.at(round).data)
    async with rig_of(tmp_path, history, nodes) as rig:
        await check_state(rig, history, givers=2)
        assert await rig.replay(6, 9, history) is None
        assert [event for event in rig.events if isinstance(event, CatchingUp)] == []


async def test_the_same_place_under_two_names_is_asked_once_and_nowhere_never(tmp_path: Path, history: History) -> None:
    """Peers say where they are: the same place must not be asked twice at a time."""
    async with rig_of(tmp_path, history, nodes_in(tmp_path, history, 1, [1])) as rig:
        book = AddressBook(ME)
        host, port = rig.addresses[0].split(":")
        for number, address in enumerate([f"{host}:{port}", f"{host}:0{port}", "192.0.2.1:0", "[::2]:1"], 1):
            book.update(f"{number:032x}", address)
        async with ClientPool(book, ByteCounter(), KernelBytes([])) as lines:
            sources = Donors(lines, rig.events.append)
            clients = await sources.clients([f"{number:032x}" for number in range(6)])
            assert [client.address for client in clients] == [rig.addresses[0], "[::2]:1"]
            sources.accuse(clients[0], PeerError("hash", "It was wrong."))
            sources.accuse(clients[0], PeerError("hash", "It was wrong again."))
            clients = await sources.clients([f"{number:032x}" for number in range(6)])
            assert [client.address for client in clients] == ["[::2]:1", rig.addresses[0]]
        assert len(rig.warnings()) == 1
