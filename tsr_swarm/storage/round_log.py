"""Published rounds, kept on disk and served to peers that missed some: kilobytes a round instead of the whole state.

A round is stored before it is voted on, so that what a majority has accepted a majority can serve. Until it is
committed it is a proposal, of which a round may have several, each under its chain hash; a request without a chain
hash gets the committed one. Which rounds are committed is not kept here: the voter's journal names the newest, each
file's name the chain hash of the round before it, and so on backwards.
"""

import os
import re
import struct
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

from google.protobuf.message import DecodeError

from tsr_swarm.errors import PeerError, RunError
from tsr_swarm.process.machine_limits import disk_errors
from tsr_swarm.storage.files import fsync, replace_file
from tsr_swarm.telemetry.text import reason_text
from tsr_swarm.wire.codec import Section
from tsr_swarm.wire.messages import sections_from_proto
from tsr_swarm.wire.v1 import swarm_pb2 as pb

_NAME = re.compile(r"round-(\d{9})-([0-9a-f]{64})(?:-([0-9a-f]{64}))?\.bin")
_TEMPORARY = ".tmp"  # the ending of a file that is being written
_LENGTH = struct.Struct("<Q")

_Key = tuple[int, bytes]  # a round and its chain hash

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _StoredRound:
    path: Path
    parent: bytes  # chain hash of the round before; empty in round 1
    size: int


class RoundLog:
    """The newest rounds in ``folder``: ``max_bytes`` at most, but all since the oldest checkpoint. Thread-safe."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self._max_bytes = max_bytes
        self._rounds: dict[_Key, _StoredRound] = {}
        self._chains: dict[int, bytes] = {}  # by round, the chain hash of the committed one
        self.committed = 0  # the newest committed round that this log knows of
        self._checkpoint = 0
        self._lock = threading.Lock()  # of the above; never held while a round is read or written

    def open(self, committed: int = 0, chain: bytes = b"") -> None:
        """Find the rounds that an earlier process stored. Raises RunError.

        committed, chain: the newest committed round and its chain hash. Proposals of the round after it are kept: this
        node may have accepted one. Later ones are removed; files that are no rounds are left alone.
        """
        with self._lock:
            with disk_errors(f"The rounds in {self.folder} cannot be read", "check that folder"):
                self.folder.mkdir(parents=True, exist_ok=True)
                for path in self.folder.iterdir():
                    self._find(path, committed)
            self._follow_chain(committed, chain)

    def rebase(self, committed: int, chain: bytes) -> None:
        """Begin anew from a downloaded state of round ``committed``: the rounds here may be of another history.

        The rounds that lead to it are committed. Later ones stay as proposals: this node may have accepted one.
        """
        with self._lock:
            self._chains.clear()
            self._follow_chain(committed, chain)
            self._checkpoint = min(self._checkpoint, committed)
            self._clean()

    def store(self, header: pb.PublishedHeader, data: bytes) -> None:
        """Write a round that was checked, as a proposal, and fsync. Raises RunError, for instance on a full disk."""
        plan, chain = header.plan, header.chain
        if self.keeps(plan.round, chain):
            return
        name = f"round-{plan.round:09d}-{chain.hex()}" + (f"-{plan.parent.hex()}" if plan.parent else "")
        path = self.folder / f"{name}.bin"
        temporary = path.with_suffix(f".{threading.get_ident()}{_TEMPORARY}")  # two threads may store the same round
        encoded = header.SerializeToString()
        content = _LENGTH.pack(len(encoded)) + encoded + data
        with disk_errors(f"Round {plan.round} cannot be kept in {self.folder}", "free space"):
            replace_file(path, temporary, content)
            fsync(self.folder)
        with self._lock:
            self._rounds[plan.round, chain] = _StoredRound(path, plan.parent, len(content))

    def commit(self, round: int, chain: bytes) -> None:
        """Mark a round as committed: ``get`` returns it from now on.

        Other proposals, of this round and before, are removed, and the oldest rounds make room. To be called once the
        journal says so: until then, another proposal of the round may be the one that this node accepted.
        """
        with self._lock:
            self._chains[round] = chain
            self.committed = max(self.committed, round)
            for key in [key for key in self._rounds if key[0] <= round and self._chains.get(key[0]) != key[1]]:
                self._drop(key)
            self._clean()

    def checkpointed(self, round: int) -> None:
        """Allow rounds up to ``round`` to be dropped when there are too many: they are in a checkpoint."""
        with self._lock:
            self._checkpoint = round
            self._clean()

    def get(self, round: int, chain: bytes = b"") -> tuple[pb.PublishedHeader, bytes] | None:
        """Read the committed round, or with ``chain`` the one of that hash, also a proposal; None if it is not kept.

        Raises RunError for a file that cannot be read: once, from then on the round is not kept.
        """
        return self._read_round(round, chain, lambda file, key: (_read_header(file, key), file.read()))

    def header(self, round: int, chain: bytes = b"") -> pb.PublishedHeader | None:
        """Read the header of the round that ``get`` finds, without its data. Raises RunError as ``get`` does."""
        return self._read_round(round, chain, _read_header)

    def shard(self, round: int, shard: int, hashes: Sequence[bytes]) -> tuple[tuple[Section, ...], bytes] | None:
        """Read the sections of these ``hashes`` and their frames, joined, if any proposal of ``round`` has them.

        Raises RunError as ``get`` does.
        """
        with self._lock:
            kept = [(key, stored) for key, stored in self._rounds.items() if key[0] == round]
        wanted = list(hashes)
        found = (self._read(*one, lambda file, key: _read_shard(file, key, shard, wanted)) for one in kept)
        return next((sections for sections in found if sections is not None), None)

    def forget(self, round: int, chain: bytes = b"") -> None:
        """Stop serving this round, or without ``chain`` the committed one: its bytes turned out to be damaged."""
        with self._lock:
            self._rounds.pop(self._key(round, chain), None)

    def keeps(self, round: int, chain: bytes) -> bool:
        """Whether this round is here, also as a proposal."""
        with self._lock:
            return (round, chain) in self._rounds

    def keeps_since(self, round: int) -> bool:
        """Whether every committed round after ``round`` is kept."""
        with self._lock:
            return self._since(round) is not None

    def bytes_since(self, round: int) -> int:
        """Bytes of all committed rounds after ``round``; 0 if there are none or not all are kept."""
        with self._lock:
            return sum(stored.size for stored in self._since(round) or [])

    def _key(self, round: int, chain: bytes) -> _Key:
        return round, chain or self._chains.get(round, b"")

    def _find(self, path: Path, committed: int) -> None:
        match = _NAME.fullmatch(path.name)
        if match is None:
            if path.suffix == _TEMPORARY:  # of a process that was killed
                path.unlink()
            return
        if int(match[1]) > committed + 1:
            path.unlink()
            return
        key = int(match[1]), bytes.fromhex(match[2])
        self._rounds[key] = _StoredRound(path, bytes.fromhex(match[3] or ""), path.stat().st_size)

    def _follow_chain(self, committed: int, chain: bytes) -> None:
        """Mark rounds as committed, backwards. If a file is missing, those before it wait for people to restore it."""
        self.committed = committed
        for round in range(committed, 0, -1):
            stored = self._rounds.get((round, chain))
            if stored is None:
                return
            self._chains[round] = chain
            chain = stored.parent

    def _since(self, round: int) -> list[_StoredRound] | None:
        """Committed rounds after ``round``; None if not all of them are kept."""
        if self.committed - round > len(self._rounds):
            return None
        keys = [self._key(later, b"") for later in range(round + 1, self.committed + 1)]
        found = [self._rounds[key] for key in keys if key in self._rounds]
        return found if len(found) == len(keys) else None

    def _clean(self) -> None:
        total = sum(stored.size for stored in self._rounds.values())
        for key in sorted(self._rounds):
            if key[0] >= self._checkpoint or total <= self._max_bytes:
                return
            total -= self._rounds[key].size
            self._drop(key)

    def _drop(self, key: _Key) -> None:
        with suppress(OSError):  # it costs room, and goes with the next start
            self._rounds.pop(key).path.unlink(missing_ok=True)

    def _read_round(self, round: int, chain: bytes, read: Callable[[BinaryIO, _Key], T]) -> T | None:
        with self._lock:
            key = self._key(round, chain)
            stored = self._rounds.get(key)
        return None if stored is None else self._read(key, stored, read)

    def _read(self, key: _Key, stored: _StoredRound, read: Callable[[BinaryIO, _Key], T]) -> T | None:
        """Read from a round's file; one that cannot be read is served no more.

        Raises RunError then, unless the file was dropped just now for room.
        """
        try:
            with stored.path.open("rb") as file:
                return read(file, key)
        except (OSError, struct.error, DecodeError, PeerError) as error:
            with self._lock:
                was_kept = self._rounds.pop(key, None) is not None
            if was_kept:
                raise RunError(f"Round {key[0]} in {self.folder} cannot be read ({reason_text(error)}).") from error
            return None


def _read_header(file: BinaryIO, key: _Key) -> pb.PublishedHeader:
    """Read the header, up to where the data begin. Raises OSError, struct.error or DecodeError."""
    (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
    if length > os.fstat(file.fileno()).st_size - file.tell():
        raise DecodeError("it was cut short")
    header = pb.PublishedHeader.FromString(file.read(length))
    if (header.plan.round, header.chain) != key:
        raise DecodeError("it is another round")
    return header


def _read_shard(file: BinaryIO, key: _Key, shard: int, hashes: list[bytes]) -> tuple[tuple[Section, ...], bytes] | None:
    header = _read_header(file, key)
    if shard >= len(header.shards):
        return None
    sections = sections_from_proto(header.shards[shard].sections)
    if not sections or [section.hash for section in sections] != hashes:
        return None
    file.seek(sum(section.wire_bytes for result in header.shards[:shard] for section in result.sections), os.SEEK_CUR)
    length = sum(section.wire_bytes for section in sections)
    data = file.read(length)
    if len(data) != length:
        raise DecodeError("it was cut short")
    return sections, data
