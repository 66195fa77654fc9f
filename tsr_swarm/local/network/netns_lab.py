"""A lab of network namespaces: a router process of ours holds the only way out of each."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence

from tsr_swarm.errors import RunError, SwarmError
from tsr_swarm.local.network import netns
from tsr_swarm.local.network.link import HomeLine
from tsr_swarm.local.network.packet_network import Pairs, address_of
from tsr_swarm.local.network.tun_router import cut_line, first_line
from tsr_swarm.process.supervisor import Child, ProcessGroup, child_log, failure_of

MODE = "namespaces"
REASON = "every process has a network of its own, and a router between them shapes what passes"
ROUTER = (sys.executable, "-m", "tsr_swarm.local.network.tun_router")
PORT = 7700  # the coordinator's, in its own namespace


class Namespaces:
    """The router and who is where. Made by ``start``; it ends with its group."""

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
                "router",
                ROUTER,
                environment=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )
            router.write_line(first_line(lines, seed))
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
        self._router.write_line(cut_line(pairs))

    async def broken(self) -> SwarmError:
        code = await self._router.wait()
        return RunError(f"The lab's router ended unexpectedly (exit code {code}); nobody can reach anybody any more.")

    def _dht_options(self) -> list[str]:
        return [] if self._use_dht else ["--no-dht"]
