"""A run is found by its name, through any node that lives, and found again when all that were known are gone."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fixtures import peer_record
from tests.node_context import open_node, serving
from tests.swarm_rig import DEADLINE_SECONDS, LISTEN, Swarm, kill_coordinator, tiny_config
from tsr_swarm.config.manifest import PROTOCOL_VERSION, Manifest, make_manifest
from tsr_swarm.config.run import RunConfig
from tsr_swarm.discovery.announcer import Announcer
from tsr_swarm.discovery.dht import DhtDirectory
from tsr_swarm.discovery.identity import new_identity
from tsr_swarm.errors import ConfigError, PeerError, RefusedError, SwarmError, UnreachableError
from tsr_swarm.node import rejoin
from tsr_swarm.node.address_book import AddressBook, ClientPool
from tsr_swarm.node.find_run import ask_multiaddrs, find_run, first_result, look_up_runs
from tsr_swarm.node.join_options import JoinOptions
from tsr_swarm.rounds import protocol as pt
from tsr_swarm.telemetry import events as ev
from tsr_swarm.train.llama import parameter_shapes
from tsr_swarm.transport.base import Caller
from tsr_swarm.wire.messages import rules_to_proto
from tsr_swarm.wire.v1 import swarm_pb2 as pb

NOBODY = "127.0.0.1:1"
OUTCOMES = {"unreachable": UnreachableError("no"), "refused": RefusedError("no"), "hostile": PeerError("form", "no")}


@given(outcomes=st.lists(st.sampled_from(["answers", "hangs", *OUTCOMES]), min_size=1, max_size=8))
async def test_the_first_answer_counts_whatever_the_others_do(outcomes: list[str]) -> None:
    ended = []

    async def call(number: int, outcome: str) -> int:
        try:
            if outcome == "hangs":
                await asyncio.Event().wait()
            if outcome in OUTCOMES:
                raise OUTCOMES[outcome]
            return number
        finally:
            ended.append(number)

    calls: list[Coroutine[Any, Any, int]] = [call(number, outcome) for number, outcome in enumerate(outcomes)]
    if "answers" in outcomes:
        assert await first_result(calls, stagger=0.0) == outcomes.index("answers")
    elif "hangs" in outcomes:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await first_result(calls, stagger=0.0)
    else:
        with pytest.raises(UnreachableError if "unreachable" in outcomes else SwarmError):
            await first_result(calls, stagger=0.0)
        assert ended == list(range(len(outcomes)))


class Greeter:
    """A node that says hello, and no more."""

    def __init__(self, manifest: Manifest, multiaddrs: tuple[str, ...] = ()) -> None:
        self.manifest, self.multiaddrs, self.peer_id = manifest, multiaddrs, new_identity().peer_id

    async def hello(self, request: pb.HelloRequest, caller: Caller) -> pb.HelloReply:
        return pb.HelloReply(
            protocol=PROTOCOL_VERSION,
            manifest=self.manifest.encoded,
            initial_peers=self.multiaddrs,
            peer_id=self.peer_id,
            first=self.peer_id,
            rules=rules_to_proto(self.manifest.config),
        )


def manifest_of(folder: Path, name: str = "chat", run_id: str = "run1") -> Manifest:
    config = tiny_config(folder, run={"name": name})
    return make_manifest(run_id, config, parameter_shapes(config.model))


@pytest.fixture
async def directory() -> AsyncIterator[DhtDirectory]:
    directory = await DhtDirectory.start(identity=new_identity())
    yield directory
    await directory.close()


@pytest.fixture
async def book() -> AddressBook:
    return AddressBook("e" * 32)


@pytest.fixture
async def clients(book: AddressBook) -> AsyncIterator[ClientPool]:
    async with ClientPool(book) as clients:
        yield clients


@pytest.fixture
async def announcer() -> AsyncIterator[Announcer]:
    announcer = Announcer(new_identity(), lambda event: None)
    yield announcer
    await announcer.close()


async def options_for(directory: DhtDirectory, **said: Any) -> JoinOptions:
    return JoinOptions(**{"run": "chat", "dht": await directory.visible_maddrs()} | said)


async def test_a_name_leads_to_a_node_of_that_run_past_dead_ones_and_those_of_other_runs(
    tmp_path: Path, directory: DhtDirectory, clients: ClientPool, book: AddressBook, announcer: Announcer
) -> None:
    right, wrong = Greeter(manifest_of(tmp_path)), Greeter(manifest_of(tmp_path, run_id="run2"))
    async with serving(right) as address, serving(wrong) as elsewhere:
        for place in (NOBODY, elsewhere, address, ""):
            speaker = new_identity()  # some lie, but each signs what it says
            directory_of = replace(directory, identity=speaker)
            await directory_of.announce(peer_record(speaker, address=place))
        met = await find_run(await options_for(directory), clients, book, announcer)
        assert met.hello.peer_id == right.peer_id
        assert book.addresses == [address], "who is of another run is not written down"


async def test_two_runs_of_one_name_are_named_and_one_is_chosen_by_its_run_id(
    tmp_path: Path, directory: DhtDirectory, clients: ClientPool, book: AddressBook, announcer: Announcer
) -> None:
    one, two = Greeter(manifest_of(tmp_path, run_id="aaaa1")), Greeter(manifest_of(tmp_path, run_id="bbbb1"))
    async with serving(one) as first, serving(two) as second:
        for run_id, address in (("aaaa1", first), ("bbbb1", second)):
            await directory.announce(peer_record(directory.identity, run_id=run_id, address=address))
        with pytest.raises(ConfigError, match=r"2 runs are called 'chat': chat@aaaa \(1.00 k .* chat@bbbb \(1.00 k"):
            await find_run(await options_for(directory), clients, book, announcer)
        met = await find_run(await options_for(directory, run="chat@bb"), clients, book, announcer)
        assert met.hello.peer_id == two.peer_id
    assert [run.run_id for run in await look_up_runs(await directory.visible_maddrs())] == ["aaaa1", "bbbb1"]


async def test_what_cannot_be_found_is_told_by_what_is_missing(
    tmp_path: Path, directory: DhtDirectory, clients: ClientPool, book: AddressBook, announcer: Announcer
) -> None:
    assert await look_up_runs(await directory.visible_maddrs()) == []
    options = await options_for(directory)
    for address, says in (("", "none of which can be dialled"), (NOBODY, f"whom the DHT names: {NOBODY} cannot be")):
        with pytest.raises(UnreachableError, match="No peer of a run 'chat'" if not address else "none of which"):
            await find_run(options, clients, book, announcer)
        issued = peer_record(directory.identity).issued
        await directory.announce(peer_record(directory.identity, address=address, issued=issued))
        with pytest.raises(UnreachableError, match=says):
            await find_run(options, clients, book, announcer)
    async with serving(Greeter(manifest_of(tmp_path))) as outside:
        with pytest.raises(UnreachableError, match=f"^{outside} is in no DHT; name another node with --dht"):
            await ask_multiaddrs(clients, [outside])
        found = await ask_multiaddrs(clients, [outside, NOBODY, *options.dht])
        assert found == [*options.dht]
    with pytest.raises(UnreachableError, match=f"{NOBODY} cannot be reached"):
        await ask_multiaddrs(clients, [NOBODY])


async def test_a_node_that_has_lost_everybody_finds_another_of_its_run(
    tmp_path: Path, directory: DhtDirectory, announcer: Announcer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rejoin, "LOOK_SECONDS", 0.01)
    manifest = manifest_of(tmp_path)
    other, stranger = Greeter(manifest), Greeter(manifest_of(tmp_path, name="talk"))
    await announcer.open(listen=None, announce=None, initial_peers=await directory.visible_maddrs())
    async with AsyncExitStack() as stack:
        for greeter in (stranger, other):
            speaker = new_identity()
            record = peer_record(speaker, address=await stack.enter_async_context(serving(greeter)))
            await replace(directory, identity=speaker).announce(record)
        node = await stack.enter_async_context(open_node("d" * 32, manifest))
        context = node.context
        assert not rejoin.is_lost(context, context.reached_at + rejoin.LOST_SECONDS / 2)
        context.reached_at -= 2 * rejoin.LOST_SECONDS
        context.background.start(rejoin.keep_rejoining(context, announcer))
        await context.driver.seen(pt.Tick)  # type: ignore[attr-defined]  # it is a RecordingDriver
        assert context.state.identity.known == (other.peer_id,)
        assert context.book.address(other.peer_id)
        assert not context.book.address(stranger.peer_id)


def endless(folder: Path) -> RunConfig:
    """A run that waits no more than seconds for whoever has died in a round."""
    return tiny_config(folder, run={"rounds": 0, "min_peers": 1}, round={"floor_seconds": 2.0})


def has_all_in_dht(swarm: Swarm, count: int) -> bool:
    return any(found.records >= count for found in swarm.told(ev.DhtFound))


async def test_a_newcomer_finds_the_run_by_name_once_its_coordinator_is_gone(tmp_path: Path) -> None:
    swarm = Swarm(tmp_path, endless(tmp_path), use_dht=True)
    await swarm.start_coordinator()
    for number in (1, 2, 3):
        swarm.start_peer(number, listen=LISTEN, no_dht=False)
    await swarm.until(lambda: has_all_in_dht(swarm, 4) and swarm.has_safe_voters(3))
    kill_coordinator(swarm)
    newcomer = swarm.start_peer(4, coordinator="", run="tiny", dht=(swarm.address_of(1),), no_dht=False, wait=60.0)
    await swarm.until(lambda: any(event.included for event in newcomer.of(ev.RoundApplied)))
    await swarm.end()


async def test_a_peer_that_comes_back_when_all_it_knew_are_gone_finds_the_run_again(tmp_path: Path) -> None:
    """Its coordinator and its one contact die while it is away; the DHT names those who came after them."""
    swarm = Swarm(tmp_path, endless(tmp_path), use_dht=True)
    await swarm.start_coordinator()
    swarm.start_peer(1, listen=LISTEN, no_dht=False)
    away = swarm.start_peer(2, no_dht=False)
    await swarm.until(lambda: has_all_in_dht(swarm, 3) and any(e.included for e in away.of(ev.RoundApplied)))
    away.stop.request()
    await asyncio.wait_for(away.task, DEADLINE_SECONDS)
    del swarm.peers[2]
    for number in (3, 4, 5):
        swarm.start_peer(number, listen=LISTEN, no_dht=False)
    await swarm.until(lambda: has_all_in_dht(swarm, 6) and swarm.has_safe_voters(5))
    gone, way_in = swarm.address, swarm.address_of(3)
    kill_coordinator(swarm)
    later = {number: len(swarm.peers[number].of(ev.RoundApplied)) + 2 for number in (3, 4, 5)}
    await swarm.until(lambda: all(len(swarm.peers[n].of(ev.RoundApplied)) >= count for n, count in later.items()))
    swarm.peers.pop(1).stop.terminate()
    back = swarm.start_peer(2, at=gone, resume=True, no_dht=False, dht=(way_in,), wait=60.0)
    await swarm.until(lambda: any(event.included for event in back.of(ev.RoundApplied)))
    await swarm.end()
