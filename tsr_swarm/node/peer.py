"""A volunteer peer: one process that joins a run, trains on its own machine and exchanges cores and sketches."""

import asyncio
import tempfile
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from tsr_swarm.config.manifest import Manifest, decode_manifest, make_manifest
from tsr_swarm.discovery.addresses import clock_warning, is_loopback
from tsr_swarm.discovery.announcer import Discovery
from tsr_swarm.discovery.identity import load_identity
from tsr_swarm.discovery.listening import dht_places, require_consent, shown_address
from tsr_swarm.discovery.records import PeerRole
from tsr_swarm.errors import ConfigError, RefusedError
from tsr_swarm.node.address_book import AddressBook, ClientPool
from tsr_swarm.node.events.peer_report import PeerReporter
from tsr_swarm.node.handshake import meet
from tsr_swarm.node.messenger import NodeInfo
from tsr_swarm.node.service import NodeService
from tsr_swarm.node.volunteer import PeerProcess
from tsr_swarm.node.workspace import Workspace
from tsr_swarm.process.machine_limits import Room, memory_room, require_memory
from tsr_swarm.process.shutdown import Shutdown, run_unless, run_unless_now
from tsr_swarm.storage.run_folder import CONTACTS, IDENTITY, folder_lock, holds_work
from tsr_swarm.telemetry import events
from tsr_swarm.telemetry.byte_counter import ByteCounter
from tsr_swarm.telemetry.events import Event
from tsr_swarm.telemetry.text import reason_text
from tsr_swarm.train.corpus import find_documents
from tsr_swarm.train.llama import parameter_shapes
from tsr_swarm.transport.retry import retry_while_unreachable
from tsr_swarm.transport.server import serve
from tsr_swarm.transport.tcp_info import KernelBytes

MAX_CALLS = 256  # at a time, of others to this peer
# Of memory, a parameter:
TRAINING_BYTES = 16  # weights of model and consensus, gradients, and a state that is being received
CONSENSUS_BYTES = 8  # what of that stays with the processor where a GPU trains ...
MODEL_BYTES = 4  # ... and what the GPU needs at the least


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
    wait_seconds: float = 0.0  # how long to try while nobody can be reached
    slowdown: float = 1.0  # how many times longer a training step takes than it has to
    proxy: str | None = None  # the HTTP proxy that every call goes through


async def run_peer(options: JoinOptions, emit: Callable[[Event], None], stop: Shutdown) -> None:
    """Take part in a run until it ends or ``stop``. Raises SwarmError with one sentence."""
    if options.listen is not None:
        require_consent(options.listen, options.announce, options.insecure, "read the model")
    if options.resume and options.folder is None:
        raise ConfigError("--resume needs to know where this peer kept its state; add --dir DIR.")
    await run_unless_now(_take_part(options, emit, stop.gently), stop)


async def _take_part(options: JoinOptions, emit: Callable[[Event], None], stop_gently: asyncio.Event) -> None:
    async with AsyncExitStack() as stack:
        ready = await run_unless(stop_gently, _get_ready(options, emit, stack))
        if ready is None:
            return  # nobody has heard of this peer
        process, reporter = ready
        reason = await process.run(reporter, stop_gently)
        emit(events.Left(reason=reason, rounds=process.rounds_included))


async def _get_ready(
    options: JoinOptions, emit: Callable[[Event], None], stack: AsyncExitStack
) -> tuple[PeerProcess, PeerReporter]:
    """All that can fail before the first call that makes this peer known. What is opened belongs to ``stack``."""

    loop = asyncio.get_running_loop()

    def warn(message: str) -> None:
        emit(events.Warned(message=message))

    def warn_from_thread(message: str) -> None:
        loop.call_soon_threadsafe(warn, message)

    device = choose_device(options.device)
    if options.data:
        await asyncio.to_thread(find_documents, tuple(map(str, options.data)))
    if options.folder is not None:
        stack.enter_context(folder_lock(options.folder))
    folder = options.folder or _temporary_folder(stack)
    identity = load_identity(folder / IDENTITY, is_new=not holds_work(folder))
    ledger, kernel = ByteCounter(), KernelBytes([])
    book = AddressBook(identity.peer_id, folder / CONTACTS)
    book.load(options.coordinator)
    clients = await stack.enter_async_context(ClientPool(book, ledger, kernel, options.proxy))
    service, address = None, ""
    if options.listen is not None:
        service = NodeService()
        port = await stack.enter_async_context(serve(service, options.listen, ledger, max_concurrent_rpcs=MAX_CALLS))
        kernel.watch(port)
        address = shown_address(options.listen, options.announce, port)
    met = await retry_while_unreachable(lambda: meet(clients, book, options.coordinator), options.wait_seconds, warn)
    warning = clock_warning(met.hello.unix_time, time.time())
    if warning is not None:
        warn(warning)
    manifest = decode_manifest(met.hello.manifest)
    require_its_model(manifest)
    require_its_memory(manifest, device)
    kind = _local_space(options, manifest)
    workshop = Workspace(manifest, kind, device, options.data, options.folder, options.slowdown, warn_from_thread)
    await asyncio.to_thread(workshop.require_data)
    restored = await asyncio.to_thread(workshop.load, emit) if options.resume else None
    who = NodeInfo(peer_id=identity.peer_id, name=options.name, address=address, local_space=kind, device=str(device))
    if options.use_dht:
        discovery = Discovery(identity, manifest.run_id, emit)
        stack.push_async_callback(discovery.close)
        meeting = asyncio.create_task(_meet(discovery, options, met.host, address, list(met.hello.initial_peers)))
        stack.callback(meeting.cancel)
    process = PeerProcess(who, manifest, met, folder, book, clients, workshop, restored, service, emit)
    return process, PeerReporter(ledger, kernel, identity.peer_id)


def _temporary_folder(stack: AsyncExitStack) -> Path:
    """A folder that goes with ``stack``. Raises ConfigError."""
    try:
        return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tsr-swarm-")))
    except OSError as error:
        raise ConfigError(
            f"No temporary folder can be made ({reason_text(error)}); add --dir DIR, or set TMPDIR."
        ) from error


async def _meet(discovery: Discovery, options: JoinOptions, host: str, address: str, initial_peers: list[str]) -> None:
    """Join the DHT beside the training: on this machine's own loopback if the run is there, or where told to."""
    listen: tuple[str, int] | None = None
    announce: tuple[str, int] | None = None
    if options.listen is not None:
        listen, announce = dht_places(options.listen, options.announce, options.dht_port)
    elif is_loopback(host) and not options.outbound_only:
        listen = ("127.0.0.1", options.dht_port)
    await discovery.start(listen=listen, announce=announce, initial_peers=initial_peers)
    await discovery.keep_announcing(options.name, address, PeerRole.PEER)


def require_its_model(manifest: Manifest) -> None:
    """Refuse a manifest whose blocks are not its model's. Raises RefusedError."""
    config = manifest.config
    expected = make_manifest(manifest.run_id, config, parameter_shapes(config.model))
    if expected.digest != manifest.digest:
        raise RefusedError("The coordinator's manifest lists other blocks than its model has; ask its organiser.")


def require_its_memory(manifest: Manifest, device: torch.device) -> None:
    """Refuse a run that does not fit into this machine, or into the memory of its GPU. Raises ConfigError."""
    if device.type == "cpu":
        require_memory(TRAINING_BYTES * manifest.parameters, memory_room())
        return
    require_memory(CONSENSUS_BYTES * manifest.parameters, memory_room())
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        require_memory(MODEL_BYTES * manifest.parameters, Room(free, f"what is free on {device}"))


def choose_device(name: str) -> torch.device:
    """``auto`` takes a GPU if there is one. Raises ConfigError for a device that is not there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next((kind for kind, is_there in there.items() if is_there), "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"Device '{name}' is not known; choose auto, cpu, cuda, cuda:1 or mps.") from None
    if not there.get(device.type, True):
        raise ConfigError(f"This machine has no '{device.type}' that torch can use; choose cpu, or leave --device out.")
    try:
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"Device '{name}' cannot be used ({reason_text(error)}); choose cpu, or leave --device out."
        ) from error
    return device


def _local_space(options: JoinOptions, manifest: Manifest) -> str:
    """The run decides, unless it takes both kinds of peer."""
    allowed = manifest.config.optimizer.local_space
    if allowed == "mixed":
        return options.local_space or "core"
    if options.local_space not in ("", allowed):
        raise RefusedError(f'This run takes peers of local_space "{allowed}" only; leave --local-space out.')
    return allowed
