"""Peers that can be dialled give states and rounds to others, while everybody goes on training."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from swarm_rig import Member, Swarm, tiny_config

from tsr_swarm.config.manifest import PROTOCOL_VERSION, make_manifest
from tsr_swarm.config.run import RunConfig
from tsr_swarm.errors import ConfigError, RefusedError
from tsr_swarm.runtime import leadership, state_chunks
from tsr_swarm.runtime.delta_log import DeltaLog
from tsr_swarm.runtime.donor import KEPT_STATES, LEASE_SECONDS, MAX_STATES, Donor
from tsr_swarm.runtime.lifeline import StopRequest
from tsr_swarm.runtime.peer import JoinOptions, run_peer
from tsr_swarm.runtime.peer_service import PeerService
from tsr_swarm.runtime.run_folder import fresh_consensus
from tsr_swarm.runtime.service import CoordinatorService
from tsr_swarm.runtime.sources import Sources
from tsr_swarm.runtime.state_chunks import StateAssembly
from tsr_swarm.telemetry import events as ev
from tsr_swarm.telemetry.ledger import ByteLedger
from tsr_swarm.train.llama import parameter_shapes
from tsr_swarm.transport.client import SwarmClient
from tsr_swarm.transport.kernel_bytes import KernelBytes
from tsr_swarm.transport.server import serve
from tsr_swarm.wire.compression import compress, decompress
from tsr_swarm.wire.messages import chain_hash, published_from_proto
from tsr_swarm.wire.v1 import swarm_pb2 as pb

LISTEN = "127.0.0.1:0"
OnEvent = Callable[[Swarm, ev.Event], None]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[pb.FetchStateRequest | pb.FetchPublishedRequest]:
    """States of many chunks, and what the coordinator was asked for."""
    monkeypatch.setattr(state_chunks, "CHUNK_BYTES", 4096)
    seen: list[pb.FetchStateRequest | pb.FetchPublishedRequest] = []
    for name in ("fetch_state", "fetch_published"):
        original = getattr(CoordinatorService, name)

        async def answer(self, request, caller, original=original):  # type: ignore[no-untyped-def]
            seen.append(request)
            return await original(self, request, caller)

        monkeypatch.setattr(CoordinatorService, name, answer)
    return seen


def opens(event: ev.Event, round: int) -> bool:
    return isinstance(event, ev.RoundOpened) and event.round == round


def restless(folder: Path, **changes: dict[str, object]) -> RunConfig:
    """A run that goes on by itself, whoever is away, until somebody ends it."""
    return tiny_config(folder, **{"run": {"rounds": 500, "min_peers": 3}, "round": {"floor_seconds": 0.4}, **changes})


async def with_donors(folder: Path, config: RunConfig, on_event: OnEvent) -> Swarm:
    """A coordinator and three peers that can be dialled, until ``end`` is called."""
    swarm = Swarm(folder, config, on_event)
    await swarm.start_coordinator()
    for number in (1, 2, 3):
        swarm.start_peer(number, listen=LISTEN)
    await swarm.finish()
    return swarm


def end(swarm: Swarm) -> None:
    for member in [swarm.coordinator, *swarm.peers.values()]:
        assert member is not None
        member.stop.demand()


def end_when_applied(swarm: Swarm, event: ev.Event, name: str, after: int = 0) -> None:
    if isinstance(event, ev.DigestReported) and event.name == name and event.round > after:
        end(swarm)


def state_of(member: Member) -> ev.StateReceived:
    (received,) = [event for event in member.events if isinstance(event, ev.StateReceived)]
    return received


def warnings_of(member: Member) -> list[str]:
    return [event.message for event in member.events if isinstance(event, ev.Warned)]


def address_of(swarm: Swarm, name: str) -> str:
    (joined,) = [event for event in swarm.of(ev.PeerJoined) if event.name == name]  # type: ignore[attr-defined]
    assert isinstance(joined, ev.PeerJoined)
    return joined.address


def agrees(swarm: Swarm) -> bool:
    return all(len(digests) == 1 for digests in swarm.digests().values())


async def test_a_joiner_gets_state_and_rounds_from_three_donors_and_the_coordinator_gives_none(
    tmp_path: Path, calls: list[Any]
) -> None:
    def watch(swarm: Swarm, event: ev.Event) -> None:
        if opens(event, 8):
            calls.clear()
            swarm.start_peer(4)
        end_when_applied(swarm, event, "peer-4")

    swarm = await with_donors(tmp_path, restless(tmp_path), watch)
    received = state_of(swarm.peers[4])
    assert received.round % 5 == 0
    assert received.round >= 5
    assert received.donors == 3
    assert agrees(swarm)
    assert not [call for call in calls if isinstance(call, pb.FetchStateRequest)]
    assert warnings_of(swarm.peers[4]) == []


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
    swarm = await with_donors(tmp_path, restless(tmp_path), watch)
    assert state_of(swarm.peers[4]).donors >= 1
    assert agrees(swarm)


async def test_a_donor_that_flips_a_byte_is_named_once_and_left_out(
    tmp_path: Path, calls: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks = Donor.chunks

    def flip(self: Donor, request: pb.FetchStateRequest) -> Iterator[pb.StateChunk]:
        for chunk in chunks(self, request):
            if "peer-2" in str(self.folder):
                data = bytearray(decompress(chunk.data, 4096))
                data[17] ^= 1
                chunk = pb.StateChunk(index=chunk.index, data=compress(bytes(data), 1))
            yield chunk

    def watch(swarm: Swarm, event: ev.Event) -> None:
        if opens(event, 8):
            calls.clear()
            swarm.start_peer(4)
        end_when_applied(swarm, event, "peer-4")

    monkeypatch.setattr(Donor, "chunks", flip)
    swarm = await with_donors(tmp_path, restless(tmp_path), watch)
    (warning,) = warnings_of(swarm.peers[4])
    assert address_of(swarm, "peer-2") in warning
    assert "does not match its hash" in warning
    assert state_of(swarm.peers[4]).donors == 2
    assert agrees(swarm)
    assert not [call for call in calls if isinstance(call, pb.FetchStateRequest)]


@pytest.mark.parametrize("fault", ["dies", "stalls"])
async def test_what_a_donor_that_dies_or_stalls_was_asked_for_comes_from_the_others(
    tmp_path: Path, calls: list[Any], monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """peer-2 gives one chunk of the newcomer's state and then no more, until that state is complete."""
    chunks, is_over, hit = Donor.chunks, threading.Event(), list[Callable[[], object]]()

    def stick(self: Donor, request: pb.FetchStateRequest) -> Iterator[pb.StateChunk]:
        for count, chunk in enumerate(chunks(self, request)):
            if count and "peer-2" in str(self.folder) and hit:
                hit[0]()
                assert is_over.wait(60)
            yield chunk

    def watch(swarm: Swarm, event: ev.Event) -> None:
        if opens(event, 8):
            loop, stop = asyncio.get_running_loop(), swarm.peers[2].stop
            die = partial(loop.call_soon_threadsafe, stop.demand)
            hit.append(die if fault == "dies" else lambda: None)
            swarm.start_peer(4)
        if isinstance(event, ev.DigestReported) and event.name == "peer-4":
            is_over.set()
        end_when_applied(swarm, event, "peer-4")

    monkeypatch.setattr(Donor, "chunks", stick)
    swarm = await with_donors(tmp_path, restless(tmp_path), watch)
    assert hit
    assert state_of(swarm.peers[4]).donors == 3
    assert warnings_of(swarm.peers[4]) == []
    assert agrees(swarm)


async def test_a_joiner_that_is_restarted_in_the_middle_fetches_only_the_rest(
    tmp_path: Path, calls: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first process ends with ten chunks; meanwhile a newer state is served, and the begun one is still kept."""
    taken: list[tuple[StateAssembly, int]] = []
    swarms: list[Swarm] = []
    take = StateAssembly.take

    def count(self: StateAssembly, index: int) -> None:
        take(self, index)
        if "peer-4" in str(self.path):
            taken.append((self, index))
            if len(taken) == 10:
                swarms[0].peers[4].stop.demand()

    def watch(swarm: Swarm, event: ev.Event) -> None:
        swarms[:] = [swarm]
        if opens(event, 8):
            swarm.start_peer(4)
        if isinstance(event, ev.PeerLeft) and event.name == "peer-4" and len(swarm.peers) == 4:
            swarm.peers[5] = swarm.peers.pop(4)  # its first process
        if 5 in swarm.peers and 4 not in swarm.peers and isinstance(event, ev.RoundOpened) and event.round >= 12:
            swarm.start_peer(4)
        end_when_applied(swarm, event, "peer-4")

    monkeypatch.setattr(StateAssembly, "take", count)
    swarm = await with_donors(tmp_path, restless(tmp_path), watch)
    received = state_of(swarm.peers[4])
    assert received.round == 5
    assert received.found_bytes >= 9 * 4096
    total, found = (-(-count // 4096) for count in (received.bytes, received.found_bytes))
    before, after = ({index for assembly, index in taken if assembly is taken[which][0]} for which in (0, -1))
    assert len(after) == total - found
    assert not before & after
    assert agrees(swarm)


async def run_with_an_absence(folder: Path, config: RunConfig, calls: list[Any], seen: OnEvent | None = None) -> Swarm:
    """peer-3 leaves in round 3 and comes back, with its own checkpoint, in round 8; ends when it is up to date."""
    back = [0]

    def watch(swarm: Swarm, event: ev.Event) -> None:
        if seen is not None:
            seen(swarm, event)
        if opens(event, 3):
            swarm.peers[3].stop.request()
        if isinstance(event, ev.RoundOpened) and event.round >= 8 and not back[0]:
            assert swarm.peers[3].task.done()
            back[0] = event.round
            calls.clear()
            swarm.start_peer(3, resume=True)
        end_when_applied(swarm, event, "peer-3", after=back[0] or 10**9)

    return await with_donors(folder, config, watch)


def rounds_asked_of_the_coordinator(calls: list[Any], swarm: Swarm, name: str) -> list[int]:
    (peer,) = {event.peer for event in swarm.of(ev.PeerJoined) if event.name == name}  # type: ignore[attr-defined]
    return [call.round for call in calls if isinstance(call, pb.FetchPublishedRequest) and call.peer_id == peer]


async def test_a_peer_that_missed_rounds_replays_them_from_donors(tmp_path: Path, calls: list[Any]) -> None:
    swarm = await run_with_an_absence(tmp_path, restless(tmp_path, run={"rounds": 500, "min_peers": 2}), calls)
    member = swarm.peers[3]
    assert not [event for event in member.events if isinstance(event, ev.StateReceived)]
    choice = next(event for event in member.events if isinstance(event, ev.CatchingUp))
    assert not choice.takes_state
    assert choice.missed >= 4
    assert "instead of" in choice.reason
    assert agrees(swarm)
    applied = [event.round for event in member.events if isinstance(event, ev.RoundApplied)]
    assert applied == list(range(applied[0], applied[-1] + 1))
    asked = rounds_asked_of_the_coordinator(calls, swarm, "peer-3")
    assert not set(asked) & set(applied[:4]), "what it missed came from donors"


async def test_a_peer_that_missed_rounds_takes_the_state_where_that_is_cheaper(
    tmp_path: Path, calls: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leadership, "state_length", lambda tensors: 1)
    swarm = await run_with_an_absence(tmp_path, restless(tmp_path, run={"rounds": 500, "min_peers": 2}), calls)
    member = swarm.peers[3]
    choices = [event for event in member.events if isinstance(event, ev.CatchingUp)]
    assert choices[0].takes_state
    assert state_of(member).round >= 5
    assert not [call for call in calls if isinstance(call, pb.FetchStateRequest)], "the two donors gave it"
    assert agrees(swarm)


async def test_a_donor_cannot_lead_a_peer_to_another_history(
    tmp_path: Path, calls: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """peer-1 gives rounds with another claim in them and a chain hash that fits: anybody can compute one."""
    original = DeltaLog.get

    def forge(self: DeltaLog, round: int) -> tuple[pb.PublishedHeader, bytes] | None:
        kept = original(self, round)
        if kept is None or "peer-1" not in str(self.folder):
            return kept
        message, data = kept
        message.shards[0].tokens += 1
        config = tiny_config(tmp_path)
        blocks = make_manifest("x", config, parameter_shapes(config.model)).blocks
        header = published_from_proto(message, blocks)
        parent = message.plan.parent
        message.chain = chain_hash(parent, header.plan, header.shard_blocks, header.shards)
        return message, data

    monkeypatch.setattr(DeltaLog, "get", forge)
    swarm = await run_with_an_absence(tmp_path, restless(tmp_path, run={"rounds": 500, "min_peers": 2}), calls)
    member = swarm.peers[3]
    (warning,) = warnings_of(member)
    assert address_of(swarm, "peer-1") in warning
    assert "not that round of this run" in warning
    assert not [event for event in member.events if isinstance(event, ev.StateReceived)]
    assert agrees(swarm)


async def test_without_donors_a_late_joiner_gets_all_from_the_coordinator(tmp_path: Path, calls: list[Any]) -> None:
    def watch(swarm: Swarm, event: ev.Event) -> None:
        if opens(event, 7):
            swarm.start_peer(4)
        end_when_applied(swarm, event, "peer-4")

    swarm = Swarm(tmp_path, restless(tmp_path), watch)
    await swarm.start_coordinator()
    for number in (1, 2, 3):
        swarm.start_peer(number)
    await swarm.finish()
    assert state_of(swarm.peers[4]).donors == 1
    assert agrees(swarm)
    assert len(list((tmp_path / "coordinator" / "states").iterdir())) <= KEPT_STATES
    assert list((tmp_path / "peer-1" / "states").iterdir()) == []
    assert not [event for event in swarm.peers[4].events if isinstance(event, ev.CatchingUp)]


def test_a_donor_has_one_name_and_is_neither_the_coordinator_nor_nowhere() -> None:
    """Peers say where they are: the same place written in two ways must not be asked twice at a time."""
    sources = Sources(SwarmClient("192.0.2.1:7700", ByteLedger()), ByteLedger(), KernelBytes([]), lambda event: None)
    sources.tell(["h:7", "h:007", "192.0.2.1:7700", "192.0.2.1:07700", "127.0.0.1:22", "0.0.0.0:1", "x", "[::2]:1"])
    assert sources.donors == ("h:7", "[::2]:1")


# --- one donor by itself --------------------------------------------------------------------------------------------


def donor_in(folder: Path, clock: Callable[[], float] = lambda: 0.0) -> Donor:
    config = tiny_config(folder)
    manifest = make_manifest("run", config, parameter_shapes(config.model))
    log = DeltaLog(folder / "published", 1 << 20)
    log.open(0)
    donor = Donor(manifest, folder / "states", log, clock)
    donor.open()
    return donor


async def test_a_peer_refuses_what_only_the_coordinator_does_and_names_it(tmp_path: Path) -> None:
    donor = donor_in(tmp_path)
    service = PeerService(donor, "otter", "192.0.2.1:7700")
    digest = bytes.fromhex(donor.manifest.digest)
    async with (
        serve(service, LISTEN, ByteLedger()) as port,
        SwarmClient(f"127.0.0.1:{port}", ByteLedger()) as client,
    ):
        assert (await client.hello(pb.HelloRequest(protocol=PROTOCOL_VERSION))).manifest == donor.manifest.encoded
        with pytest.raises(RefusedError, match="protocol 99"):
            await client.hello(pb.HelloRequest(protocol=99))
        refused = (
            client.join(pb.JoinRequest()),
            client.follow(pb.FollowRequest()),
            client.submit(pb.Envelope(), b""),
            client.report(pb.ReportRequest()),
            client.leave(pb.LeaveRequest()),
            client.watch(pb.WatchRequest()),
            client.describe_state(pb.DescribeStateRequest(manifest_digest=digest)),
        )
        for call in refused:
            with pytest.raises(RefusedError, match=r"otter .*ask the coordinator at 192\.0\.2\.1:7700\.$"):
                await call
        with pytest.raises(RefusedError, match="another run"):
            await client.describe_state(pb.DescribeStateRequest(manifest_digest=b"x" * 32))
        with pytest.raises(RefusedError, match="state of round 5 is not kept here"):
            await anext(client.fetch_state(pb.FetchStateRequest(round=5)))
        with pytest.raises(RefusedError, match="does not keep round 5"):
            await client.fetch_published(pb.FetchPublishedRequest(round=5), 10)


async def test_donors_describe_the_same_state_alike_and_give_the_chunks_that_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_chunks, "CHUNK_BYTES", 4096)
    donors = [donor_in(tmp_path / name) for name in "ab"]
    consensus = fresh_consensus(donors[0].manifest)
    about, other = [await donor.keep_state(consensus, 5, b"c" * 32) for donor in donors]
    assert about == other
    one, two = [list(donor.chunks(pb.FetchStateRequest(round=5, first_chunk=2, chunks=3))) for donor in donors]
    assert [chunk.index for chunk in one] == [2, 3, 4]
    assert one == two
    rest = donors[0].chunks(pb.FetchStateRequest(round=5, first_chunk=2))
    assert len(list(rest)) == len(about.chunk_hashes) - 2
    assert list(donors[0].chunks(pb.FetchStateRequest(round=5, first_chunk=2**32 - 1, chunks=2**32 - 1))) == []


async def test_two_states_are_kept_and_one_that_is_being_fetched_a_little_longer(tmp_path: Path) -> None:
    now = [0.0]
    donor = donor_in(tmp_path, lambda: now[0])
    consensus = fresh_consensus(donor.manifest)

    def kept() -> list[int]:
        return sorted(int(path.stem.removeprefix("state-")) for path in donor.folder.iterdir())

    for round in (0, 5, 10):
        await donor.keep_state(consensus, round, b"")
    assert kept() == [5, 10]
    begun = donor.chunks(pb.FetchStateRequest(round=5))
    first = next(begun)
    donor.lease(10)
    await donor.keep_state(consensus, 15, b"")
    assert kept() == [5, 10, 15]
    assert donor.describe(5).round == 5  # type: ignore[union-attr]
    assert donor.describe(1).round == donor.describe().round == 15  # type: ignore[union-attr]
    now[0] += LEASE_SECONDS + 1
    await donor.keep_state(consensus, 20, b"")
    assert kept() == [15, 20]
    donor.lease(10)  # too late
    assert [chunk.index for chunk in (first, *begun)] == list(range(len(donor.describe().chunk_hashes)))  # type: ignore[union-attr]
    for round in range(25, 60, 5):
        donor.chunks(pb.FetchStateRequest(round=round - 5))
        await donor.keep_state(consensus, round, b"")
        assert len(kept()) <= MAX_STATES


@pytest.mark.parametrize(
    ("listen", "announce", "says"), [("192.0.2.7:1", None, "add --insecure"), ("0.0.0.0:1", None, "add --insecure")]
)
async def test_a_peer_too_listens_to_the_world_only_with_a_word_of_consent(
    listen: str, announce: str | None, says: str
) -> None:
    options = JoinOptions(coordinator="127.0.0.1:9", listen=listen, announce=announce, use_dht=False)
    with pytest.raises(ConfigError, match=says):
        await run_peer(options, lambda event: None, StopRequest())


async def test_a_peer_that_listens_everywhere_has_to_say_where_it_is_found() -> None:
    options = JoinOptions(coordinator="127.0.0.1:9", listen="0.0.0.0:1", insecure=True, use_dht=False)
    with pytest.raises(ConfigError, match="--announce"):
        await run_peer(options, lambda event: None, StopRequest())
