"""A voter's journal: the hard state outlives crashes, and a journal of another voter or run is refused."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsr_swarm.errors import RunError
from tsr_swarm.rounds.raft_state import HardState, RoundRecord
from tsr_swarm.storage.files import encode_digested
from tsr_swarm.storage.journal import NAMES, Journal, knows_rounds
from tsr_swarm.wire.fields import MAX_ROUND, MAX_TERM

ME, OTHER, RUN = "a" * 32, "b" * 32, "1" * 64
MANY = [f"{index:032x}" for index in range(6)]  # more voters than there can be
GENESIS = RoundRecord(voters=(ME,))
hashes = st.binary(min_size=32, max_size=32).map(bytes.hex)
voters = st.sets(st.sampled_from(["a" * 32, "b" * 32, "c" * 32]), min_size=1).map(sorted).map(tuple)


@st.composite
def hard_states(draw: st.DrawFn) -> HardState:
    """Any that a node can reach."""
    round = draw(st.integers(0, MAX_ROUND - 1))
    chain = draw(hashes) if round else ""
    base = RoundRecord(round, chain, draw(hashes) if round > 1 else "", draw(voters))
    term = draw(st.integers(0, MAX_TERM))
    has_tail = draw(st.booleans())
    tail = RoundRecord(round + 1, draw(hashes), chain, draw(voters)) if has_tail else None
    tail_term = draw(st.integers(0, term)) if has_tail else 0
    return HardState(base, term, draw(st.sampled_from(["", ME, OTHER])), tail, tail_term)


def journal_in(folder: Path) -> Journal:
    return Journal(folder, ME, RUN)


@given(written=st.lists(hard_states(), max_size=3))
def test_a_journal_gives_back_what_was_written_last(written: list[HardState]) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "new"
        for hard_state in written:
            journal = journal_in(path)
            journal.load(pytest.fail)
            journal.write(hard_state)
        assert journal_in(path).load(pytest.fail) == (written[-1] if written else None)
        assert knows_rounds(path) == bool(written and (written[-1].base.round or written[-1].tail))


class Killed(BaseException):
    """The process is gone."""


@pytest.mark.parametrize("operation", ["fsync", "replace"])
@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_process_killed_while_it_writes_leaves_the_old_hard_state_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str, at: int
) -> None:
    """Nothing was sent of the new one yet, so either will do; once ``write`` returns it is the new one in both."""
    before, after = (HardState(GENESIS, term=term, voted_for=ME) for term in (1, 2))
    journal = journal_in(tmp_path)
    journal.write(before)
    owner: Any = os if operation == "fsync" else Path
    calls, real = 0, getattr(owner, operation)

    def die(*arguments: object) -> object:
        nonlocal calls
        calls += 1
        if calls == at:
            raise Killed
        return real(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(owner, operation, die)
        try:
            journal.write(after)
        except Killed:
            assert journal_in(tmp_path).load(pytest.fail) in (before, after)
    again = journal_in(tmp_path)
    again.load(pytest.fail)
    again.write(after)
    for name in NAMES:
        (tmp_path / name).unlink()
        assert journal_in(tmp_path).load(lambda warning: None) == after
        again.write(after)


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
def test_any_changed_byte_of_one_copy_is_warned_of_and_the_other_is_used(name: str, data: st.DataObject) -> None:
    hard_state = HardState(RoundRecord(9, "2" * 64, "3" * 64, (ME,)), term=4, voted_for=OTHER)
    with TemporaryDirectory() as folder:
        journal_in(Path(folder)).write(hard_state)
        path = Path(folder) / name
        content = bytearray(path.read_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
        path.write_bytes(content)
        warnings: list[str] = []
        assert journal_in(Path(folder)).load(warnings.append) == hard_state
        (warning,) = warnings
        assert f"{name} cannot be used" in warning


def test_a_copy_that_a_crash_left_behind_is_not_taken_for_the_newest(tmp_path: Path) -> None:
    journal = journal_in(tmp_path)
    old, new = (HardState(GENESIS, term=term) for term in (7, 8))
    journal.write(old)
    kept = (tmp_path / NAMES[1]).read_bytes()
    journal.write(new)
    (tmp_path / NAMES[1]).write_bytes(kept)
    assert journal_in(tmp_path).load(pytest.fail) == new


def body(**changes: object) -> dict[str, Any]:
    """A legal journal's content, with changes to the hard_state."""
    base, tail = RoundRecord(2, "2" * 64, "1" * 64, (ME, OTHER)), RoundRecord(3, "3" * 64, "2" * 64, (ME,))
    ledger = asdict(HardState(base, 5, ME, tail, 5)) | changes
    return {"format": 1, "me": ME, "run": RUN, "writes": 3, "ledger": ledger}


def record(**changes: object) -> dict[str, object]:
    return {"round": 2, "chain": "2" * 64, "parent": "1" * 64, "voters": [ME, OTHER]} | changes


@pytest.mark.parametrize(
    "document",
    [
        *(body(term=term) for term in (MAX_TERM + 1, -1, True, 5.0, "5")),
        body(tail_term=6),
        *(body(voted_for=voter) for voter in ("nobody", ["a" * 32])),
        *(body(base=base) for base in (None, [])),
        *(body(base=record(round=round)) for round in (MAX_ROUND + 1, -2, True, 0)),
        *(body(base=record(chain=chain)) for chain in ("", "2" * 62, "xyz")),
        body(base=record(parent="")),
        *(body(base=record(voters=voters)) for voters in ([], [OTHER, ME], [ME, ME], MANY, ["me"], [1], 5)),
        body(tail=record(round=4, parent="2" * 64)),
        body(tail=record(round=3, parent="4" * 64)),
        *(body() | change for change in ({"format": 2}, {"writes": -1}, {"writes": "3"}, {"run": "2" * 64})),
        *(body() | {"me": me} for me in (OTHER, 5)),
        {key: value for key, value in body().items() if key != "ledger"},
        {"format": 1},
    ],
)
def test_a_journal_of_impossible_content_is_refused_whatever_its_digest(
    tmp_path: Path, document: dict[str, Any]
) -> None:
    (tmp_path / NAMES[0]).write_bytes(encode_digested(body()))
    assert journal_in(tmp_path).load(lambda warning: None) is not None, "unchanged, it is sound"
    for name in NAMES:
        (tmp_path / name).write_bytes(encode_digested(document))
    with pytest.raises(RunError, match=r"The journal of this node is lost: .* Restore one of the two from a copy"):
        journal_in(tmp_path).load(pytest.fail)


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"[]", b"{}", b"\xff\xfe", b'{"format": ' + b"[" * 5000, b"[" * (1 << 20)),
        json.dumps(asdict(HardState(GENESIS))).encode(),  # of the version before there were digests
    ],
)
def test_a_file_that_is_no_journal_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / NAMES[0]).write_bytes(content)
    assert knows_rounds(tmp_path)
    with pytest.raises(RunError, match=r"The journal of this node is lost"):
        journal_in(tmp_path).load(pytest.fail)


@pytest.mark.parametrize("is_folder", [False, True])
def test_a_copy_that_is_lost_is_written_again(tmp_path: Path, is_folder: bool) -> None:
    journal_in(tmp_path).write(HardState(GENESIS, term=3))
    copy = tmp_path / NAMES[0]
    copy.unlink()
    if is_folder:
        copy.mkdir()
    warnings: list[str] = []
    journal = journal_in(tmp_path)
    assert journal.load(warnings.append) == HardState(GENESIS, term=3)
    assert len(warnings) == 1
    if is_folder:
        with pytest.raises(RunError, match="cannot be written"):
            journal.write(HardState(GENESIS, term=4))
        copy.rmdir()
    journal.write(HardState(GENESIS, term=4))
    assert journal_in(tmp_path).load(pytest.fail) == HardState(GENESIS, term=4)
