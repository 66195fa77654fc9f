"""Peers that can be dialled serve states and rounds to others while training goes on."""

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.swarm_rig import Swarm, run_swarm, stop_all, tiny_config, when
from tsr_swarm.config.manifest import PROTOCOL_VERSION, decode_manifest
from tsr_swarm.config.run import RunConfig
from tsr_swarm.errors import PeerError, RefusedError, UnreachableError
from tsr_swarm.node.service import NodeService
from tsr_swarm.node.sync.donors import REDUCER_SECONDS, ShardDonors
from tsr_swarm.storage import state_file
from tsr_swarm.storage.state_file import StateAssembly
from tsr_swarm.storage.state_store import KEPT_STATES
from tsr_swarm.telemetry import events as ev
from tsr_swarm.telemetry.byte_counter import ByteCounter
from tsr_swarm.transport.base import Caller
from tsr_swarm.transport.client import SwarmClient
from tsr_swarm.transport.limits import STALL_SECONDS
from tsr_swarm.wire.v1 import swarm_pb2 as pb


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[pb.FetchStateRequest | pb.FetchPublishedRequest]:
    """Make states of many chunks; returns the requests that the coordinator gets."""
    monkeypatch.setattr(state_file, "CHUNK_BYTES", 4096)
    seen: list[pb.FetchStateRequest | pb.FetchPublishedRequest] = []
    for name in ("fetch_state", "fetch_published"):
        original = getattr(NodeService, name)

        async def answer(self: NodeService, request: Any, caller: Caller, original: Any = original) -> Any:
            if self.context.me == self.context.first:
                seen.append(request)
            return await original(self, request, caller)

        monkeypatch.setattr(NodeService, name, answer)
    return seen


def opens(event: ev.Event, round: int) -> bool:
    return isinstance(event, ev.RoundOpened) and event.round == round


def restless(folder: Path, min_peers: int = 3) -> RunConfig:
    return tiny_config(folder, run={"rounds": 500, "min_peers": min_peers}, round={"floor_seconds": 0.4})


def end_when_applied(swarm: Swarm, event: ev.Event, name: str, after: int = 0) -> None:
    if isinstance(event, ev.DigestReported) and event.name == name and event.round > after:
        stop_all(swarm)


def joining(round: int, calls: list[Any]) -> Callable[[Swarm, ev.Event], None]:
    """peer-4 joins in this round, from which on ``calls`` are noted; all end once it has applied one."""

    def on_event(swarm: Swarm, event: ev.Event) -> None:
        if opens(event, round):
            calls.clear()
            swarm.start_peer(4)
        end_when_applied(swarm, event, "peer-4")

    return on_event


async def test_a_joiner_gets_state_and_rounds_from_three_donors_and_none_from_the_coordinator(
    tmp_path: Path, calls: list[Any]
) -> None:
    swarm = await run_swarm(tmp_path, restless(tmp_path), 3, joining(8, calls), listening=3)
    (received,) = swarm.peers[4].of(ev.StateReceived)
    assert received.round % 5 == 0
    assert received.round >= 5
    assert received.donors == 3
    assert not [call for call in calls if isinstance(call, pb.FetchStateRequest)]
    assert swarm.peers[4].warnings() == []


async def test_donors_and_coordinator_go_on_while_a_state_is_fetched(
    tmp_path: Path, calls: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The joiner's disk is held until two rounds have closed."""
    go_on, held_at, check = threading.Event(), [0], StateAssembly.check

    def hold(self: StateAssembly, chunk: pb.StateChunk) -> None:
        if "peer-4" in str(self.path):
            assert go_on.wait(60)
        check(self, chunk)

    def watch(swarm: Swarm, event: ev.Event) -> None:
        if opens(event, 6):
            swarm.start_peer(4)
        if isinstance(event, ev.PeerJoined) and event.name == "peer-4":
            held_at[0] = max(closed.round for closed in swarm.closed())
        if held_at[0] and isinstance(event, ev.RoundClosed) and event.round == held_at[0] + 3:
            assert event.included == 3
            go_on.set()
        end_when_applied(swarm, event, "peer-4")

    monkeypatch.setattr(StateAssembly, "check", hold)
    swarm = await run_swarm(tmp_path, restless(tmp_path), 3, watch, listening=3)
    (received,) = swarm.peers[4].of(ev.StateReceived)
    assert received.donors >= 1


async def test_a_peer_that_missed_rounds_replays_them_from_donors(tmp_path: Path, calls: list[Any]) -> None:
    """peer-3 leaves in round 3 and comes back, with its own checkpoint, in round 8; all end when it is up to date."""
    back = [0]

    def watch(swarm: Swarm, event: ev.Event) -> None:
        if opens(event, 3):
            swarm.peers[3].stop.request()
        if isinstance(event, ev.RoundOpened) and event.round >= 8 and not back[0]:
            assert swarm.peers[3].task.done()
            back[0] = event.round
            calls.clear()
            swarm.start_peer(3, resume=True)
        end_when_applied(swarm, event, "peer-3", after=back[0] or 10**9)

    swarm = await Swarm(tmp_path, restless(tmp_path, min_peers=2), watch).start(3, listening=3)
    await swarm.finish()
    member = swarm.peers[3]
    assert not member.of(ev.StateReceived)
    choice = member.of(ev.CatchingUp)[0]
    assert not choice.takes_state
    assert choice.missed >= 4
    assert "instead of" in choice.reason
    applied = [event.round for event in member.of(ev.RoundApplied)]
    assert applied == list(range(applied[0], applied[-1] + 1))
    rounds = [call for call in calls if isinstance(call, pb.FetchPublishedRequest)]
    asked = {call.round for call in rounds if call.peer_id == swarm.peer_id(3)}
    assert not asked & set(applied[:4]), "what it missed came from donors"


async def test_without_donors_a_late_joiner_gets_all_from_the_coordinator(tmp_path: Path, calls: list[Any]) -> None:
    swarm = await run_swarm(tmp_path, restless(tmp_path), 3, joining(7, calls))
    assert [event.donors for event in swarm.peers[4].of(ev.StateReceived)] == [1]
    assert len(list((tmp_path / "coordinator" / "states").iterdir())) <= KEPT_STATES
    assert list((tmp_path / "peer-1").glob("run-*/states/*")) == []
    assert not swarm.peers[4].of(ev.CatchingUp)


async def test_a_peer_refuses_calls_that_only_the_leader_answers_and_names_the_leader(tmp_path: Path) -> None:
    """peer-1 can be dialled, and the coordinator leads."""
    asked: list[asyncio.Task[None]] = []

    async def ask(swarm: Swarm) -> None:
        async with SwarmClient(swarm.address_of(1), ByteCounter()) as client:
            hello = await client.hello(pb.HelloRequest(protocol=PROTOCOL_VERSION))
            assert hello.peer_id == swarm.peer_id(1)
            assert hello.first != hello.peer_id
            digest = bytes.fromhex(decode_manifest(hello.manifest).digest)
            with pytest.raises(RefusedError, match="protocol 99"):
                await client.hello(pb.HelloRequest(protocol=99))
            me = "e" * 32
            refused = (
                client.join(pb.JoinRequest(manifest_digest=digest, peer_id=me, name="e", local_space="core")),
                client.list_peers(pb.ListPeersRequest(manifest_digest=digest)),
                client.report(pb.ReportRequest(peer_id=me, round=1, digest=b"d" * 32)),
            )
            for call in refused:
                with pytest.raises(UnreachableError, match="does not lead; ask it who does"):
                    await call
            reply = await client.poll(pb.PollRequest(manifest_digest=digest, peer_id=me, incarnation=1, number=1))
            assert reply.redirect.leader == hello.first
            assert {contact.peer_id for contact in reply.contacts} >= {hello.first, hello.peer_id}
            with pytest.raises(PeerError):
                await client.submit(pb.Envelope(), b"")
            with pytest.raises(RefusedError, match="another run"):
                await client.describe_state(pb.DescribeStateRequest(manifest_digest=b"x" * 32))
            with pytest.raises(RefusedError, match="state of round 500 is not kept here"):
                await anext(client.fetch_state(pb.FetchStateRequest(round=500)))
            with pytest.raises(RefusedError, match="Round 500 is not kept here"):
                await client.fetch_published(pb.FetchPublishedRequest(round=500), 10)

    begin = when(ev.RoundOpened, 2, lambda swarm: asked.append(asyncio.create_task(ask(swarm))))
    swarm = await run_swarm(tmp_path, tiny_config(tmp_path), on_event=begin, listening=1)
    await asyncio.gather(*asked)
    assert len(asked) == 1
    assert [event.included for event in swarm.closed()] == [3, 3, 3, 3]


CLIENTS = [SwarmClient(f"127.0.0.1:{port}", ByteCounter()) for port in range(1, 6)]
clients = st.sampled_from(CLIENTS)


@given(
    reducers=st.lists(st.none() | clients, max_size=6),
    donors=st.lists(clients, max_size=3, unique=True),
    failed=st.lists(clients, max_size=3),
    shard=st.integers(0, 7),
)
def test_each_client_is_asked_once_and_a_reducer_that_failed_only_as_a_donor(
    reducers: list[SwarmClient | None], donors: list[SwarmClient], failed: list[SwarmClient], shard: int
) -> None:
    shard_donors = ShardDonors(reducers, donors)
    for client in failed:
        shard_donors.mark_failed(client)
    asked = shard_donors.of(shard)
    reducer = reducers[shard] if shard < len(reducers) else None
    assert len(set(asked)) == len(asked)
    assert set(asked) - {reducer} == set(donors) - {reducer}
    if reducer is not None and reducer not in failed:
        assert asked[0] is reducer
    else:
        assert asked == donors


@pytest.mark.parametrize("mebibytes", [0.0, 0.5, 64.0])
def test_only_a_reducer_has_little_time_and_only_while_the_run_waits(mebibytes: float) -> None:
    reducer, donor, *_ = CLIENTS
    awaited = ShardDonors([reducer, donor], [donor], is_awaited=True)
    assert awaited.seconds(reducer, mebibytes, 3600.0) == (REDUCER_SECONDS * (1 + mebibytes), REDUCER_SECONDS)
    assert awaited.seconds(reducer, mebibytes, 0.1) == (0.1, REDUCER_SECONDS)
    assert awaited.seconds(donor, mebibytes, 3600.0) == (3600.0, STALL_SECONDS), "it has all bytes"
    assert ShardDonors([reducer], [donor]).seconds(reducer, mebibytes, 3600.0) == (3600.0, STALL_SECONDS)
