"""A run's folder: what a start writes, and how a resumed run finds what stands."""

import os
from dataclasses import dataclass
from pathlib import Path

import pytest
from published_rounds import FIRST, History, make_history
from steady import steady

from tsr_swarm.config.run import CheckpointConfig, ModelConfig, PeriodsConfig, RoundConfig, RunConfig
from tsr_swarm.errors import CheckpointError, ConfigError, RunError
from tsr_swarm.rounds.council import Ledger, Record
from tsr_swarm.runtime.run_folder import (
    Applied,
    RunFolder,
    StartingPoint,
    load_run,
    resume_run,
    saved_record,
    start_run,
)
from tsr_swarm.train import checkpoint

GENESIS = Record(voters=(FIRST,))


def no_warning(message: str) -> None:
    raise AssertionError(message)


@dataclass
class Begun:
    """A run that was started, and rounds that could be its next ones."""

    config: RunConfig
    folder: RunFolder
    start: StartingPoint
    history: History

    def stand(self, last: int) -> None:
        """Rounds up to ``last`` stand: their bytes first, then the journal."""
        for round in range(self.start.delta_log.committed + 1, last + 1):
            self.store(round)
            self.folder.journal.write(Ledger(self.history.record(round), term=1, voted_for=FIRST))
            self.start.delta_log.commit(round, self.history.at(round).header.chain)

    def store(self, round: int) -> None:
        self.start.delta_log.store(self.history.message(round), self.history.at(round).data)

    def save(self, round: int) -> None:
        state = self.history.states[round]
        applied = Applied(record=self.history.record(round), consensus=state, outer={}, digest=state.digest().hex())
        self.folder.save(self.start.manifest, applied, keep=3)

    def resume(self) -> StartingPoint:
        return resume_run(self.folder, self.config, no_warning)

    def file_of(self, round: int) -> Path:
        (file,) = self.start.delta_log.folder.glob(f"round-{round:09d}-*")
        return file


@pytest.fixture
def begun(tmp_path: Path) -> Begun:
    config = RunConfig(
        model=ModelConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=128,
        ),
        optimizer=steady(rank=4, embedding_rank=4),
        periods=PeriodsConfig(k_x=5, k_r=10, k_r_embedding=10),
        checkpoint=CheckpointConfig(dir=str(tmp_path)),
        round=RoundConfig(shards=3),
    )
    folder = RunFolder(tmp_path / "run")
    start = start_run(folder, config, FIRST)
    return Begun(config, folder, start, make_history(start.manifest, start.consensus, 4))


def test_a_run_begins_with_one_voter(begun: Begun) -> None:
    assert (begun.start.record, begun.start.ledger) == (GENESIS, Ledger(GENESIS))
    assert begun.resume().ledger == Ledger(GENESIS)
    assert begun.resume().record == GENESIS


def test_a_start_that_went_no_further_is_no_run_and_what_it_promised_is_forgotten(begun: Begun) -> None:
    begun.folder.journal.write(Ledger(GENESIS, term=7, voted_for=FIRST))
    again = start_run(begun.folder, begun.config, "e" * 32)
    assert again.manifest.run_id != begun.start.manifest.run_id
    assert begun.folder.journal.load(GENESIS) == Ledger(Record(voters=("e" * 32,)))


@pytest.mark.parametrize("what", ["round", "promise"])
def test_a_run_is_not_started_over_another(begun: Begun, what: str) -> None:
    if what == "round":
        begun.stand(1)
    else:
        begun.folder.journal.write(Ledger(GENESIS, term=1, voted_for=FIRST, tail=begun.history.record(1), tail_term=1))
    with pytest.raises(ConfigError, match="already holds a run"):
        start_run(begun.folder, begun.config, FIRST)


@pytest.mark.parametrize("saved", [0, 2, 4])
def test_a_resumed_run_is_at_the_newest_round_that_stands(begun: Begun, saved: int) -> None:
    begun.stand(3)
    begun.store(4)
    tail = begun.history.record(4)
    begun.folder.journal.write(Ledger(begun.history.record(3), 2, FIRST, tail, 2))
    if saved:
        begun.save(saved)
    again = begun.resume()
    at = max(saved, 3)  # the checkpoint may be newer than the journal: a state was downloaded
    assert again.record == begun.history.record(at)
    assert again.consensus.digest() == begun.history.states[at].digest()
    assert (again.ledger.base, again.ledger.tail) == (begun.history.record(3), tail)
    assert (again.delta_log.get(4) is not None) == (at == 4), "a proposal does not stand"
    assert again.delta_log.get(4, begun.history.at(4).header.chain) is not None
    assert again.delta_log.keeps_since(0)


@pytest.mark.parametrize("damage", ["missing", "cut short", "wrong bytes"])
@pytest.mark.parametrize("is_alone", [True, False])
def test_a_round_that_stands_and_cannot_be_read_is_one_sentence_or_left_to_be_fetched(
    begun: Begun, damage: str, is_alone: bool
) -> None:
    """Where there are other voters, a majority of them had it on disk before it stood."""
    if is_alone:
        begun.history = make_history(begun.start.manifest, begun.start.consensus, 4, voters=(FIRST,))
    begun.stand(3)
    file = begun.file_of(2)
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
    elif damage == "cut short":
        os.truncate(file, 20)
    else:
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    if is_alone:
        with pytest.raises(RunError, match=r"Round [12] .*; restore .*\.$"):
            begun.resume()
    else:
        assert begun.resume().record.round < 2
    file.write_bytes(content)
    assert begun.resume().record == begun.history.record(3)


def test_a_journal_of_another_history_is_not_believed(begun: Begun) -> None:
    begun.stand(2)
    begun.save(2)
    begun.folder.journal.write(Ledger(Record(2, "9" * 64, begun.history.record(1).chain, (FIRST,))))
    with pytest.raises(RunError, match="Round 2 of the checkpoint is not the one that stands"):
        begun.resume()


def test_a_checkpoint_says_who_votes_after_it(begun: Begun) -> None:
    begun.stand(2)
    begun.save(2)
    _, saved = load_run(begun.folder, no_warning)
    assert saved_record(saved) == begun.history.record(2)
    document = {name: value for name, value in saved.document.items() if name != "voters"}
    checkpoint.save(begun.folder.checkpoints, 3, saved.files, document, keep=1)
    with pytest.raises(CheckpointError, match="does not say who voted"):
        begun.resume()
