"""A volunteer peer: one process that joins a run, trains on its own machine and exchanges cores and sketches."""

import asyncio
import os
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from tsr_swarm import __version__
from tsr_swarm.config.manifest import PROTOCOL_VERSION, Manifest, decode_manifest, make_manifest
from tsr_swarm.errors import CheckpointError, ConfigError, RefusedError
from tsr_swarm.optim.consensus import Consensus
from tsr_swarm.rounds.peer import PeerState
from tsr_swarm.runtime.discovery import Discovery
from tsr_swarm.runtime.lifeline import StopRequest, run_unless_now
from tsr_swarm.runtime.run_folder import CONSENSUS, folder_lock
from tsr_swarm.runtime.session import Introduction, PeerSession
from tsr_swarm.swarm.addresses import clock_warning, is_loopback, split_address
from tsr_swarm.swarm.identity import load_identity, new_identity
from tsr_swarm.swarm.records import Role
from tsr_swarm.telemetry import events
from tsr_swarm.telemetry.events import Event
from tsr_swarm.telemetry.ledger import ByteLedger
from tsr_swarm.train import checkpoint
from tsr_swarm.train.data import TokenStream, private_tokens, training_tokens
from tsr_swarm.train.llama import build_model, parameter_shapes
from tsr_swarm.train.split import part_of
from tsr_swarm.train.trainer import Trainer, make_space
from tsr_swarm.transport.client import SwarmClient
from tsr_swarm.transport.kernel_bytes import KernelBytes
from tsr_swarm.wire import control
from tsr_swarm.wire.v1 import swarm_pb2 as pb

SPACE = "space"  # the checkpoint's file of moments and residual
KEEP = 2
BYTES_A_PARAMETER = 16  # weights of model and consensus, gradients, and a state that is being received


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinOptions:
    """What the command line or a profile says."""

    coordinator: str
    data: tuple[Path, ...] = ()  # none: this peer's part of the run's own data
    device: str = "auto"
    name: str = "peer"
    listen: str | None = None  # where this peer's DHT node can be dialled
    outbound_only: bool = False
    use_dht: bool = True
    resume: bool = False
    folder: Path | None = None  # where its key and its checkpoints are kept; None: nowhere
    local_space: str = ""  # "": what the run says


async def run_peer(options: JoinOptions, emit: Callable[[Event], None], stop: StopRequest) -> None:
    """Take part in a run until it ends or ``stop``. Raises SwarmError with one sentence."""
    await run_unless_now(_take_part(options, emit, stop.gently), stop)


async def _take_part(options: JoinOptions, emit: Callable[[Event], None], stop_gently: asyncio.Event) -> None:
    device = choose_device(options.device)
    folder = options.folder
    identity = load_identity(folder / "identity.key") if folder is not None else new_identity()
    ledger = ByteLedger()
    host, port = split_address(options.coordinator)
    async with AsyncExitStack() as stack:
        if folder is not None:
            stack.enter_context(folder_lock(folder))
        client = await stack.enter_async_context(SwarmClient(options.coordinator, ledger))
        hello = await _say_hello(client, emit)
        manifest = decode_manifest(hello.manifest)
        require_reasonable(manifest)
        kind = _local_space(options, manifest)
        bench = _Bench(options, manifest, kind, device)
        introduction = Introduction(
            peer_id=identity.peer_id,
            name=options.name,
            address=options.listen or "",
            local_space=kind,
            device=str(device),
        )
        session = PeerSession(client, ledger, KernelBytes([port]), manifest, introduction, bench, emit)
        if options.resume:
            restored = await asyncio.to_thread(bench.load, emit)
            if restored is not None:
                session.restore(*restored)
        if options.use_dht:
            discovery = Discovery(identity, manifest.run_id, emit)
            stack.push_async_callback(discovery.close)
            meeting = asyncio.create_task(_meet(discovery, options, host, list(hello.initial_peers)))
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


async def _meet(discovery: Discovery, options: JoinOptions, host: str, initial_peers: list[str]) -> None:
    """Join the DHT beside the training: on this machine's own loopback if the run is there, or where told to."""
    listen: tuple[str, int] | None = None
    if options.listen is not None:
        listen = split_address(options.listen)
    elif is_loopback(host) and not options.outbound_only:
        listen = ("127.0.0.1", 0)
    await discovery.start(listen=listen, announce=None, initial_peers=initial_peers)
    await discovery.keep_announcing(options.name, options.listen or "", Role.PEER)


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


class _Bench:
    """Makes this peer's trainer and keeps its checkpoints. Implements session.Workshop."""

    def __init__(self, options: JoinOptions, manifest: Manifest, kind: str, device: torch.device) -> None:
        self._options, self._manifest, self._kind, self._device = options, manifest, kind, device
        self._trainer: Trainer | None = None
        self._streams: dict[int, TokenStream] = {}
        self._number = 0

    def take_number(self, number: int) -> None:
        """Read the data that goes with the number now, so that data that is not there is an error at the start."""
        self._number = number
        self._stream()

    def trainer(self, consensus: Consensus) -> Trainer:
        """One trainer for the whole session."""
        if self._trainer is None:
            model = build_model(self._manifest.config.model, consensus.weights).to(self._device)
            space = make_space(self._kind, model, self._manifest)
            self._trainer = Trainer(self._manifest, model, space, self._batch, consensus)
        return self._trainer

    def _batch(self, step: int, micro: int) -> torch.Tensor:
        return self._stream().batch(step, micro)

    def _stream(self) -> TokenStream:
        if self._number not in self._streams:
            data = self._manifest.config.data
            if self._options.data:
                tokens = private_tokens(tuple(map(str, self._options.data)), data)
            else:
                tokens = training_tokens(data, part_of(self._number, data.parts))
            self._streams = {
                self._number: TokenStream(
                    tokens=tokens,
                    seed=self._manifest.config.run.seed,
                    number=self._number,
                    batch_size=data.batch_size,
                    sequence_length=data.sequence_length,
                )
            }
        return self._streams[self._number]

    def save(self, trainer: Trainer, state: PeerState) -> None:
        """Moments, residual and consensus, so that this peer can go on where it is."""
        if self._options.folder is None:
            return
        files = {SPACE: trainer.space.state_dict(), CONSENSUS: trainer.consensus.tensors()}
        document = {
            "manifest": self._manifest.digest,
            "local_space": self._kind,
            "chain": state.chain,
            "sent_round": trainer.sent_round,
        }
        checkpoint.save(self._options.folder / "checkpoints", state.applied, files, document, KEEP)

    def load(self, emit: Callable[[Event], None]) -> tuple[Trainer, PeerState] | None:
        """This peer's newest checkpoint, if it has one of this run."""
        if self._options.folder is None:
            raise ConfigError("--resume needs to know where this peer kept its state; add --dir DIR.")
        saved = checkpoint.load_latest(self._options.folder / "checkpoints")
        if saved is None:
            return None
        for warning in saved.warnings:
            emit(events.Warned(message=warning))
        document = saved.document
        if (document.get("manifest"), document.get("local_space")) != (self._manifest.digest, self._kind):
            raise RefusedError(f"{saved.path} is of another run; join without --resume, or with another --dir.")
        lift = self._manifest.config.optimizer.lift
        consensus = Consensus.from_tensors(self._manifest.blocks, dict(saved.files[CONSENSUS]), lift)
        trainer = self.trainer(consensus)
        try:
            trainer.load(saved.files[SPACE], int(document["sent_round"]))
        except (KeyError, ValueError) as error:
            raise CheckpointError(f"{saved.path} is not a peer's checkpoint ({error}); remove it.") from error
        return trainer, PeerState(applied=saved.round, chain=str(document["chain"]))
