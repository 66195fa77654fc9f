"""A whole swarm in one event loop: the real coordinator and peers over real gRPC on loopback, with a tiny model.

Faults are placed by peer and round: a test gives a function that sees every event of the coordinator, or of a peer, as
it happens. Peers that listen can lead, and tell of the run while they do.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from tests.fixtures import TINY_MODEL
from tests.steady import OPTIMIZER, WIRE
from tsr_swarm.config.load import run_config_from_mapping
from tsr_swarm.config.run import RunConfig
from tsr_swarm.discovery.identity import load_identity
from tsr_swarm.node.coordinator import CoordinateOptions, run_coordinator
from tsr_swarm.node.join_options import JoinOptions
from tsr_swarm.node.peer import run_peer
from tsr_swarm.process.shutdown import Shutdown
from tsr_swarm.telemetry import events as ev
from tsr_swarm.telemetry.recording import EVENTS_FILE, read_recording

TEXT = "".join(f"def f{i}(x):\n    return x + {i} if x > {i % 7} else f{i // 2}(x - 1)\n\n" for i in range(600))
DEADLINE_SECONDS = 60
LISTEN = "127.0.0.1:0"
Kind = TypeVar("Kind")


def tiny_config(folder: Path, **changes: dict[str, object]) -> RunConfig:
    """A run that takes milliseconds a step; ``changes`` are keys by section."""
    text = folder / "text"
    if not text.exists():
        text.mkdir(parents=True)
        for part in range(8):
            (text / f"part{part}.py").write_text(TEXT[part * 2000 :][:9000])
    sections: dict[str, dict[str, object]] = {
        "run": {"name": "tiny", "rounds": 4, "min_peers": 3},
        "model": TINY_MODEL | {"max_position_embeddings": 32},
        "data": {"source": str(text), "parts": 4, "sequence_length": 16, "batch_size": 4, "heldout_sequences": 8},
        "optimizer": OPTIMIZER | {"lr": 0.01, "warmup_steps": 4},
        "wire": WIRE,
        "periods": {"k_x": 3, "k_r": 6, "k_r_embedding": 6},
        "round": {"floor_seconds": 30.0},
        "checkpoint": {"dir": str(folder / "coordinator")},
    }
    for name, keys in changes.items():
        sections[name] = {**sections.get(name, {}), **keys}
    return run_config_from_mapping(sections)


class Told:
    events: list[ev.Event]

    def of(self, kind: type[Kind]) -> list[Kind]:
        return [event for event in self.events if isinstance(event, kind)]

    def warnings(self) -> list[str]:
        return [event.message for event in self.of(ev.Warned)]


@dataclass
class Member(Told):
    """One process of the swarm, as a task."""

    stop: Shutdown
    task: asyncio.Task[None]
    events: list[ev.Event]


@dataclass
class Swarm(Told):
    """What happened, and the handles to make more happen."""

    folder: Path
    config: RunConfig
    on_event: Callable[["Swarm", ev.Event], None] = lambda swarm, event: None
    on_peer_event: Callable[["Swarm", int, ev.Event], None] = lambda swarm, number, event: None
    events: list[ev.Event] = field(default_factory=list)
    use_dht: bool = False  # of the coordinator; a peer is told itself
    address: str = ""
    coordinator: Member = None  # type: ignore[assignment]  # until it is started
    peers: dict[int, Member] = field(default_factory=dict)
    former: list[Member] = field(default_factory=list)  # processes of peers that were started anew
    differing: set[int] = field(default_factory=set)  # rounds whose weights a test spoils somewhere
    _told: asyncio.Event = field(default_factory=asyncio.Event)  # something; a new one each time

    async def start_coordinator(self, resume: bool = False, listen: str = LISTEN) -> None:
        started = len(self.of(ev.RunStarted))
        options = CoordinateOptions(config=self.config, listen=listen, use_dht=self.use_dht, resume=resume)
        stop = Shutdown()
        self.coordinator = Member(stop, asyncio.create_task(run_coordinator(options, self._see, stop)), self.events)
        await self.until(lambda: len(self.of(ev.RunStarted)) > started)

    def start_peer(self, number: int, at: str = "", **said: Any) -> Member:
        """Start a peer; it keeps its state in a folder of its own. ``at``: whom it calls first, if not the coordinator.

        ``said``: more JoinOptions. With ``listen``, an address, others can dial it: it may vote and lead.
        """
        folder, name = self.folder / f"peer-{number}", f"peer-{number}"
        common = {"device": "cpu", "no_dht": True, "name": name, "dir": str(folder), "wait": 0.0}
        options = JoinOptions(**{"coordinator": at or self.address, **common, **said})
        stop, events = Shutdown(), list[ev.Event]()

        def see(event: ev.Event) -> None:
            events.append(event)
            self.on_peer_event(self, number, event)
            self._tell()

        if number in self.peers:
            self.former.append(self.peers[number])
        self.peers[number] = Member(stop, asyncio.create_task(run_peer(options, see, stop)), events)
        return self.peers[number]

    async def start(self, peers: int = 0, listening: int = 0, resume: bool = False) -> "Swarm":
        """Start the coordinator and so many peers, of which the first ``listening`` can be dialled."""
        await self.start_coordinator(resume)
        for number in range(1, peers + 1):
            self.start_peer(number, resume=resume, listen=LISTEN if number <= listening else "")
        return self

    async def resume_coordinator(self) -> None:
        """Start it anew, where it was, without faults from now on."""
        self.on_event = lambda swarm, event: None
        await self.start_coordinator(resume=True, listen=self.address)

    async def end(self) -> None:
        stop_all(self)
        await self.finish()

    async def finish(self) -> None:
        """Wait for the coordinator and every peer; raises what the first of them raised. All weights are the same."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            await asyncio.gather(*(member.task for member in self.members))
        assert {round for round, digests in self.digests().items() if len(digests) > 1} == self.differing

    async def until(self, happened: Callable[[], bool]) -> None:
        """Wait until something is so; it is looked at after every event. Raises what ended a process meanwhile."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            while not happened():
                told = asyncio.create_task(self._told.wait())
                running = {member.task for member in self.members if not member.task.done()}
                await asyncio.wait({told, *running}, return_when=asyncio.FIRST_COMPLETED)
                told.cancel()
                for task in running:
                    if task.done():
                        task.result()

    def _see(self, event: ev.Event) -> None:
        self.events.append(event)
        if isinstance(event, ev.RunStarted):
            self.address = event.address
        self.on_event(self, event)
        self._tell()

    def _tell(self) -> None:
        self._told.set()
        self._told = asyncio.Event()

    def closed(self) -> list[ev.RoundClosed]:
        return self.of(ev.RoundClosed)

    def rounds(self) -> list[int]:
        """The rounds that the coordinator told to be closed."""
        return [event.round for event in self.closed()]

    def finished(self) -> ev.RunFinished:
        return self.of(ev.RunFinished)[0]

    def recorded(self) -> list[ev.Event]:
        return [stamped.event for stamped in read_recording(self.folder / "coordinator" / EVENTS_FILE)]

    @property
    def members(self) -> list[Member]:
        return [*([self.coordinator] if self.coordinator else []), *self.peers.values()]

    def told(self, kind: type[Kind]) -> list[Kind]:
        """What anybody said, as often as it was said."""
        return [event for member in (*self.members, *self.former) for event in member.of(kind)]

    def digests(self) -> dict[int, set[str]]:
        """Every digest that was seen of a round: the leaders', what peers reported, and what each peer had itself."""
        seen: dict[int, set[str]] = {}
        for event in self.told(ev.RoundClosed | ev.DigestReported | ev.RoundApplied):
            if event.digest:  # a leader that has fetched a state tells the rounds before it without one
                seen.setdefault(event.round, set()).add(event.digest)
        return seen

    def peer_id(self, number: int) -> str:
        return load_identity(self.folder / f"peer-{number}" / "identity.key").peer_id

    def address_of(self, number: int) -> str:
        return next(event.address for event in self.of(ev.PeerJoined) if event.peer == self.peer_id(number))

    def has_safe_voters(self, count: int) -> bool:
        """Whether so many vote, as the coordinator says, and have the round that made them voters."""
        changes = self.of(ev.LeaderChanged)
        return bool(changes) and changes[-1].is_safe and changes[-1].voters == count

    def leader(self) -> str:
        """The name of the node that was last said to lead, by the newest term that anybody told."""
        return max(self.told(ev.LeaderChanged), key=lambda event: event.term).name


async def run_swarm(
    folder: Path,
    config: RunConfig,
    peers: int = 3,
    on_event: Callable[[Swarm, ev.Event], None] = lambda swarm, event: None,
    listening: int = 0,
) -> Swarm:
    """Run a coordinator and peers, of which the first ``listening`` can be dialled, to the run's last round."""
    swarm = Swarm(folder, replace(config, run=replace(config.run, min_peers=peers)), on_event)
    await swarm.start(peers, listening)
    await swarm.finish()
    return swarm


def when(
    kind: type[ev.Event], round: int, act: Callable[[Swarm], object], phase: str = ""
) -> Callable[[Swarm, ev.Event], None]:
    """A fault: what to do with every event of this kind and round, and of this ``phase`` of it if one is named."""

    def on_event(swarm: Swarm, event: ev.Event) -> None:
        if isinstance(event, kind) and (event.round, getattr(event, "phase", "")) == (round, phase):  # type: ignore[attr-defined]
            act(swarm)

    return on_event


def kill_coordinator(swarm: Swarm) -> None:
    """It ends at once, without a goodbye."""
    swarm.coordinator.stop.terminate()


def stop_coordinator(swarm: Swarm) -> None:
    """It is asked to go after its round."""
    swarm.coordinator.stop.request()


def stop_all(swarm: Swarm) -> None:
    for member in swarm.members:
        member.stop.terminate()
