"""A run's folder: checkpoints, the rounds since, the journal, the manifest; and how a run is started or resumed."""

import fcntl
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from tsr_swarm.config.manifest import Manifest, decode_manifest, make_manifest
from tsr_swarm.config.run import RunConfig
from tsr_swarm.errors import CheckpointError, ConfigError, PeerError, RefusedError, RunError
from tsr_swarm.lowrank.basis import Basis, random_basis
from tsr_swarm.optim.consensus import Consensus
from tsr_swarm.optim.drawn import are_drawn, drawn_bases
from tsr_swarm.optim.outer import OuterState, pack_outer, rotate_outer, unpack_outer, without_residuals
from tsr_swarm.runtime.delta_log import DeltaLog
from tsr_swarm.runtime.journal import Journal
from tsr_swarm.runtime.leadership import Applied, Progress
from tsr_swarm.runtime.reduction import open_published
from tsr_swarm.train import checkpoint
from tsr_swarm.train.llama import initial_weights, parameter_shapes

CONSENSUS = "consensus"  # the checkpoint's file of weights and bases
OUTER = "outer"  # its file of what the reducer keeps, where there is anything
STATES = "states"  # the folder of the states that are served
MIN_LOG_BYTES = 1 << 24  # a small model's log may be larger than its state: rounds are all that a laggard needs


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Where a coordinator keeps one run; a peer uses the same names."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def journal(self) -> Journal:
        return Journal(self.path / "journal.json")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out of the folder. Raises RunError if one is in it."""
        with folder_lock(self.path):
            yield

    def delta_log(self, manifest: Manifest) -> DeltaLog:
        """The rounds since the last checkpoint, and as many older ones as the state has bytes."""
        return DeltaLog(self.path / "published", max(MIN_LOG_BYTES, 4 * manifest.parameters))

    def save(self, manifest: Manifest, applied: Applied, keep: int) -> str:
        """Write a checkpoint and return its folder. Raises CheckpointError."""
        progress, outer = applied.progress, pack_outer(applied.outer, manifest.blocks)
        document = {"manifest": manifest.encoded.decode(), "chain": progress.chain, "digest": applied.digest}
        files = {CONSENSUS: applied.consensus.tensors()} | ({OUTER: outer} if outer else {})
        return str(checkpoint.save(self.checkpoints, progress.round, files, document, keep))


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold the one lock of ``folder``; the kernel lets go of it however the process ends."""
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context((folder / "lock").open("w"))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(f"Another process is using {folder}; stop it, or choose another folder.") from None
        except OSError as error:
            raise RunError(f"{folder} cannot be used ({error}); choose a folder you can write to.") from error
        yield


@dataclass(frozen=True, slots=True, kw_only=True)
class StartingPoint:
    """What a coordinator begins with."""

    manifest: Manifest
    consensus: Consensus
    outer: OuterState
    progress: Progress
    delta_log: DeltaLog


def start_run(folder: RunFolder, config: RunConfig) -> StartingPoint:
    """A new run with fresh weights and bases. Refuses a folder that holds one."""
    # A state before round 1 alone is what a start leaves that went no further, such as one whose port was taken.
    if set(checkpoint.saved_rounds(folder.checkpoints)) - {0} or folder.journal.load().accepted_round:
        raise ConfigError(f"{folder.path} already holds a run; add --resume, or choose another checkpoint.dir.")
    manifest = make_manifest(secrets.token_hex(16), config, parameter_shapes(config.model))
    consensus = fresh_consensus(manifest)
    delta_log = folder.delta_log(manifest)
    delta_log.open(committed=0)
    digest = consensus.digest().hex()
    applied = Applied(progress=Progress(), consensus=consensus, outer={}, digest=digest)
    folder.save(manifest, applied, config.checkpoint.keep)
    return StartingPoint(
        manifest=manifest, consensus=consensus, outer={}, progress=applied.progress, delta_log=delta_log
    )


def resume_run(folder: RunFolder, config: RunConfig, warn: Callable[[str], None]) -> StartingPoint:
    """Go on from the newest sound checkpoint and the rounds accepted since. Raises ConfigError or RunError."""
    manifest, saved = load_run(folder, warn)
    wanted = make_manifest(manifest.run_id, config, parameter_shapes(config.model))
    if wanted.digest != manifest.digest:
        raise ConfigError(
            f"The configuration differs from that of the run in {folder.path}; resume with the same one "
            "(only [checkpoint], [round], run.rounds and run.min_peers may change), or start a new run elsewhere."
        )
    consensus = consensus_of(manifest, saved)
    voter = folder.journal.load()
    delta_log = folder.delta_log(manifest)
    delta_log.open(committed=voter.accepted_round)
    progress = Progress(saved.round, saved.document["chain"])
    accepted = Progress(voter.accepted_round, voter.accepted_chain)
    outer = unpack_outer(saved.files.get(OUTER, {}), manifest.blocks)
    progress, outer = replay(manifest, consensus, outer, progress, delta_log, accepted)
    return StartingPoint(manifest=manifest, consensus=consensus, outer=outer, progress=progress, delta_log=delta_log)


def replay(
    manifest: Manifest,
    consensus: Consensus,
    outer: OuterState,
    progress: Progress,
    delta_log: DeltaLog,
    accepted: Progress,
) -> tuple[Progress, OuterState]:
    """Bring a checkpoint up to what the journal accepted last, from the rounds on disk. Raises RunError.

    What the reducer keeps stays as it was in the checkpoint, turned to the bases of each round: the means that would
    bring it up to date are gone. That forks nothing, because weights follow from published bytes alone; the next
    round's are only made from a momentum that is some rounds old. Residuals are dropped: they went out with the rounds.
    """
    while progress.round < accepted.round:
        round = progress.round + 1
        kept = delta_log.get(round)
        if kept is None:
            raise RunError(f"Round {round} was accepted but is not in {delta_log.folder}; restore that folder.")
        try:
            published = open_published(manifest, *kept, progress.chain)
        except PeerError as error:
            raise RunError(f"Round {round} in {delta_log.folder} is damaged ({error}); restore that folder.") from error
        refreshed = consensus.apply(published.header.plan, published.grids, published.void)
        outer = rotate_outer(without_residuals(outer, published.void), refreshed, manifest.config.optimizer)
        progress = Progress(round, published.header.chain.hex())
    if progress.round == accepted.round and accepted.round and progress.chain != accepted.chain:
        raise RunError(f"Round {accepted.round} on disk is not the one that was accepted; restore {delta_log.folder}.")
    return progress, outer


def load_run(folder: RunFolder, warn: Callable[[str], None]) -> tuple[Manifest, checkpoint.Checkpoint]:
    """The run's manifest and newest sound checkpoint. Raises CheckpointError."""
    saved = checkpoint.load_latest(folder.checkpoints)
    if saved is None:
        raise CheckpointError(f"{folder.path} holds no checkpoint; start the run without --resume, or check the path.")
    for warning in saved.warnings:
        warn(warning)
    try:
        return decode_manifest(str(saved.document["manifest"]).encode()), saved
    except (KeyError, RefusedError) as error:
        raise CheckpointError(f"{saved.path} is not a coordinator's checkpoint ({error}); check the path.") from error


def consensus_of(manifest: Manifest, saved: checkpoint.Checkpoint) -> Consensus:
    """The consensus in a checkpoint, once its digest is right."""
    tensors: dict[str, Tensor] = dict(saved.files[CONSENSUS])
    consensus = Consensus.from_tensors(manifest.blocks, tensors, manifest.config.optimizer.lift)
    if consensus.digest().hex() != saved.document["digest"]:
        raise CheckpointError(f"{saved.path} does not match its digest; remove it, the one before it will be used.")
    return consensus


def fresh_consensus(manifest: Manifest, weights: Mapping[str, Tensor] | None = None) -> Consensus:
    """Round 0: ``weights``, or else ones drawn from the run's seed, and the bases to start from.

    Made once and shipped, since random numbers are not the same on every machine; but for bases that are.
    """
    seed = manifest.config.run.seed
    weights = initial_weights(manifest.config.model, seed) if weights is None else weights
    bases = drawn_bases(manifest, 0) if are_drawn(manifest) else _random_bases(manifest)
    return Consensus(manifest.blocks, weights, bases, manifest.config.optimizer.lift)


def _random_bases(manifest: Manifest) -> Mapping[int, Basis]:
    seed = manifest.config.run.seed
    return {
        index: random_basis(block.rows, block.cols, block.ranks, seed, index)
        for index, block in enumerate(manifest.blocks)
        if block.is_low_rank
    }
