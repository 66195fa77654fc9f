"""Published rounds on disk: a committed round is never lost, a proposal is never served as committed."""

import errno
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsr_swarm.errors import RunError
from tsr_swarm.storage.round_log import RoundLog
from tsr_swarm.wire.messages import sections_from_proto
from tsr_swarm.wire.v1 import swarm_pb2 as pb


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


def log_of(folder: Path, *sizes: int, max_bytes: int = 10_000) -> RoundLog:
    """A log in which a committed round of each of ``sizes`` is stored."""
    log = log_in(folder, max_bytes)
    for round, size in enumerate(sizes, 1):
        log.store(header_of(round), bytes(size))
        log.commit(round, chain_of(round))
    return log


def served(log: RoundLog) -> list[int]:
    return [round for round in range(1, 8) if log.get(round) is not None]


@dataclass
class Voter:
    """A log, and what the journal says: which proposal of each round is committed."""

    folder: Path
    log: RoundLog
    committed: list[int] = field(default_factory=list)  # which one, by round from 1
    stored: set[tuple[int, int]] = field(default_factory=set)  # rounds and which, that must still be there

    @property
    def base(self) -> int:
        return len(self.committed)

    def parent(self, round: int) -> int:
        return self.committed[round - 2] if round > 1 else 0

    def round(self, round: int, which: int) -> tuple[pb.PublishedHeader, bytes]:
        return header_of(round, which, self.parent(round)), bytes([round, which]) * 10

    def check(self) -> None:
        for round, which in enumerate(self.committed, 1):
            assert self.log.get(round) == self.round(round, which)
        assert self.log.get(self.base + 1) is None, "a proposal is never served as committed"
        for round, which in self.stored:
            assert self.log.get(round, chain_of(round, which)) == self.round(round, which)
        assert self.log.keeps_since(0)


steps = st.lists(
    st.tuples(st.sampled_from(["store", "store", "commit", "commit", "kill", "kill before commit"]), st.integers(0, 2)),
    max_size=30,
)


@given(steps=steps)
def test_a_committed_round_is_never_lost_and_a_proposal_is_never_served_as_one(steps: list[tuple[str, int]]) -> None:
    """A voter stores proposals, learns which one is committed, journals that before anything else, and is killed."""
    with TemporaryDirectory() as folder:
        voter = Voter(Path(folder), log_in(Path(folder)))
        for step, which in steps:
            round = voter.base + 1
            if step == "store":
                voter.log.store(*voter.round(round, which))
                voter.stored.add((round, which))
            elif step.startswith("kill"):
                if step == "kill before commit" and (round, which) in voter.stored:
                    voter.committed.append(which)  # journaled
                    voter.stored = {(round, which)}
                (voter.folder / "round-000000009.99.tmp").write_bytes(b"was being written")
                newest = voter.committed[-1] if voter.committed else 0
                voter.log = log_in(voter.folder, committed=voter.base, which=newest)
                assert not list(voter.folder.glob("*.tmp"))
            elif (round, which) in voter.stored:
                voter.committed.append(which)
                voter.stored.clear()
                voter.log.commit(round, chain_of(round, which))
                for other in {0, 1, 2} - {which}:
                    assert voter.log.get(round, chain_of(round, other)) is None, "other proposals are gone"
            voter.check()


def test_a_missing_round_leaves_the_older_files_for_people_to_restore_it(tmp_path: Path) -> None:
    log_of(tmp_path, 1, 1, 1)
    (missing,) = tmp_path.glob("round-000000002-*")
    content = missing.read_bytes()
    missing.unlink()
    again = log_in(tmp_path, committed=3)
    assert served(again) == [3], "whether round 1 is committed cannot be known"
    assert (again.keeps_since(0), again.keeps_since(2)) == (False, True)
    missing.write_bytes(content)
    assert log_in(tmp_path, committed=3).keeps_since(0)


def test_a_downloaded_state_says_what_is_committed_and_costs_no_accepted_proposal(tmp_path: Path) -> None:
    log = log_of(tmp_path, 1, 1, 1)
    log.store(header_of(4), b"accepted")
    log.rebase(3, chain_of(3))
    assert served(log) == [1, 2, 3]
    log.rebase(2, chain_of(2, which=1))  # another history
    assert served(log) == []
    assert log.get(4, chain_of(4)) is not None
    log.store(header_of(3, 1, parent=1), b"y")
    log.commit(3, chain_of(3, 1))
    assert log.get(3) == (header_of(3, 1, parent=1), b"y")
    assert (log.keeps_since(2), log.committed) == (True, 3)
    assert len(list(tmp_path.glob("round-000000003-*"))) == 1


def test_the_bytes_of_missed_rounds_are_counted_only_if_all_of_them_are_kept(tmp_path: Path) -> None:
    log = log_of(tmp_path, 100, 200, 300, 400, 500)
    log.store(header_of(6), bytes(1000))
    assert log.bytes_since(3) - log.bytes_since(4) > 400
    assert 900 < log.bytes_since(3) < 1300
    assert log.bytes_since(5) == 0
    log.forget(2)
    assert log.bytes_since(2) > 0
    assert (log.bytes_since(1), log.keeps_since(1)) == (0, False)


def test_old_rounds_make_room_but_never_those_since_the_oldest_checkpoint(tmp_path: Path) -> None:
    log = log_of(tmp_path, *5 * [400], max_bytes=1200)
    assert served(log) == [1, 2, 3, 4, 5], "no checkpoint yet"
    log.checkpointed(5)
    assert served(log) == [4, 5]
    assert len(list(tmp_path.iterdir())) == 2


def test_a_shard_is_found_by_its_hashes_in_every_proposal(tmp_path: Path) -> None:
    def sections(which: int) -> list[pb.Section]:
        return [pb.Section(kind="core", raw_bytes=9, wire_bytes=3, hash=bytes([which, part]) * 16) for part in (0, 1)]

    log, data = log_in(tmp_path), (b"abcdef", b"uvwxyz")
    for which in (0, 1):
        log.store(header_of(1, which, sections=sections(which)), data[which])
    for which in (0, 1):
        found = log.shard(1, 1, [section.hash for section in sections(which)])
        assert found == (sections_from_proto(sections(which)), data[which])
    first = [section.hash for section in sections(0)]
    misses = [(1, 0, []), (1, 0, first), (1, 1, first[:1]), (1, 2, first), (2, 1, first), (1, 1, [])]
    assert [log.shard(*miss) for miss in misses] == len(misses) * [None]
    (file,) = tmp_path.glob(f"*{chain_of(1).hex()}*")
    os.truncate(file, file.stat().st_size - 1)
    with pytest.raises(RunError, match="cannot be read"):
        log.shard(1, 1, first)
    assert log.shard(1, 1, first) is None


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\x05\0\0\0\0\0\0\0\xff\xff", bytes(8)])
def test_a_damaged_round_is_one_sentence_and_can_be_stored_anew(tmp_path: Path, content: bytes) -> None:
    log = log_of(tmp_path, 3)
    (file,) = tmp_path.iterdir()
    file.write_bytes(content)
    with pytest.raises(RunError, match=r"Round 1 .* cannot be read"):
        log.get(1)
    assert (log.get(1), log.keeps_since(0)) == (None, False)
    log.store(header_of(1), b"one")
    assert log.get(1) == (header_of(1), b"one")


def test_a_full_disk_is_one_sentence_and_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    log = log_in(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(RunError, match=r"Round 1 cannot be kept in .* \(No space left on device\); free space\.$"):
            log.store(header_of(1), b"one")
    assert list(tmp_path.iterdir()) == []
    assert log.get(1, chain_of(1)) is None


def test_threads_that_store_the_same_round_at_once_do_not_damage_it(tmp_path: Path) -> None:
    """A voter that fetches a proposal may be sent it with a committed round."""
    log, data = log_in(tmp_path), bytes(1 << 20)
    with ThreadPoolExecutor(8) as threads:
        for _ in range(20):
            list(threads.map(lambda _: log.store(header_of(1), data), range(8)))
            assert log.get(1, chain_of(1)) == (header_of(1), data)
            log.forget(1, chain_of(1))
    assert len(list(tmp_path.iterdir())) == 1


def test_files_that_are_no_rounds_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "round-000000001-00.1.tmp").touch()  # of a process that was killed
    log_in(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes", "notes.txt"]
