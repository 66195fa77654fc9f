"""Where a peer's work is done and kept: device, memory, data, trainer, checkpoints. No sockets."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from tsr_swarm.config.manifest import Manifest, make_manifest
from tsr_swarm.config.run import DataConfig
from tsr_swarm.discovery.addresses import is_loopback
from tsr_swarm.errors import CheckpointError, ConfigError, RefusedError
from tsr_swarm.exchange.reduction import Published
from tsr_swarm.optim.consensus import Consensus
from tsr_swarm.process.machine_limits import Room, memory_room, require_memory
from tsr_swarm.rounds.state import PeerState
from tsr_swarm.storage import checkpoint
from tsr_swarm.storage.run_folder import CONSENSUS
from tsr_swarm.telemetry import events
from tsr_swarm.telemetry.events import Event
from tsr_swarm.telemetry.text import reason_text
from tsr_swarm.train.corpus import Warn, ignore, missing_paths, once, source_paths, source_text
from tsr_swarm.train.data import TokenStream, part_of, private_tokens, training_tokens
from tsr_swarm.train.llama import build_model, parameter_shapes
from tsr_swarm.train.trainer import Trainer, make_space
from tsr_swarm.transport.address import parse_address

SPACE = "space"  # the checkpoint's file of moments and residual
KEEP = 2  # checkpoints
# Of memory, a parameter:
TRAINING_BYTES = 16  # weights of model and consensus, gradients, and a state that is being received
CONSENSUS_BYTES = 8  # what of that stays with the processor where a GPU trains ...
MODEL_BYTES = 4  # ... and what the GPU needs at the least


@dataclass(slots=True, eq=False)
class Workspace:
    """Trainer, data and checkpoints of one peer. Implements weights.Weights: its trainer moves with the consensus."""

    manifest: Manifest
    kind: str  # of its local space
    device: torch.device
    data: tuple[Path, ...]  # text of its own, or none for its part of the run's
    folder: Path | None  # None keeps no checkpoint
    slowdown: float = 1.0
    warn: Warn = ignore  # is told what of the data could not be read; called on the thread that reads
    part: int = -1  # of the run's data that this peer trains on; -1: none, it is text of its own
    _trainer: Trainer | None = None
    _stream: TokenStream | None = None  # of this peer's newest number

    def __post_init__(self) -> None:
        self.warn = once(self.warn)

    def require_data(self) -> None:
        """Read the data that this peer would train on. Raises ConfigError; call it before anybody is told of the peer.

        Of the run's data that is the first part, which is as small as any: whichever it gets, it can be read as well.
        """
        if self.is_on_shared_data:
            require_run_data(self.manifest.config.data)
        self.take_number(1)

    def take_number(self, number: int) -> None:
        """Draw batches as the peer of this number, from its part of the run's data. Raises ConfigError."""
        if self._stream is not None and self._stream.number == number:
            return
        config = self.manifest.config
        if self.is_on_shared_data:
            self.part = part_of(number, config.data.parts)
            tokens = training_tokens(config.data, self.part, self.warn)
        elif self._stream is not None:
            tokens = self._stream.tokens
        else:
            tokens = private_tokens(tuple(map(str, self.data)), config.data, self.warn)
        self._stream = TokenStream(
            tokens=tokens,
            seed=config.run.seed,
            number=number,
            batch_size=config.data.batch_size,
            sequence_length=config.data.sequence_length,
        )

    @property
    def is_on_shared_data(self) -> bool:
        """Whether this peer trains on the run's data, and not on text of its own."""
        return not self.data

    def take_part(self, part: int) -> int:
        """Train on this part of the run's data from now on; returns its tokens.

        Batches keep their draws: only what they are drawn from is another text. Raises ConfigError, changing nothing.
        """
        assert self._stream is not None, "a peer that trains has joined and has its number"
        if part != self.part:
            tokens = training_tokens(self.manifest.config.data, part, self.warn)
            self._stream, self.part = replace(self._stream, tokens=tokens), part
        return self._stream.tokens.numel()

    @property
    def trainer(self) -> Trainer:
        """The trainer of the whole session, once there is a state."""
        assert self._trainer is not None, "a peer that trains has a state"
        return self._trainer

    @property
    def consensus(self) -> Consensus | None:
        return None if self._trainer is None else self._trainer.consensus

    def apply(self, published: Published, included: frozenset[int]) -> bytes:
        return self.trainer.apply(published.header.plan, published.grids, published.void, included)

    def replace(self, consensus: Consensus) -> None:
        """Go on from this state: with a new trainer if it is the first one."""
        if self._trainer is None:
            model = build_model(self.manifest.config.model, consensus.weights).to(self.device)
            space = make_space(self.kind, model, self.manifest)
            self._trainer = Trainer(self.manifest, model, space, self._batch, consensus, self.slowdown)
        else:
            self._trainer.replace_consensus(consensus)

    def _batch(self, step: int, micro: int) -> torch.Tensor:
        assert self._stream is not None, "a peer that trains has joined and has its number"
        return self._stream.batch(step, micro)

    def save(self, state: PeerState) -> None:
        """Write moments, residual and consensus, so that this peer can go on where it is. Raises CheckpointError."""
        if self.folder is None or self._trainer is None:
            return
        trainer = self._trainer
        files = {SPACE: trainer.space.state_dict(), CONSENSUS: trainer.consensus.tensors()}
        document = {
            "manifest": self.manifest.digest,
            "local_space": self.kind,
            "chain": state.chain,
            "sent_round": trainer.sent_round,
        }
        checkpoint.save(self.folder / "checkpoints", state.applied, files, document, KEEP)

    def load(self, emit: Callable[[Event], None]) -> PeerState | None:
        """Go on from this peer's newest checkpoint, if it has one of this run. Returns the round that it is at."""
        if self.folder is None:
            return None
        saved = checkpoint.load_latest(self.folder / "checkpoints")
        if saved is None:
            return None
        for warning in saved.warnings:
            emit(events.Warned(message=warning))
        document = saved.document
        of_run, kind = document.get("manifest"), document.get("local_space")
        if (of_run, kind) != (self.manifest.digest, self.kind):
            what = (
                f'local_space "{kind}", not "{self.kind}"'
                if of_run == self.manifest.digest
                else f"another run ({str(of_run)[:12]}) than '{self.manifest.config.run.name}' "
                f"({self.manifest.digest[:12]})"
            )
            raise RefusedError(f"{saved.path} is of {what}; join without --resume, or with another --dir.")
        lift = self.manifest.config.optimizer.lift
        consensus = Consensus.from_tensors(self.manifest.blocks, dict(saved.files[CONSENSUS]), lift)
        self.replace(consensus)
        try:
            self.trainer.load(saved.files[SPACE], int(document["sent_round"]))
        except (KeyError, ValueError) as error:
            raise CheckpointError(f"{saved.path} is not a peer's checkpoint ({error}); remove it.") from error
        return PeerState(applied=saved.round, chain=str(document["chain"]))


# The data of a run are not sent to anybody: organiser and volunteers are told where they are named by path.


def advise_organiser(data: DataConfig, listen: str) -> str | None:
    """What to tell whoever starts a run that listens at ``listen``; None where every peer finds its data."""
    paths = source_paths(data.source)
    if not paths:
        return None
    host, _ = parse_address(listen)
    if not is_loopback(host):
        return (
            f"data.source = {source_text(paths)} is a path and no text is sent: volunteers need the same files at that "
            "path of their machines, or 'join --data PATH' with text of their own."
        )
    if all(os.path.isabs(os.path.expanduser(path)) for path in paths):
        return None
    return (
        f"data.source = {source_text(paths)} is relative: peers that are started in another folder need "
        "'join --data PATH', or an absolute data.source."
    )


def require_run_data(data: DataConfig) -> None:
    """Refuse a run whose data is not on this machine. Raises ConfigError that says whose path it is."""
    missing = missing_paths(data.source)
    if missing:
        raise ConfigError(
            f"This run trains on text that its organiser names by path, and there is no {missing[0]!r} here; "
            "add --data PATH to train on text of your own, or put the run's text at that path."
        )


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
