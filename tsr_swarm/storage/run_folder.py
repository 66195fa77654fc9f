"""A run's folder: checkpoints, the rounds since, the journal, the manifest; and how a run is started or resumed."""

import fcntl
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from tsr_swarm.config.difference import differences
from tsr_swarm.config.manifest import Manifest, decode_manifest, make_manifest
from tsr_swarm.config.run import RunConfig
from tsr_swarm.errors import CheckpointError, ConfigError, PeerError, RefusedError, RunError
from tsr_swarm.exchange.reduction import Published, open_published
from tsr_swarm.lowrank.basis import Basis, random_basis
from tsr_swarm.optim.consensus import Consensus
from tsr_swarm.optim.outer_step import OuterState, pack_outer, rotate_outer, unpack_outer, without_residuals
from tsr_swarm.optim.periods import are_drawn, drawn_bases
from tsr_swarm.rounds.leases import NOTHING_DONE, Coverage
from tsr_swarm.rounds.raft_state import HardState, RoundRecord
from tsr_swarm.storage import checkpoint
from tsr_swarm.storage.journal import NAMES, Journal, knows_rounds
from tsr_swarm.storage.round_log import RoundLog
from tsr_swarm.telemetry.text import reason_text
from tsr_swarm.train.llama import initial_weights, parameter_shapes
from tsr_swarm.wire.messages import PublishedHeader

CONSENSUS = "consensus"  # the checkpoint's file of weights and bases
OUTER = "outer"  # its file of what the reducer keeps, where there is anything
ROUNDS = "published"
STATES = "states"  # the folder of the states that are served
CHECKPOINTS = "checkpoints"
PEER_RUN = "run-"  # the folder of one run in a peer's folder begins with it, and goes on with 16 digits of its digest
IDENTITY = "identity.key"
CONTACTS = "contacts.json"  # where other nodes were last seen
MIN_LOG_BYTES = 1 << 24  # a small model's log may be larger than its state: rounds are all that a laggard needs


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RunState:
    """All state after one round, as a checkpoint keeps it. Nothing in it is ever written to."""

    record: RoundRecord
    consensus: Consensus
    outer: OuterState  # what the reducer keeps, in the bases of the consensus
    digest: str  # of the consensus
    coverage: Coverage = NOTHING_DONE  # of the shared data, as far as is known


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Where a coordinator keeps one run; a peer uses the same names."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        return self.path / CHECKPOINTS

    @property
    def oldest_checkpoint(self) -> int:
        """The round of the oldest checkpoint: it is what is left should all later ones be damaged. 0: none is kept."""
        return min(checkpoint.saved_rounds(self.checkpoints), default=0)

    def journal(self, manifest: Manifest, me: str) -> Journal:
        """That of the node ``me`` in this run."""
        return Journal(self.path, me, manifest.digest)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out of the folder. Raises RunError if one is in it."""
        with folder_lock(self.path):
            yield

    @property
    def has_rounds(self) -> bool:
        """Whether this node keeps rounds here, which it does from its first start with a journal on."""
        return (self.path / ROUNDS).exists()

    @property
    def knows_rounds(self) -> bool:
        """Whether anything here is of a round: a checkpoint, the journal, or a round's own file.

        A state before round 1 is what a start leaves that went no further, such as one whose port was taken.
        """
        has_saved = any(checkpoint.saved_rounds(self.checkpoints))
        return has_saved or knows_rounds(self.path) or any((self.path / ROUNDS).glob("round-*.bin"))

    def delta_log(self, manifest: Manifest) -> RoundLog:
        """The rounds since the last checkpoint, and as many older ones as the state has bytes."""
        return RoundLog(self.path / ROUNDS, max(MIN_LOG_BYTES, 4 * manifest.parameters))

    def save(self, manifest: Manifest, applied: RunState, keep: int) -> str:
        """Write a checkpoint and return its folder. Raises CheckpointError."""
        record, outer = applied.record, pack_outer(applied.outer, manifest.blocks)
        document = {
            "manifest": manifest.encoded.decode(),
            "chain": record.chain,
            "parent": record.parent,
            "voters": list(record.voters),
            "digest": applied.digest,
            "coverage": _coverage_to_json(applied.coverage),
        }
        files = {CONSENSUS: applied.consensus.tensors()} | ({OUTER: outer} if outer else {})
        return str(checkpoint.save(self.checkpoints, record.round, files, document, keep))


def holds_work(folder: Path) -> bool:
    """Whether a coordinator or a peer has kept anything in ``folder`` that belongs to its key."""
    has_runs = any(folder.glob(PEER_RUN + 16 * "[0-9a-f]"))
    return has_runs or any((folder / name).exists() for name in (*NAMES, CHECKPOINTS))


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
            raise RunError(
                f"{folder} cannot be used ({reason_text(error)}); choose a folder you can write to."
            ) from error
        yield


@dataclass(frozen=True, slots=True, kw_only=True)
class StartingPoint:
    """What a coordinator begins with."""

    manifest: Manifest
    consensus: Consensus
    outer: OuterState
    record: RoundRecord  # of the round that consensus and outer are at
    journal: Journal
    ledger: HardState  # what it has promised; its base is that round, or one that is older than the checkpoint
    delta_log: RoundLog
    coverage: Coverage = NOTHING_DONE  # of the shared data, at the checkpoint
    lost: str = ""  # chain hash of a promised proposal that cannot be read


def start_run(folder: RunFolder, config: RunConfig, me: str) -> StartingPoint:
    """A new run with fresh weights and bases, in which ``me`` votes alone at first. Refuses a folder that holds one."""
    if folder.knows_rounds:
        raise ConfigError(f"{folder.path} already holds a run; add --resume, or choose another checkpoint.dir.")
    manifest = make_manifest(secrets.token_hex(16), config, parameter_shapes(config.model))
    consensus = fresh_consensus(manifest)
    delta_log = folder.delta_log(manifest)
    delta_log.open()
    genesis = RoundRecord(voters=(me,))
    applied = RunState(record=genesis, consensus=consensus, outer={}, digest=consensus.digest().hex())
    folder.save(manifest, applied, config.checkpoint.keep)
    journal, ledger = folder.journal(manifest, me), HardState(genesis)
    journal.write(ledger)  # in place of what that start left
    return StartingPoint(
        manifest=manifest,
        consensus=consensus,
        outer={},
        record=genesis,
        journal=journal,
        ledger=ledger,
        delta_log=delta_log,
    )


def resume_run(
    folder: RunFolder, config: RunConfig, me: str, has_contacts: bool, warn: Callable[[str], None]
) -> StartingPoint:
    """Go on from the newest sound checkpoint and the rounds since that stand. Raises ConfigError or RunError.

    ``has_contacts``: whether other nodes of the run are known, from which this one can fetch what its disk has lost.
    """
    if not checkpoint.saved_rounds(folder.checkpoints):
        if folder.knows_rounds:
            raise CheckpointError(
                f"{folder.path} holds a run but no checkpoint; restore {folder.checkpoints} from a copy, or start a "
                "new run in another checkpoint.dir."
            )
        raise CheckpointError(f"{folder.path} holds no run; start it without --resume, or check the path.")
    manifest, saved = load_run(folder, warn)
    wanted = make_manifest(manifest.run_id, config, parameter_shapes(config.model))
    if wanted.digest != manifest.digest:
        what = differences(manifest.config, wanted.config) or "matrices that this version would cut otherwise"
        raise ConfigError(
            f"The run in {folder.path} was begun with {what}; resume with the same (only [checkpoint], [round] without "
            "round.shards, run.rounds and run.min_peers may change), or start a new run in another checkpoint.dir."
        )
    consensus, record = consensus_of(manifest, saved), saved_record(saved)
    journal = folder.journal(manifest, me)
    ledger = journal.load(warn)
    if ledger is None:
        raise RunError(
            f"{folder.path} holds a run but no journal ({' or '.join(NAMES)}); restore one from a copy: without it "
            "this node could break a promise that it gave to others."
        )
    newest = record if record.round > ledger.base.round else ledger.base
    delta_log = folder.delta_log(manifest)
    delta_log.open(newest.round, bytes.fromhex(newest.chain))
    lost = find_lost_proposal(manifest, ledger, delta_log, warn)
    outer = unpack_outer(saved.files.get(OUTER, {}), manifest.blocks)
    try:
        record, outer = replay(manifest, consensus, outer, record, delta_log, newest)
    except MissingRoundError as missing:
        # Whoever alone decided that a round stands may be the only one that has it.
        if newest.voters == (me,) and not has_contacts:
            raise
        warn(f"{missing.fault} It stands, and is fetched from the other nodes of the run.")
        delta_log.forget(missing.after.round + 1)
        record, outer = missing.after, missing.outer
    return StartingPoint(
        manifest=manifest,
        consensus=consensus,
        outer=outer,
        record=record,
        journal=journal,
        ledger=ledger,
        delta_log=delta_log,
        coverage=saved_coverage(saved),
        lost=lost,
    )


def find_lost_proposal(manifest: Manifest, ledger: HardState, delta_log: RoundLog, warn: Callable[[str], None]) -> str:
    """The chain hash of a proposal that this node promised to keep and cannot read, and ``warn`` of it; "": none."""
    tail = ledger.tail
    if tail is None or tail.round <= delta_log.committed:
        return ""
    with suppress(RunError, PeerError):
        kept = delta_log.get(tail.round, bytes.fromhex(tail.chain))
        if kept is not None:
            open_published(manifest, *kept, tail.parent)
            return ""
    warn(
        f"The proposal of round {tail.round}, which this node promised to keep, cannot be read in {delta_log.folder}; "
        "this node does not lead until another has settled that round, or the folder is restored from a copy."
    )
    return tail.chain


class MissingRoundError(RunError):
    """A round that stands cannot be read from disk: the checkpoint was brought up to the round ``after``."""

    def __init__(self, fault: str, after: RoundRecord, outer: OuterState) -> None:
        super().__init__(f"{fault} It stands, and no other node of the run is known; restore that folder from a copy.")
        self.fault, self.after, self.outer = fault, after, outer


def replay(
    manifest: Manifest,
    consensus: Consensus,
    outer: OuterState,
    record: RoundRecord,
    delta_log: RoundLog,
    newest: RoundRecord,
) -> tuple[RoundRecord, OuterState]:
    """Bring a checkpoint of ``record`` up to ``newest``, which stands, from the rounds on disk.

    What the reducer keeps stays as it was in the checkpoint, turned to the bases of each round: the means that would
    bring it up to date are gone. That forks nothing, because weights follow from published bytes alone; the next
    round's are only made from a momentum that is some rounds old. Residuals are dropped: they went out with the rounds.

    Raises MissingRoundError at the first round that is not on disk, and RunError if the checkpoint is of another
    history than ``newest``.
    """
    while record.round < newest.round:
        try:
            published = _kept(manifest, delta_log, record)
        except RunError as error:
            raise MissingRoundError(str(error), record, outer) from error
        refreshed = consensus.apply(published.header.plan, published.grids, published.void)
        outer = rotate_outer(without_residuals(outer, published.void), refreshed, manifest.config.optimizer)
        record = record_of(published.header)
    if record.chain != newest.chain:
        raise RunError(
            f"Round {newest.round} of the checkpoint is not the one that stands; restore {delta_log.folder.parent}."
        )
    return record, outer


def _kept(manifest: Manifest, delta_log: RoundLog, record: RoundRecord) -> Published:
    """The round after ``record``, from disk. Raises RunError."""
    round = record.round + 1
    kept = delta_log.get(round)
    if kept is None:
        raise RunError(f"Round {round} is not in {delta_log.folder}.")
    try:
        return open_published(manifest, *kept, record.chain)
    except PeerError as error:
        raise RunError(f"Round {round} in {delta_log.folder} is damaged ({error}).") from error


def record_of(header: PublishedHeader) -> RoundRecord:
    """A round's result as voters see it."""
    return RoundRecord(header.plan.round, header.chain.hex(), header.plan.parent, header.voters)


def saved_record(saved: checkpoint.Checkpoint) -> RoundRecord:
    """The round that a checkpoint was saved after. Raises CheckpointError for one that does not say."""
    try:
        chain, parent, voters = (saved.document[name] for name in ("chain", "parent", "voters"))
        return RoundRecord(
            saved.round, bytes.fromhex(chain).hex(), bytes.fromhex(parent).hex(), tuple(map(str, voters))
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{saved.path} does not say who voted ({error}); finish its run with the version that wrote it."
        ) from error


def _coverage_to_json(coverage: Coverage) -> dict[str, object]:
    return {"epoch": coverage.epoch, "done": sorted(coverage.done), "ahead": sorted(coverage.ahead)}


def saved_coverage(saved: checkpoint.Checkpoint) -> Coverage:
    """How much of the shared data had been trained on. Raises CheckpointError for one that does not say."""
    try:
        kept = saved.document["coverage"]
        return Coverage(int(kept["epoch"]), frozenset(map(int, kept["done"])), frozenset(map(int, kept["ahead"])))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{saved.path} does not say which data was trained on ({error}); finish its run with the version that "
            "wrote it."
        ) from error


def load_run(folder: RunFolder, warn: Callable[[str], None]) -> tuple[Manifest, checkpoint.Checkpoint]:
    """The run's manifest and newest sound checkpoint. Raises CheckpointError."""
    saved = checkpoint.load_latest(folder.checkpoints)
    if saved is None:
        raise CheckpointError(f"{folder.path} holds no checkpoint; name the checkpoint.dir of a run that has begun.")
    for warning in saved.warnings:
        warn(warning)
    encoded = str(saved.document.get("manifest"))
    if not encoded.startswith("{"):  # a peer keeps its digest alone
        raise CheckpointError(f"{saved.path} is not a coordinator's checkpoint; name the checkpoint.dir of a run.")
    try:
        return decode_manifest(encoded.encode()), saved
    except RefusedError as error:
        raise CheckpointError(f"{saved.path} cannot be used: {error}") from error


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
