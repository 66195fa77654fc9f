"""Published rounds, kept on disk and served to peers that missed some: kilobytes a round instead of the whole state.

A round is stored before it is voted on, so that whoever restarts can apply what was accepted. It is handed out only
once it is committed.
"""

import os
import re
import struct
from pathlib import Path

from google.protobuf.message import DecodeError

from tsr_swarm.errors import RunError
from tsr_swarm.train.checkpoint import sync
from tsr_swarm.wire.v1 import swarm_pb2 as pb

_NAME = re.compile(r"round-(\d{9})\.bin")
_LENGTH = struct.Struct("<Q")


class DeltaLog:
    """The newest rounds in ``folder``: at most ``max_bytes``, but never fewer than since the last checkpoint."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self._max_bytes = max_bytes
        self._sizes: dict[int, int] = {}
        self._committed = 0
        self._checkpoint = 0

    def open(self, committed: int) -> None:
        """Find what an earlier process left; rounds after ``committed`` were never accepted and are removed."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for path in sorted(self.folder.iterdir()):
                match = _NAME.fullmatch(path.name)
                if match and int(match[1]) <= committed:
                    self._sizes[int(match[1])] = path.stat().st_size
                else:
                    path.unlink()
        except OSError as error:
            raise RunError(f"The rounds in {self.folder} cannot be read ({error}); check that folder.") from error
        self._committed = committed

    def store(self, header: pb.PublishedHeader, data: bytes) -> None:
        """Write a round and fsync. Raises RunError, for instance on a full disk."""
        path = self._path(header.plan.round)
        encoded = header.SerializeToString()
        temporary = path.with_suffix(".tmp")
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
                f"Round {header.plan.round} cannot be kept in {self.folder} ({error}); free space."
            ) from error
        self._sizes[header.plan.round] = len(encoded) + len(data)

    def commit(self, round: int) -> None:
        """From now on ``round`` is handed out; the oldest rounds make room."""
        self._committed = round
        self._prune()

    def checkpointed(self, round: int) -> None:
        """Rounds up to ``round`` are in a checkpoint and may be dropped when there are too many."""
        self._checkpoint = round
        self._prune()

    def get(self, round: int) -> tuple[pb.PublishedHeader, bytes] | None:
        """A committed round that is still kept."""
        if round not in self._sizes or round > self._committed:
            return None
        try:
            content = self._path(round).read_bytes()
            (length,) = _LENGTH.unpack_from(content)
            end = _LENGTH.size + length
            if end > len(content):
                raise DecodeError("it was cut short")
            return pb.PublishedHeader.FromString(content[_LENGTH.size : end]), content[end:]
        except (OSError, struct.error, DecodeError) as error:
            raise RunError(f"Round {round} in {self.folder} cannot be read ({error}); restore that folder.") from error

    def keeps_since(self, round: int) -> bool:
        """Whether every committed round after ``round`` is kept."""
        return all(later in self._sizes for later in range(round + 1, self._committed + 1))

    def bytes_since(self, round: int) -> int:
        """Bytes of all committed rounds after ``round``; 0 where there are none or not all are kept."""
        if self._committed - round > len(self._sizes) or not self.keeps_since(round):
            return 0
        return sum(self._sizes[later] for later in range(round + 1, self._committed + 1))

    def forget(self, round: int) -> None:
        """A round cannot be read any more."""
        self._sizes.pop(round, None)

    def clear(self) -> None:
        """Remove every round. Raises RunError."""
        try:
            for path in self.folder.glob("round-*"):
                path.unlink(missing_ok=True)
        except OSError as error:
            raise RunError(f"The rounds in {self.folder} cannot be removed ({error}); check that folder.") from error
        self._sizes.clear()
        self._committed = self._checkpoint = 0

    def _prune(self) -> None:
        for round in sorted(self._sizes):
            if round >= self._checkpoint or sum(self._sizes.values()) <= self._max_bytes:
                return
            self._path(round).unlink(missing_ok=True)
            del self._sizes[round]

    def _path(self, round: int) -> Path:
        return self.folder / f"round-{round:09d}.bin"
