"""A lab of namespaces with real processes in it, where this machine lets us make one; it prints which lab it found."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.processes import namespaces
from tsr_swarm.errors import SwarmError
from tsr_swarm.local.faults import LocalPlan
from tsr_swarm.local.network.base import LocalNetwork
from tsr_swarm.local.network.link import HomeLine
from tsr_swarm.local.network.netns_lab import Namespaces
from tsr_swarm.local.network.open import open_place
from tsr_swarm.process.supervisor import Child, ProcessGroup
from tsr_swarm.telemetry.events import Event, LabReady

# Says where it is, then sends back what comes to its UDP port, and tells it.
ECHO = """
import socket, sys
port = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
port.bind((sys.argv[1], 7000))
print("ready", flush=True)
while True:
    data, sender = port.recvfrom(2000)
    print(data.decode(), flush=True)
    port.sendto(data, sender)
"""
# Sends until something comes back, and prints how long that one took.
ASK = """
import socket, sys, time
port = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
port.settimeout(0.1)
if sys.argv[2] == "7000": port.bind(("", 7000))
for number in range(int(sys.argv[3])):
    begun = time.monotonic()
    port.sendto(str(number).encode(), (sys.argv[1], 7000))
    try:
        while port.recv(2000) != str(number).encode(): pass
        print(time.monotonic() - begun, flush=True)
        break
    except TimeoutError:
        pass
else:
    print("nothing", flush=True)
"""


@asynccontextmanager
async def lab(lines: dict[int, HomeLine]) -> AsyncIterator[tuple[LocalNetwork, ProcessGroup]]:
    """The lab that this machine gives; one that gives none of namespaces has said why, in a sentence."""
    events: list[Event] = []
    plan = LocalPlan(peers=2, environment={}, lines=lines)
    async with (
        asyncio.timeout(60),
        ProcessGroup() as family,
        open_place(plan, None, family, seed=0, environment=os.environ, use_dht=True, emit=events.append) as place,
    ):
        [event] = events
        assert isinstance(event, LabReady)
        print(f"lab: {event.mode}: {event.reason}")
        if not isinstance(place, Namespaces):
            assert "namespaces need" in event.reason or "TUN device" in event.reason
        yield place, family


async def start(place: LocalNetwork, family: ProcessGroup, who: int, script: str, *arguments: str) -> Child:
    command = place.command(who, [sys.executable, "-I", "-S", "-c", script, *arguments])
    return await family.start("it", command, environment=os.environ, stdout=subprocess.PIPE)


async def ask(
    place: LocalNetwork, family: ProcessGroup, who: int, target: str, port: str = "0", times: int = 20
) -> str:
    """What an asker in ``who`` prints."""
    return await anext((await start(place, family, who, ASK, target, port, str(times))).lines())


async def test_packets_cross_the_lab_with_delay_partition_and_nat() -> None:
    async with lab({1: HomeLine(rtt=0.03), 2: HomeLine(rtt=0.01, nat=True)}) as (place, family):
        if not isinstance(place, Namespaces):
            return  # what a proxy does is tested beside it
        echo = await start(place, family, 0, ECHO, "10.77.0.1")
        heard = echo.lines()
        assert await anext(heard) == "ready"
        assert float(await ask(place, family, 1, "10.77.0.1")) >= 0.03
        assert float(await ask(place, family, 2, "10.77.0.1")) >= 0.01, "who is behind NAT may ask"

        place.cut([frozenset((0, 1))])
        assert await ask(place, family, 1, "10.77.0.1", times=3) == "nothing"
        assert float(await ask(place, family, 2, "10.77.0.1")) >= 0.01, "the others go on"
        place.cut([])
        assert float(await ask(place, family, 1, "10.77.0.1")) >= 0.03

        inside = await start(place, family, 2, ECHO, "10.77.0.3")
        assert await anext(inside.lines()) == "ready"
        assert await ask(place, family, 0, "10.77.0.3", times=3) == "nothing", "unasked"
        assert await ask(place, family, 2, "10.77.0.3") != "nothing", "its own loopback is up"


async def test_a_lab_leaves_nothing_behind_and_tells_when_its_router_is_gone() -> None:
    before = namespaces()
    async with lab({1: HomeLine()}) as (place, family):
        if isinstance(place, Namespaces):
            child = await start(place, family, 1, ECHO, "10.77.0.2")
            assert await anext(child.lines()) == "ready"
            assert len(namespaces() - before) == 2, "the router's and the child's"
            place._router.kill()
            error = await place.broken()
            assert isinstance(error, SwarmError)
            assert "router ended unexpectedly" in str(error)
    assert namespaces() <= before


async def test_a_router_that_may_not_make_a_namespace_says_so_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tsr_swarm.local.network.netns_lab.ROUTER", WITHOUT_RIGHTS)
    async with ProcessGroup() as family:
        with pytest.raises(SwarmError, match=r"^Network namespaces need root \(Operation not permitted\)\.$"):
            await Namespaces.start(family, {0: HomeLine()}, 0, os.environ, True)


WITHOUT_RIGHTS = [
    sys.executable,
    "-c",
    """
import ctypes, struct  # keeps no right at all
ctypes.CDLL(None).capset(struct.pack("Ii", 0x20080522, 0), struct.pack("6I", *6 * [0]))
from tsr_swarm.local.network.tun_router import main
main()
""",
]
