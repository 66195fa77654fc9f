"""Open the lab that a plan asks for: of namespaces where this process may make them, else of proxies."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

from tsr_swarm.errors import SwarmError
from tsr_swarm.process.supervisor import Family
from tsr_swarm.runtime.faults import LocalPlan
from tsr_swarm.runtime.lab import namespaces, proxy
from tsr_swarm.runtime.lab.link import Line
from tsr_swarm.runtime.lab.place import Loopback, Place
from tsr_swarm.telemetry.events import Event, LabReady

AUTO = "auto"
MODES = (AUTO, namespaces.MODE, proxy.MODE)


@asynccontextmanager
async def open_place(
    plan: LocalPlan,
    mode: str | None,
    family: Family,
    *,
    seed: int,
    environment: Mapping[str, str],
    use_dht: bool,
    emit: Callable[[Event], None],
) -> AsyncIterator[Place]:
    """Loopback if nothing asks for a lab: neither ``mode`` nor anything in ``plan``. Raises SwarmError."""
    if mode is None and not plan.is_shaped:
        yield Loopback(use_dht)
        return
    lines = {who: plan.lines.get(who, Line()) for who in range(plan.peers + plan.joins + 1)}
    why = "As asked,"
    if mode != proxy.MODE:
        try:
            place = await namespaces.Namespaces.start(family, lines, seed, environment, use_dht)
        except SwarmError as error:
            if mode == namespaces.MODE:
                raise
            why = f"{error} So"
        else:
            emit(LabReady(mode=namespaces.MODE, reason=f"{namespaces.REASON}."))
            yield place
            return
    async with AsyncExitStack() as exits:
        proxies = await proxy.Proxies.open(exits, lines, seed)
        emit(LabReady(mode=proxy.MODE, reason=f"{why} {proxy.REASON}."))
        yield proxies
