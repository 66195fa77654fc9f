"""The router of a lab: a process that makes everybody's namespace and forwards what comes out of them.

The first line on stdin says who there is and what their lines are like; the answer on stdout, where the namespaces
are. Each further line is what has been cut from then on. It ends when stdin closes: nobody is left to route for.
"""

import json
import os
import resource
import select
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from tsr_swarm.local.network import netns
from tsr_swarm.local.network.link import HomeLine
from tsr_swarm.local.network.packet_network import Network, Pairs, address_of

STDIN = 0
MAX_PACKET = 1 << 16
BATCH = 64  # packets from one node before the next one has its turn


def first_line(lines: Mapping[int, HomeLine], seed: int) -> str:
    """What a router is told at its start."""
    return json.dumps({"seed": seed, "lines": {str(who): asdict(line) for who, line in lines.items()}})


def cut_line(pairs: Pairs) -> str:
    """What a router is told when something is cut or flows again."""
    return json.dumps(sorted(sorted(pair) for pair in pairs))


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
    """Forward between ``tuns``, file descriptors and whose they are, until stdin closes."""
    devices = {who: tun for tun, who in tuns.items()}
    poll = select.epoll()
    for fd in (STDIN, *tuns):
        poll.register(fd, select.EPOLLIN)
    while True:
        for fd, _ in poll.poll(_wait(network.next_time())):
            if fd == STDIN:
                told = orders.read()
                if told is None:
                    return
                for pairs in told:
                    network.cut([frozenset(pair) for pair in pairs])
            else:
                _take(network, fd, tuns[fd])
        for who, data in network.due(time.monotonic()):
            _give(devices[who], data)


def _take(network: Network, tun: int, who: int) -> None:
    for _ in range(BATCH):
        try:
            data = os.read(tun, MAX_PACKET)
        except BlockingIOError:
            return
        network.send(time.monotonic(), who, data)


def _give(tun: int, data: bytes) -> None:
    try:
        os.write(tun, data)
    except OSError:
        return  # the device takes no more: dropped, as anywhere on the way


def _wait(when: float | None) -> float:
    return -1 if when is None else max(0.0, when - time.monotonic())


class _Orders:
    """Lines of JSON on stdin. Nothing stays in a buffer that the poll would not see, but for half a line."""

    def __init__(self) -> None:
        self._rest = b""

    def first(self) -> Any:
        """Wait for the first one."""
        while (told := self.read()) == []:
            continue
        if told is None:
            sys.exit()
        return told[0]

    def read(self) -> list[Any] | None:
        """What has come; None once stdin is closed."""
        data = os.read(STDIN, MAX_PACKET)
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [json.loads(line) for line in lines] if data else None


if __name__ == "__main__":
    main()
