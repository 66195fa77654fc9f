"""What the processes of a local swarm reach each other over, and which kind of it a plan needs."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from tsr_swarm.errors import SwarmError
from tsr_swarm.local.faults import LocalPlan
from tsr_swarm.local.network import namespaces, proxy
from tsr_swarm.local.network.packets import HomeLine, Pairs
from tsr_swarm.process.supervisor import ProcessGroup
from tsr_swarm.telemetry.events import Event, LabReady

AUTO = "auto"
MODES = (AUTO, namespaces.MODE, proxy.MODE)


class Loopback:
    """The network of a local swarm without a lab: nothing between the processes but this machine's loopback."""

    def __init__(self, use_dht: bool) -> None:
        self._options = [] if use_dht else ["--no-dht"]

    def coordinator_arguments(self, address: str = "") -> list[str]:
        """Arguments of ``coordinate``: where it listens. ``address``: where it was, if it has been here before."""
        return ["--listen", address or "127.0.0.1:0", *self._options]

    def peer_arguments(self, who: int, address: str) -> list[str]:
        """Arguments of ``join`` for peer ``who``: a node's ``address`` to ask, and where to listen if it can."""
        return ["--coordinator", address, "--listen", "127.0.0.1:0", *self._options]

    def command(self, who: int, command: Sequence[str]) -> list[str]:
        """``command`` as ``who`` has to be started."""
        return list(command)

    def cut(self, pairs: Pairs) -> None:
        """From now on nothing passes within any of ``pairs``, and everything else does."""
        raise AssertionError("partitions need a lab")

    async def failure(self) -> SwarmError:
        """Wait until this network no longer works, and say why."""
        return await asyncio.Future()


LocalNetwork = Loopback | namespaces.Namespaces | proxy.Proxies  # all have the methods of Loopback


@asynccontextmanager
async def open_network(
    plan: LocalPlan,
    mode: str | None,
    group: ProcessGroup,
    *,
    seed: int,
    environment: Mapping[str, str],
    use_dht: bool,
    emit: Callable[[Event], None],
) -> AsyncIterator[LocalNetwork]:
    """Open the network that ``plan`` and ``mode``, one of MODES, ask for. Raises SwarmError.

    Loopback if neither asks for a lab; else namespaces where this process may make them, or proxies.
    """
    if mode is None and not plan.is_shaped:
        yield Loopback(use_dht)
        return
    lines = {who: plan.lines.get(who, HomeLine()) for who in range(plan.peers + plan.joins + 1)}
    why = "As asked,"
    if mode != proxy.MODE:
        try:
            network = await namespaces.Namespaces.start(group, lines, seed, environment, use_dht)
        except SwarmError as error:
            if mode == namespaces.MODE:
                raise
            why = f"{error} So"
        else:
            emit(LabReady(mode=namespaces.MODE, reason=f"{namespaces.REASON}."))
            yield network
            return
    async with AsyncExitStack() as exits:
        proxies = await proxy.Proxies.open(exits, lines, seed)
        emit(LabReady(mode=proxy.MODE, reason=f"{why} {proxy.REASON}."))
        yield proxies
