"""Measure the lab of `tsr-swarm local`: what its links were asked to do, and what they do to real connections.

    python -m tests.bench.lab                              both kinds of lab, three repeats
    python -m tests.bench.lab --repeats 1 --modes proxy --only rtt

A server and a client run where a coordinator and a peer would, and talk over TCP, and over UDP where packets can be
lost. The table goes to examples/results/lab.md.
"""

import argparse
import asyncio
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from tsr_swarm.errors import SwarmError
from tsr_swarm.local.faults import LocalPlan
from tsr_swarm.local.network import namespaces, proxy
from tsr_swarm.local.network.local_network import LocalNetwork, open_network
from tsr_swarm.local.network.packets import HomeLine
from tsr_swarm.process.supervisor import Child, ProcessGroup

SERVER, CLIENT = 0, 1
RTTS, RATES, LOSSES = (0.01, 0.04, 0.08, 0.2), (1e6, 5e6, 20e6, 100e6), (0.01, 0.02, 0.05)
PINGS, PACKETS, SECONDS = 25, 4000, 2.0
CUT_SECONDS = 3.0
CHUNK = bytes(1 << 16)
BUFFER = 1 << 18  # of a connection in the kernel: what is left in it at the end has to be waited for


# --- processes in the lab ---------------------------------------------------------------------------------------------


def serve(address: str) -> None:
    """Answer on TCP and count UDP packets, at ``address``.

    The first byte of a connection says what is done: e echo, s receive and answer with the rate, g send for a while,
    c answer with the count of packets.
    """
    host, _, port = address.rpartition(":")
    packets = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    packets.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
    listener = socket.create_server((host, int(port)))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
    packets.bind((host, int(port)))
    count = [0]

    def count_packets() -> None:
        while packets.recv(2000):
            count[0] += 1

    def answer(connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        match connection.recv(1):
            case b"e":
                while data := connection.recv(1 << 16):
                    connection.sendall(data)
            case b"s":
                connection.sendall(b"%f" % sink(connection))
            case b"g":
                end = time.monotonic() + SECONDS
                while time.monotonic() < end:
                    connection.sendall(CHUNK)
            case b"c":
                connection.sendall(b"%d" % count[0])
        connection.close()

    threading.Thread(target=count_packets, daemon=True).start()
    print(address, flush=True)
    while True:
        threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()


def sink(connection: socket.socket) -> float:
    """Bits a second that come, until the connection is closed."""
    connection.recv(1)
    begun, total = time.monotonic(), 0
    while data := connection.recv(1 << 20):
        total += len(data)
    return 8 * total / (time.monotonic() - begun)


def dial(address: str, via: str, kind: bytes) -> socket.socket:
    """A connection to the server, through the HTTP proxy at ``via`` if there is one."""
    host, _, port = (via or address).rpartition(":")
    connection = socket.create_connection((host, int(port)))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if via:
        connection.sendall(f"CONNECT {address} HTTP/1.1\r\n\r\n".encode())
        assert b" 200 " in connection.recv(100)
    connection.sendall(kind)
    return connection


def rtt(address: str, via: str) -> list[float]:
    """Seconds of each of many round trips of one byte."""
    connection, taken = dial(address, via, b"e"), []
    for _ in range(PINGS):
        begun = time.monotonic()
        connection.sendall(b".")
        connection.recv(1)
        taken.append(time.monotonic() - begun)
    return taken


def up(address: str, via: str) -> list[float]:
    connection, end = dial(address, via, b"s"), time.monotonic() + SECONDS
    while time.monotonic() < end:
        connection.sendall(CHUNK)
    connection.shutdown(socket.SHUT_WR)
    return [float(connection.recv(100))]


def down(address: str, via: str) -> list[float]:
    return [sink(dial(address, via, b"g"))]


def lost(address: str, via: str) -> list[float]:
    """The share of packets that does not arrive."""
    before = float(dial(address, via, b"c").recv(100))
    host, _, port = address.rpartition(":")
    packets = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for number in range(PACKETS):
        packets.sendto(CHUNK[:100], (host, int(port)))
        if number % 4 == 3:
            time.sleep(0.002)
    time.sleep(0.5)
    return [1 - (float(dial(address, via, b"c").recv(100)) - before) / PACKETS]


def beat(address: str, via: str) -> list[float]:
    """When each of many round trips was over, on the clock that all processes share; until this is killed."""
    connection = dial(address, via, b"e")
    while True:
        connection.sendall(b".")
        connection.recv(1)
        print(time.monotonic(), flush=True)
        time.sleep(0.01)


FIGURES: dict[str, Callable[[str, str], list[float]]] = {"rtt": rtt, "up": up, "down": down, "lost": lost, "beat": beat}


# --- measuring --------------------------------------------------------------------------------------------------------


class Lab:
    """A lab with a server in it."""

    def __init__(self, network: LocalNetwork, group: ProcessGroup, address: str, via: str) -> None:
        self.network, self._group, self._address, self._via = network, group, address, via

    async def start(self, what: str) -> Child:
        return await start(self.network, self._group, CLIENT, "client", what, self._address, self._via)

    async def figures(self, what: str) -> list[float]:
        """The figures that a client prints."""
        return [float(line) async for line in (await self.start(what)).lines()]


async def start(network: LocalNetwork, group: ProcessGroup, number: int, *arguments: str) -> Child:
    command = network.command(number, [sys.executable, "-m", "tests.bench.lab", *arguments])
    return await group.start("it", command, environment=os.environ, stdout=subprocess.PIPE)


@asynccontextmanager
async def lab(mode: str, link: HomeLine, seed: int) -> AsyncIterator[Lab]:
    plan = LocalPlan(peers=1, environment={}, lines={CLIENT: link})
    async with (
        ProcessGroup() as group,
        open_network(
            plan, mode, group, seed=seed, environment=os.environ, use_dht=False, emit=lambda event: None
        ) as network,
    ):
        arguments = network.coordinator_arguments()
        listen = arguments[arguments.index("--listen") + 1]
        address = await anext((await start(network, group, SERVER, "serve", listen)).lines())
        arguments = network.peer_arguments(CLIENT, address)
        via = arguments[arguments.index("--proxy") + 1] if "--proxy" in arguments else ""
        yield Lab(network, group, address, via)


async def repeated(mode: str, link: HomeLine, what: str, repeats: int) -> list[float]:
    """The median figure of each of some labs."""
    medians = []
    for seed in range(repeats):
        async with lab(mode, link, seed) as made:
            medians.append(statistics.median(await made.figures(what)))
    return medians


def row(what: str, asked: str, found: list[float], unit: str, scale: float) -> list[str]:
    median, low, high = (f"{scale * figure:.3g}" for figure in (statistics.median(found), min(found), max(found)))
    return [what, asked, f"{median} {unit}", f"{low} to {high}"]


async def round_trips(mode: str, repeats: int) -> list[list[str]]:
    rows = []
    for asked in (*RTTS, 0.0):
        found = await repeated(mode, HomeLine(rtt=asked), "rtt", repeats)
        rows.append(row("round trip", f"{1e3 * asked:.0f} ms" if asked else "nothing", found, "ms", 1e3))
    return rows


async def rates(mode: str, repeats: int) -> list[list[str]]:
    rows = []
    for way in ("up", "down"):
        for asked in RATES:
            found = await repeated(mode, HomeLine(up=asked) if way == "up" else HomeLine(down=asked), way, repeats)
            rows.append(row(way, f"{asked / 1e6:.0f} mbit", found, "mbit", 1e-6))
    rows.append(row("up", "no limit", await repeated(mode, HomeLine(), "up", repeats), "mbit", 1e-6))
    return rows


async def losses(mode: str, repeats: int) -> list[list[str]]:
    rows = []
    for asked in LOSSES:
        if mode == namespaces.MODE:
            found = await repeated(mode, HomeLine(loss=asked), "lost", repeats)
            rows.append(row("packets lost one way", f"{asked:.0%}", found, "%", 100))
        else:
            found = [await late(asked, seed) for seed in range(repeats)]
            rows.append(row("round trips late by a retransmission", f"{1 - (1 - asked) ** 2:.1%}", found, "%", 100))
    return rows


async def late(loss: float, seed: int) -> float:
    """The share of round trips through a proxy that a loss makes late; ten clients, since one has few."""
    async with lab(proxy.MODE, HomeLine(loss=loss), seed) as made:
        taken = [one for figures in await asyncio.gather(*(made.figures("rtt") for _ in range(10))) for one in figures]
    return sum(one >= proxy.RETRANSMIT_SECONDS for one in taken) / len(taken)


async def partitions(mode: str, repeats: int) -> list[list[str]]:
    found = [await healing(mode) for _ in range(repeats)]
    return [row(f"first answer after a partition of {CUT_SECONDS:.0f} s", "soon", found, "s", 1.0)]


async def healing(mode: str) -> float:
    """Seconds from the end of a partition to the next answer on a connection that was there before."""
    async with lab(mode, HomeLine(rtt=0.02), 0) as made:
        beats = (await made.start("beat")).lines()
        await anext(beats)
        made.network.cut([frozenset((SERVER, CLIENT))])
        cut_at = time.monotonic()
        await asyncio.sleep(CUT_SECONDS)
        made.network.cut([])
        healed_at = time.monotonic()
        while (answered := float(await anext(beats))) < healed_at:
            if answered > cut_at + 0.1:
                raise SystemExit("an answer came through the partition")
        return answered - healed_at


PARTS = {"rtt": round_trips, "rates": rates, "losses": losses, "partitions": partitions}


async def measure(mode: str, parts: Sequence[str], repeats: int) -> str:
    """The section of one kind of lab."""
    from tests.bench.tables import table

    try:
        rows = [row for part in parts for row in await PARTS[part](mode, repeats)]
    except SwarmError as error:
        return f"## {mode}\n\nNot here: {error}"
    return "\n".join([f"## {mode}", "", *table(["", "asked", "measured, median", "range"], rows)])


def main(arguments: Sequence[str] | None = None) -> None:
    from tests.bench.tables import RESULTS, write_page  # not at the top: it loads torch, which the clients do without

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--modes", nargs="+", default=[namespaces.MODE, proxy.MODE])
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the table")
    options = parser.parse_args(arguments)
    sections = [asyncio.run(measure(mode, options.only, options.repeats)) for mode in options.modes]
    write_page(
        options.out / "lab.md",
        "The lab of `tsr-swarm local`: asked and measured",
        "python -m tests.bench.lab",
        f"Real connections between two processes, medians of {options.repeats} labs each. Rates are of a TCP stream's "
        "bytes, without the headers: 3.5% of every full packet in namespaces. What of a rate is lost on top is TCP's. "
        "Other programs ran on the same cores.",
        *sections,
    )


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["serve", address]:
            serve(address)
        case ["client", what, address, via]:
            print("\n".join(map(str, FIGURES[what](address, via))), flush=True)
        case _:
            main()
