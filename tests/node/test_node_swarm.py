"""Whole swarms in one event loop: what every run promises, and what single faults may cost."""

import asyncio
import re
import socket
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from tests.swarm_rig import DEADLINE_SECONDS, Member, Swarm, run_swarm, tiny_config, when
from tsr_swarm.config.run import OptimizerConfig, PeriodsConfig, WireConfig
from tsr_swarm.errors import ConfigError, PeerError, RefusedError, RunError, SwarmError, UnreachableError
from tsr_swarm.node import leader
from tsr_swarm.node.coordinator import EVENTS_FILE
from tsr_swarm.node.workspace import Workspace
from tsr_swarm.optim.consensus import Consensus
from tsr_swarm.optim.periods import plan_round
from tsr_swarm.telemetry import events as ev
from tsr_swarm.telemetry.byte_counter import ByteCounter
from tsr_swarm.train.trainer import StepProgress, Trainer
from tsr_swarm.transport.client import SwarmClient
from tsr_swarm.wire.messages import open_envelope
from tsr_swarm.wire.v1 import swarm_pb2 as pb


@pytest.mark.parametrize(
    "optimizer",
    [
        {"local_space": "core"},
        {"local_space": "full", "aim": "displacement"},
        {"local_space": "full", "aim": "gradient"},
    ],
    ids=lambda optimizer: "-".join(optimizer.values()),
)
async def test_every_peer_has_the_same_digest_after_every_round_and_the_loss_falls(
    tmp_path: Path, optimizer: dict[str, object]
) -> None:
    swarm = await run_swarm(tmp_path, tiny_config(tmp_path, optimizer=optimizer, run={"rounds": 5}))
    closed = swarm.closed()
    assert [(event.round, event.included, event.late) for event in closed] == [(n, 3, 0) for n in range(1, 6)]
    assert len(swarm.of(ev.DigestReported)) == 15
    finished = swarm.finished()
    assert finished.last_loss < finished.first_loss - 0.3
    assert finished.digest == closed[-1].digest
    assert finished.dense_bytes > 5 * finished.wire_bytes


async def test_coordinator_and_peers_say_once_what_of_the_data_is_not_read(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, run={"rounds": 2}, data={"parts": 2})
    (tmp_path / "text" / "a.parquet").write_bytes(b"PAR1\x15\x04")
    swarm = await run_swarm(tmp_path, config, peers=1)
    assert isinstance(swarm.events[0], ev.RunStarted), "the first line of --json has the address"
    for member in swarm.members:
        assert len([message for message in member.warnings() if "a.parquet" in message]) == 1


async def test_core_and_full_peers_share_a_run(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, optimizer={"local_space": "mixed"}, run={"min_peers": 2})
    swarm = await Swarm(tmp_path, config).start()
    for number, local_space in ((1, "core"), (2, "full")):
        swarm.start_peer(number, local_space=local_space)
    await swarm.finish()
    assert all(event.included == 2 for event in swarm.closed())


async def test_the_same_seed_gives_the_same_digests_however_many_shards_a_round_has(tmp_path: Path) -> None:
    digests = set[tuple[str, ...]]()
    for shards in (1, 3):
        folder = tmp_path / f"{shards}"
        swarm = await run_swarm(folder, tiny_config(folder, round={"shards": shards}, run={"rounds": 5}))
        digests.add(tuple(event.digest for event in swarm.closed()))
    assert len(digests) == 1


async def test_a_peer_that_vanishes_and_one_that_joins_cost_no_round(tmp_path: Path) -> None:
    def faults(swarm: Swarm, event: ev.Event) -> None:
        if isinstance(event, ev.RoundOpened) and event.round == 3:
            swarm.peers.pop(2).stop.terminate()  # at once, without a goodbye
        if isinstance(event, ev.RoundOpened) and event.round == 5:
            swarm.start_peer(4)

    config = tiny_config(tmp_path, run={"rounds": 14}, periods={"k_x": 6, "k_r": 12, "k_r_embedding": 12})
    swarm = await run_swarm(tmp_path, config, on_event=faults)
    assert swarm.rounds() == list(range(1, 15))
    assert not swarm.of(ev.RoundVoid)
    assert [event.name for event in swarm.of(ev.PeerLeft)][:1] == ["peer-2"]
    assert "peer-4" in {event.name for event in swarm.of(ev.DigestReported)}, "the newcomer applied a round"
    assert swarm.closed()[-1].included == 3


async def test_late_work_is_not_merged_and_goes_out_with_a_later_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One peer is held in the middle of its round 2 until that round has closed without it."""
    closed, held = threading.Event(), threading.Event()
    slow: list[Trainer] = []
    train = Trainer.train

    def hold(self: Trainer, plan, should_stop, on_step):  # type: ignore[no-untyped-def]
        if plan.round == 2:
            slow.append(self)
        if plan.round != 2 or self is not slow[0]:
            return train(self, plan, should_stop, on_step)
        taken: list[StepProgress] = []

        def stop_after_two_steps() -> bool:
            if len(taken) == 2:
                held.set()
                assert closed.wait(60)
                while not should_stop():  # until this peer knows it too
                    closed.clear()
                    closed.wait(0.02)
            return bool(should_stop())

        work = train(self, plan, stop_after_two_steps, taken.append)
        assert work is None
        state = self.space.state_dict()
        assert sum(float(state[key].abs().sum()) for key in state if "displacement" in key) > 0, "it keeps its work"
        return work

    monkeypatch.setattr(Trainer, "train", hold)
    config = tiny_config(tmp_path, round={"floor_seconds": 2.0}, run={"rounds": 4})
    tell = when(ev.PhaseChanged, 2, lambda swarm: closed.set(), "apply")
    swarm = await run_swarm(tmp_path, config, on_event=tell)
    assert held.is_set()
    by_round = {event.round: event for event in swarm.closed()}
    assert (by_round[2].included, by_round[2].late) == (2, 1)
    assert by_round[3].included == 3
    assert by_round[3].tokens == by_round[1].tokens, "two steps were carried over, one was still to take"


async def test_a_claim_of_more_tokens_than_a_round_has_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mean is weighted by tokens, so a claim of 2^40 would replace it."""
    train = Trainer.train

    def boast(self: Trainer, plan, should_stop, on_step):  # type: ignore[no-untyped-def]
        work = train(self, plan, should_stop, on_step)
        return replace(work, tokens=2**40) if work is not None and plan.round == 2 else work

    monkeypatch.setattr(Trainer, "train", boast)
    config = tiny_config(tmp_path, run={"rounds": 3}, round={"ceiling_seconds": 3.0, "floor_seconds": 1.0})
    swarm = await run_swarm(tmp_path, config, peers=1)
    assert {(event.round, event.reason) for event in swarm.of(ev.PayloadRefused)} == {(2, "tokens")}
    assert [event.included for event in swarm.closed()] == [1, 0, 1]
    assert len(swarm.of(ev.RoundVoid)) == 1


@pytest.mark.parametrize("is_default", [False, True])
async def test_a_round_that_closes_during_an_upload_costs_that_peer_one_round_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_default: bool
) -> None:
    """By default, work that missed its round waits for its bases: they are drawn anew every round."""
    submit, stuck = SwarmClient.submit, list[str]()

    async def stall(self: SwarmClient, envelope: pb.Envelope, data: bytes) -> pb.SubmitReply:
        header = open_envelope(envelope)
        if header.round == 2 and header.peer_id in (*stuck, header.peer_id)[:1]:  # of whoever comes first
            stuck.append(header.peer_id)
            await asyncio.Event().wait()
        return await submit(self, envelope, data)

    monkeypatch.setattr(SwarmClient, "submit", stall)
    config = tiny_config(tmp_path, round={"floor_seconds": 1.0}, run={"rounds": 7})
    if is_default:
        config = replace(config, optimizer=OptimizerConfig(), periods=PeriodsConfig(k_x=3), wire=WireConfig())
    swarm = await run_swarm(tmp_path, config)
    assert [event.included for event in swarm.closed()] == [3, 2, 3, 3, 3, 3, 3]
    finished = swarm.finished()
    assert finished.last_loss < finished.first_loss - 0.3
    if is_default:
        (refresh,) = {event.refresh for event in swarm.of(ev.RoundOpened)}
        assert refresh > 0, "every round has new bases"
        sent = {kind for event in swarm.closed() for kind in event.wire_bytes["sent"]}
        assert sent == {"core", "dense", "control"}, "and nothing is sent for them"


async def test_a_peer_whose_weights_differ_is_named_and_fetches_the_state_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, spoiled = Trainer.apply, list[Trainer]()

    def apply(self: Trainer, plan, published, void, included):  # type: ignore[no-untyped-def]
        digest = original(self, plan, published, void, included)
        if plan.round == 2 and not spoiled:
            spoiled.append(self)
            name = self.manifest.blocks[0].name
            self.consensus.weights[name] = self.consensus.weights[name] * 1.5
            return self.consensus.digest()
        return digest

    monkeypatch.setattr(Trainer, "apply", apply)
    swarm = await Swarm(tmp_path, tiny_config(tmp_path, run={"rounds": 6}), differing={2}).start(3)
    await swarm.finish()
    (mismatch,) = swarm.of(ev.DigestMismatch)
    assert mismatch.round == 2
    assert mismatch.name in ("peer-1", "peer-2", "peer-3")
    assert len(swarm.closed()) == 6
    assert sorted(len(member.of(ev.StateReceived)) for member in swarm.peers.values()) == [1, 1, 2]


async def test_an_empty_data_folder_is_refused_before_anything_starts(tmp_path: Path) -> None:
    (empty := tmp_path / "empty").mkdir()
    swarm = Swarm(tmp_path, tiny_config(tmp_path, data={"source": str(empty)}))
    with pytest.raises(ConfigError, match=r"empty"):
        await swarm.start_coordinator()
    assert not (tmp_path / "coordinator").exists()


async def test_a_port_or_folder_in_use_is_one_sentence(tmp_path: Path) -> None:
    swarm, other = Swarm(tmp_path, tiny_config(tmp_path)), Swarm(tmp_path, tiny_config(tmp_path / "other"))
    await swarm.start_coordinator()
    with pytest.raises(RunError, match="the port is in use"):
        await other.start_coordinator(listen=swarm.address)
    await other.start_coordinator()  # what the first try left does not count as a run
    await other.end()
    with pytest.raises(RunError, match="Another process is using"):
        await Swarm(tmp_path, swarm.config).start_coordinator(resume=True)
    await swarm.end()


async def test_a_coordinator_that_is_not_there_is_reported_at_once(tmp_path: Path) -> None:
    swarm = Swarm(tmp_path, tiny_config(tmp_path), address="127.0.0.1:9")
    with pytest.raises(UnreachableError, match=r"127\.0\.0\.1:9"):
        await asyncio.wait_for(swarm.start_peer(1).task, 30)


async def test_strangers_and_garbage_do_not_disturb_a_run(tmp_path: Path) -> None:
    """Another protocol, another manifest, a wrong envelope, random bytes on the port: all refused, no round lost."""
    attacks: list[asyncio.Task[None]] = []

    async def attack(address: str) -> None:
        async with SwarmClient(address, ByteCounter()) as client:
            with pytest.raises(RefusedError, match="protocol 99"):
                await client.hello(pb.HelloRequest(protocol=99, package_version="9.9"))
            with pytest.raises(RefusedError, match="another run"):
                await client.join(
                    pb.JoinRequest(manifest_digest=b"x" * 32, peer_id="0" * 32, name="e", local_space="core")
                )
            with pytest.raises(PeerError):
                await client.submit(pb.Envelope(header=b"\xff" * 100), b"z" * 1000)
            with pytest.raises(PeerError):
                await client.report(pb.ReportRequest(peer_id="nobody", round=1, digest=b"short"))
            with pytest.raises(RefusedError, match="not kept"):
                await client.fetch_published(pb.FetchPublishedRequest(peer_id="0" * 32, round=10**6), 1 << 20)
        _, writer = await asyncio.open_connection(*address.split(":"))
        writer.write(bytes(range(256)) * 64)
        await writer.drain()
        writer.close()

    begin = when(ev.RoundOpened, 2, lambda swarm: attacks.append(asyncio.create_task(attack(swarm.address))))
    swarm = await run_swarm(tmp_path, tiny_config(tmp_path), on_event=begin)
    await asyncio.gather(*attacks)
    assert [event.included for event in swarm.closed()] == [3, 3, 3, 3]


async def test_a_peer_leaves_a_coordinator_that_asks_for_more_than_its_manifest_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leader, "plan_round", lambda *arguments: replace(plan_round(*arguments), steps=10**6))
    swarm = await Swarm(tmp_path, tiny_config(tmp_path, run={"min_peers": 1})).start()
    with pytest.raises(RefusedError, match="not what this run's manifest says"):
        await asyncio.wait_for(swarm.start_peer(1).task, 60)
    swarm.peers.clear()
    await swarm.end()


async def test_bytes_are_counted_once_by_kind_and_direction(tmp_path: Path) -> None:
    swarm = await run_swarm(tmp_path, tiny_config(tmp_path, run={"rounds": 3}))
    first, second, third = swarm.closed()
    assert {"core", "gradient", "dense", "control"} == set(second.wire_bytes["sent"])
    assert "basis" not in first.wire_bytes["received"], "the first pass of a refresh publishes a range"
    assert {"core", "gradient", "dense"} <= set(third.wire_bytes["sent"])
    assert {"core", "basis", "dense"} <= set(third.wire_bytes["received"])
    assert "state" in first.wire_bytes["received"]
    for event in (first, second, third):
        for direction in ("sent", "received"):
            for kind, total in event.wire_bytes[direction].items():
                assert total == sum(peer[direction].get(kind, 0) for peer in event.per_peer.values())
    received = [event for event in swarm.of(ev.PayloadReceived) if event.round == 2]
    payload = sum(count for kind, count in second.wire_bytes["sent"].items() if kind != "control")
    assert payload == sum(event.wire_bytes for event in received)


async def test_a_record_that_cannot_be_written_is_a_warning_and_the_run_goes_on(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, run={"rounds": 1})
    record = Path(config.checkpoint.dir) / EVENTS_FILE
    record.mkdir(parents=True)
    swarm = await run_swarm(tmp_path, config, peers=1)
    assert swarm.finished().rounds == 1
    [warning] = swarm.warnings()
    assert warning.startswith(f"{record} cannot be used (")
    assert warning.endswith("; the run goes on without a record of it.")


async def test_a_score_that_memory_does_not_suffice_for_is_a_warning_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def evaluate(consensus: Consensus) -> float:
        raise MemoryError

    monkeypatch.setattr("tsr_swarm.node.coordinator.make_evaluate", lambda config, warn: evaluate)
    swarm = await run_swarm(tmp_path, tiny_config(tmp_path, run={"rounds": 1}), peers=1)
    assert (swarm.finished().rounds, swarm.finished().last_loss) == (1, None)
    told = [message.partition(":")[0] for message in swarm.warnings()]
    assert told == ["Round 0 is not scored", "Round 1 is not scored"]


def free_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


async def failure_of(member: Member) -> SwarmError:
    with pytest.raises(SwarmError) as caught:
        await asyncio.wait_for(member.task, DEADLINE_SECONDS)
    return caught.value


def is_waiting(member: Member) -> bool:
    return any("Trying again for" in message for message in member.warnings())


async def test_a_peer_that_comes_first_waits_for_its_coordinator(tmp_path: Path) -> None:
    address = free_address()
    swarm = Swarm(tmp_path, tiny_config(tmp_path, run={"rounds": 1, "min_peers": 1}))
    peer = swarm.start_peer(1, at=address, wait=DEADLINE_SECONDS)
    await swarm.until(lambda: is_waiting(peer))
    await swarm.start_coordinator(listen=address)
    await swarm.finish()
    assert swarm.finished().rounds == 1
    assert isinstance(peer.events[-1], ev.Left)


async def test_a_peer_that_waits_can_be_asked_to_leave(tmp_path: Path) -> None:
    swarm = Swarm(tmp_path, tiny_config(tmp_path))
    peer = swarm.start_peer(1, at=free_address(), wait=1e6)
    await swarm.until(lambda: is_waiting(peer))
    peer.stop.request()
    await asyncio.wait_for(peer.task, DEADLINE_SECONDS)
    assert len(peer.events) == 1


async def test_a_coordinator_that_refuses_is_not_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    swarm = await Swarm(tmp_path, tiny_config(tmp_path)).start()
    monkeypatch.setattr("tsr_swarm.node.calls.PROTOCOL_VERSION", 999)
    peer = swarm.start_peer(1, wait=1e6)
    assert isinstance(await failure_of(swarm.peers.pop(1)), RefusedError)
    assert not peer.events
    await swarm.end()


async def refusal(swarm: Swarm, member: Member) -> str:
    """Why a peer gave up, once it is sure that it has not joined."""
    failure = await failure_of(member)
    swarm.peers.clear()
    await swarm.end()
    assert not swarm.of(ev.PeerJoined)
    return f"{failure.exit_code} {failure}"


async def test_what_a_node_is_given_is_looked_at_before_anybody_is_called(tmp_path: Path) -> None:
    """Nodes listen to the world only with consent, and a peer says where it can be dialled."""
    swarm = Swarm(tmp_path, tiny_config(tmp_path))
    (empty := tmp_path / "empty").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = f"127.0.0.1:{server.getsockname()[1]}"
        for said, error, says in (
            ({"data": (str(tmp_path / "nowhere"),)}, ConfigError, "does not exist"),
            ({"data": (str(empty),)}, ConfigError, "holds 0 bytes of text"),
            ({"listen": taken}, RunError, "the port is in use"),
            ({"listen": "0.0.0.0:1"}, ConfigError, "add --insecure"),
            ({"listen": "0.0.0.0:1", "insecure": True}, ConfigError, "--announce"),
        ):
            with pytest.raises(error, match=says):
                await asyncio.wait_for(swarm.start_peer(1, at="127.0.0.1:1", wait=1e6, **said).task, DEADLINE_SECONDS)
    with pytest.raises(ConfigError, match="add --insecure"):
        await swarm.start_coordinator(listen="0.0.0.0:0")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (["short.txt"], "78 .* fewer than the 17 of one sequence"),
        ([], "78 This run trains on text that its organiser names by path, and there is no '.*/text' here; add --data"),
    ],
)
async def test_a_peer_that_cannot_read_enough_text_is_refused_before_it_joins(
    tmp_path: Path, data: list[str], says: str
) -> None:
    swarm = await Swarm(tmp_path, tiny_config(tmp_path)).start()
    (tmp_path / "short.txt").write_text("short")
    (tmp_path / "text").rename(tmp_path / "elsewhere")
    peer = swarm.start_peer(1, data=tuple(str(tmp_path / name) for name in data))
    assert re.match(says, await refusal(swarm, peer))


async def test_a_peer_with_text_of_its_own_needs_none_of_the_organisers(tmp_path: Path) -> None:
    swarm = await Swarm(tmp_path, tiny_config(tmp_path, run={"rounds": 1, "min_peers": 1})).start()
    (tmp_path / "text").rename(tmp_path / "own")
    swarm.start_peer(1, data=(str(tmp_path / "own"),))
    await swarm.finish()
    assert swarm.finished().rounds == 1


async def test_a_checkpoint_of_another_run_is_refused_before_it_joins(tmp_path: Path) -> None:
    await run_swarm(tmp_path, tiny_config(tmp_path, run={"rounds": 1}), peers=1)
    second = await Swarm(tmp_path, tiny_config(tmp_path, checkpoint={"dir": str(tmp_path / "second")})).start()
    assert "is of another run" in await refusal(second, second.start_peer(1, resume=True))


async def test_a_peer_that_fails_after_it_has_joined_says_goodbye(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(workspace: Workspace, consensus: object) -> None:
        raise RunError("There is no room for the model.")

    monkeypatch.setattr(Workspace, "replace", fail)
    swarm = await Swarm(tmp_path, tiny_config(tmp_path)).start()
    peer = swarm.start_peer(1)
    assert str(await failure_of(peer)) == "There is no room for the model."
    del swarm.peers[1]  # its failure has been seen
    await swarm.until(lambda: bool(swarm.of(ev.PeerLeft)))
    await swarm.end()
    [joined], [left] = swarm.of(ev.PeerJoined), swarm.of(ev.PeerLeft)
    assert (left.peer, left.reason) == (joined.peer, "it failed")
    assert not peer.of(ev.StateReceived)


async def test_a_coordinator_whose_data_others_may_not_find_says_so_at_its_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_config(tmp_path)  # writes the text
    monkeypatch.chdir(tmp_path)
    swarm = await Swarm(tmp_path, tiny_config(tmp_path, data={"source": "text"})).start()
    await swarm.until(lambda: any("data.source = 'text'" in message for message in swarm.warnings()))
    await swarm.end()
