"""What is left when a coordinator goes: peers that wait, rounds that are replayed, runs that go on."""

import asyncio
import shutil
import socket
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.swarm_rig import LISTEN, Swarm, kill_coordinator, run_swarm, stop_all, stop_coordinator, tiny_config, when
from tsr_swarm.config.manifest import decode_manifest, make_manifest
from tsr_swarm.discovery.identity import load_identity
from tsr_swarm.errors import CheckpointError, ConfigError, RefusedError, RunError, SwarmError
from tsr_swarm.node.workspace import Workspace
from tsr_swarm.rounds.raft_state import RoundRecord
from tsr_swarm.storage import checkpoint
from tsr_swarm.storage.export import sample_checkpoint
from tsr_swarm.storage.journal import NAMES, Journal
from tsr_swarm.telemetry import events as ev
from tsr_swarm.telemetry.byte_counter import ByteCounter
from tsr_swarm.telemetry.fold import fold_all
from tsr_swarm.telemetry.recording import read_recording
from tsr_swarm.telemetry.snapshot import SwarmSnapshot
from tsr_swarm.train.llama import parameter_shapes
from tsr_swarm.transport.address import parse_address
from tsr_swarm.transport.client import SwarmClient
from tsr_swarm.wire.messages import lines_from_proto
from tsr_swarm.wire.v1 import swarm_pb2 as pb


async def test_a_coordinator_that_is_restarted_in_mid_round_goes_on_with_the_peers_it_had(tmp_path: Path) -> None:
    """Cut off when the first payload of round 3 is in; the peers offer the same work to its successor."""

    config = tiny_config(tmp_path, run={"rounds": 5, "min_peers": 2})
    swarm = Swarm(tmp_path, config, when(ev.PayloadReceived, 3, kill_coordinator))
    await swarm.start(2)
    await swarm.coordinator.task
    before = [event.round for event in swarm.closed()]
    await swarm.resume_coordinator()
    await swarm.finish()
    rounds = [event.round for event in swarm.closed()]
    assert before in ([1], [1, 2])
    rounds = rounds[len(before) :]
    assert rounds == list(range(rounds[0], 6))
    # Round 2 stands, and its successor tells of it where the cut came first; round 3 may be on disk already.
    assert rounds[0] in (len(before) + 1, len(before) + 2)
    assert all(event.included == 2 for event in swarm.closed())
    assert swarm.agrees()


def backed_up_and_cut_off(folder: Path, round: int) -> Callable[[Swarm, ev.Event], None]:
    """The coordinator's folder is copied when it has round 2, and it ends at once when ``round`` is closed."""

    def on_event(swarm: Swarm, event: ev.Event) -> None:
        if isinstance(event, ev.CheckpointSaved) and event.round == 2 and not (folder / "backup").exists():
            shutil.copytree(folder / "coordinator", folder / "backup")
        if isinstance(event, ev.RoundClosed) and event.round == round:
            swarm.coordinator.stop.terminate()

    return on_event


def set_back(folder: Path) -> None:
    shutil.rmtree(folder / "coordinator")
    shutil.move(folder / "backup", folder / "coordinator")


async def test_peers_follow_a_coordinator_that_was_set_back_to_an_older_state(tmp_path: Path) -> None:
    """Its folder is replaced by a copy from before round 3, as after a restored backup."""
    swarm = Swarm(
        tmp_path, tiny_config(tmp_path, run={"rounds": 8, "min_peers": 2}), backed_up_and_cut_off(tmp_path, 6)
    )
    await swarm.start(2)
    await swarm.coordinator.task
    set_back(tmp_path)
    swarm.on_event = lambda swarm, event: None
    for events in (swarm.events, *(member.events for member in swarm.peers.values())):
        events.clear()  # of rounds that are no more
    await swarm.start_coordinator(resume=True, listen=swarm.address)
    await swarm.finish()
    closed = swarm.closed()
    assert closed[0].round <= 5
    assert closed[-1].round == 8
    assert all(event.included == 2 for event in closed[-3:])
    assert swarm.agrees()


async def test_a_disk_that_takes_no_checkpoint_is_a_warning_and_the_run_goes_on(tmp_path: Path) -> None:
    """A file stands where the checkpoints' folder was: what a full disk does, on any file system."""

    def spoil(swarm: Swarm, event: ev.Event) -> None:
        checkpoints = tmp_path / "coordinator" / "checkpoints"
        if isinstance(event, ev.RoundOpened) and event.round == 2:
            checkpoints.rename(tmp_path / "away")
            checkpoints.write_text("in the way")
        if isinstance(event, ev.RoundOpened) and event.round == 4:
            checkpoints.unlink()

    swarm = await run_swarm(tmp_path, tiny_config(tmp_path, run={"rounds": 5}), on_event=spoil)
    assert [event.round for event in swarm.closed()] == [1, 2, 3, 4, 5]
    warnings = [event.message for event in swarm.of(ev.Warned)]
    assert any("checkpoint" in message.lower() and "Training goes on" in message for message in warnings)
    assert [event.round for event in swarm.of(ev.CheckpointSaved)][-1] == 5


async def test_a_peer_can_be_asked_to_leave_while_its_coordinator_is_gone(tmp_path: Path) -> None:
    """The coordinator goes when it has the peer's work of round 2, so the peer waits for a round that never closes."""

    swarm = Swarm(tmp_path, tiny_config(tmp_path, run={"min_peers": 2}), when(ev.PayloadReceived, 2, kill_coordinator))
    await swarm.start_coordinator()
    members = [swarm.start_peer(1), swarm.start_peer(2)]
    await swarm.coordinator.task
    for member in members:
        member.stop.request()
    await asyncio.wait_for(asyncio.gather(*(member.task for member in members)), 30)
    for member in members:
        assert isinstance(member.events[-1], ev.Left)
        assert len([event for event in member.events if isinstance(event, ev.Warned)]) < 6


async def test_peers_wait_for_the_successor_of_a_coordinator_that_was_stopped(tmp_path: Path) -> None:
    """It ends after its round, without waiting for peers. Nobody else votes: they wait for its successor."""

    swarm = Swarm(
        tmp_path, tiny_config(tmp_path, run={"rounds": 4, "min_peers": 2}), when(ev.RoundOpened, 2, stop_coordinator)
    )
    await swarm.start(2)
    await asyncio.wait_for(swarm.coordinator.task, 30)
    assert swarm.finished().reason == "it was asked to stop"
    assert any("the run waits until it is back" in event.message for event in swarm.of(ev.Warned))
    assert not any(member.task.done() for member in swarm.peers.values())
    await swarm.resume_coordinator()
    await swarm.finish()
    assert [event.round for event in swarm.closed()] == [1, 2, 3, 4]
    assert all(event.included == 2 for event in swarm.closed())


async def test_a_coordinator_that_is_stopped_goes_like_a_volunteer_where_others_vote(tmp_path: Path) -> None:
    """It finishes its round, and the two that can be dialled go on without it: no round is void or missing."""

    swarm = Swarm(
        tmp_path, tiny_config(tmp_path, run={"rounds": 5, "min_peers": 3}), when(ev.RoundOpened, 3, stop_coordinator)
    )
    await swarm.start(3, listening=2)
    await swarm.finish()
    assert [event.round for event in swarm.closed()] == [1, 2, 3]
    assert swarm.finished().reason == "it was asked to stop"
    assert not any("waits until it is back" in event.message for event in swarm.of(ev.Warned)), "others go on"
    assert swarm.leader() in ("peer-1", "peer-2")
    digests = swarm.digests()
    assert sorted(digests) == [1, 2, 3, 4, 5]
    assert all(len(seen) == 1 for seen in digests.values())
    for member in swarm.peers.values():
        applied = [event for event in member.events if isinstance(event, ev.RoundApplied)]
        assert [event.round for event in applied] == [1, 2, 3, 4, 5]
        assert all(event.included for event in applied)
        assert isinstance(member.events[-1], ev.Left)
        assert member.events[-1].reason == "the run has finished"


async def test_a_coordinator_that_was_set_back_takes_over_the_history_that_others_hold(tmp_path: Path) -> None:
    """Its folder is replaced by a copy from before round 3; two that vote know better than its backup."""
    config = tiny_config(tmp_path, run={"rounds": 500, "min_peers": 2}, round={"floor_seconds": 30.0})
    swarm = Swarm(tmp_path, config, backed_up_and_cut_off(tmp_path, 5))
    await swarm.start(2, listening=2)
    await swarm.coordinator.task
    set_back(tmp_path)
    before = len(swarm.events)
    await swarm.resume_coordinator()
    await swarm.until(lambda: any(isinstance(e, ev.Evaluated) and (e.round or 0) > 6 for e in swarm.events[before:]))
    await swarm.until(lambda: 7 in swarm.digests())  # its peers may be slower
    await swarm.end()
    digests = swarm.digests()
    assert {1, 2, 3, 4, 5, 6, 7} <= set(digests)
    assert all(len(seen) == 1 for seen in digests.values())
    for member in swarm.peers.values():
        applied = [event.round for event in member.events if isinstance(event, ev.RoundApplied)]
        assert applied == list(range(1, applied[-1] + 1)), "nobody was set back"


async def test_an_interrupted_run_goes_on_from_its_last_round(tmp_path: Path) -> None:
    """Stopped at once in round 3, with a checkpoint only every 100 rounds: the rest is replayed from the journal."""
    config = tiny_config(tmp_path, checkpoint={"every": 100}, run={"rounds": 5})
    before = await run_swarm(tmp_path, config, on_event=when(ev.PayloadReceived, 3, stop_all))
    done = {event.round: event.digest for event in before.closed()}
    assert max(done) < 4

    swarm = Swarm(tmp_path, replace(config, run=replace(config.run, min_peers=3)))
    await swarm.start(3, resume=True)
    await swarm.finish()
    rounds = [event.round for event in swarm.closed()]
    assert rounds[-1] == 5
    assert rounds == list(range(rounds[0], 6))
    assert rounds[0] in (max(done, default=0) + 1, max(done, default=0) + 2)
    assert swarm.agrees()
    for member in swarm.peers.values():
        assert not [e for e in member.events if isinstance(e, ev.StateReceived)], "its own checkpoint was enough"
    kept = [stamped.event for stamped in read_recording(tmp_path / "coordinator" / "events.jsonl")]
    shown = [event.round for event in kept if isinstance(event, ev.RoundClosed)]
    assert shown == [*done, *rounds], "what a monitor is told goes on after the restart"
    whole = fold_all(SwarmSnapshot(), read_recording(tmp_path / "coordinator" / "events.jsonl"))
    end = kept[-1]
    assert isinstance(end, ev.RunFinished)
    assert (end.rounds, end.first_loss, end.last_loss) == (5, whole.first_loss, whole.loss)
    assert (end.wire_bytes, end.dense_bytes) == (whole.wire_bytes, whole.dense_bytes), "of the whole run"
    first = next(event.loss for event in before.events if isinstance(event, ev.Evaluated))
    assert end.first_loss == first


async def test_a_monitor_hears_the_end_of_a_run_that_has_one_voter(tmp_path: Path) -> None:
    """It asks again only once the end was told: the coordinator is still there to answer."""
    swarm = Swarm(tmp_path, tiny_config(tmp_path, run={"rounds": 1, "min_peers": 1}))
    await swarm.start_coordinator()
    async with SwarmClient(swarm.address, ByteCounter()) as client:
        _, newest = lines_from_proto(await client.watch(pb.WatchRequest()))
        swarm.start_peer(1)
        await swarm.until(lambda: any(isinstance(event, ev.RunFinished) for event in swarm.events))
        lines, _ = lines_from_proto(await client.watch(pb.WatchRequest(after=newest)))
    assert isinstance(ev.decode(lines[-1]), ev.RunFinished)
    await swarm.finish()


async def test_a_state_that_was_taken_is_a_checkpoint_that_outlives_a_kill(tmp_path: Path) -> None:
    """The coordinator is away while two others go on. It takes a state and is cut off: it comes back all the same."""

    def cut_off_with_a_state(swarm: Swarm, event: ev.Event) -> None:
        if isinstance(event, ev.StateReceived):
            swarm.coordinator.stop.terminate()

    # Bases that are new in every round make a few rounds more bytes than a state; there are enough of them.
    config = tiny_config(
        tmp_path,
        run={"rounds": 400, "min_peers": 3},
        periods={"k_r": 3, "k_r_embedding": 3},
        checkpoint={"every": 1000},
    )
    swarm = Swarm(tmp_path, config, when(ev.RoundOpened, 5, kill_coordinator))
    await swarm.start(3, listening=2)
    await swarm.coordinator.task
    swarm.on_event = cut_off_with_a_state
    await swarm.until(lambda: max(swarm.digests(), default=0) >= 16)
    await swarm.start_coordinator(resume=True, listen=swarm.address)
    await swarm.coordinator.task
    (taken,) = [event.round for event in swarm.of(ev.StateReceived)]
    assert taken > 5

    before = len(swarm.events)
    await swarm.resume_coordinator()

    def scored() -> list[int]:
        return [event.round or 0 for event in swarm.events[before:] if isinstance(event, ev.Evaluated)]

    await swarm.until(lambda: max(scored(), default=0) > taken)
    assert scored()[0] == taken, "it went on from the state that it had taken; later ones are told by others, too"
    await swarm.end()
    assert swarm.agrees()


async def test_a_proposal_that_only_one_voter_accepted_and_has_lost_does_not_stop_the_run(tmp_path: Path) -> None:
    """Its journal goes further than the others', who would elect it, and what it would propose is on no disk.

    It asks for a leader where the others were before, and nobody answers there: they are done long before it tries
    another place, and wait for it.
    """
    config = tiny_config(tmp_path, run={"rounds": 8, "min_peers": 2})
    swarm = Swarm(tmp_path, config, when(ev.RoundOpened, 4, stop_all))
    await swarm.start(2, listening=2)
    await asyncio.gather(*(member.task for member in swarm.members))

    folder = tmp_path / "coordinator"
    manifest = decode_manifest(checkpoint.load_latest(folder / "checkpoints").document["manifest"].encode())
    me = load_identity(folder / "identity.key").peer_id
    journal = Journal(folder, me, manifest.digest)
    ledger = journal.load(print)
    assert len(ledger.base.voters) == 3
    tail = RoundRecord(ledger.base.round + 1, "5" * 64, ledger.base.chain, ledger.base.voters)
    term = ledger.term + 1
    journal.write(replace(ledger, term=term, voted_for=me, tail=tail, tail_term=term))

    swarm.on_event = lambda swarm, event: None
    with ExitStack() as stack:
        for address in {event.address for event in swarm.of(ev.PeerJoined)}:
            stack.enter_context(socket.create_server(parse_address(address)))
        await swarm.start_coordinator(resume=True, listen=swarm.address)
        assert any("does not lead until" in event.message for event in swarm.of(ev.Warned))
        for number in (1, 2):
            swarm.start_peer(number, listen=LISTEN, resume=True)
        await swarm.finish()
    digests = swarm.digests()
    assert max(digests) == 8
    assert all(len(seen) == 1 for seen in digests.values())


@pytest.mark.parametrize("lost", ["identity.key", "journal"])
async def test_a_node_of_a_begun_run_that_has_lost_its_key_or_journal_does_not_begin_afresh(
    tmp_path: Path, lost: str
) -> None:
    config = tiny_config(tmp_path, run={"rounds": 2, "min_peers": 2})
    await run_swarm(tmp_path, config, peers=2, listening=1)
    names = NAMES if lost == "journal" else [lost]
    for folder in ("coordinator", "peer-1"):
        for path in [path for name in names for path in (tmp_path / folder).rglob(name)]:
            path.unlink()

    swarm = Swarm(tmp_path, replace(config, run=replace(config.run, rounds=3)))
    with pytest.raises(SwarmError, match="holds a run but no journal" if lost == "journal" else "is missing, but its"):
        await swarm.start_coordinator(resume=True)
    assert not (tmp_path / "coordinator" / lost).exists()


async def test_a_peer_that_has_lost_its_key_or_journal_does_not_begin_afresh(tmp_path: Path) -> None:
    def spoil(swarm: Swarm, event: ev.Event) -> None:
        if isinstance(event, ev.RoundClosed) and event.round == 1:
            swarm.peers[1].stop.terminate()

    config = tiny_config(tmp_path, run={"rounds": 3, "min_peers": 2})
    swarm = Swarm(tmp_path, config, spoil)
    await swarm.start_coordinator()
    for number in (1, 2):
        swarm.start_peer(number, listen=LISTEN if number == 1 else None)
    await swarm.peers[1].task
    folder = tmp_path / "peer-1"
    journals = [path for name in NAMES for path in folder.rglob(name)]
    kept = {path: path.read_bytes() for path in [*journals, folder / "identity.key"]}
    for path in journals:
        path.unlink()
    with pytest.raises(RunError, match=r"holds rounds but no journal"):
        await swarm.start_peer(1, listen=LISTEN).task
    for path in journals:
        path.write_bytes(kept[path])
    (folder / "identity.key").unlink()
    with pytest.raises(ConfigError, match=r"identity\.key is missing, but its folder holds what this node did"):
        await swarm.start_peer(1, listen=LISTEN).task
    for member in swarm.members:
        member.stop.terminate()
    await asyncio.gather(*(member.task for member in swarm.members), return_exceptions=True)


async def test_a_run_of_another_configuration_is_not_resumed(tmp_path: Path) -> None:
    await run_swarm(tmp_path, tiny_config(tmp_path, run={"rounds": 1}))
    changed = Swarm(tmp_path, tiny_config(tmp_path, optimizer={"lr": 0.5}))
    with pytest.raises(
        ConfigError, match=r"begun with optimizer\.lr = 0\.01 \(now 0\.5\); resume with .* in another checkpoint\.dir"
    ):
        await changed.start_coordinator(resume=True)
    fresh = Swarm(tmp_path, tiny_config(tmp_path))
    with pytest.raises(ConfigError, match="already holds a run; add --resume"):
        await fresh.start_coordinator()


async def test_resuming_from_nothing_or_from_damage_is_one_sentence(tmp_path: Path) -> None:
    swarm = Swarm(tmp_path, tiny_config(tmp_path))
    with pytest.raises(CheckpointError, match="holds no run; start it without --resume"):
        await swarm.start_coordinator(resume=True)
    await run_swarm(tmp_path, tiny_config(tmp_path, run={"rounds": 1}))
    for file in (tmp_path / "coordinator" / "checkpoints").rglob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(CheckpointError, match="damaged"):
        await swarm.start_coordinator(resume=True)


async def test_a_peers_checkpoint_of_another_run_or_kind_is_refused_by_what_it_is(tmp_path: Path) -> None:
    first = tiny_config(tmp_path, run={"rounds": 1}, optimizer={"local_space": "mixed"})
    await run_swarm(tmp_path, first, peers=1)
    folder = tmp_path / "peer-1"
    shapes = parameter_shapes(first.model)
    begun = checkpoint.load_latest(tmp_path / "coordinator" / "checkpoints")
    same = decode_manifest(str(begun.document["manifest"]).encode())
    other = make_manifest("0ther", first, shapes)
    for manifest, kind, says in (
        (same, "full", 'is of local_space "core", not "full"; join without --resume'),
        (other, "core", rf"another run \({same.digest[:12]}\) than 'tiny' \({other.digest[:12]}\)"),
    ):
        workspace = Workspace(manifest, kind, torch.device("cpu"), (), folder)
        with pytest.raises(RefusedError, match=says):
            workspace.load(lambda event: None)


async def test_a_peers_folder_has_no_model_to_sample(tmp_path: Path) -> None:
    await run_swarm(tmp_path, tiny_config(tmp_path, run={"rounds": 1}), peers=1)
    with pytest.raises(CheckpointError, match=r"is not a coordinator's checkpoint; name the checkpoint\.dir of a run"):
        sample_checkpoint(tmp_path / "peer-1", "", length=1, temperature=1, seed=0)
    written = sample_checkpoint(tmp_path / "coordinator", "caf\udce9", length=1, temperature=1, seed=0)
    assert written.startswith("caf\ufffd"), "the byte that was typed, though no UTF-8"
