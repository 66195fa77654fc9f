"""What a peer's own machine decides when it joins a run."""

import re
from dataclasses import dataclass
from typing import ClassVar

from tsr_swarm.config.coerce import ConfigSection
from tsr_swarm.discovery.addresses import is_way_in
from tsr_swarm.discovery.runs import parse_wanted_run
from tsr_swarm.errors import ConfigError

MAX_WAIT_SECONDS = 365 * 86400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinOptions(ConfigSection):
    """The ``[join]`` table of a ``peer.toml``; each key is the flag of the same name. ``""`` stands for none."""

    section: ClassVar[str] = "join"
    coordinator: str = ""
    run: str = ""  # NAME or NAME@RUNID, found in the DHT where no coordinator is named or none answers
    dht: tuple[str, ...] = ()  # ways into the DHT: multiaddrs, or host:port of any node of a run
    data: tuple[str, ...] = ()  # none: this peer's part of the run's own data
    device: str = "auto"
    name: str = ""
    listen: str = ""  # where others can dial this peer: it gives them states and rounds
    announce: str = ""  # HOST or HOST:PORT under which others reach it
    dht_port: int = 0
    insecure: bool = False
    outbound_only: bool = False
    no_dht: bool = False
    resume: bool = False
    dir: str = ""  # where its key and its checkpoints are kept; none: nowhere
    local_space: str = ""  # none: what the run says
    wait: float = 60.0  # seconds; how long to try while nobody can be reached
    slowdown: float = 1.0  # how many times longer a training step takes than it has to; no key of a profile
    proxy: str | None = None  # the HTTP proxy that every call goes through; no key of a profile

    def check(self) -> None:
        self.require(self.local_space in ("", "core", "full"), "local_space", '"core" or "full"')
        is_name = re.fullmatch(r"[A-Za-z0-9_-]{0,32}", self.name) is not None
        self.require(is_name, "name", "1 to 32 ASCII letters, digits, '-' or '_'")
        if self.run:
            parse_wanted_run(self.run)
        self.require(all(map(is_way_in, self.dht)), "dht", "multiaddrs that end in /p2p/ID, or HOST:PORT")
        self.require(0 <= self.dht_port <= 65535, "dht_port", "a port, 0 to 65535")
        self.require(0 <= self.wait <= MAX_WAIT_SECONDS, "wait", f"0 to {MAX_WAIT_SECONDS:.0f} seconds")
        if self.listen and self.outbound_only:
            raise ConfigError("listen and outbound_only exclude each other; give one of them.")
        for key in ("announce", "dht_port"):
            if getattr(self, key) and not self.listen:
                raise ConfigError(f"{key} is for a peer that listens; add listen, or leave {key} out.")
