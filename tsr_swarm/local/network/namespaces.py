"""A network namespace for every node of a local swarm, and a router process that holds the only way out of each.

The router makes the namespaces and forwards what comes out of them. The first line on its stdin says who there is and
what their links are like; its answer on stdout, where the namespaces are. Each further line is what has been cut from
then on. It ends when stdin closes: nobody is left to route for.
"""

import json
import os
import resource
import select
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from tsr_swarm.errors import RunError, SwarmError
from tsr_swarm.local.network import netns
from tsr_swarm.local.network.packets import HomeLine, Network, Pairs, address_of
from tsr_swarm.process.supervisor import Child, ProcessGroup, child_log, failure_of

MODE = "namespaces"
REASON = "every process has a network of its own, and a router between them shapes what passes"
ROUTER = (sys.executable, "-m", "tsr_swarm.local.network.namespaces")
PORT = 7700  # the coordinator's, in its own namespace
STDIN = 0
MAX_PACKET = 1 << 16
BATCH = 64  # packets from one node before the next one has its turn


class Namespaces:
    """A LocalNetwork of namespaces. Made by ``start``; its router ends with the process group."""

    def __init__(self, router: Child, paths: Mapping[int, str], lines: Mapping[int, HomeLine], use_dht: bool) -> None:
        self._router, self._paths, self._lines, self._use_dht = router, paths, lines, use_dht

    @classmethod
    async def start(
        cls,
        group: ProcessGroup,
        lines: Mapping[int, HomeLine],
        seed: int,
        environment: Mapping[str, str],
        use_dht: bool,
    ) -> "Namespaces":
        """A namespace for everybody in ``lines``. Raises SwarmError with the router's sentence when it may not."""
        with child_log() as log:
            router = await group.start(
                "router", ROUTER, environment=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
            )
            nodes = {who: asdict(line) for who, line in lines.items()}
            router.write_line(json.dumps({"seed": seed, "lines": nodes}))
            ready = await anext(router.lines(), None)
            if ready is None:
                await router.wait()
                raise failure_of(router, log)
        paths = {int(who): str(path) for who, path in json.loads(ready).items()}
        return cls(router, paths, lines, use_dht)

    def coordinator_arguments(self, address: str = "") -> list[str]:
        # Not loopback, but nobody outside this lab can reach it.
        return ["--listen", f"{address_of(0)}:{PORT}", "--insecure", *self._dht_options()]

    def peer_arguments(self, who: int, address: str) -> list[str]:
        """A peer that can be dialled says so, as on the internet; one behind NAT only dials out."""
        listen = [] if self._lines[who].nat else ["--listen", f"{address_of(who)}:0", "--insecure"]
        return ["--coordinator", address, *listen, *self._dht_options()]

    def command(self, who: int, command: Sequence[str]) -> list[str]:
        return [sys.executable, "-I", "-S", netns.__file__, self._paths[who], *command]

    def cut(self, pairs: Pairs) -> None:
        self._router.write_line(json.dumps([sorted(pair) for pair in pairs]))

    async def failure(self) -> SwarmError:
        code = await self._router.wait()
        return RunError(f"The lab's router ended unexpectedly (exit code {code}); nobody can reach anybody any more.")

    def _dht_options(self) -> list[str]:
        return [] if self._use_dht else ["--no-dht"]


def main() -> None:
    orders = _Orders()
    start: dict[str, Any] = orders.first()
    lines = {int(who): HomeLine(**line) for who, line in start["lines"].items()}
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    try:
        nodes = {who: netns.make_node(address_of(who)) for who in lines}
    except OSError as error:
        sys.exit(f"tsr-swarm: {error.strerror}")
    print(json.dumps({who: f"/proc/{os.getpid()}/fd/{kept}" for who, (kept, _) in nodes.items()}), flush=True)
    _route(Network(lines, start["seed"]), {tun: who for who, (_, tun) in nodes.items()}, orders)


def _route(network: Network, tuns: Mapping[int, int], orders: "_Orders") -> None:
    """Forward between the devices ``tuns``, by file descriptor the node that each belongs to, until stdin closes."""
    devices = {who: tun for tun, who in tuns.items()}
    poll = select.epoll()
    for fd in (STDIN, *tuns):
        poll.register(fd, select.EPOLLIN)
    while True:
        when = network.next_time()
        for fd, _ in poll.poll(-1 if when is None else max(0.0, when - time.monotonic())):
            if fd == STDIN:
                lines = orders.read()
                if lines is None:
                    return
                for pairs in lines:
                    network.cut([frozenset(pair) for pair in pairs])
            else:
                _receive(network, fd, tuns[fd])
        for who, data in network.due(time.monotonic()):
            _send(devices[who], data)


def _receive(network: Network, tun: int, who: int) -> None:
    for _ in range(BATCH):
        try:
            data = os.read(tun, MAX_PACKET)
        except BlockingIOError:
            return
        network.send(time.monotonic(), who, data)


def _send(tun: int, data: bytes) -> None:
    try:
        os.write(tun, data)
    except OSError:
        return  # the device's queue is full: the packet is dropped, as anywhere on the way


class _Orders:
    """Lines of JSON on stdin, read without a buffer that the poll would not see, but for half a line."""

    def __init__(self) -> None:
        self._rest = b""

    def first(self) -> Any:
        while (lines := self.read()) == []:
            continue
        if lines is None:
            sys.exit()
        return lines[0]

    def read(self) -> list[Any] | None:
        """The lines that have come; None once stdin is closed."""
        data = os.read(STDIN, MAX_PACKET)
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [json.loads(line) for line in lines] if data else None


if __name__ == "__main__":
    main()
