"""Real DHT nodes on loopback."""

import asyncio
import builtins
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.fixtures import peer_record
from tsr_swarm.discovery.dht import RUNS, DhtDirectory
from tsr_swarm.discovery.identity import new_identity
from tsr_swarm.discovery.records import encode_record
from tsr_swarm.discovery.runs import WantedRun, find_runs
from tsr_swarm.errors import UnreachableError

RUN = "run1"
DEADLINE = 20.0


@pytest.fixture
async def start() -> AsyncIterator[Any]:
    """Start directories that join the given ones; all are closed at the end."""
    async with AsyncExitStack() as exits:

        async def start(*peers: DhtDirectory, **options: Any) -> DhtDirectory:
            known = [multiaddr for peer in peers for multiaddr in await peer.visible_maddrs()]
            options |= {"identity": new_identity(), "initial_peers": known, "timeout": DEADLINE}
            directory = await DhtDirectory.start(**options)
            exits.push_async_callback(directory.close)
            return directory

        yield start


async def put(
    attacker: DhtDirectory, value: object, subkey: object, expires: float, key: str = f"tsr/v2/run/{RUN}"
) -> bool:
    """Have a node that keeps no rules ask every other node to store something; True if one did."""
    attacker.node.protocol.record_validator = None
    stored: bool = await attacker.node.store(key, value, expires, subkey=subkey, exclude_self=True)
    return stored


def helpers() -> list[str]:
    """The daemons and reapers that this process has started and that still run."""
    names = [Path(part).name for child in psutil.Process().children() for part in child.cmdline()[:4]]
    return [name for name in names if name in {"p2pd", "reaper.py"}]


def folders_of(pid: int) -> list[Path]:
    return list(Path(tempfile.gettempdir()).glob(f"tsr-swarm-{pid}-*"))


def assert_nothing_is_left() -> None:
    assert (helpers(), folders_of(os.getpid())) == ([], [])


async def assert_cannot_start(says: str, **options: Any) -> None:
    with pytest.raises(UnreachableError, match=f"^The DHT cannot be used: {says}"):
        await DhtDirectory.start(identity=new_identity(), **options)
    assert_nothing_is_left()


async def test_peers_find_each_others_newest_records_and_a_client_only_peer_takes_part(start: Any) -> None:
    first = await start()
    second = await start(first)
    third = await start(first, host_maddrs=())
    for number, directory in enumerate((first, second, third)):
        await directory.announce(peer_record(directory.identity, name=f"peer-{number}"))
    for directory in (first, second, third):
        found = await directory.records(RUN)
        assert {record.name for record in found} == {"peer-0", "peer-1", "peer-2"}
        assert [record.peer_id for record in found] == sorted(record.peer_id for record in found)
        assert directory.healthy()
    newer = peer_record(second.identity, address="192.0.2.8:7700", expires=time.time() + 700)
    await second.announce(newer)
    assert newer in await first.records(RUN)
    assert len(await first.records(RUN)) == 3
    assert await third.visible_maddrs() == ()
    assert await first.records("otherrun") == ()


async def test_a_restarted_peer_keeps_its_place_in_the_dht() -> None:
    identity = new_identity()
    ids = set()
    for _ in range(2):
        directory = await DhtDirectory.start(identity=identity)
        ids |= {multiaddr.rpartition("/p2p/")[2] for multiaddr in await directory.visible_maddrs()}
        await directory.close()
    assert len(ids) == 1


async def test_a_node_stores_nothing_but_authentic_records_in_their_place(start: Any) -> None:
    first = await start()
    attacker = await start(first)
    me, victim = attacker.identity, new_identity()
    good = peer_record(me)
    data = encode_record(good, me)
    late = time.time() + 2400
    far = peer_record(me, issued=late - 600, expires=late)
    forged = me.public_key + data[32:96] + encode_record(peer_record(victim), victim)[96:]
    place = f"tsr/v2/run/{RUN}"
    attempts: list[tuple[object, object, float, str]] = [
        (b"noise", me.peer_id, good.expires, place),
        (forged, victim.peer_id, good.expires, place),
        (data, victim.peer_id, good.expires, place),  # under another peer's id
        (data, me.peer_id, good.expires, "tsr/v2/run/otherrun"),  # in another run's place
        (data, me.peer_id, good.expires + 60, place),  # held for longer than was signed
        (data, None, good.expires, place),  # as a plain value, which would push the whole table aside
        (encode_record(far, me), me.peer_id, far.expires, place),
        (data + b" " * 5000, me.peer_id, good.expires, place),
        ({"a": [data]}, me.peer_id, good.expires, place),
        (data, "chat@otherrun", good.expires, RUNS),  # as the entry of another run
        (data, "talk@run1", good.expires, RUNS),
        (data, me.peer_id, good.expires, RUNS),  # as an entry beside its run's
        (data, None, good.expires, RUNS),
    ]
    for value, subkey, expires, key in attempts:
        assert not await put(attacker, value, subkey, expires, key), (value, subkey, key)
    assert (await first.records(RUN), await first.runs()) == ((), ())
    assert await put(attacker, data, me.peer_id, good.expires)
    assert await put(attacker, data, "chat@run1", good.expires, RUNS)
    assert (await first.records(RUN), await first.runs()) == ((good,), (good,))


async def test_runs_are_listed_each_once_however_many_peers_it_has(start: Any) -> None:
    first = await start()
    peers = [first, *[await start(first) for _ in range(2)]]
    for number, directory in enumerate(peers):
        for run_id in ("run1", "run2"):
            await directory.announce(peer_record(directory.identity, run_id=run_id, name=f"peer-{number}"))
    talk = peer_record(peers[1].identity, run="talk")  # the same run under another name hides nothing
    await peers[1].announce(talk)
    for directory in peers:
        listed = await directory.runs()
        assert sorted((record.run, record.run_id) for record in listed) == [
            ("chat", "run1"),
            ("chat", "run2"),
            ("talk", "run1"),
        ]
        found = await find_runs(directory, WantedRun("chat"))
        assert [(run.run_id, len(run.records)) for run in found] == [("run2", 3), ("run1", 2)]
    newer = peer_record(peers[2].identity, round=8, expires=time.time() + 700)
    await peers[2].announce(newer)
    await peers[0].announce(peer_record(first.identity, name="peer-0", expires=time.time() + 650))
    assert newer in await first.runs(), "an entry is the newest record of any peer"


async def test_a_reader_checks_again_what_careless_nodes_stored(start: Any) -> None:
    first = await start()
    attacker = await start(first)
    first.node.protocol.record_validator = None
    good = peer_record(attacker.identity)
    await attacker.announce(good)
    victim = new_identity()
    data = encode_record(peer_record(victim), victim)
    expired = encode_record(peer_record(victim, now=time.time() - 601), victim)
    damaged = [data[:-1], data[:40] + b"x" + data[41:], data + b" " * 9000]
    for subkey, value in enumerate([b"noise", 7, ["a"], *damaged, expired]):
        assert await put(attacker, value, subkey, time.time() + 600)
    assert await first.records(RUN) == (good,)


async def test_a_dead_way_into_the_dht_does_not_keep_a_node_out_that_knows_another(start: Any) -> None:
    first, dead = await start(), await start()
    gone = await dead.visible_maddrs()
    await dead.close()
    await first.announce(peer_record(first.identity))
    known = [*gone, *await first.visible_maddrs()]
    second = await DhtDirectory.start(identity=new_identity(), initial_peers=known, host_maddrs=(), timeout=DEADLINE)
    try:
        assert len(await second.records(RUN)) == 1
    finally:
        await second.close()


async def test_an_announcement_that_no_node_stores_is_an_error(start: Any) -> None:
    first = await start()
    second = await start(first)
    await first.close()
    with pytest.raises(UnreachableError, match="record"):
        await second.announce(peer_record(second.identity))
    assert not second.healthy()


@pytest.mark.parametrize("host", ["127.0.0.1", "not a host"])
async def test_a_dead_bootstrap_fails_quickly_and_leaves_no_process(host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]  # refuses from here on
    peer = f"/ip4/{host}/tcp/{port}/p2p/12D3KooWKwqXvCntmy4fDwmcrt8M2PytogE9EMQbDw1Ec5ZGZwtN"
    started = time.monotonic()
    await assert_cannot_start(r".*\.$", initial_peers=[peer])
    assert time.monotonic() - started < DEADLINE / 2


async def test_a_start_that_takes_too_long_is_given_up() -> None:
    await assert_cannot_start("p2pd did not start", timeout=0.001)


@pytest.mark.parametrize("patience", [0.01, 0.05, 0.1])
async def test_a_start_that_is_cancelled_leaves_nothing(patience: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(patience):
            directory = await DhtDirectory.start(identity=new_identity())
            try:
                await asyncio.Event().wait()
            finally:
                await directory.close()
    assert_nothing_is_left()


async def test_a_missing_hivemind_is_an_error_that_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def no_hivemind(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("hivemind"):
            raise ModuleNotFoundError("No module named 'hivemind'")
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_hivemind)
    await assert_cannot_start(r".*No module named 'hivemind'.*may help\.$")


NO_LOCKS = """
import _multiprocessing, asyncio, errno, time

class NoRoom:
    SEM_VALUE_MAX = _multiprocessing.SemLock.SEM_VALUE_MAX

    def __init__(self, *arguments):
        raise OSError(errno.EROFS, "Read-only file system")

_multiprocessing.SemLock = NoRoom  # what a read-only or full /dev/shm makes of it

from tsr_swarm.discovery.announcer import Announcer
from tsr_swarm.discovery.identity import new_identity

async def main():
    announcer = Announcer(new_identity(), lambda event: print(event.message))
    await announcer.start(listen=None, announce=None, initial_peers=())
    await announcer.keep_announcing(lambda: None)
    await announcer.close()

asyncio.run(main())
"""


def test_a_machine_without_room_for_hiveminds_locks_goes_on_without_the_dht() -> None:
    done = subprocess.run([sys.executable, "-c", NO_LOCKS], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    [warning] = done.stdout.splitlines()
    assert warning.startswith("The DHT cannot be used: hivemind cannot be imported (")
    assert "Read-only file system" in warning
    assert warning.endswith("Training goes on without the DHT.")


@pytest.mark.parametrize(
    ("daemon", "mode", "says"),
    [
        (None, 0, "p2pd did not start"),
        ("#!/bin/sh\nexit 0\n", 0o600, "p2pd did not start"),
        ("#!/bin/sh\nexit 1\n", 0o700, "p2pd did not start"),
        ("not a program", 0o700, "p2pd did not start"),
        ("#!/bin/sh\nexec sleep 600\n", 0o700, "p2pd did not start: waited 1 s"),
    ],
    ids=["missing", "not executable", "failing", "for another machine", "silent"],
)
async def test_a_daemon_that_cannot_start_is_an_error_and_leaves_no_process(
    daemon: str | None, mode: int, says: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from hivemind.p2p import P2P

    program = tmp_path / "p2pd"
    if daemon is not None:
        program.write_text(daemon)
        program.chmod(mode)
    make_arguments = P2P._make_process_args
    monkeypatch.setattr(
        P2P, "_make_process_args", lambda *args, **options: [str(program), *make_arguments(*args, **options)[1:]]
    )
    await assert_cannot_start(says, timeout=1.0)


async def test_a_missing_temporary_folder_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_folder() -> str:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", no_folder)
    with pytest.raises(UnreachableError, match="No usable temporary directory"):
        await DhtDirectory.start(identity=new_identity())


async def test_closing_leaves_no_process_and_no_file(start: Any) -> None:
    first = await start()
    second = await start(first)
    await second.announce(peer_record(second.identity))
    assert (len(folders_of(os.getpid())), sorted(helpers())) == (2, ["p2pd", "p2pd", "reaper.py", "reaper.py"])
    for directory in (first, second):
        await asyncio.wait_for(directory.close(), DEADLINE)
        await directory.close()
        assert not directory.healthy()
    assert_nothing_is_left()


async def test_a_killed_daemon_is_noticed_and_can_be_closed(start: Any) -> None:
    first = await start()
    second = await start(first)
    os.kill(second.p2p._child.pid, signal.SIGKILL)
    await asyncio.wait_for(second.p2p._child.wait(), DEADLINE)
    assert not second.healthy()
    assert await second.visible_maddrs() == ()
    await asyncio.wait_for(second.close(), DEADLINE)
    assert first.healthy()


async def test_a_daemon_that_hangs_does_not_hold_up_closing(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tsr_swarm.discovery.dht.CLOSE_SECONDS", 0.2)
    directory = await start()
    os.kill(directory.p2p._child.pid, signal.SIGSTOP)
    await asyncio.wait_for(directory.close(), DEADLINE)
    assert directory.p2p._child.returncode is not None
    assert_nothing_is_left()


async def test_hivemind_logs_through_our_loggers_and_only_warnings(start: Any) -> None:
    await start()
    logger = logging.getLogger("hivemind")
    assert (logger.handlers, logger.propagate, logger.level) == ([], True, logging.WARNING)
    assert logging.getLevelName(logging.WARNING) == "WARNING"
    assert "uvloop" not in type(asyncio.get_event_loop_policy()).__module__


OWNER = """
import asyncio
from tsr_swarm.discovery.dht import RUNS, DhtDirectory
from tsr_swarm.discovery.identity import new_identity

async def main():
    directory = await DhtDirectory.start(identity=new_identity())
    print("up", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def test_an_owner_that_is_killed_leaves_no_daemon_no_folder_and_holds_no_pipe() -> None:
    with subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"up\n"
        helpers = psutil.Process(owner.pid).children(recursive=True)
        assert {helper.name() for helper in helpers} >= {"p2pd"}
        assert len(folders_of(owner.pid)) == 1
        owner.kill()
        assert owner.communicate(timeout=DEADLINE)[0] == b""
        _, alive = psutil.wait_procs(helpers, timeout=DEADLINE)
    assert not [helper for helper in alive if helper.status() != psutil.STATUS_ZOMBIE]
    assert not folders_of(owner.pid)
