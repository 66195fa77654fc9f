"""A volunteer peer: one process that joins a run, trains on its own machine and exchanges cores and sketches."""

import asyncio
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from tsr_swarm.config.manifest import Manifest, decode_manifest, make_manifest
from tsr_swarm.errors import ConfigError, RefusedError
from tsr_swarm.runtime.discovery import Discovery
from tsr_swarm.runtime.lifeline import StopRequest, run_unless_now
from tsr_swarm.runtime.listening import dht_places, require_consent, shown_address
from tsr_swarm.runtime.node.book import AddressBook, Lines
from tsr_swarm.runtime.node.meeting import meet
from tsr_swarm.runtime.node.post import Introduction
from tsr_swarm.runtime.node.service import NodeService
from tsr_swarm.runtime.node.volunteer import VolunteerProcess
from tsr_swarm.runtime.reporting import Reporter
from tsr_swarm.runtime.run_folder import CONTACTS, IDENTITY, folder_lock, holds_work
from tsr_swarm.runtime.workshop import Workshop
from tsr_swarm.swarm.addresses import clock_warning, is_loopback
from tsr_swarm.swarm.identity import load_identity
from tsr_swarm.swarm.records import Role
from tsr_swarm.telemetry import events
from tsr_swarm.telemetry.events import Event
from tsr_swarm.telemetry.ledger import ByteLedger
from tsr_swarm.train.llama import parameter_shapes
from tsr_swarm.transport.kernel_bytes import KernelBytes
from tsr_swarm.transport.server import serve

MAX_CALLS = 256  # at a time, of others to this peer
BYTES_A_PARAMETER = 16  # weights of model and consensus, gradients, and a state that is being received


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinOptions:
    """What the command line or a profile says."""

    coordinator: str
    data: tuple[Path, ...] = ()  # none: this peer's part of the run's own data
    device: str = "auto"
    name: str = "peer"
    listen: str | None = None  # where others can dial this peer: it gives them states and rounds
    announce: str | None = None  # HOST or HOST:PORT under which others reach it
    dht_port: int = 0
    insecure: bool = False
    outbound_only: bool = False
    use_dht: bool = True
    resume: bool = False
    folder: Path | None = None  # where its key and its checkpoints are kept; None: nowhere
    local_space: str = ""  # "": what the run says
    slowdown: float = 1.0  # how many times longer a training step takes than it has to
    proxy: str | None = None  # the HTTP proxy that every call goes through


async def run_peer(options: JoinOptions, emit: Callable[[Event], None], stop: StopRequest) -> None:
    """Take part in a run until it ends or ``stop``. Raises SwarmError with one sentence."""
    if options.listen is not None:
        require_consent(options.listen, options.announce, options.insecure, "read the model")
    await run_unless_now(_take_part(options, emit, stop.gently), stop)


async def _take_part(options: JoinOptions, emit: Callable[[Event], None], stop_gently: asyncio.Event) -> None:
    device = choose_device(options.device)
    async with AsyncExitStack() as stack:
        if options.folder is not None:
            stack.enter_context(folder_lock(options.folder))
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tsr-swarm-")))
        identity = load_identity(folder / IDENTITY, is_new=not holds_work(folder))
        ledger, kernel = ByteLedger(), KernelBytes([])
        book = AddressBook(identity.peer_id, folder / CONTACTS)
        book.load(options.coordinator)
        lines = await stack.enter_async_context(Lines(book, ledger, kernel, options.proxy))
        met = await meet(lines, book, options.coordinator)
        warning = clock_warning(met.hello.unix_time, time.time())
        if warning is not None:
            emit(events.Warned(message=warning))
        manifest = decode_manifest(met.hello.manifest)
        require_reasonable(manifest)
        kind = _local_space(options, manifest)
        workshop = Workshop(manifest, kind, device, options.data, options.folder, options.slowdown)
        service, address = None, ""
        if options.listen is not None:
            service = NodeService()
            server = serve(service, options.listen, ledger, max_concurrent_rpcs=MAX_CALLS)
            port = await stack.enter_async_context(server)
            kernel.watch(port)
            address = shown_address(options.listen, options.announce, port)
        who = Introduction(
            peer_id=identity.peer_id, name=options.name, address=address, local_space=kind, device=str(device)
        )
        discovery = Discovery(identity, manifest.run_id, emit)
        if options.use_dht:
            stack.push_async_callback(discovery.close)
            meeting = asyncio.create_task(_meet(discovery, options, met.host, address, list(met.hello.initial_peers)))
            stack.callback(meeting.cancel)
        restored = await asyncio.to_thread(workshop.load, emit) if options.resume else None
        process = VolunteerProcess(who, manifest, met, folder, book, lines, workshop, restored, service, emit)
        reason = await process.run(Reporter(ledger, kernel, identity.peer_id), stop_gently)
        emit(events.Left(reason=reason, rounds=process.rounds_included))


async def _meet(discovery: Discovery, options: JoinOptions, host: str, address: str, initial_peers: list[str]) -> None:
    """Join the DHT beside the training: on this machine's own loopback if the run is there, or where told to."""
    listen: tuple[str, int] | None = None
    announce: tuple[str, int] | None = None
    if options.listen is not None:
        listen, announce = dht_places(options.listen, options.announce, options.dht_port)
    elif is_loopback(host) and not options.outbound_only:
        listen = ("127.0.0.1", options.dht_port)
    await discovery.start(listen=listen, announce=announce, initial_peers=initial_peers)
    await discovery.keep_announcing(options.name, address, Role.PEER)


def require_reasonable(manifest: Manifest) -> None:
    """Refuse a manifest whose blocks are not its model's, or whose run does not fit into this machine's memory."""
    config = manifest.config
    expected = make_manifest(manifest.run_id, config, parameter_shapes(config.model))
    if expected.digest != manifest.digest:
        raise RefusedError("The coordinator's manifest lists other blocks than its model has; ask its organiser.")
    needed = BYTES_A_PARAMETER * manifest.parameters
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > available:
        raise RefusedError(
            f"The run's model needs about {needed / 1e9:.1f} GB of memory, this machine has {available / 1e9:.1f} GB; "
            "join from a larger one."
        )


def choose_device(name: str) -> torch.device:
    """``auto`` takes a GPU if there is one. Raises ConfigError for a device that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        sentence = str(error).splitlines()[0]
        raise ConfigError(f"Device '{name}' cannot be used ({sentence}); choose cpu, or leave --device out.") from error
    return device


def _local_space(options: JoinOptions, manifest: Manifest) -> str:
    """The run decides, unless it takes both kinds of peer."""
    allowed = manifest.config.optimizer.local_space
    if allowed == "mixed":
        return options.local_space or "core"
    if options.local_space not in ("", allowed):
        raise RefusedError(f'This run takes peers of local_space "{allowed}" only; leave --local-space out.')
    return allowed
