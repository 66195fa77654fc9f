"""Open the lab that a plan asks for: of namespaces where this process may make them, else of proxies."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

from tsr_swarm.errors import SwarmError
from tsr_swarm.local.faults import LocalPlan
from tsr_swarm.local.network import netns_lab, proxy
from tsr_swarm.local.network.base import LocalNetwork, Loopback
from tsr_swarm.local.network.link import HomeLine
from tsr_swarm.process.supervisor import ProcessGroup
from tsr_swarm.telemetry.events import Event, LabReady

AUTO = "auto"
MODES = (AUTO, netns_lab.MODE, proxy.MODE)


@asynccontextmanager
async def open_place(
    plan: LocalPlan,
    mode: str | None,
    group: ProcessGroup,
    *,
    seed: int,
    environment: Mapping[str, str],
    use_dht: bool,
    emit: Callable[[Event], None],
) -> AsyncIterator[LocalNetwork]:
    """Loopback if nothing asks for a lab: neither ``mode`` nor anything in ``plan``. Raises SwarmError."""
    if mode is None and not plan.is_shaped:
        yield Loopback(use_dht)
        return
    lines = {who: plan.lines.get(who, HomeLine()) for who in range(plan.peers + plan.joins + 1)}
    why = "As asked,"
    if mode != proxy.MODE:
        try:
            place = await netns_lab.Namespaces.start(group, lines, seed, environment, use_dht)
        except SwarmError as error:
            if mode == netns_lab.MODE:
                raise
            why = f"{error} So"
        else:
            emit(LabReady(mode=netns_lab.MODE, reason=f"{netns_lab.REASON}."))
            yield place
            return
    async with AsyncExitStack() as exits:
        proxies = await proxy.Proxies.open(exits, lines, seed)
        emit(LabReady(mode=proxy.MODE, reason=f"{why} {proxy.REASON}."))
        yield proxies
