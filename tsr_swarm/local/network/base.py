"""Where the processes of a local swarm run, and over what they reach each other."""

import asyncio
from collections.abc import Sequence
from typing import Protocol

from tsr_swarm.errors import SwarmError
from tsr_swarm.local.network.packet_network import Pairs


class LocalNetwork(Protocol):
    """What differs between plain loopback and a lab."""

    def coordinator_arguments(self, address: str = "") -> list[str]:
        """Arguments of ``coordinate``: where it listens. ``address``: where it was, if it has been here before."""
        ...

    def peer_arguments(self, who: int, address: str) -> list[str]:
        """Arguments of peer ``who``'s ``join`` through a node that says it is at ``address``: whom to ask, and where
        it listens if others can dial it."""
        ...

    def command(self, who: int, command: Sequence[str]) -> list[str]:
        """``command`` as ``who`` has to be started."""
        ...

    def cut(self, pairs: Pairs) -> None:
        """From now on nothing passes within any of ``pairs``, and everything else does."""
        ...

    async def broken(self) -> SwarmError:
        """Wait until this place is no longer what it was, and say why."""
        ...


class Loopback:
    """Nothing between the processes but this machine's loopback."""

    def __init__(self, use_dht: bool) -> None:
        self._options = [] if use_dht else ["--no-dht"]

    def coordinator_arguments(self, address: str = "") -> list[str]:
        return ["--listen", address or "127.0.0.1:0", *self._options]

    def peer_arguments(self, who: int, address: str) -> list[str]:
        return ["--coordinator", address, "--listen", "127.0.0.1:0", *self._options]

    def command(self, who: int, command: Sequence[str]) -> list[str]:
        return list(command)

    def cut(self, pairs: Pairs) -> None:
        raise AssertionError("partitions need a lab")

    async def broken(self) -> SwarmError:
        return await asyncio.Future()
