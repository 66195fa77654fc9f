"""Real processes on every kind of local network, where this machine allows it."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import psutil
import pytest

from tests.processes import argument
from tests.processes import namespaces as all_namespaces
from tsr_swarm.errors import SwarmError
from tsr_swarm.local.faults import COORDINATOR, LocalPlan
from tsr_swarm.local.network import namespaces, proxy
from tsr_swarm.local.network.local_network import LocalNetwork, Loopback, open_network
from tsr_swarm.local.network.namespaces import Namespaces
from tsr_swarm.local.network.packets import HomeLine
from tsr_swarm.process.supervisor import Child, ChildError, ProcessGroup
from tsr_swarm.telemetry.events import Event, LabReady

# Listens at an address, prints where, and sends back what comes.
ECHO = """
import socket, sys
host, port = sys.argv[1].split(":")
server = socket.create_server((host, int(port)))
print(":".join(map(str, server.getsockname())), flush=True)
while True:
    connection, _ = server.accept()
    while data := connection.recv(100): connection.sendall(data)
"""
# Connects to an address, through a proxy if one is named, and prints how long an echo takes, or "nothing".
ASK = """
import socket, sys, time
address, via, patience = sys.argv[1:]
host, port = (via or address).split(":")
try:
    connection = socket.create_connection((host, int(port)), float(patience))
    if via:
        connection.sendall(f"CONNECT {address} HTTP/1.1\\r\\n\\r\\n".encode())
        assert b" 200 " in connection.recv(1000)
    begun = time.monotonic()
    connection.sendall(b"x")
    assert connection.recv(1) == b"x"
    print(time.monotonic() - begun, flush=True)
except TimeoutError:
    print("nothing", flush=True)
"""
PEER, BEHIND_NAT = 1, 2
LINES = {COORDINATOR: HomeLine(rtt=0.02), PEER: HomeLine(rtt=0.03), BEHIND_NAT: HomeLine(nat=True)}
KINDS = ("loopback", namespaces.MODE, proxy.MODE)
LABS = KINDS[1:]


@dataclass
class Net:
    """An opened network, and processes on it."""

    network: LocalNetwork
    group: ProcessGroup
    events: list[Event]

    async def start(self, who: int, script: str, *arguments: str) -> Child:
        command = self.network.command(who, [sys.executable, "-I", "-S", "-c", script, *arguments])
        return await self.group.start("it", command, environment=os.environ, stdout=subprocess.PIPE)

    async def serve(self, who: int, address: str = "") -> str:
        """Start a server as the arguments of ``who`` say, and give its address."""
        network = self.network
        arguments = network.peer_arguments(who, "") if who else network.coordinator_arguments(address)
        return await anext((await self.start(who, ECHO, argument(arguments, "--listen"))).lines())

    async def ask(self, who: int, address: str, patience: float = 5.0) -> float | None:
        """Seconds that an echo from ``address`` takes; None if none comes."""
        via = argument(self.network.peer_arguments(who, address), "--proxy")
        answer = await anext((await self.start(who, ASK, address, via, str(patience))).lines())
        return None if answer == "nothing" else float(answer)


@asynccontextmanager
async def opened(mode: str | None, lines: dict[int, HomeLine] | None = None) -> AsyncIterator[Net]:
    """A network of the kind ``mode``; skips the test where namespaces may not be made."""
    events: list[Event] = []
    plan = LocalPlan(peers=2, environment={}, lines=lines or {})
    async with (
        asyncio.timeout(60),
        ProcessGroup() as group,
        open_network(plan, mode, group, seed=0, environment=os.environ, use_dht=True, emit=events.append) as network,
    ):
        yield Net(network, group, events)


@asynccontextmanager
async def opened_or_skipped(kind: str) -> AsyncIterator[Net]:
    is_lab = kind in LABS
    try:
        async with opened(kind if is_lab else None, LINES if is_lab else None) as net:
            yield net
    except ChildError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("kind", KINDS)
async def test_a_peer_reaches_the_coordinator_which_can_listen_at_the_same_address_again(kind: str) -> None:
    async with opened_or_skipped(kind) as net:
        address = await net.serve(COORDINATOR)
        taken = await net.ask(PEER, address)
        assert taken >= (0.05 if kind in LABS else 0.0), "the shares of both links in the round trip"
        assert argument(net.network.peer_arguments(PEER, address), "--coordinator") == address
        assert argument(net.network.coordinator_arguments(address), "--listen") == address


@pytest.mark.parametrize("kind", LABS)
async def test_a_partition_ends_and_does_not_concern_a_peer_behind_nat_which_only_dials_out(kind: str) -> None:
    async with opened_or_skipped(kind) as net:
        address = await net.serve(COORDINATOR)
        net.network.cut([frozenset((COORDINATOR, PEER))])
        assert await net.ask(PEER, address, patience=0.3) is None
        assert "--listen" not in net.network.peer_arguments(BEHIND_NAT, "")
        assert await net.ask(BEHIND_NAT, address) is not None
        net.network.cut([])
        assert await net.ask(PEER, address) is not None


async def test_nothing_that_was_not_asked_for_enters_a_namespace_behind_nat() -> None:
    async with opened_or_skipped(namespaces.MODE) as net:
        address = await anext((await net.start(BEHIND_NAT, ECHO, "10.77.0.3:7000")).lines())
        assert await net.ask(PEER, address, patience=0.3) is None
        assert await net.ask(BEHIND_NAT, address) is not None, "its own loopback is up"


async def test_namespaces_leave_nothing_behind_and_fail_with_their_router() -> None:
    before = all_namespaces()
    async with opened_or_skipped(namespaces.MODE) as net:
        await net.serve(PEER)
        assert len(all_namespaces() - before) == 2, "the router's and the server's"
        [router] = [child for child in psutil.Process().children() if namespaces.ROUTER[-1] in child.cmdline()]
        router.kill()
        assert "router ended unexpectedly" in str(await net.network.failure())
    assert all_namespaces() <= before


WITHOUT_RIGHTS = """
import ctypes, struct  # drops all capabilities
ctypes.CDLL(None).capset(struct.pack("Ii", 0x20080522, 0), struct.pack("6I", *6 * [0]))
from tsr_swarm.local.network.namespaces import main
main()
"""


async def test_a_router_without_rights_says_so_and_proxies_take_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(namespaces, "ROUTER", [sys.executable, "-c", WITHOUT_RIGHTS])
    says = "Network namespaces need root (Operation not permitted)."
    async with ProcessGroup() as group:
        with pytest.raises(SwarmError) as caught:
            await Namespaces.start(group, {0: HomeLine()}, 0, os.environ, True)
    assert str(caught.value) == says
    async with opened(None, LINES) as net:
        [event] = net.events
        assert isinstance(event, LabReady)
        assert isinstance(net.network, proxy.Proxies)
        assert (event.mode, event.reason) == (proxy.MODE, f"{says} So {proxy.REASON}.")
    with pytest.raises(ChildError, match="need root"):
        async with opened(namespaces.MODE):
            pass


async def test_a_kind_that_is_asked_for_is_taken_and_without_any_request_it_is_loopback() -> None:
    async with opened(proxy.MODE) as net:
        assert [event.mode for event in net.events if isinstance(event, LabReady)] == [proxy.MODE]
    async with opened(None) as net:
        assert isinstance(net.network, Loopback)
        assert net.events == []
