"""Before a peer is known to anybody: whom it waits for, and what it finds out about itself."""

import asyncio
import socket
from pathlib import Path

import pytest

from tests.swarm_rig import DEADLINE_SECONDS, Member, Swarm, run_swarm, tiny_config
from tsr_swarm.errors import ConfigError, RefusedError, RunError, SwarmError
from tsr_swarm.node.workspace import Workspace
from tsr_swarm.telemetry.events import Left, PeerJoined, PeerLeft, StateReceived


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
    assert isinstance(peer.events[-1], Left)


async def test_a_peer_that_waits_can_be_asked_to_leave(tmp_path: Path) -> None:
    swarm = Swarm(tmp_path, tiny_config(tmp_path))
    peer = swarm.start_peer(1, at=free_address(), wait=1e6)
    await swarm.until(lambda: is_waiting(peer))
    peer.stop.request()
    await asyncio.wait_for(peer.task, DEADLINE_SECONDS)
    assert len(peer.events) == 1


async def test_a_coordinator_that_refuses_is_not_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    swarm = Swarm(tmp_path, tiny_config(tmp_path))
    await swarm.start_coordinator()
    monkeypatch.setattr("tsr_swarm.node.calls.PROTOCOL_VERSION", 999)
    peer = swarm.start_peer(1, wait=1e6)
    assert isinstance(await failure_of(swarm.peers.pop(1)), RefusedError)
    assert not peer.events
    await swarm.end()


async def refused(swarm: Swarm, member: Member) -> str:
    """Why a peer gave up, once it is sure that it has not joined."""
    failure = await failure_of(member)
    swarm.peers.clear()
    await swarm.end()
    assert not swarm.of(PeerJoined)
    return f"{failure.exit_code} {failure}"


async def test_text_of_its_own_is_looked_at_before_anybody_is_called(tmp_path: Path) -> None:
    swarm = Swarm(tmp_path, tiny_config(tmp_path))
    (empty := tmp_path / "empty").mkdir()
    for data, says in ((tmp_path / "nowhere", "does not exist"), (empty, "holds 0 bytes of text")):
        failure = await failure_of(swarm.start_peer(1, at="127.0.0.1:1", data=(str(data),)))
        assert isinstance(failure, ConfigError)
        assert says in str(failure)


@pytest.mark.parametrize("fault", ["its own text is too short", "the organiser's path does not exist here"])
async def test_a_peer_that_cannot_read_enough_text_is_refused_before_it_joins(tmp_path: Path, fault: str) -> None:
    swarm = Swarm(tmp_path, tiny_config(tmp_path))
    await swarm.start_coordinator()
    (short := tmp_path / "short.txt").write_text("short")
    (tmp_path / "text").rename(tmp_path / "elsewhere")
    if fault == "its own text is too short":
        failure = await refused(swarm, swarm.start_peer(1, data=(str(short),)))
        assert failure.startswith("78 ")
        assert "fewer than the 17 of one sequence" in failure
    else:
        failure = await refused(swarm, swarm.start_peer(1))
        assert failure.startswith("78 This run trains on text that its organiser names by path, and there is no ")
        assert repr(str(tmp_path / "text")) in failure
        assert "--data PATH" in failure


async def test_a_peer_with_text_of_its_own_needs_none_of_the_organisers(tmp_path: Path) -> None:
    swarm = Swarm(tmp_path, tiny_config(tmp_path, run={"rounds": 1, "min_peers": 1}))
    await swarm.start_coordinator()
    (tmp_path / "text").rename(tmp_path / "own")
    swarm.start_peer(1, data=(str(tmp_path / "own"),))
    await swarm.finish()
    assert swarm.finished().rounds == 1


async def test_a_checkpoint_of_another_run_is_refused_before_it_joins(tmp_path: Path) -> None:
    await run_swarm(tmp_path, tiny_config(tmp_path, run={"rounds": 1}), peers=1)
    second = Swarm(tmp_path, tiny_config(tmp_path, checkpoint={"dir": str(tmp_path / "second")}))
    await second.start_coordinator()
    assert "is of another run" in await refused(second, second.start_peer(1, resume=True))


async def test_a_port_in_use_is_refused_before_anybody_is_called(tmp_path: Path) -> None:
    swarm = Swarm(tmp_path, tiny_config(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = f"127.0.0.1:{server.getsockname()[1]}"
        failure = await failure_of(swarm.start_peer(1, at="127.0.0.1:1", wait=1e6, listen=taken))
    assert "the port is in use" in str(failure)


async def test_a_peer_that_fails_after_it_has_joined_says_goodbye(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(workspace: Workspace, consensus: object) -> None:
        raise RunError("There is no room for the model.")

    monkeypatch.setattr(Workspace, "replace", fail)
    swarm = Swarm(tmp_path, tiny_config(tmp_path))
    await swarm.start_coordinator()
    peer = swarm.start_peer(1)
    assert str(await failure_of(peer)) == "There is no room for the model."
    del swarm.peers[1]  # its failure has been seen
    await swarm.until(lambda: bool(swarm.of(PeerLeft)))
    await swarm.end()
    [joined], [left] = swarm.of(PeerJoined), swarm.of(PeerLeft)
    assert (left.peer, left.reason) == (joined.peer, "it failed")
    assert not peer.of(StateReceived)


async def test_a_coordinator_whose_data_others_may_not_find_says_so_at_its_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_config(tmp_path)  # writes the text
    monkeypatch.chdir(tmp_path)
    swarm = Swarm(tmp_path, tiny_config(tmp_path, data={"source": "text"}))
    await swarm.start_coordinator()
    await swarm.until(lambda: any("data.source = 'text'" in message for message in swarm.warnings()))
    await swarm.end()
