"""Downloads from real donors over loopback: some dead, some lying, some silent, some without the data."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from tests.node_context import make_donor, serving
from tests.published_rounds import FIRST, History
from tests.swarm_rig import Told
from tsr_swarm.errors import PeerError, RefusedError, UnreachableError
from tsr_swarm.exchange.reduction import Published
from tsr_swarm.node.address_book import AddressBook, ClientPool
from tsr_swarm.node.sync import donors as donors_module
from tsr_swarm.node.sync import rounds as round_download
from tsr_swarm.node.sync.donors import Donors
from tsr_swarm.node.sync.downloader import Downloader
from tsr_swarm.node.sync.rounds import Frames
from tsr_swarm.rounds.catch_up import BRANCHES, donors_of_header
from tsr_swarm.storage import state_file
from tsr_swarm.storage.round_log import RoundLog
from tsr_swarm.storage.state_file import StateAssembly
from tsr_swarm.telemetry.byte_counter import ByteCounter, Direction
from tsr_swarm.telemetry.events import CatchingUp, Event
from tsr_swarm.transport.base import Caller
from tsr_swarm.transport.client import SwarmClient
from tsr_swarm.wire.compression import compress, decompress
from tsr_swarm.wire.messages import PublishedHeader, chain_hash, published_from_proto
from tsr_swarm.wire.v1 import swarm_pb2 as pb

ROUNDS = 20
ME = "0" * 32


class Node:
    """A real donor at a port of its own. A test can put a function in ``twist`` that changes every answer."""

    def __init__(self, folder: Path, history: History, rounds: Sequence[int], proposals: Sequence[int]) -> None:
        self.history, self.asked = history, list[Any]()
        self.service, self.store = make_donor(FIRST, history.manifest, folder)
        self.log = self.store.round_log
        self.twist: Callable[[Any], Any] = lambda answer: answer
        self.state_round = max(rounds, default=0)
        for round in rounds:
            self.commit(round)
        for round in proposals:
            self.log.store(history.message(round), history.at(round).data)

    def commit(self, round: int) -> None:
        self.log.store(self.history.message(round), self.history.at(round).data)
        self.log.commit(round, self.history.at(round).header.chain)

    def names(self) -> list[str]:
        return [type(request).__name__.removesuffix("Request") for request in self.asked]

    def count(self, name: str) -> int:
        return self.names().count(name)

    def shards_asked(self) -> list[int]:
        return [request.shard for request in self.asked if isinstance(request, pb.FetchShardRequest)]

    def reply_to_catch_up(self, **reply: int) -> None:
        self.twist = lambda answer: pb.CatchUpReply(**reply) if isinstance(answer, pb.CatchUpReply) else answer

    def __getattr__(self, name: str) -> Any:
        """Answer a call as the service does, but for the twist."""

        async def answer(request: Any, caller: Caller) -> Any:
            self.asked.append(request)
            reply = await getattr(self.service, name)(request, caller)
            if isinstance(reply, Iterator):
                return (self.twist(chunk) for chunk in reply)
            reply = self.twist(reply)
            return await reply if asyncio.iscoroutine(reply) else reply

        return answer

    async def catch_up(self, request: pb.CatchUpRequest, caller: Caller) -> pb.CatchUpReply:
        self.asked.append(request)
        return self.twist(
            pb.CatchUpReply(
                round_bytes=self.log.bytes_since(request.applied),
                state_round=self.state_round,
                state_bytes=10**9,  # as in a run of some size
                rest_bytes=self.log.bytes_since(self.state_round),
            )
        )


@dataclass
class Rig(Told):
    """A node that downloads, and its donors, in the order of ``ids``."""

    fetcher: Downloader
    ids: list[str]
    events: list[Event]
    counter: ByteCounter
    log: RoundLog
    addresses: list[str]
    history: History

    def has_stored(self, round: int) -> bool:
        """Whether a round is on disk, be it as a proposal."""
        published = self.history.at(round)
        return self.log.get(round, published.header.chain) == (self.history.message(round), published.data)

    def payload(self) -> int:
        counts = self.counter.totals(Direction.RECEIVED)
        return sum(count for kind, count in counts.items() if kind != "control")

    async def newest(self, round: int, sources: Sequence[str] = ()) -> Published | None:
        history = self.history
        parent = history.record(round - 1).chain
        found = await self.fetcher.round(round, history.record(round), parent, sources, self.ids)
        if found is None:
            return None
        message, data, published = found
        assert (message, data) == (history.message(round), history.at(round).data)
        assert (published.header, published.data) == (history.at(round).header, data)
        assert published.grids.keys() == history.at(round).grids.keys()
        return published

    async def replay(self, first: int, last: int) -> int | None:
        """Fetch rounds one after the other; returns the round for which a state is to be fetched instead."""
        history = self.history
        for round in range(first, last + 1):
            before = history.record(round - 1).chain
            found = await self.fetcher.round(round, history.record(last), before, (), self.ids)
            if found is None:
                return round
            assert found[:2] == (history.message(round), history.at(round).data)
        return None


@dataclass
class Network:
    folder: Path
    history: History

    def node(self, name: str, rounds: Sequence[int] = (), proposals: Sequence[int] = ()) -> Node:
        return Node(self.folder / name, self.history, rounds, proposals)

    def nodes(self, count: int, rounds: Sequence[int]) -> list[Node]:
        return [self.node(f"node-{number}", rounds) for number in range(count)]

    def with_fault(self, node: Node, fault: str, twists: Mapping[str, Callable[[Any], Any]]) -> Node | None:
        """``node``, which is dead, lacks all rounds, or twists its answers."""
        node.twist = twists.get(fault, node.twist)
        return {"dead": None, "lacks": self.node("lacking")}.get(fault, node)

    async def state_donors(self, count: int, round: int = 5) -> list[Node]:
        """Nodes with the state of ``round``; the first of them is the leader."""
        nodes = self.nodes(count, range(1, round + 1))
        for node in nodes:
            chain = bytes.fromhex(self.history.record(round).chain)
            await node.store.keep_state(self.history.states[round], round, chain)
        return nodes

    @asynccontextmanager
    async def rig(
        self, nodes: Sequence[Node | None], own: Frames = lambda *_: None, me: str = ME, folder: str = "mine"
    ) -> AsyncIterator[Rig]:
        """``nodes``: None is one that is dead."""
        mine = self.folder / folder
        async with AsyncExitStack() as stack:
            book, events = AddressBook(me), list[Event]()
            ids, addresses = [f"{number:032x}" for number in range(1, len(nodes) + 1)], []
            for peer_id, node in zip(ids, nodes, strict=True):
                async with AsyncExitStack() as alive:
                    addresses.append(await alive.enter_async_context(serving(node)))
                    if node is not None:
                        stack.push_async_exit(alive.pop_all())
                book.update(peer_id, addresses[-1])
            pool = await stack.enter_async_context(ClientPool(book))
            log = RoundLog(mine / "published", 1 << 24)
            log.open()
            fetcher = Downloader(
                donors=Donors(pool, events.append),
                manifest=self.history.manifest,
                me=me,
                first=FIRST,
                folder=mine / "states",
                log=log,
                own=own,
            )
            yield Rig(fetcher, ids, events, pool.counter, log, addresses, self.history)


@pytest.fixture
def net(tmp_path: Path, history: History, monkeypatch: pytest.MonkeyPatch) -> Network:
    monkeypatch.setattr(state_file, "CHUNK_BYTES", 512)  # a small state has many
    return Network(tmp_path, history)


def flipped(answer: tuple[Any, bytes]) -> tuple[Any, bytes]:
    """As many bytes, of which one is wrong."""
    return answer[0], answer[1][:-1] + bytes(byte ^ 1 for byte in answer[1][-1:])


async def never(answer: Any) -> Any:
    await asyncio.Event().wait()


def forged(history: History, **changes: Any) -> Callable[[tuple[pb.PublishedHeader, bytes]], Any]:
    """Change the header, and give it a chain hash that fits: anybody can compute one."""

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


async def test_each_shard_comes_from_its_reducer_and_every_byte_once(net: Network) -> None:
    nodes = net.nodes(3, [1])
    async with net.rig(nodes) as rig:
        assert await rig.newest(1, sources=rig.ids) is not None
    assert [node.shards_asked() for node in nodes] == [[0], [1], [2]]
    assert sum(node.count("FetchPublished") for node in nodes) == 1
    assert rig.payload() == len(net.history.at(1).data)
    assert rig.warnings() == []


async def test_shards_that_a_node_reduced_itself_are_not_downloaded(net: Network) -> None:
    def own(round: int, shard: int, hashes: Sequence[bytes]) -> tuple[object, bytes] | None:
        known, data = net.history.shard(round, shard)
        return ((), data) if shard == 1 and known == list(hashes) else None

    nodes = net.nodes(2, [1])
    async with net.rig(nodes, own) as rig:
        assert await rig.newest(1, sources=[rig.ids[0], ME, rig.ids[1]]) is not None
        assert rig.payload() == len(net.history.at(1).data) - len(net.history.shard(1, 1)[1])


@pytest.mark.parametrize("fault", ["dead", "lacks", "lies", "stalls", "too short", "nowhere"])
async def test_a_shard_that_its_reducer_does_not_send_comes_from_a_donor(
    net: Network, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setattr(round_download, "CONTROL_SECONDS", 0.2)
    good, reducer = net.nodes(2, [1])
    twists = {"lies": flipped, "stalls": never, "too short": lambda answer: (answer[0], answer[1][:-1])}
    async with net.rig([good, net.with_fault(reducer, fault, twists)]) as rig:
        donor, other = rig.ids
        sources = [donor, "e" * 32 if fault == "nowhere" else other, donor]
        rig.ids.pop()
        assert await rig.newest(1, sources) is not None
        assert sorted(good.shards_asked()) == [0, 1, 2]
        assert [rig.addresses[1] in message for message in rig.warnings()] == [True] * (fault in ("lies", "too short"))


@pytest.mark.parametrize("me", ["a" * 32, "b" * 32])
async def test_a_donor_that_sends_wrong_bytes_is_warned_of_once_and_asked_last_from_then_on(
    net: Network, me: str
) -> None:
    bad, good = net.nodes(2, [1, 2, 3])
    bad.twist = lambda answer: flipped(answer) if not isinstance(answer[0], pb.PublishedHeader) else answer
    order = [bad, good] if int(me, 16) % 2 == 0 else [good, bad]  # it is this node's first choice
    async with net.rig(order, me=me) as rig:
        for round in (1, 2, 3):
            assert await rig.newest(round) is not None
        (warning,) = rig.warnings()
        assert "the payload is refused" in warning
    assert {request.round for request in bad.asked if isinstance(request, pb.FetchShardRequest)} == {1}


async def test_nodes_begin_with_different_donors(net: Network) -> None:
    nodes = net.nodes(3, [1])
    for number in range(3):
        async with net.rig(nodes, me=f"a{number:031x}", folder=f"{number}") as rig:
            assert await rig.newest(1, sources=[FIRST] * 3) is not None
    assert [node.names() for node in nodes] == [["FetchPublished", *["FetchShard"] * 3]] * 3


async def test_headers_are_checked_on_another_thread(net: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checking one with the most peers and shards takes seconds."""
    threads, check = set[int](), round_download.check_published

    def noted(*arguments: Any, **more: Any) -> PublishedHeader:
        threads.add(threading.get_ident())
        return check(*arguments, **more)

    monkeypatch.setattr(round_download, "check_published", noted)
    async with net.rig(net.nodes(1, [1])) as rig:
        assert await rig.newest(1) is not None
    assert threads
    assert threading.get_ident() not in threads


@pytest.mark.parametrize("fault", ["", "dead", "lacks", "lies"])
async def test_a_header_comes_from_a_reducer_or_else_from_a_donor(net: Network, fault: str) -> None:
    good, reducer = net.nodes(2, [1])
    async with net.rig([good, net.with_fault(reducer, fault, {"lies": forged(net.history)})]) as rig:
        donor, other = rig.ids
        rig.ids = [donor]
        assert await rig.newest(1, [other] * 3) is not None
        assert good.count("FetchPublished") == bool(fault)
        assert [rig.addresses[1] in message for message in rig.warnings()] == [True] * (fault == "lies")


@pytest.mark.parametrize("fault", ["", "dead", "lacks"])
async def test_a_reducer_gets_the_header_from_another_reducer_or_else_from_a_voter(net: Network, fault: str) -> None:
    record, ids = net.history.record(1), [f"{number:032x}" for number in range(1, 4)]
    away = [f"{number:032x}" for number in range(100, 400)]  # of unknown address
    me, other, reducers = next(
        (node, other, nodes)
        for other in ids
        for first in range(200)
        for nodes in [[other, *away[first : first + BRANCHES + 1]]]
        for node in nodes
        if donors_of_header(node, record.chain, nodes) == [other]
    )
    donor, voter = (node for node in ids if node != other)
    nodes: dict[str, Node | None] = dict(zip(ids, net.nodes(3, [1]), strict=True))
    nodes[other] = net.with_fault(nodes[other], fault, {})
    async with net.rig(list(nodes.values()), me=me) as rig:
        record = replace(record, voters=(voter,))
        assert await rig.fetcher.round(1, record, "", reducers, [donor, voter]) is not None
    asked = {name: node.count("FetchPublished") for name, node in nodes.items() if node is not None}
    assert asked.get(other, 0) == (fault != "dead")
    assert (asked[donor], asked[voter]) == (0, bool(fault))


async def test_the_first_reducers_ask_voters_for_the_header(net: Network) -> None:
    """Other reducers wait for them to have it."""
    nodes = net.nodes(4, [1])
    async with net.rig(nodes) as rig:
        record = replace(net.history.record(1), voters=(rig.ids[2],))
        assert await rig.fetcher.round(1, record, "", [ME, rig.ids[0], rig.ids[1]], rig.ids) is not None
    assert [node.count("FetchPublished") for node in nodes] == [0, 0, 1, 0]


async def test_a_round_on_disk_is_not_downloaded_and_a_damaged_one_is_downloaded_anew(net: Network) -> None:
    (node,) = net.nodes(1, [1, 2])
    async with net.rig([node]) as rig:
        for round in (1, 2):
            rig.log.store(net.history.message(round), net.history.at(round).data)
        rig.log.commit(1, net.history.at(1).header.chain)
        assert await rig.replay(1, 2) is None
        assert node.asked == []
        (file,) = rig.log.folder.glob("round-000000002-*")
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
        assert await rig.newest(2) is not None
        assert "Round 2 on disk is damaged" in rig.warnings()[0]
        rig.log.store(net.history.message(2), net.history.at(2).data)
        node.asked.clear()
        assert await rig.newest(2) is not None
        assert node.asked == []


async def test_a_round_that_does_not_follow_this_node_s_weights_means_a_state(net: Network) -> None:
    (node,) = net.nodes(1, [1, 2, 3])
    async with net.rig([node]) as rig:
        elsewhere = "9" * 64
        assert await rig.fetcher.round(3, net.history.record(3), elsewhere, (), rig.ids) is None
        assert await rig.fetcher.round(2, net.history.record(3), elsewhere, (), rig.ids) is None


async def test_a_round_that_no_donor_has_yet_may_come_and_one_that_is_gone_means_a_state(net: Network) -> None:
    behind = net.node("behind", [1, 2])
    async with net.rig([behind, None]) as rig:
        with pytest.raises(UnreachableError, match="It may come"):
            await rig.newest(3)
        behind.state_round = 3
        assert await rig.newest(3) is None
    async with net.rig([None, None]) as rig:
        with pytest.raises(UnreachableError, match="Round 3 cannot be had from anybody"):
            await rig.newest(3)
    async with net.rig([]) as rig:
        with pytest.raises(UnreachableError):
            await rig.replay(1, 3)


async def test_a_committed_round_can_be_fetched_from_a_voter_that_has_it_as_a_proposal(net: Network) -> None:
    """Its leader died as the round was committed."""
    voter = net.node("voter", [1], proposals=[2])
    async with net.rig([None, voter]) as rig:
        assert await rig.newest(2, sources=[rig.ids[0]] * 3) is not None


async def test_a_proposal_is_on_disk_afterwards_and_not_committed(net: Network) -> None:
    (leader,) = net.nodes(1, [1])
    async with net.rig([None, leader]) as rig:
        await rig.fetcher.proposal(net.history.record(1), (), rig.ids)
        assert rig.log.get(1) is None
        assert rig.has_stored(1)
        seen = len(leader.asked)
        await rig.fetcher.proposal(net.history.record(1), (), rig.ids)
        assert await rig.newest(1) is not None
        assert len(leader.asked) == seen


async def test_a_proposal_s_shards_come_from_their_reducers_and_its_header_from_the_leader(net: Network) -> None:
    leader, *reducers = net.nodes(3, [1])
    lacking = net.node("lacking")
    async with net.rig([leader, *reducers, lacking]) as rig:
        sources = [rig.ids[1], rig.ids[2], rig.ids[3]]
        await rig.fetcher.proposal(net.history.record(1), sources, rig.ids[:1])
        assert rig.has_stored(1)
        assert rig.payload() == len(net.history.at(1).data)
    assert leader.names() == ["FetchPublished", "FetchShard"], "what its reducer does not send"
    assert [node.names() for node in (*reducers, lacking)] == [["FetchShard"]] * 3


@pytest.mark.parametrize("at_a_time", [1, 8])
async def test_a_reducer_that_stalls_does_not_hold_up_a_voter_and_is_asked_for_nothing_more(
    net: Network, monkeypatch: pytest.MonkeyPatch, at_a_time: int
) -> None:
    """It died after it said that its shards are done."""
    monkeypatch.setattr(donors_module, "REDUCER_SECONDS", 0.2)
    monkeypatch.setattr(round_download, "CONTROL_SECONDS", 1e6)
    monkeypatch.setattr(round_download, "SHARDS_AT_A_TIME", at_a_time)
    leader, reducer, other = net.nodes(3, [1])
    reducer.twist = never
    async with net.rig([leader, reducer, other]) as rig:
        ids = [rig.ids[0], rig.ids[2]]
        await rig.fetcher.proposal(net.history.record(1), [rig.ids[1]] * 3, ids)
        assert rig.has_stored(1)
        assert rig.warnings() == []
    assert leader.names() == ["FetchPublished", "FetchShard", "FetchShard", "FetchShard"]
    assert len(reducer.asked) == min(at_a_time, 3)
    assert other.asked == []


async def test_a_proposal_that_is_committed_while_it_is_fetched_is_fetched_once(net: Network) -> None:
    (leader,) = net.nodes(1, [1])
    async with net.rig([leader]) as rig:
        await asyncio.gather(
            rig.fetcher.proposal(net.history.record(1), (), rig.ids),
            rig.newest(1),
            rig.fetcher.proposal(net.history.record(1), (), rig.ids),
        )
        assert rig.payload() == len(net.history.at(1).data)


@pytest.mark.parametrize("what", ["voters", "tokens", "round", "bytes"])
async def test_no_donor_can_make_a_voter_store_another_round(net: Network, what: str) -> None:
    bad, good = net.nodes(2, [1, 2])
    twists: dict[str, Callable[[Any], Any]] = {
        "voters": forged(net.history, voters=["d" * 32]),
        "tokens": forged(net.history),
        "round": lambda answer: (net.history.message(2), answer[1]),
        "bytes": flipped,
    }
    is_changed = {True: what != "bytes", False: what == "bytes"}  # by whether it is a header
    bad.twist = lambda answer: twists[what](answer) if is_changed[isinstance(answer[0], pb.PublishedHeader)] else answer
    async with net.rig([bad]) as rig:
        with pytest.raises(UnreachableError):
            await rig.fetcher.proposal(net.history.record(1), (), rig.ids)
        assert list(rig.log.folder.iterdir()) == []
    async with net.rig([bad, good]) as rig:
        await rig.fetcher.proposal(net.history.record(1), (), rig.ids)
        (warning,) = rig.warnings()
        assert rig.addresses[0] in warning
        assert rig.has_stored(1)


async def test_a_record_that_differs_from_its_bytes_is_not_stored(net: Network) -> None:
    """A leader that names other voters than the chain hash covers would let them decide about the next round."""
    (leader,) = net.nodes(1, [1, 2])
    async with net.rig([leader]) as rig:
        for change in ({"voters": ("d" * 32,)}, {"parent": "9" * 64}):
            with pytest.raises(RefusedError, match="another parent or voters"):
                await rig.fetcher.proposal(replace(net.history.record(2), **change), (), rig.ids)
        assert list(rig.log.folder.iterdir()) == []


async def test_twenty_missed_rounds_cost_the_bytes_that_a_present_peer_downloaded(net: Network) -> None:
    nodes = net.nodes(3, range(1, ROUNDS + 1))
    async with net.rig(nodes) as rig:
        async with SwarmClient(rig.addresses[0], counter := ByteCounter()) as client:
            for round in range(1, ROUNDS + 1):
                await client.fetch_published(pb.FetchPublishedRequest(peer_id=ME, round=round), 1 << 24)
        assert await rig.replay(1, ROUNDS) is None
        wanted, found = (counted.totals(Direction.RECEIVED) for counted in (counter, rig.counter))
        (choice,) = rig.of(CatchingUp)
        assert (choice.takes_state, choice.missed) == (False, ROUNDS)
        assert "instead of" in choice.reason
    assert 0 <= found.pop("control") - wanted.pop("control") < 100, "headers, and how to catch up"
    assert found == wanted
    assert sum(found.values()) == sum(len(published.data) for published in net.history.rounds)
    given = [sum(isinstance(asked, pb.FetchPublishedRequest) and bool(asked.chain) for asked in n.asked) for n in nodes]
    assert given == [0, 10, 10], "load is spread, and the leader has enough to do"


@pytest.mark.parametrize("fault", ["dead", "lies", "voters", "lacks"])
async def test_missed_rounds_come_from_the_donors_that_have_them(net: Network, fault: str) -> None:
    good, bad = net.nodes(2, range(1, 7))
    if fault == "lacks":
        bad = net.node("lacking", [1, 2, 6])
    forge = {"lies": forged(net.history), "voters": forged(net.history, voters=["d" * 32])}.get(fault)
    if forge is not None:
        bad.twist = lambda answer: forge(answer) if isinstance(answer, tuple) else answer
    async with net.rig([good, None if fault == "dead" else bad]) as rig:
        assert await rig.replay(1, 6) is None
        assert forge is None or bad.count("FetchPublished") == 1
        assert len(rig.warnings()) == (forge is not None)
        assert all("not that round of this run" in message for message in rig.warnings())
        assert len(rig.of(CatchingUp)) == 1


async def test_a_replay_that_broke_off_continues_without_another_choice(net: Network) -> None:
    (node,) = net.nodes(1, range(1, 7))
    node.log.forget(3)
    node.state_round = 0
    async with net.rig([node]) as rig:
        node.reply_to_catch_up(round_bytes=1)  # it does not know of the damage yet, and has no state
        for _ in range(2):
            with pytest.raises(UnreachableError, match="Round 3 is not kept"):
                await rig.replay(2, 6)
        node.log.store(net.history.message(3), net.history.at(3).data)
        assert await rig.replay(2, 6) is None
        assert len(rig.of(CatchingUp)) == 1


async def test_missed_rounds_on_disk_are_not_downloaded(net: Network) -> None:
    (node,) = net.nodes(1, range(1, 7))
    async with net.rig([node]) as rig:
        rig.log.store(net.history.message(4), net.history.at(4).data)  # a proposal that it voted for
        assert await rig.replay(3, 6) is None
        asked = [request.round for request in node.asked if isinstance(request, pb.FetchPublishedRequest)]
        assert sorted(asked) == [3, 5, 6]


async def test_a_state_is_fetched_if_it_is_fewer_bytes_or_the_rounds_are_gone(net: Network) -> None:
    cheap, forgetful = net.nodes(2, range(3, 7))
    cheap.commit(2)
    cheap.reply_to_catch_up(round_bytes=10**6, state_round=6, state_bytes=1)
    for node in (cheap, forgetful):
        async with net.rig([node], folder=node.store.folder.parent.name) as rig:
            assert await rig.replay(2, 6) == 2
            (choice,) = rig.of(CatchingUp)
            assert choice.takes_state
            assert rig.payload() == 0


async def test_a_donor_that_is_behind_too_does_not_decide_between_rounds_and_state(net: Network) -> None:
    """It has none of the rounds after ours, like a donor that does not keep them any more."""
    behind, good = net.node("behind", [1]), net.node("good", range(1, 7))
    async with net.rig([behind, good]) as rig:
        assert await rig.replay(2, 6) is None
        assert [choice.takes_state for choice in rig.of(CatchingUp)] == [False]


async def test_rounds_that_are_dropped_while_they_are_fetched_mean_a_state(net: Network) -> None:
    node = net.node("node", range(1, 7))
    async with net.rig([node]) as rig:
        node.log.forget(3)
        node.reply_to_catch_up(round_bytes=100, state_round=6, state_bytes=10**9)
        assert await rig.replay(2, 6) == 2


async def check_state(rig: Rig, donors: int | None = None, round: int = 5) -> None:
    state, count, record = await rig.fetcher.state(rig.ids, lambda: False)
    consensus = await asyncio.to_thread(state.consensus, rig.history.manifest)
    assert consensus.digest() == rig.history.states[round].digest()
    assert record == rig.history.record(round)
    assert donors is None or count == donors


async def test_a_state_comes_from_all_donors_but_the_leader_and_with_its_voters(net: Network) -> None:
    nodes = await net.state_donors(4)
    async with net.rig(nodes) as rig:
        await check_state(rig, donors=3)
        assert rig.warnings() == []
    assert [node.count("FetchState") > 0 for node in nodes] == [False, True, True, True]
    assert [node.count("DescribeState") for node in nodes] == [1, 0, 0, 0]


async def test_with_few_others_the_leader_sends_chunks_too_and_the_first_voter_is_the_coordinator(net: Network) -> None:
    nodes = await net.state_donors(1, round=0)
    async with net.rig(nodes) as rig:
        await check_state(rig, donors=1, round=0)


@pytest.mark.parametrize("fault", ["dead", "has no state", "describes nonsense"])
async def test_without_the_leader_another_describes_the_state(net: Network, fault: str) -> None:
    leader, *others = await net.state_donors(3)
    if fault == "has no state":
        leader = net.node("new", range(1, 6))
    if fault == "describes nonsense":
        leader.twist = lambda answer: (
            pb.StateDescription(round=5, total_bytes=2**40) if isinstance(answer, pb.StateDescription) else answer
        )
    async with net.rig([None if fault == "dead" else leader, *others]) as rig:
        await check_state(rig)
        assert len(rig.warnings()) == (fault == "describes nonsense")


@pytest.mark.parametrize("fault", ["lies", "dies", "stalls", "lacks"])
async def test_chunks_that_a_bad_donor_does_not_send_come_from_the_others(
    net: Network, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    leader, bad, *others = await net.state_donors(4)
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

    bad = net.with_fault(bad, fault, dict.fromkeys(("lies", "dies", "stalls"), twist))
    async with net.rig([leader, bad, *others]) as rig:
        await check_state(rig, donors=2)
        is_over.set()
        assert [rig.addresses[1] in message for message in rig.warnings()] == [True] * (fault == "lies")


async def test_a_state_s_download_that_broke_off_continues_where_it_was(net: Network) -> None:
    nodes = await net.state_donors(3)
    description, taken = nodes[0].store.describe(), set[int]()
    async with net.rig(nodes) as rig:
        with pytest.raises(UnreachableError, match="stopped after"):
            await rig.fetcher.state(rig.ids, lambda: len(nodes[1].asked) + len(nodes[2].asked) > 2)
    missing = set(StateAssembly(description, net.history.manifest, net.folder / "mine" / "states").missing)
    assert 0 < len(missing) < len(description.chunk_hashes)

    def note(answer: Any) -> Any:
        if isinstance(answer, pb.StateChunk):
            taken.add(answer.index)
        return answer

    for node in nodes:
        node.twist = note
    async with net.rig(nodes) as rig:  # another process
        await check_state(rig, donors=2)
    assert taken == missing


async def test_a_state_whose_voters_are_unknown_is_not_downloaded_nor_asked_for_again(net: Network) -> None:
    def without_headers(answer: Any) -> Any:
        if isinstance(answer, tuple) and isinstance(answer[0], pb.PublishedHeader):
            raise RefusedError("It is gone.")
        return answer

    nodes = await net.state_donors(2)
    for node in nodes:
        node.twist = without_headers
    async with net.rig(nodes) as rig:
        for _ in range(2):
            with pytest.raises(UnreachableError, match="Another state will be fetched"):
                await rig.fetcher.state(rig.ids, lambda: False)
        assert [node.count("FetchState") for node in nodes] == [0, 0]
    asked = [request for node in nodes for request in node.asked if isinstance(request, pb.DescribeStateRequest)]
    assert [request.round for request in asked] == [0, 0]


async def test_a_node_that_downloaded_its_state_serves_none_before_its_next_round(net: Network) -> None:
    (node,) = await net.state_donors(1)
    node.log.forget(5)
    weights = node.service._node.weights
    request = pb.DescribeStateRequest(manifest_digest=bytes.fromhex(net.history.manifest.digest), round=5)
    await weights.replace(net.history.states[5], net.history.record(5))
    with pytest.raises(RefusedError, match="Round 5 is not kept here, only its weights"):
        await node.describe_state(request, Caller("127.0.0.1"))
    node.commit(6)
    await weights.replace(net.history.states[6], net.history.record(6))
    assert (await node.describe_state(request, Caller("127.0.0.1"))).round == 6
    weights.close()


async def test_after_a_state_the_rounds_since_are_replayed_without_another_choice(net: Network) -> None:
    nodes = await net.state_donors(2)
    for node, round in product(nodes, range(6, 10)):
        node.commit(round)
    async with net.rig(nodes) as rig:
        await check_state(rig, donors=2)
        assert await rig.replay(6, 9) is None
        assert rig.of(CatchingUp) == []


async def test_one_address_under_two_names_is_asked_once_and_an_invalid_one_never(net: Network) -> None:
    """Peers announce their addresses: one must not be asked twice at a time."""
    async with net.rig(net.nodes(1, [1])) as rig:
        book = AddressBook(ME)
        host, port = rig.addresses[0].split(":")
        for number, address in enumerate([f"{host}:{port}", f"{host}:0{port}", "192.0.2.1:0", "[::2]:1"], 1):
            book.update(f"{number:032x}", address)
        async with ClientPool(book) as pool:
            sources = Donors(pool, rig.events.append)
            clients = await sources.clients([f"{number:032x}" for number in range(6)])
            assert [client.address for client in clients] == [rig.addresses[0], "[::2]:1"]
            sources.accuse(clients[0], PeerError("hash", "It was wrong."))
            sources.accuse(clients[0], PeerError("hash", "It was wrong again."))
            clients = await sources.clients([f"{number:032x}" for number in range(6)])
            assert [client.address for client in clients] == ["[::2]:1", rig.addresses[0]]
        assert len(rig.warnings()) == 1
