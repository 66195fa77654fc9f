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

from tsr_swarm import __version__
from tsr_swarm.config.manifest import PROTOCOL_VERSION, Manifest, decode_manifest, make_manifest
from tsr_swarm.errors import ConfigError, RefusedError
from tsr_swarm.runtime.discovery import Discovery
from tsr_swarm.runtime.donor import Donor
from tsr_swarm.runtime.downloads import Downloads
from tsr_swarm.runtime.lifeline import StopRequest, run_unless_now
from tsr_swarm.runtime.listening import dht_places, require_consent, shown_address
from tsr_swarm.runtime.peer_service import MAX_CALLS, PeerService
from tsr_swarm.runtime.reporting import Reporter
from tsr_swarm.runtime.round_download import RoundDownload
from tsr_swarm.runtime.run_folder import STATES, RunFolder, folder_lock
from tsr_swarm.runtime.session import Introduction, PeerSession
from tsr_swarm.runtime.sources import Sources
from tsr_swarm.runtime.state_download import StateDownload
from tsr_swarm.runtime.workshop import Workshop
from tsr_swarm.swarm.addresses import clock_warning, is_loopback, split_address
from tsr_swarm.swarm.identity import load_identity, new_identity
from tsr_swarm.swarm.records import Role
from tsr_swarm.telemetry import events
from tsr_swarm.telemetry.events import Event
from tsr_swarm.telemetry.ledger import ByteLedger
from tsr_swarm.train.llama import parameter_shapes
from tsr_swarm.transport.client import SwarmClient
from tsr_swarm.transport.kernel_bytes import KernelBytes
from tsr_swarm.transport.server import serve
from tsr_swarm.wire import control
from tsr_swarm.wire.v1 import swarm_pb2 as pb

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
    folder = options.folder
    identity = load_identity(folder / "identity.key") if folder is not None else new_identity()
    ledger = ByteLedger()
    host, port = split_address(options.coordinator)
    _, dialled = split_address(options.proxy) if options.proxy else (host, port)
    async with AsyncExitStack() as stack:
        if folder is not None:
            stack.enter_context(folder_lock(folder))
        client = await stack.enter_async_context(SwarmClient(options.coordinator, ledger, options.proxy))
        hello = await _say_hello(client, emit)
        manifest = decode_manifest(hello.manifest)
        require_reasonable(manifest)
        kind = _local_space(options, manifest)
        workshop = Workshop(manifest, kind, device, options.data, folder, options.slowdown)
        store = folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tsr-swarm-")))
        kernel = KernelBytes([dialled])
        donor, address = None, ""
        if options.listen is not None:
            donor = Donor(manifest, store / STATES, RunFolder(store).delta_log(manifest))
            await asyncio.to_thread(donor.open)
            service = PeerService(donor, options.name, options.coordinator)
            port = await stack.enter_async_context(
                serve(service, options.listen, ledger, max_concurrent_rpcs=MAX_CALLS)
            )
            kernel.watch(port)
            address = shown_address(options.listen, options.announce, port)
        introduction = Introduction(
            peer_id=identity.peer_id,
            name=options.name,
            address=address,
            local_space=kind,
            device=str(device),
        )
        sources = Sources(client, ledger, kernel, emit, options.proxy)
        states = StateDownload(sources, manifest, store / STATES)
        rounds = RoundDownload(sources, manifest, identity.peer_id)
        downloads = Downloads(sources, states, rounds, donor, emit)
        reporter = Reporter(client, ledger, kernel, identity.peer_id)
        session = PeerSession(client, reporter, manifest, introduction, workshop, downloads, emit)
        restored = await asyncio.to_thread(workshop.load, emit) if options.resume else None
        if restored is not None:
            session.restore(*restored)
        if donor is not None:
            await asyncio.to_thread(donor.delta_log.open, restored[1].applied if restored is not None else 0)
        if options.use_dht:
            discovery = Discovery(identity, manifest.run_id, emit)
            stack.push_async_callback(discovery.close)
            meeting = asyncio.create_task(_meet(discovery, options, host, address, list(hello.initial_peers)))
            stack.callback(meeting.cancel)
        reason = await session.run(stop_gently)
        emit(events.Left(reason=reason, rounds=session.rounds_included))


async def _say_hello(client: SwarmClient, emit: Callable[[Event], None]) -> pb.HelloReply:
    hello = await client.hello(pb.HelloRequest(protocol=PROTOCOL_VERSION, package_version=__version__))
    control.check_hello_reply(hello)
    warning = clock_warning(hello.unix_time, time.time())
    if warning is not None:
        emit(events.Warned(message=warning))
    return hello


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
