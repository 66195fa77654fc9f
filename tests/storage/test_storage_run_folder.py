"""A run's folder: what a start writes, and how a resumed run finds the newest committed round."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fixtures import tiny_model
from tests.published_rounds import FIRST, VOTERS, History, make_history
from tests.steady import steady
from tsr_swarm.config.run import CheckpointConfig, PeriodsConfig, RoundConfig, RunConfig
from tsr_swarm.errors import CheckpointError, ConfigError, RunError
from tsr_swarm.rounds.raft_state import HardState, RoundRecord
from tsr_swarm.storage import checkpoint
from tsr_swarm.storage import run_folder as rf
from tsr_swarm.storage.journal import NAMES

GENESIS = RoundRecord(voters=(FIRST,))


@dataclass
class Begun:
    """A run that was started, and rounds that could be its next ones."""

    config: RunConfig
    folder: rf.RunFolder
    start: rf.StartingPoint
    history: History

    def commit(self, last: int) -> None:
        """Commit rounds up to ``last``: their bytes first, then the journal."""
        for round in range(self.start.round_log.committed + 1, last + 1):
            self.store(round)
            self.start.journal.write(HardState(self.history.record(round), term=1, voted_for=FIRST))
            self.start.round_log.commit(round, self.history.at(round).header.chain)

    def store(self, round: int) -> None:
        self.start.round_log.store(self.history.message(round), self.history.at(round).data)

    def save(self, round: int) -> None:
        state = self.history.states[round]
        applied = rf.RunState(record=self.history.record(round), consensus=state, outer={}, digest=state.digest().hex())
        self.folder.save(self.start.manifest, applied, keep=3)

    def resume(self, has_contacts: bool = False, warn: Callable[[str], None] = pytest.fail) -> rf.StartingPoint:
        return rf.resume_run(self.folder, self.config, FIRST, has_contacts, warn)

    def file_of(self, round: int) -> Path:
        (file,) = self.start.round_log.folder.glob(f"round-{round:09d}-*")
        return file


@pytest.fixture
def begun(tmp_path: Path) -> Begun:
    config = RunConfig(
        model=tiny_model(),
        optimizer=steady(rank=4, embedding_rank=4),
        periods=PeriodsConfig(k_x=5, k_r=10, k_r_embedding=10),
        checkpoint=CheckpointConfig(dir=str(tmp_path)),
        round=RoundConfig(shards=3),
    )
    folder = rf.RunFolder(tmp_path / "run")
    start = rf.start_run(folder, config, FIRST)
    return Begun(config, folder, start, make_history(start.manifest, start.consensus, 4))


def test_a_run_begins_with_one_voter(begun: Begun) -> None:
    assert (begun.start.record, begun.start.hard_state) == (GENESIS, HardState(GENESIS))
    assert begun.resume().hard_state == HardState(GENESIS)
    assert begun.resume().record == GENESIS


def test_a_start_that_failed_leaves_no_run_and_its_journal_is_replaced(begun: Begun) -> None:
    begun.start.journal.write(HardState(GENESIS, term=7, voted_for=FIRST))
    again = rf.start_run(begun.folder, begun.config, "e" * 32)
    assert again.manifest.run_id != begun.start.manifest.run_id
    assert again.hard_state == again.journal.load(pytest.fail) == HardState(RoundRecord(voters=("e" * 32,)))


@pytest.mark.parametrize("what", ["round", "promise"])
def test_a_run_is_not_started_over_another(begun: Begun, what: str) -> None:
    if what == "round":
        begun.commit(1)
    else:
        begun.start.journal.write(HardState(GENESIS, 1, FIRST, begun.history.record(1), 1))
    with pytest.raises(ConfigError, match="already holds a run"):
        rf.start_run(begun.folder, begun.config, FIRST)


def test_a_run_of_which_only_rounds_are_left_is_neither_overwritten_nor_overlooked(begun: Begun) -> None:
    begun.commit(1)
    shutil.rmtree(begun.folder.checkpoints)
    for name in NAMES:
        (begun.folder.path / name).unlink()
    left = list((begun.folder.path / rf.ROUNDS).iterdir())
    with pytest.raises(ConfigError, match="already holds a run"):
        rf.start_run(begun.folder, begun.config, FIRST)
    with pytest.raises(CheckpointError, match=r"holds a run but no checkpoint; restore .*checkpoints from a copy"):
        begun.resume()
    assert list((begun.folder.path / rf.ROUNDS).iterdir()) == left != []


def test_a_folder_has_one_user_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with rf.folder_lock(path), pytest.raises(RunError, match="Another process"), rf.folder_lock(path):
        pass
    with rf.folder_lock(path):
        pass


def test_a_folder_holds_work_once_a_run_of_it_has_begun(tmp_path: Path) -> None:
    (tmp_path / "run-notes").mkdir()
    assert not rf.holds_work(tmp_path)
    (tmp_path / "run-0123456789abcdef").mkdir()
    assert rf.holds_work(tmp_path)


@pytest.mark.parametrize("saved", [0, 2, 4])
def test_a_resumed_run_is_at_the_newest_committed_round(begun: Begun, saved: int) -> None:
    begun.commit(3)
    begun.store(4)
    tail = begun.history.record(4)
    begun.start.journal.write(HardState(begun.history.record(3), 2, FIRST, tail, 2))
    if saved:
        begun.save(saved)
    again = begun.resume()
    at = max(saved, 3)  # the checkpoint may be newer than the journal: a state was downloaded
    assert again.record == begun.history.record(at)
    assert again.consensus.digest() == begun.history.states[at].digest()
    assert (again.hard_state.base, again.hard_state.tail) == (begun.history.record(3), tail)
    assert (again.round_log.get(4) is not None) == (at == 4), "a proposal is not committed"
    assert again.round_log.get(4, begun.history.at(4).header.chain) is not None
    assert again.round_log.keeps_since(0)


@pytest.mark.parametrize("damage", ["none", "missing", "wrong bytes"])
def test_an_accepted_proposal_that_cannot_be_read_is_warned_of(begun: Begun, damage: str) -> None:
    begun.commit(3)
    begun.store(4)
    begun.start.journal.write(HardState(begun.history.record(3), 2, FIRST, begun.history.record(4), 2))
    file = begun.file_of(4)
    if damage == "missing":
        file.unlink()
    elif damage == "wrong bytes":
        file.write_bytes(file.read_bytes()[:-1] + b"?")
    warnings: list[str] = []
    again = begun.resume(warn=warnings.append)
    assert again.lost == ("" if damage == "none" else begun.history.record(4).chain)
    assert ["proposal of round 4, which this node promised" in warning for warning in warnings] == (
        [] if damage == "none" else [True]
    )


@pytest.mark.parametrize("damage", ["missing", "cut short", "wrong bytes"])
@pytest.mark.parametrize(
    ("voters", "has_contacts", "is_fetched"),
    [
        (VOTERS, False, True),  # a majority of them had it on disk before it was committed
        (VOTERS[:1], False, True),  # another node's own voter, as when all others were away
        ((FIRST,), True, True),
        ((FIRST,), False, False),  # nobody else is known that may have it
    ],
)
def test_a_committed_round_that_cannot_be_read_is_fetched_if_others_may_have_it(
    begun: Begun, damage: str, voters: tuple[str, ...], has_contacts: bool, is_fetched: bool
) -> None:
    begun.history = make_history(begun.start.manifest, begun.start.consensus, 4, voters=voters)
    begun.commit(3)
    file = begun.file_of(2)
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
    elif damage == "cut short":
        os.truncate(file, 20)
    else:
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    if is_fetched:
        warnings: list[str] = []
        assert begun.resume(has_contacts, warnings.append).record.round < 2
        assert [warning for warning in warnings if "is fetched from the other nodes" in warning]
    else:
        with pytest.raises(RunError, match=r"Round [12] .*; restore that folder from a copy\.$"):
            begun.resume(has_contacts)
    file.write_bytes(content)
    assert begun.resume(has_contacts).record == begun.history.record(3)


@pytest.mark.parametrize("is_newer", [False, True])
def test_a_run_whose_journal_is_lost_is_not_resumed(begun: Begun, is_newer: bool) -> None:
    begun.commit(2)
    if is_newer:
        begun.save(2)
    for name in NAMES:
        (begun.folder.path / name).unlink()
    with pytest.raises(RunError, match=r"holds a run but no journal .*restore one from a copy"):
        begun.resume()


def test_rounds_are_kept_since_the_oldest_checkpoint_in_case_the_newest_is_damaged(begun: Begun) -> None:
    begun.save(2)
    begun.save(4)
    assert begun.folder.oldest_checkpoint == 0
    for path in begun.folder.checkpoints.glob("round-00000[0]"):
        shutil.rmtree(path)
    assert begun.folder.oldest_checkpoint == 2


def test_a_journal_of_another_history_is_refused(begun: Begun) -> None:
    begun.commit(2)
    begun.save(2)
    begun.start.journal.write(HardState(RoundRecord(2, "9" * 64, begun.history.record(1).chain, (FIRST,))))
    with pytest.raises(RunError, match="Round 2 of the checkpoint is not the one that stands"):
        begun.resume()


def test_a_checkpoint_says_who_votes_after_it(begun: Begun) -> None:
    begun.commit(2)
    begun.save(2)
    _, saved = rf.load_run(begun.folder, pytest.fail)
    assert rf.saved_record(saved) == begun.history.record(2)
    document = {name: value for name, value in saved.document.items() if name != "voters"}
    checkpoint.save(begun.folder.checkpoints, 3, saved.files, document, keep=1)
    with pytest.raises(CheckpointError, match="does not say who voted"):
        begun.resume()
