"""The folder of a run: its checkpoints, rounds and journal, and how a run is started or resumed from them."""

import fcntl
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tsr_swarm.config.manifest import Manifest, decode_manifest, make_manifest
from tsr_swarm.config.render import differences
from tsr_swarm.config.run import RunConfig
from tsr_swarm.errors import CheckpointError, ConfigError, PeerError, RefusedError, RunError
from tsr_swarm.exchange.reduction import Published, open_published
from tsr_swarm.optim.consensus import Consensus
from tsr_swarm.optim.outer_step import OuterState, pack_outer, rotate_outer, unpack_outer, without_residuals
from tsr_swarm.process.machine_limits import disk_errors
from tsr_swarm.rounds.leases import NOTHING_DONE, Coverage
from tsr_swarm.rounds.raft_state import HardState, RoundRecord
from tsr_swarm.storage import checkpoint
from tsr_swarm.storage.journal import NAMES, Journal, knows_rounds
from tsr_swarm.storage.round_log import RoundLog
from tsr_swarm.train.corpus import Warn
from tsr_swarm.train.llama import parameter_shapes
from tsr_swarm.train.trainer import fresh_consensus
from tsr_swarm.wire.messages import PublishedHeader

CONSENSUS = "consensus"  # the checkpoint's file of weights and bases
OUTER = "outer"  # its file of the outer optimizer's state, where there is any
ROUNDS = "published"
STATES = "states"  # the folder of the states that are served
CHECKPOINTS = "checkpoints"
PEER_RUN = "run-"  # a peer keeps each run in a folder of this name and 16 digits of the manifest's digest
IDENTITY = "identity.key"
CONTACTS = "contacts.json"  # where other nodes were last seen
MIN_LOG_BYTES = 1 << 24  # a small model's log may be larger than its state: a peer that is behind needs only rounds


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RunState:
    """The state of a run after one round, as a checkpoint keeps it. Nothing in it is ever written to."""

    record: RoundRecord
    consensus: Consensus
    outer: OuterState  # of the outer optimizer, in the bases of the consensus
    digest: str  # of the consensus
    coverage: Coverage = NOTHING_DONE  # of the shared data


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The folder in which a coordinator keeps one run; a peer uses the same names of files."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        return self.path / CHECKPOINTS

    @property
    def oldest_checkpoint(self) -> int:
        """The round of the oldest checkpoint, which is used if all later ones are damaged. 0: none is kept."""
        return min(checkpoint.saved_rounds(self.checkpoints), default=0)

    def journal(self, manifest: Manifest, me: str) -> Journal:
        return Journal(self.path, me, manifest.digest)

    @property
    def has_rounds(self) -> bool:
        """Whether the folder of rounds exists: it does since the first start with a journal."""
        return (self.path / ROUNDS).exists()

    @property
    def knows_rounds(self) -> bool:
        """Whether a checkpoint, the journal or a file of its own has a round in it.

        A start that fails, for instance because its port is taken, leaves only the state before round 1.
        """
        has_saved = any(checkpoint.saved_rounds(self.checkpoints))
        return has_saved or knows_rounds(self.path) or any((self.path / ROUNDS).glob("round-*.bin"))

    def round_log(self, manifest: Manifest) -> RoundLog:
        """The rounds since the oldest checkpoint, and as many older ones as the state has bytes."""
        return RoundLog(self.path / ROUNDS, max(MIN_LOG_BYTES, 4 * manifest.parameters))

    def save(self, manifest: Manifest, state: RunState, keep: int) -> str:
        """Write a checkpoint and return its folder. Raises CheckpointError."""
        record, coverage, outer = state.record, state.coverage, pack_outer(state.outer, manifest.blocks)
        document = {
            "manifest": manifest.encoded.decode(),
            "chain": record.chain,
            "parent": record.parent,
            "voters": list(record.voters),
            "digest": state.digest,
            "coverage": {"epoch": coverage.epoch, "done": sorted(coverage.done), "ahead": sorted(coverage.ahead)},
        }
        files = {CONSENSUS: state.consensus.tensors()} | ({OUTER: outer} if outer else {})
        return str(checkpoint.save(self.checkpoints, record.round, files, document, keep))


def holds_work(folder: Path) -> bool:
    """Whether ``folder`` has a run of a coordinator or peer in it, which belongs to the identity there."""
    has_runs = any(folder.glob(PEER_RUN + 16 * "[0-9a-f]"))
    return has_runs or any((folder / name).exists() for name in (*NAMES, CHECKPOINTS))


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Lock ``folder`` for this process; the kernel unlocks it however the process ends. Raises RunError if taken."""
    with ExitStack() as stack:
        with disk_errors(f"{folder} cannot be used", "choose a folder you can write to"):
            folder.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context((folder / "lock").open("w"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunError(f"Another process is using {folder}; stop it, or choose another folder.") from None
        yield


@dataclass(frozen=True, slots=True)
class StartingPoint:
    """Everything from which a coordinator starts or resumes its run."""

    manifest: Manifest
    consensus: Consensus
    outer: OuterState
    record: RoundRecord  # of the round that consensus and outer are at
    journal: Journal
    hard_state: HardState  # as journaled; its base is that round, or one that is older than the checkpoint
    round_log: RoundLog
    coverage: Coverage = NOTHING_DONE  # of the shared data, at the checkpoint
    lost: str = ""  # chain hash of the accepted proposal, if it cannot be read


def start_run(folder: RunFolder, config: RunConfig, me: str) -> StartingPoint:
    """Start a run with fresh weights and bases, in which ``me`` is the first voter. Raises ConfigError."""
    if folder.knows_rounds:
        raise ConfigError(f"{folder.path} already holds a run; add --resume, or choose another checkpoint.dir.")
    manifest = make_manifest(secrets.token_hex(16), config, parameter_shapes(config.model))
    consensus = fresh_consensus(manifest)
    round_log = folder.round_log(manifest)
    round_log.open()
    genesis = RoundRecord(voters=(me,))
    state = RunState(record=genesis, consensus=consensus, outer={}, digest=consensus.digest().hex())
    folder.save(manifest, state, config.checkpoint.keep)
    journal, hard_state = folder.journal(manifest, me), HardState(genesis)
    journal.write(hard_state)  # replaces the journal of a start that failed
    return StartingPoint(manifest, consensus, {}, genesis, journal, hard_state, round_log)


def resume_run(folder: RunFolder, config: RunConfig, me: str, has_contacts: bool, warn: Warn) -> StartingPoint:
    """Resume from the newest sound checkpoint and the committed rounds since. Raises ConfigError or RunError.

    has_contacts: whether other nodes of the run are known, from which lost rounds can be fetched.
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
    hard_state = journal.load(warn)
    if hard_state is None:
        raise RunError(
            f"{folder.path} holds a run but no journal ({' or '.join(NAMES)}); restore one from a copy: without it "
            "this node could break a promise that it gave to others."
        )
    newest = record if record.round > hard_state.base.round else hard_state.base
    round_log = folder.round_log(manifest)
    round_log.open(newest.round, bytes.fromhex(newest.chain))
    lost = find_lost_proposal(manifest, hard_state, round_log, warn)
    outer = unpack_outer(saved.files.get(OUTER, {}), manifest.blocks)
    record, outer, fault = _replay(manifest, consensus, outer, record, round_log, newest)
    if fault:
        # A voter that committed a round alone may be the only node that has it.
        if newest.voters == (me,) and not has_contacts:
            raise RunError(
                f"{fault} It stands, and no other node of the run is known; restore that folder from a copy."
            )
        warn(f"{fault} It stands, and is fetched from the other nodes of the run.")
        round_log.forget(record.round + 1)
    coverage = saved_coverage(saved)
    return StartingPoint(manifest, consensus, outer, record, journal, hard_state, round_log, coverage, lost)


def find_lost_proposal(manifest: Manifest, hard_state: HardState, round_log: RoundLog, warn: Warn) -> str:
    """Return the chain hash of a proposal that this node accepted and cannot read, and ``warn`` of it; "": none."""
    tail = hard_state.tail
    if tail is None or tail.round <= round_log.committed:
        return ""
    with suppress(RunError, PeerError):
        kept = round_log.get(tail.round, bytes.fromhex(tail.chain))
        if kept is not None:
            open_published(manifest, *kept, tail.parent)
            return ""
    warn(
        f"The proposal of round {tail.round}, which this node promised to keep, cannot be read in {round_log.folder}; "
        "this node does not lead until another has settled that round, or the folder is restored from a copy."
    )
    return tail.chain


def _replay(
    manifest: Manifest,
    consensus: Consensus,
    outer: OuterState,
    record: RoundRecord,
    round_log: RoundLog,
    newest: RoundRecord,
) -> tuple[RoundRecord, OuterState, str]:
    """Bring a checkpoint of ``record`` up to ``newest``, which is committed, from the rounds on disk.

    The outer state stays as it was in the checkpoint, rotated to the bases of each round: the means that would bring
    it up to date are gone. No weights differ, because they follow from published bytes alone; the next round is only
    made with a momentum that is some rounds old. Residuals are dropped: they were published with the rounds.

    Returns the record and outer state that were reached, and why the next committed round cannot be read; "": all
    could. Raises RunError if the checkpoint is of another history than ``newest``.
    """
    while record.round < newest.round:
        try:
            published = _next_round(manifest, round_log, record)
        except RunError as error:
            return record, outer, str(error)
        refreshed = consensus.apply(published.header.plan, published.grids, published.void)
        outer = rotate_outer(without_residuals(outer, published.void), refreshed, manifest.config.optimizer)
        record = record_of(published.header)
    if record.chain != newest.chain:
        raise RunError(
            f"Round {newest.round} of the checkpoint is not the one that stands; restore {round_log.folder.parent}."
        )
    return record, outer, ""


def _next_round(manifest: Manifest, round_log: RoundLog, record: RoundRecord) -> Published:
    """Read the round after ``record``. Raises RunError."""
    round = record.round + 1
    kept = round_log.get(round)
    if kept is None:
        raise RunError(f"Round {round} is not in {round_log.folder}.")
    try:
        return open_published(manifest, *kept, record.chain)
    except PeerError as error:
        raise RunError(f"Round {round} in {round_log.folder} is damaged ({error}).") from error


def record_of(header: PublishedHeader) -> RoundRecord:
    """The result of a round as voters see it."""
    return RoundRecord(header.plan.round, header.chain.hex(), header.plan.parent, header.voters)


def saved_record(saved: checkpoint.Checkpoint) -> RoundRecord:
    """Read the record of a checkpoint's round. Raises CheckpointError if the checkpoint has none."""
    with _says(saved, "who voted"):
        chain, parent = (bytes.fromhex(saved.document[name]).hex() for name in ("chain", "parent"))
        return RoundRecord(saved.round, chain, parent, tuple(map(str, saved.document["voters"])))


def saved_coverage(saved: checkpoint.Checkpoint) -> Coverage:
    """Read how much of the shared data had been trained on. Raises CheckpointError if the checkpoint does not say."""
    with _says(saved, "which data was trained on"):
        coverage = saved.document["coverage"]
        done, ahead = (frozenset(map(int, coverage[name])) for name in ("done", "ahead"))
        return Coverage(int(coverage["epoch"]), done, ahead)


@contextmanager
def _says(saved: checkpoint.Checkpoint, what: str) -> Iterator[None]:
    """Raise CheckpointError where what is read of the checkpoint's document is missing or illegible."""
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{saved.path} does not say {what} ({error}); finish its run with the version that wrote it."
        ) from error


def load_run(folder: RunFolder, warn: Warn) -> tuple[Manifest, checkpoint.Checkpoint]:
    """Read the run's manifest and newest sound checkpoint. Raises CheckpointError."""
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
    """Read the consensus of a checkpoint. Raises CheckpointError if its digest is wrong."""
    consensus = Consensus.from_tensors(manifest.blocks, dict(saved.files[CONSENSUS]), manifest.config.optimizer.lift)
    if consensus.digest().hex() != saved.document["digest"]:
        raise CheckpointError(f"{saved.path} does not match its digest; remove it, the one before it will be used.")
    return consensus
