"""What a coordinator keeps between rounds: roster, journal, delta log, and the state in chunks."""

import errno
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from steady import steady

from tsr_swarm.config.blocks import Block, BlockRole
from tsr_swarm.config.manifest import Manifest, make_manifest
from tsr_swarm.config.run import OptimizerConfig, PeriodsConfig, RunConfig
from tsr_swarm.errors import PeerError, RunError
from tsr_swarm.lowrank.basis import random_basis
from tsr_swarm.node.peer_registry import Roster
from tsr_swarm.optim.consensus import Consensus
from tsr_swarm.optim.periods import plan_round
from tsr_swarm.storage import state_file
from tsr_swarm.storage.round_log import RoundLog
from tsr_swarm.storage.run_folder import folder_lock, fresh_consensus
from tsr_swarm.storage.state_file import StateAssembly, begun_round, read_chunks, state_length, write_state
from tsr_swarm.storage.state_store import LEASE_SECONDS, MAX_STATES, StateStore
from tsr_swarm.wire.messages import sections_from_proto
from tsr_swarm.wire.v1 import swarm_pb2 as pb

comings = st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["otter", "peer-2", "peer-7"]), st.booleans()))


@given(comings=comings)
def test_nobody_who_is_here_shares_a_number_or_a_name(comings: list[tuple[int, str, bool]]) -> None:
    roster = Roster()
    for who, name, stays in comings:
        peer = roster.admit(f"{who:032x}", name)
        peer.is_here = stays
        here = roster.here()
        assert len({other.number for other in here}) == len({other.name for other in here}) == len(here)
        assert all(other.number >= 1 for other in here)


def test_a_peer_gets_the_number_its_name_ends_in_and_keeps_it_over_an_absence() -> None:
    roster = Roster()
    first = roster.admit("a" * 32, "peer-3")
    assert first.number == 3
    first.is_here = False
    assert roster.admit("b" * 32, "otter").number == 1
    assert roster.admit("a" * 32, "peer-3").number == 3


def chain_of(round: int, which: int = 0) -> bytes:
    return bytes([round, which]) * 16 if round else b""


def header_of(round: int, which: int = 0, parent: int = 0, sections: Sequence[pb.Section] = ()) -> pb.PublishedHeader:
    """One of several proposals of a round, each of which follows one of several of the round before."""
    plan = pb.RoundPlan(round=round, parent=chain_of(round - 1, parent))
    shards = [pb.ShardResult(void=True), pb.ShardResult(sections=sections)]
    return pb.PublishedHeader(plan=plan, chain=chain_of(round, which), shards=shards)


def log_in(folder: Path, max_bytes: int = 10_000, committed: int = 0, which: int = 0) -> RoundLog:
    log = RoundLog(folder, max_bytes)
    log.open(committed, chain_of(committed, which))
    return log


@dataclass
class Voter:
    """A log, the journal that says what stands, and what each round's standing proposal is."""

    folder: Path
    log: RoundLog
    standing: list[int] = field(default_factory=list)  # which one, by round from 1
    stored: set[tuple[int, int]] = field(default_factory=set)  # rounds and which, that must still be there

    @property
    def base(self) -> int:
        return len(self.standing)

    def follows(self) -> int:
        return self.standing[-1] if self.standing else 0

    def check(self) -> None:
        for round, which in enumerate(self.standing, 1):
            assert self.log.get(round) == (header_of(round, which, self.parent(round)), data_of(round, which))
        assert self.log.get(self.base + 1) is None, "a proposal never stands"
        for round, which in self.stored:
            found = self.log.get(round, chain_of(round, which))
            assert found == (header_of(round, which, self.parent(round)), data_of(round, which))
        assert self.log.keeps_since(0)

    def parent(self, round: int) -> int:
        return self.standing[round - 2] if round > 1 else 0


def data_of(round: int, which: int) -> bytes:
    return bytes([round, which]) * 10


steps = st.lists(
    st.tuples(st.sampled_from(["store", "store", "commit", "commit", "kill", "kill before commit"]), st.integers(0, 2)),
    max_size=30,
)


@given(steps=steps)
def test_what_stands_is_never_lost_and_a_proposal_is_never_served_as_standing(steps: list[tuple[str, int]]) -> None:
    """A voter stores proposals, is told which one stands, journals that before anything else, and is killed."""
    with TemporaryDirectory() as folder:
        voter = Voter(Path(folder), log_in(Path(folder)))
        for step, which in steps:
            round = voter.base + 1
            if step == "store":
                voter.log.store(header_of(round, which, voter.follows()), data_of(round, which))
                voter.stored.add((round, which))
            elif step.startswith("kill"):
                if step == "kill before commit" and (round, which) in voter.stored:
                    voter.standing.append(which)  # journaled
                    voter.stored = {(round, which)}
                (voter.folder / "round-000000009.99.tmp").write_bytes(b"was being written")
                voter.log = log_in(voter.folder, committed=voter.base, which=voter.follows())
            elif (round, which) in voter.stored:
                voter.standing.append(which)
                voter.stored.clear()
                voter.log.commit(round, chain_of(round, which))
                for other in {0, 1, 2} - {which}:
                    assert voter.log.get(round, chain_of(round, other)) is None, "what did not come to stand is gone"
            voter.check()
        assert not list(voter.folder.glob("*.tmp")) or not any(step.startswith("kill") for step, _ in steps)


def test_a_line_that_is_broken_leaves_older_files_for_people_to_restore_the_missing_one(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    for round in (1, 2, 3):
        log.store(header_of(round), b"x")
        log.commit(round, chain_of(round))
    (missing,) = tmp_path.glob("round-000000002-*")
    content = missing.read_bytes()
    missing.unlink()
    again = log_in(tmp_path, committed=3)
    assert again.get(3) is not None
    assert again.get(1) is None, "whether it stands cannot be known"
    assert (again.keeps_since(0), again.keeps_since(2)) == (False, True)
    missing.write_bytes(content)
    assert log_in(tmp_path, committed=3).keeps_since(0)


def test_a_state_that_is_taken_in_says_what_stands_and_costs_no_promised_proposal(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    for round in (1, 2, 3):
        log.store(header_of(round), b"x")
        log.commit(round, chain_of(round))
    log.store(header_of(4), b"promised")
    log.rebase(3, chain_of(3))
    assert [round for round in range(1, 6) if log.get(round) is not None] == [1, 2, 3]
    log.rebase(2, chain_of(2, which=1))  # another history
    assert [round for round in range(1, 6) if log.get(round) is not None] == []
    assert log.get(4, chain_of(4)) is not None
    log.store(header_of(3, 1, parent=1), b"y")
    log.commit(3, chain_of(3, 1))
    assert log.get(3) == (header_of(3, 1, parent=1), b"y")
    assert (log.keeps_since(2), log.committed) == (True, 3)
    assert len(list(tmp_path.glob("round-000000003-*"))) == 1


def test_the_bytes_of_missed_rounds_are_told_only_if_all_of_them_are_kept(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    for round in range(1, 6):
        log.store(header_of(round), bytes(100 * round))
        log.commit(round, chain_of(round))
    log.store(header_of(6), bytes(1000))
    assert log.bytes_since(3) - log.bytes_since(4) > 400
    assert 900 < log.bytes_since(3) < 1300
    assert log.bytes_since(5) == 0
    log.forget(2)
    assert log.bytes_since(2) > 0
    assert (log.bytes_since(1), log.keeps_since(1)) == (0, False)


def test_old_rounds_make_room_but_never_those_since_the_last_checkpoint(tmp_path: Path) -> None:
    log = log_in(tmp_path, max_bytes=1200)
    for round in range(1, 6):
        log.store(header_of(round), bytes(400))
        log.commit(round, chain_of(round))
    assert all(log.get(round) is not None for round in range(1, 6)), "no checkpoint yet"
    log.checkpointed(5)
    assert [round for round in range(1, 6) if log.get(round) is not None] == [4, 5]
    assert len(list(tmp_path.iterdir())) == 2


def test_a_shard_is_found_by_its_hashes_in_what_stands_and_in_proposals(tmp_path: Path) -> None:
    def sections(which: int) -> list[pb.Section]:
        return [pb.Section(kind="core", raw_bytes=9, wire_bytes=3, hash=bytes([which, part]) * 16) for part in (0, 1)]

    log = log_in(tmp_path)
    for which, data in enumerate((b"abcdef", b"uvwxyz")):
        log.store(header_of(1, which, sections=sections(which)), data)
    for which, data in enumerate((b"abcdef", b"uvwxyz")):
        found = log.shard(1, 1, [section.hash for section in sections(which)])
        assert found == (sections_from_proto(sections(which)), data)
    first = [section.hash for section in sections(0)]
    for round, shard, wanted in (
        (1, 0, []),
        (1, 0, first),
        (1, 1, first[:1]),
        (1, 2, first),
        (2, 1, first),
        (1, 1, []),
    ):
        assert log.shard(round, shard, wanted) is None
    (file,) = tmp_path.glob(f"*{chain_of(1).hex()}*")
    os.truncate(file, file.stat().st_size - 1)
    with pytest.raises(RunError, match="cannot be read"):
        log.shard(1, 1, first)
    assert log.shard(1, 1, first) is None


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\x05\0\0\0\0\0\0\0\xff\xff", bytes(8)])
def test_a_damaged_round_is_one_sentence_and_can_be_stored_anew(tmp_path: Path, content: bytes) -> None:
    log = log_in(tmp_path)
    log.store(header_of(1), b"one")
    log.commit(1, chain_of(1))
    (file,) = tmp_path.iterdir()
    file.write_bytes(content)
    with pytest.raises(RunError, match=r"Round 1 .* cannot be read"):
        log.get(1)
    assert (log.get(1), log.keeps_since(0)) == (None, False)
    log.store(header_of(1), b"one")
    assert log.get(1) == (header_of(1), b"one")


def test_files_of_others_among_the_rounds_and_states_are_left_alone(tmp_path: Path) -> None:
    for folder in (tmp_path / "published", tmp_path / "states"):
        (folder / "notes").mkdir(parents=True)
        (folder / "notes.txt").write_text("mine")
    (tmp_path / "published" / "round-000000001-00.1.tmp").touch()  # of a process that was killed
    for name in ("state-000000005.bin", "state-000000010.new"):
        (tmp_path / "states" / name).touch()
    donor_in(tmp_path)
    left = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("*/*"))
    assert left == ["published/notes", "published/notes.txt", "states/notes", "states/notes.txt"]


def test_a_disk_that_is_full_is_one_sentence_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    log = log_in(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(RunError, match=r"Round 1 cannot be kept in .* \(No space left on device\); free space\.$"):
            log.store(header_of(1), b"one")
    assert list(tmp_path.iterdir()) == []
    assert log.get(1, chain_of(1)) is None


def test_two_that_store_the_same_round_at_once_do_not_spoil_it(tmp_path: Path) -> None:
    """A voter that fetches a proposal may be given it with a round that stands."""
    log, data = log_in(tmp_path), bytes(1 << 20)
    with ThreadPoolExecutor(8) as threads:
        for _ in range(20):
            list(threads.map(lambda _: log.store(header_of(1), data), range(8)))
            assert log.get(1, chain_of(1)) == (header_of(1), data)
            log.forget(1, chain_of(1))
    assert len(list(tmp_path.iterdir())) == 1


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
    assert manifest.blocks[1] == Block(name="norm.weight", rows=1, cols=300, rank=0, role=BlockRole.DENSE)
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


def donor_in(folder: Path, clock: Callable[[], float] = lambda: 0.0) -> StateStore:
    manifest, _ = large_consensus()
    donor = StateStore(manifest, folder / "states", log_in(folder / "published"), clock)
    donor.open()
    return donor


async def test_donors_describe_the_same_state_alike_and_give_the_chunks_that_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_file, "CHUNK_BYTES", 4096)
    donors = [donor_in(tmp_path / name) for name in "ab"]
    _, consensus = large_consensus()
    about, other = [await donor.keep_state(consensus, 5, b"c" * 32) for donor in donors]
    assert about == other
    one, two = [list(donor.chunks(pb.FetchStateRequest(round=5, first_chunk=2, chunks=3))) for donor in donors]
    assert [chunk.index for chunk in one] == [2, 3, 4]
    assert one == two
    rest = donors[0].chunks(pb.FetchStateRequest(round=5, first_chunk=2))
    assert len(list(rest)) == len(about.chunk_hashes) - 2
    assert list(donors[0].chunks(pb.FetchStateRequest(round=5, first_chunk=2**32 - 1, chunks=2**32 - 1))) == []


async def test_two_states_are_kept_and_one_that_is_being_fetched_a_little_longer(tmp_path: Path) -> None:
    now = [0.0]
    donor = donor_in(tmp_path, lambda: now[0])
    _, consensus = large_consensus()

    def kept() -> list[int]:
        return sorted(int(path.stem.removeprefix("state-")) for path in donor.folder.iterdir())

    for round in (0, 5, 10):
        await donor.keep_state(consensus, round, b"")
    assert kept() == [5, 10]
    begun = donor.chunks(pb.FetchStateRequest(round=5))
    first = next(begun)
    donor.lease(10)
    await donor.keep_state(consensus, 15, b"")
    assert kept() == [5, 10, 15]
    assert donor.describe(5).round == 5  # type: ignore[union-attr]
    assert donor.describe(1).round == donor.describe().round == 15  # type: ignore[union-attr]
    now[0] += LEASE_SECONDS + 1
    await donor.keep_state(consensus, 20, b"")
    assert kept() == [15, 20]
    donor.lease(10)  # too late
    assert [chunk.index for chunk in (first, *begun)] == list(range(len(donor.describe().chunk_hashes)))  # type: ignore[union-attr]
    for round in range(25, 60, 5):
        donor.chunks(pb.FetchStateRequest(round=round - 5))
        await donor.keep_state(consensus, round, b"")
        assert len(kept()) <= MAX_STATES


async def test_a_downloaded_state_is_kept_alone_with_the_rounds_that_lead_to_it(tmp_path: Path) -> None:
    manifest, consensus = large_consensus()
    donor = donor_in(tmp_path)
    for round in (1, 2, 3):
        await donor.keep_round(header_of(round), b"x")
    await donor.keep_state(consensus, 3, chain_of(3))
    state = written(manifest, consensus, tmp_path, 2)
    state.description.chain = chain_of(2)
    await donor.start_anew(tmp_path / "state.bin", state.description)
    assert [path.name for path in donor.folder.iterdir()] == ["state-000000002.bin"]
    assert [donor.delta_log.get(round) is not None for round in (1, 2, 3)] == [True, True, False]
    await donor.keep_round(header_of(3), b"x")
    assert donor.delta_log.keeps_since(0)
