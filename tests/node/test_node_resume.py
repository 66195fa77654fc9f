"""What is left when a coordinator goes: peers that wait, rounds that are replayed, runs that go on."""

import asyncio
import shutil
import socket
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.swarm_rig import LISTEN, Swarm, kill_coordinator, run_swarm, stop_all, stop_coordinator, tiny_config, when
from tsr_swarm.config.manifest import decode_manifest, make_manifest
from tsr_swarm.config.run import RunConfig
from tsr_swarm.discovery.identity import load_identity
from tsr_swarm.errors import CheckpointError, ConfigError, RefusedError, RunError
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
    swarm = await Swarm(tmp_path, config, when(ev.PayloadReceived, 3, kill_coordinator)).start(2)
    await swarm.coordinator.task
    before = swarm.rounds()
    await swarm.resume_coordinator()
    await swarm.finish()
    rounds = swarm.rounds()
    assert before in ([1], [1, 2])
    rounds = rounds[len(before) :]
    assert rounds == list(range(rounds[0], 6))
    # Round 2 stands, and its successor tells of it where the cut came first; round 3 may be on disk already.
    assert rounds[0] in (len(before) + 1, len(before) + 2)
    assert all(event.included == 2 for event in swarm.closed())


async def set_back(folder: Path, config: RunConfig, last: int, listening: int = 0) -> Swarm:
    """A swarm of two peers whose coordinator ended at once after round ``last``; its folder is that of round 2."""

    def on_event(swarm: Swarm, event: ev.Event) -> None:
        if isinstance(event, ev.CheckpointSaved) and event.round == 2 and not (folder / "backup").exists():
            shutil.copytree(folder / "coordinator", folder / "backup")
        if isinstance(event, ev.RoundClosed) and event.round == last:
            swarm.coordinator.stop.terminate()

    swarm = await Swarm(folder, config, on_event).start(2, listening)
    await swarm.coordinator.task
    shutil.rmtree(folder / "coordinator")
    shutil.move(folder / "backup", folder / "coordinator")
    return swarm


async def test_peers_follow_a_coordinator_that_was_set_back_to_an_older_state(tmp_path: Path) -> None:
    """Its folder is replaced by a copy from before round 3, as after a restored backup."""
    config = tiny_config(tmp_path, run={"rounds": 8, "min_peers": 2})
    swarm = await set_back(tmp_path, config, 6)
    for member in swarm.members:
        member.events.clear()  # of rounds that are no more
    await swarm.resume_coordinator()
    await swarm.finish()
    closed = swarm.closed()
    assert closed[0].round <= 5
    assert closed[-1].round == 8
    assert all(event.included == 2 for event in closed[-3:])


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
    assert swarm.rounds() == [1, 2, 3, 4, 5]
    assert any("checkpoint" in told.lower() and "Training goes on" in told for told in swarm.warnings())
    assert [event.round for event in swarm.of(ev.CheckpointSaved)][-1] == 5


async def test_a_peer_can_be_asked_to_leave_while_its_coordinator_is_gone(tmp_path: Path) -> None:
    """It goes when it has the work of round 2, so its peers wait for a round that never closes."""
    swarm = await Swarm(
        tmp_path, tiny_config(tmp_path, run={"min_peers": 2}), when(ev.PayloadReceived, 2, kill_coordinator)
    ).start(2)
    await swarm.coordinator.task
    for member in swarm.peers.values():
        member.stop.request()
    await swarm.finish()
    for member in swarm.peers.values():
        assert isinstance(member.events[-1], ev.Left)
        assert len(member.warnings()) < 6


async def test_peers_wait_for_the_successor_of_a_coordinator_that_was_stopped(tmp_path: Path) -> None:
    """It ends after its round, without waiting for peers. Nobody else votes: they wait for its successor."""
    config = tiny_config(tmp_path, run={"rounds": 4, "min_peers": 2})
    swarm = await Swarm(tmp_path, config, when(ev.RoundOpened, 2, stop_coordinator)).start(2)
    await asyncio.wait_for(swarm.coordinator.task, 30)
    assert swarm.finished().reason == "it was asked to stop"
    assert any("the run waits until it is back" in message for message in swarm.warnings())
    assert not any(member.task.done() for member in swarm.peers.values())
    await swarm.resume_coordinator()
    await swarm.finish()
    assert swarm.rounds() == [1, 2, 3, 4]
    assert all(event.included == 2 for event in swarm.closed())


async def test_a_coordinator_that_is_stopped_goes_like_a_volunteer_where_others_vote(tmp_path: Path) -> None:
    """It finishes its round, and the two that can be dialled go on without it: no round is void or missing."""
    swarm = await run_swarm(
        tmp_path, tiny_config(tmp_path, run={"rounds": 5}), 3, when(ev.RoundOpened, 3, stop_coordinator), listening=2
    )
    assert swarm.rounds() == [1, 2, 3]
    assert swarm.finished().reason == "it was asked to stop"
    assert not any("waits until it is back" in message for message in swarm.warnings()), "others go on"
    assert swarm.leader() in ("peer-1", "peer-2")
    assert sorted(swarm.digests()) == [1, 2, 3, 4, 5]
    for member in swarm.peers.values():
        applied = [(event.round, event.included) for event in member.of(ev.RoundApplied)]
        assert applied == [(round, True) for round in (1, 2, 3, 4, 5)]
        assert [event.reason for event in member.of(ev.Left)] == ["the run has finished"]


async def test_a_coordinator_that_was_set_back_takes_over_the_history_that_others_hold(tmp_path: Path) -> None:
    """Its folder is replaced by a copy from before round 3; two that vote know better than its backup."""
    config = tiny_config(tmp_path, run={"rounds": 500, "min_peers": 2}, round={"floor_seconds": 30.0})
    swarm = await set_back(tmp_path, config, 5, listening=2)
    before = len(swarm.of(ev.Evaluated))
    await swarm.resume_coordinator()
    await swarm.until(lambda: any((event.round or 0) > 6 for event in swarm.of(ev.Evaluated)[before:]))
    await swarm.until(lambda: 7 in swarm.digests())  # its peers may be slower
    await swarm.end()
    assert {1, 2, 3, 4, 5, 6, 7} <= set(swarm.digests())
    for member in swarm.peers.values():
        applied = [event.round for event in member.of(ev.RoundApplied)]
        assert applied == list(range(1, applied[-1] + 1)), "nobody was set back"


async def test_an_interrupted_run_goes_on_from_its_last_round(tmp_path: Path) -> None:
    """Stopped at once in round 3, with a checkpoint only every 100 rounds: the rest is replayed from the journal."""
    config = tiny_config(tmp_path, checkpoint={"every": 100}, run={"rounds": 5})
    before = await run_swarm(tmp_path, config, on_event=when(ev.PayloadReceived, 3, stop_all))
    done = {event.round: event.digest for event in before.closed()}
    assert max(done) < 4

    swarm = await Swarm(tmp_path, replace(config, run=replace(config.run, min_peers=3))).start(3, resume=True)
    await swarm.finish()
    rounds = swarm.rounds()
    assert rounds[-1] == 5
    assert rounds == list(range(rounds[0], 6))
    assert rounds[0] in (max(done, default=0) + 1, max(done, default=0) + 2)
    for member in swarm.peers.values():
        assert not member.of(ev.StateReceived), "its own checkpoint was enough"
    kept = swarm.recorded()
    shown = [event.round for event in kept if isinstance(event, ev.RoundClosed)]
    assert shown == [*done, *rounds], "what a monitor is told goes on after the restart"
    whole = fold_all(SwarmSnapshot(), read_recording(tmp_path / "coordinator" / "events.jsonl"))
    end = kept[-1]
    assert isinstance(end, ev.RunFinished)
    assert (end.rounds, end.first_loss, end.last_loss) == (5, whole.first_loss, whole.loss)
    assert (end.wire_bytes, end.dense_bytes) == (whole.wire_bytes, whole.dense_bytes), "of the whole run"
    assert end.first_loss == before.of(ev.Evaluated)[0].loss


async def test_a_monitor_sees_the_end_of_a_run_that_has_one_voter(tmp_path: Path) -> None:
    """It asks again only once the end was told: the coordinator is still there to answer."""
    swarm = await Swarm(tmp_path, tiny_config(tmp_path, run={"rounds": 1, "min_peers": 1})).start()
    async with SwarmClient(swarm.address, ByteCounter()) as client:
        _, newest = lines_from_proto(await client.watch(pb.WatchRequest()))
        swarm.start_peer(1)
        await swarm.until(lambda: bool(swarm.of(ev.RunFinished)))
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
    swarm = await Swarm(tmp_path, config, when(ev.RoundOpened, 5, kill_coordinator)).start(3, listening=2)
    await swarm.coordinator.task
    swarm.on_event = cut_off_with_a_state
    await swarm.until(lambda: max(swarm.digests(), default=0) >= 16)
    await swarm.start_coordinator(resume=True, listen=swarm.address)
    await swarm.coordinator.task
    (taken,) = [event.round for event in swarm.of(ev.StateReceived)]
    assert taken > 5

    before = len(swarm.of(ev.Evaluated))
    await swarm.resume_coordinator()
    await swarm.until(lambda: any((event.round or 0) > taken for event in swarm.of(ev.Evaluated)[before:]))
    assert swarm.of(ev.Evaluated)[before].round == taken, "it went on from the state that it had taken"
    await swarm.end()


async def test_a_proposal_that_only_one_voter_accepted_and_has_lost_does_not_stop_the_run(tmp_path: Path) -> None:
    """Its journal goes further than the others', who would elect it, and what it would propose is on no disk.

    It asks for a leader where the others were before, and nobody answers there: they are done long before it tries
    another place, and wait for it.
    """
    config = tiny_config(tmp_path, run={"rounds": 8, "min_peers": 2})
    swarm = await Swarm(tmp_path, config, when(ev.RoundOpened, 4, stop_all)).start(2, listening=2)
    await asyncio.gather(*(member.task for member in swarm.members))

    folder = tmp_path / "coordinator"
    manifest = decode_manifest(checkpoint.load_latest(folder / "checkpoints").document["manifest"].encode())
    me = load_identity(folder / "identity.key").peer_id
    journal = Journal(folder, me, manifest.digest)
    hard_state = journal.load(print)
    base, term = hard_state.base, hard_state.term + 1
    assert len(base.voters) == 3
    tail = RoundRecord(base.round + 1, "5" * 64, base.chain, base.voters)
    journal.write(replace(hard_state, term=term, voted_for=me, tail=tail, tail_term=term))

    swarm.on_event = lambda swarm, event: None
    with ExitStack() as stack:
        for address in {event.address for event in swarm.of(ev.PeerJoined)}:
            stack.enter_context(socket.create_server(parse_address(address)))
        await swarm.start_coordinator(resume=True, listen=swarm.address)
        assert any("does not lead until" in message for message in swarm.warnings())
        for number in (1, 2):
            swarm.start_peer(number, listen=LISTEN, resume=True)
        await swarm.finish()
    assert max(swarm.digests()) == 8


async def test_a_coordinator_of_a_begun_run_that_has_lost_its_key_does_not_begin_afresh(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, run={"rounds": 1})
    await run_swarm(tmp_path, config, peers=1)
    (key := tmp_path / "coordinator" / "identity.key").unlink()
    with pytest.raises(ConfigError, match=r"identity\.key is missing, but its folder holds what this node did"):
        await Swarm(tmp_path, config).start_coordinator(resume=True)
    assert not key.exists()


async def test_a_peer_that_has_lost_its_key_or_journal_does_not_begin_afresh(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, run={"rounds": 3, "min_peers": 2})
    kill = when(ev.RoundClosed, 1, lambda swarm: swarm.peers[1].stop.terminate())
    swarm = await Swarm(tmp_path, config, kill).start(2, listening=1)
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
    stop_all(swarm)
    await asyncio.gather(*(member.task for member in swarm.members), return_exceptions=True)


async def test_a_run_of_another_configuration_is_not_resumed(tmp_path: Path) -> None:
    await run_swarm(tmp_path, tiny_config(tmp_path, run={"rounds": 1}))
    changed = Swarm(tmp_path, tiny_config(tmp_path, optimizer={"lr": 0.5}))
    with pytest.raises(
        ConfigError, match=r"begun with optimizer\.lr = 0\.01 \(now 0\.5\); resume with .* in another checkpoint\.dir"
    ):
        await changed.start_coordinator(resume=True)


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
