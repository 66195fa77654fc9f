"""What a coordinator keeps between rounds: roster, journal, delta log, and the state in chunks."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from steady import steady

from tsr_swarm.config.blocks import Block, Role
from tsr_swarm.config.manifest import Manifest, make_manifest
from tsr_swarm.config.run import OptimizerConfig, PeriodsConfig, RunConfig
from tsr_swarm.errors import PeerError, RunError
from tsr_swarm.lowrank.basis import random_basis
from tsr_swarm.optim.consensus import Consensus
from tsr_swarm.optim.periods import plan_round
from tsr_swarm.rounds.votes import VoterState
from tsr_swarm.runtime.delta_log import DeltaLog
from tsr_swarm.runtime.journal import Journal
from tsr_swarm.runtime.roster import Roster
from tsr_swarm.runtime.run_folder import folder_lock, fresh_consensus
from tsr_swarm.runtime.state_chunks import StateAssembly, begun_round, read_chunks, state_length, write_state
from tsr_swarm.wire.v1 import swarm_pb2 as pb

comings = st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["otter", "peer-2", "peer-7"]), st.booleans()))


@given(comings=comings)
def test_nobody_who_is_here_shares_a_number_or_a_name(comings: list[tuple[int, str, bool]]) -> None:
    roster = Roster()
    for who, name, stays in comings:
        peer = roster.admit(f"{who:032x}", name, "", "cpu", "core")
        peer.is_here = stays
        here = roster.here()
        assert len({other.number for other in here}) == len({other.name for other in here}) == len(here)
        assert all(other.number >= 1 for other in here)


def test_a_peer_gets_the_number_its_name_ends_in_and_keeps_it_over_an_absence() -> None:
    roster = Roster()
    first = roster.admit("a" * 32, "peer-3", "", "cpu", "core")
    assert first.number == 3
    first.is_here = False
    assert roster.admit("b" * 32, "otter", "", "cpu", "core").number == 1
    assert roster.admit("a" * 32, "peer-3", "", "cpu", "core").number == 3


def test_a_journal_gives_back_what_was_written_last_and_refuses_damage(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "new" / "journal.json")
    assert journal.load() == VoterState()
    for round in (1, 2):
        journal.write(VoterState(term=1, accepted_term=1, accepted_round=round, accepted_chain=f"{round}"))
    assert journal.load().accepted_round == 2
    (tmp_path / "new" / "journal.json").write_text('{"term": ')
    with pytest.raises(RunError, match="cannot be read"):
        journal.load()
    blocked = Journal(tmp_path / "new" / "journal.json" / "under-a-file.json")
    with pytest.raises(RunError, match="cannot be written"):
        blocked.write(VoterState())


def test_the_bytes_of_missed_rounds_are_told_only_if_all_of_them_are_kept(tmp_path: Path) -> None:
    log = DeltaLog(tmp_path, max_bytes=10_000)
    log.open(committed=0)
    for round in range(1, 6):
        log.store(header_of(round), bytes(100 * round))
        log.commit(round)
    assert log.bytes_since(3) - log.bytes_since(4) > 400
    assert 900 < log.bytes_since(3) < 1200
    assert log.bytes_since(5) == 0
    log.forget(2)
    assert log.bytes_since(2) > 0
    assert (log.bytes_since(1), log.keeps_since(1)) == (0, False)
    log.clear()
    assert list(tmp_path.iterdir()) == []
    assert log.get(4) is None


def header_of(round: int) -> pb.PublishedHeader:
    return pb.PublishedHeader(plan=pb.RoundPlan(round=round), chain=bytes(32))


def test_a_round_is_handed_out_only_once_committed_and_survives_a_restart(tmp_path: Path) -> None:
    log = DeltaLog(tmp_path, max_bytes=10_000)
    log.open(committed=0)
    log.store(header_of(1), b"one")
    assert log.get(1) is None
    log.commit(1)
    assert log.get(1) == (header_of(1), b"one")
    log.store(header_of(2), b"two, never accepted")
    again = DeltaLog(tmp_path, max_bytes=10_000)
    again.open(committed=1)
    assert again.get(1) == (header_of(1), b"one")
    assert again.get(2) is None
    assert len(list(tmp_path.iterdir())) == 1, "what was never accepted is gone"


def test_old_rounds_make_room_but_never_those_since_the_last_checkpoint(tmp_path: Path) -> None:
    log = DeltaLog(tmp_path, max_bytes=1000)
    log.open(committed=0)
    for round in range(1, 6):
        log.store(header_of(round), bytes(400))
        log.commit(round)
    assert all(log.get(round) is not None for round in range(1, 6)), "no checkpoint yet"
    log.checkpointed(5)
    assert [round for round in range(1, 6) if log.get(round) is not None] == [4, 5]


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\x05\0\0\0\0\0\0\0\xff\xff"])
def test_a_damaged_round_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    log = DeltaLog(tmp_path, max_bytes=1000)
    log.open(committed=0)
    log.store(header_of(1), b"one")
    log.commit(1)
    (tmp_path / "round-000000001.bin").write_bytes(content)
    with pytest.raises(RunError, match="cannot be read"):
        log.get(1)


def test_a_folder_has_one_user_at_a_time(tmp_path: Path) -> None:
    with folder_lock(tmp_path / "run"), pytest.raises(RunError, match="Another process"), folder_lock(tmp_path / "run"):
        pass
    with folder_lock(tmp_path / "run"):
        pass


@dataclass
class Written:
    """A state in a file, and all of its chunks."""

    description: pb.StateDescription
    chunks: list[pb.StateChunk]


def written(manifest: Manifest, consensus: Consensus, folder: Path, round: int = 3) -> Written:
    path = folder / "state.bin"
    description = write_state(path, manifest, consensus, round, b"c" * 32)
    return Written(description, list(read_chunks(path, description, 0, 0)))


def put_together(state: Written, manifest: Manifest, folder: Path) -> StateAssembly:
    whole = StateAssembly(state.description, manifest, folder)
    for chunk in reversed(state.chunks):
        whole.check(chunk)
        whole.take(chunk.index)
    assert whole.is_complete
    return whole


def large_consensus() -> tuple[Manifest, Consensus]:
    config = RunConfig(optimizer=steady(rank=2, embedding_rank=2))
    manifest = make_manifest("run", config, {"a.weight": (1100, 300), "norm.weight": (300,)})
    assert manifest.blocks[1] == Block(name="norm.weight", rows=1, cols=300, rank=0, role=Role.DENSE)
    weights = {"a.weight": torch.arange(330_000.0).reshape(1100, 300), "norm.weight": torch.ones(300)}
    return manifest, Consensus(manifest.blocks, weights, {0: random_basis(1100, 300, 2, 0, 0)})


def test_a_state_in_chunks_is_put_together_again_and_a_false_chunk_is_refused(tmp_path: Path) -> None:
    manifest, consensus = large_consensus()
    state = written(manifest, consensus, tmp_path)
    assert len(state.description.chunk_hashes) == 2
    whole = put_together(state, manifest, tmp_path / "whole")
    assert whole.consensus(manifest).digest() == consensus.digest()

    first, second = state.chunks
    torn = StateAssembly(state.description, manifest, tmp_path / "torn")
    torn.check(second)
    torn.take(1)
    for false in (pb.StateChunk(index=0, data=second.data), pb.StateChunk(index=2, data=first.data)):
        with pytest.raises(PeerError):
            torn.check(false)
    again = StateAssembly(state.description, manifest, tmp_path / "torn")
    assert again.missing == {0}, "it goes on where it was, in another process too"
    assert begun_round(tmp_path / "torn") == 3
    again.check(first)
    again.take(0)
    assert again.consensus(manifest).digest() == consensus.digest()

    too_large = pb.StateDescription()
    too_large.CopyFrom(state.description)
    too_large.total_bytes = 2**39
    with pytest.raises(PeerError, match="more than"):
        StateAssembly(too_large, manifest, tmp_path)


def test_a_state_is_what_the_safetensors_library_writes(tmp_path: Path) -> None:
    """Own code writes it so that donors with another version of the library give the same bytes; it has to stay so."""
    manifest, consensus = large_consensus()
    written(manifest, consensus, tmp_path)
    assert (tmp_path / "state.bin").read_bytes() == safetensors.torch.save(consensus.tensors())
    assert state_length(consensus.tensors()) == (tmp_path / "state.bin").stat().st_size


def test_a_newer_download_replaces_what_is_left_of_an_older_one(tmp_path: Path) -> None:
    manifest, consensus = large_consensus()
    older, newer = (written(manifest, consensus, tmp_path, round) for round in (3, 8))
    StateAssembly(older.description, manifest, tmp_path / "parts")
    StateAssembly(newer.description, manifest, tmp_path / "parts")
    assert begun_round(tmp_path / "parts") == 8
    assert len(list((tmp_path / "parts").iterdir())) == 1


def test_bases_that_everybody_can_draw_are_not_shipped(tmp_path: Path) -> None:
    config = RunConfig(optimizer=OptimizerConfig(rank=2), periods=PeriodsConfig(k_x=5, k_r=10))
    manifest = make_manifest("run", config, {"a.weight": (40, 30), "norm.weight": (30,)})
    weights = {"a.weight": torch.randn(40, 30), "norm.weight": torch.ones(30)}
    consensus = fresh_consensus(manifest, weights)
    for round in range(1, 6):
        plan = plan_round(manifest.config, manifest.blocks, round, "")
        consensus.apply(plan, {}, frozenset({0, 1}))

    state = written(manifest, consensus, tmp_path, 5)

    assert state.description.total_bytes < 4 * (40 * 30 + 30) + 500
    whole = put_together(state, manifest, tmp_path / "whole")
    assert whole.consensus(manifest).digest() == consensus.digest()
