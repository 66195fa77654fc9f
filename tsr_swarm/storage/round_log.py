"""Published rounds, kept on disk and served to peers that missed some: kilobytes a round instead of the whole state.

A round is stored before it is voted on, so that what a majority has accepted a majority can serve. Until it stands it
is a proposal, of which a round may have several, each under its chain hash; whoever asks for a round without naming
its hash gets the one that stands. Which ones do is not kept here: the voter's journal names the newest, each file's
name the hash of the round before it, and so on backwards.
"""

import os
import re
import struct
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

from google.protobuf.message import DecodeError

from tsr_swarm.errors import PeerError, RunError
from tsr_swarm.storage.checkpoint import sync
from tsr_swarm.telemetry.text import reason_text
from tsr_swarm.wire.codec import Section
from tsr_swarm.wire.messages import sections_from_proto
from tsr_swarm.wire.v1 import swarm_pb2 as pb

_NAME = re.compile(r"round-(\d{9})-([0-9a-f]{64})(?:-([0-9a-f]{64}))?\.bin")
_ASIDE = ".tmp"  # the ending of a file that is being written
_LENGTH = struct.Struct("<Q")

_Key = tuple[int, bytes]  # a round and its chain hash

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Kept:
    path: Path
    parent: bytes  # chain hash of the round before; empty in round 1
    size: int


class RoundLog:
    """The newest rounds in ``folder``: at most ``max_bytes``, but never fewer than since the last checkpoint.

    Its methods may be called from any thread.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self._max_bytes = max_bytes
        self._kept: dict[_Key, _Kept] = {}
        self._standing: dict[int, bytes] = {}  # chain hash by round
        self._committed = 0
        self._checkpoint = 0
        self._lock = threading.Lock()  # of the above; never held while a round is read or written

    @property
    def committed(self) -> int:
        """The newest round that stands, as far as was said here."""
        return self._committed

    def open(self, committed: int = 0, chain: bytes = b"") -> None:
        """Find what an earlier process left, of which round ``committed`` with hash ``chain`` stands. Raises RunError.

        Proposals of the round after it are kept: this node may have promised to keep one. Later ones are removed, and
        files of others left alone.
        """
        with self._lock:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                for path in self.folder.iterdir():
                    self._find(path, committed)
            except OSError as error:
                raise RunError(
                    f"The rounds in {self.folder} cannot be read ({reason_text(error)}); check that folder."
                ) from error
            self._stand(committed, chain)

    def rebase(self, committed: int, chain: bytes) -> None:
        """A state of round ``committed`` was taken in: what stood may be another history.

        What leads to that round stands. Later rounds stay as proposals: this node may have promised to keep one.
        """
        with self._lock:
            self._standing.clear()
            self._stand(committed, chain)
            self._checkpoint = min(self._checkpoint, committed)
            self._clean()

    def store(self, header: pb.PublishedHeader, data: bytes) -> None:
        """Write a round that was checked, as a proposal, and fsync. Raises RunError, for instance on a full disk."""
        plan, chain = header.plan, header.chain
        if self.keeps(plan.round, chain):
            return
        name = f"round-{plan.round:09d}-{chain.hex()}" + (f"-{plan.parent.hex()}" if plan.parent else "")
        path = self.folder / f"{name}.bin"
        temporary = path.with_suffix(f".{threading.get_ident()}{_ASIDE}")  # the same round may come in two ways at once
        encoded = header.SerializeToString()
        try:
            with temporary.open("wb") as file:
                file.write(_LENGTH.pack(len(encoded)) + encoded + data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            sync(self.folder)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise RunError(
                f"Round {plan.round} cannot be kept in {self.folder} ({reason_text(error)}); free space."
            ) from error
        with self._lock:
            self._kept[plan.round, chain] = _Kept(path, plan.parent, _LENGTH.size + len(encoded) + len(data))

    def commit(self, round: int, chain: bytes) -> None:
        """From now on this one is the round that is handed out.

        What did not come to stand, of this round and before, is removed, and the oldest rounds make room. To be called
        once a restart would know of it: until then, another proposal of the round may be what was promised.
        """
        with self._lock:
            self._standing[round] = chain
            self._committed = max(self._committed, round)
            for key in [key for key in self._kept if key[0] <= round and self._standing.get(key[0]) != key[1]]:
                self._drop(key)
            self._clean()

    def checkpointed(self, round: int) -> None:
        """Rounds up to ``round`` are in a checkpoint and may be dropped when there are too many."""
        with self._lock:
            self._checkpoint = round
            self._clean()

    def get(self, round: int, chain: bytes = b"") -> tuple[pb.PublishedHeader, bytes] | None:
        """The round that stands, or with ``chain`` the one of that hash, be it a proposal; None if it is not kept.

        Raises RunError for a file that cannot be read: once, from then on it is not kept.
        """
        return self._read(round, chain, lambda file, key: (_read_header(file, key), file.read()))

    def header(self, round: int, chain: bytes = b"") -> pb.PublishedHeader | None:
        """That of the round which ``get`` finds, without reading its data. Raises RunError as ``get`` does."""
        return self._read(round, chain, _read_header)

    def _read(self, round: int, chain: bytes, read: Callable[[BinaryIO, _Key], T]) -> T | None:
        with self._lock:
            key = round, chain or self._standing.get(round, b"")
            kept = self._kept.get(key)
        if kept is None:
            return None
        try:
            with kept.path.open("rb") as file:
                return read(file, key)
        except (OSError, struct.error, DecodeError) as error:
            self._lost(key, error)
            return None

    def shard(self, round: int, shard: int, hashes: Sequence[bytes]) -> tuple[tuple[Section, ...], bytes] | None:
        """The sections of these ``hashes`` and their frames, joined, if a round of this number has them in ``shard``.

        Raises RunError as ``get`` does.
        """
        with self._lock:
            candidates = [(key, kept) for key, kept in self._kept.items() if key[0] == round]
        for key, kept in candidates:
            try:
                with kept.path.open("rb") as file:
                    found = _read_shard(file, key, shard, list(hashes))
            except (OSError, struct.error, DecodeError, PeerError) as error:
                self._lost(key, error)
                continue
            if found is not None:
                return found
        return None

    def forget(self, round: int, chain: bytes = b"") -> None:
        """The bytes of this round, or with no ``chain`` of the one that stands, turned out to be damaged."""
        with self._lock:
            self._kept.pop((round, chain or self._standing.get(round, b"")), None)

    def keeps(self, round: int, chain: bytes) -> bool:
        """Whether this round is here, be it a proposal."""
        with self._lock:
            return (round, chain) in self._kept

    def keeps_since(self, round: int) -> bool:
        """Whether every round after ``round`` that stands is kept."""
        with self._lock:
            return self._since(round) is not None

    def bytes_since(self, round: int) -> int:
        """Bytes of all rounds after ``round`` that stand; 0 where there are none or not all are kept."""
        with self._lock:
            return sum(kept.size for kept in self._since(round) or [])

    # --- with the lock held -------------------------------------------------------------------------------------

    def _find(self, path: Path, committed: int) -> None:
        match = _NAME.fullmatch(path.name)
        if match is None:
            if path.suffix == _ASIDE:  # of a process that was killed
                path.unlink()
            return
        if int(match[1]) > committed + 1:
            path.unlink()
            return
        key = int(match[1]), bytes.fromhex(match[2])
        self._kept[key] = _Kept(path, bytes.fromhex(match[3] or ""), path.stat().st_size)

    def _stand(self, committed: int, chain: bytes) -> None:
        """Follow the chain backwards. Where a file is missing, what is before it waits for people to restore it."""
        self._committed = committed
        for round in range(committed, 0, -1):
            kept = self._kept.get((round, chain))
            if kept is None:
                return
            self._standing[round] = chain
            chain = kept.parent

    def _since(self, round: int) -> list[_Kept] | None:
        """None: not all of them are kept."""
        if self._committed - round > len(self._kept):
            return None
        keys = [(later, self._standing.get(later, b"")) for later in range(round + 1, self._committed + 1)]
        found = [self._kept[key] for key in keys if key in self._kept]
        return found if len(found) == len(keys) else None

    def _clean(self) -> None:
        total = sum(kept.size for kept in self._kept.values())
        for key in sorted(self._kept):
            if key[0] >= self._checkpoint or total <= self._max_bytes:
                return
            total -= self._kept[key].size
            self._drop(key)

    def _drop(self, key: _Key) -> None:
        kept = self._kept.pop(key)
        try:
            kept.path.unlink(missing_ok=True)
        except OSError:
            return  # it costs room, and goes with the next start

    # --- without it ---------------------------------------------------------------------------------------------

    def _lost(self, key: _Key, error: Exception) -> None:
        """A file cannot be read. Raises RunError, unless it has just been dropped to make room."""
        with self._lock:
            was_kept = self._kept.pop(key, None) is not None
        if was_kept:
            raise RunError(f"Round {key[0]} in {self.folder} cannot be read ({reason_text(error)}).") from error


def _read_header(file: BinaryIO, key: _Key) -> pb.PublishedHeader:
    """Leaves ``file`` where the data begin. Raises OSError, struct.error or DecodeError."""
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
