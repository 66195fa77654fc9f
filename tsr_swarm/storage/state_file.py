"""The consensus state as a file of hashed chunks: how a donor writes it, and how a joining peer assembles it.

The file is written here and not by the safetensors library, so that every donor's file has the same bytes whatever
version it has; and piece by piece, so that no second copy of the state is in memory.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from tsr_swarm.config.manifest import Manifest
from tsr_swarm.errors import PeerError
from tsr_swarm.optim.consensus import Consensus, little_endian
from tsr_swarm.optim.periods import are_drawn, drawn_bases
from tsr_swarm.process.machine_limits import disk_errors
from tsr_swarm.wire.checks import check
from tsr_swarm.wire.codec import HASH_BYTES, hash_bytes
from tsr_swarm.wire.compression import compress, decompress
from tsr_swarm.wire.v1 import swarm_pb2 as pb

CHUNK_BYTES = 1 << 20
ZSTD_LEVEL = 1  # float32 weights hardly compress; a higher level only takes longer
PART = "part"  # the ending of a file that is not complete yet
_DTYPES = {torch.float32: "F32", torch.int16: "I16"}  # in the order of the file


def write_state(path: Path, manifest: Manifest, consensus: Consensus, round: int, chain: bytes) -> pb.StateDescription:
    """Write the consensus after ``round`` and describe it. Bases that every peer can draw are left out. Heavy.

    No round may be applied to ``consensus`` meanwhile. Raises RunError.
    """
    tensors = shipped_tensors(manifest, consensus)
    with disk_errors(f"The state of round {round} cannot be kept in {path.parent}", "free space"):
        try:
            with path.open("wb") as file:
                hashes = _write_hashed(file, tensors)
        except OSError:
            path.unlink(missing_ok=True)
            raise
    return pb.StateDescription(
        round=round,
        digest=consensus.digest(),
        chain=chain,
        total_bytes=state_length(tensors),
        chunk_bytes=CHUNK_BYTES,
        chunk_hashes=hashes,
    )


def shipped_tensors(manifest: Manifest, consensus: Consensus) -> Mapping[str, Tensor]:
    """The tensors of the consensus that are in its state file."""
    return consensus.weight_tensors() if are_drawn(manifest) else consensus.tensors()


def state_length(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of the state file of ``tensors``."""
    return len(_header(tensors)) + sum(tensor.nbytes for tensor in tensors.values())


def read_chunks(path: Path, description: pb.StateDescription, first: int, count: int) -> Iterator[pb.StateChunk]:
    """Read and compress ``count`` chunks from number ``first`` on, one at a time. count 0: all."""
    size, end = description.chunk_bytes, len(description.chunk_hashes)
    with path.open("rb") as file:
        file.seek(first * size)
        for index in range(first, min(end, first + count) if count else end):
            yield pb.StateChunk(index=index, data=compress(file.read(size), ZSTD_LEVEL))


def _write_hashed(file: BinaryIO, tensors: Mapping[str, Tensor]) -> list[bytes]:
    """Write the state file of ``tensors``. Returns the hash of each of its chunks."""
    hashes, hasher, room = [], hashlib.blake2b(digest_size=HASH_BYTES), CHUNK_BYTES
    for piece in _pieces(tensors):
        file.write(piece)
        while len(piece):
            hasher.update(piece[:room])
            taken = min(room, len(piece))
            room, piece = room - taken, piece[taken:]
            if not room:
                hashes.append(hasher.digest())
                hasher, room = hashlib.blake2b(digest_size=HASH_BYTES), CHUNK_BYTES
    return hashes if room == CHUNK_BYTES else [*hashes, hasher.digest()]


def _pieces(tensors: Mapping[str, Tensor]) -> Iterator[memoryview]:
    yield memoryview(_header(tensors))
    for name in _in_order(tensors):
        yield little_endian(tensors[name]).cast("B")


def _header(tensors: Mapping[str, Tensor]) -> bytes:
    """The header of a safetensors file: length, then names, types, shapes and offsets in JSON, padded to 8 bytes."""
    entries, end = {}, 0
    for name in _in_order(tensors):
        tensor, start = tensors[name], end
        end += tensor.nbytes
        entries[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _in_order(tensors: Mapping[str, Tensor]) -> list[str]:
    types = list(_DTYPES)
    return sorted(tensors, key=lambda name: (types.index(tensors[name].dtype), name))


def _max_state_bytes(manifest: Manifest) -> int:
    """The most bytes that a state of this run can have: float32 weights, int16 bases and ranges, header of names."""
    integers = sum(b.basis_size + b.sketch_width * b.rows for b in manifest.blocks if b.is_low_rank)
    numbers = sum(4 * block.size for block in manifest.blocks) + 2 * integers
    return numbers + sum(4 * (len(block.name) + 256) for block in manifest.blocks) + 4096


class StateAssembly:
    """A file that is filled with the chunks of one state as they arrive, in any order.

    A chunk with a wrong hash is refused. Chunks that an earlier process left in ``folder`` are found by their hashes.
    """

    def __init__(self, description: pb.StateDescription, manifest: Manifest, folder: Path) -> None:
        """Read and hash what is there already. Raises PeerError for an illegal description, and RunError."""
        limit, total = _max_state_bytes(manifest), description.total_bytes
        if total > limit:
            raise PeerError(
                "state", f"The state offered has {total} bytes, more than the {limit} of this run; refused."
            )
        check(description)
        self.description = description
        self.path = folder / f"state-{description.round:09d}.{PART}"
        self.missing = set(range(len(description.chunk_hashes)))
        with self._disk_errors():
            folder.mkdir(parents=True, exist_ok=True)
            for other in folder.glob(f"state-*.{PART}"):
                if other != self.path or other.stat().st_size != total:
                    other.unlink()
            with self.path.open("a+b") as file:
                self._find_chunks(file.fileno())
        self.found_bytes = total - sum(self._length(index) for index in self.missing)

    @property
    def is_complete(self) -> bool:
        return not self.missing

    def check(self, chunk: pb.StateChunk) -> None:
        """Verify a chunk and write it to its place, on any thread; then call ``take``. Raises PeerError, RunError."""
        index = chunk.index
        if index >= len(self.description.chunk_hashes):
            raise PeerError("state", f"State chunk {index} came, but there are {len(self.description.chunk_hashes)}.")
        data = decompress(chunk.data, self._length(index))
        if hash_bytes(data) != self.description.chunk_hashes[index]:
            raise PeerError("state", f"State chunk {index} does not match its hash.")
        with self._disk_errors(), self.path.open("r+b") as file:
            file.seek(index * self.description.chunk_bytes)
            file.write(data)

    def take(self, index: int) -> None:
        """Count a chunk as present, on the thread that reads ``missing``."""
        self.missing.discard(index)

    def consensus(self, manifest: Manifest) -> Consensus:
        """Read the complete state. Raises PeerError if it is not a state of this run or has another digest."""
        try:
            return self._read(manifest)
        except PeerError:
            self.remove()
            raise

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)

    def _read(self, manifest: Manifest) -> Consensus:
        try:
            tensors = safetensors.torch.load_file(self.path)
        except safetensors.SafetensorError as error:
            raise PeerError("state", f"The state offered cannot be read ({error}); it is refused.") from error
        lift = manifest.config.optimizer.lift
        drawn = drawn_bases(manifest, self.description.round) if are_drawn(manifest) else None
        consensus = Consensus.from_tensors(manifest.blocks, tensors, lift, drawn)
        if consensus.digest() != self.description.digest:
            raise PeerError("state", "The state offered does not match its digest; it is refused.")
        return consensus

    def _find_chunks(self, descriptor: int) -> None:
        if os.fstat(descriptor).st_size == 0:
            os.truncate(descriptor, self.description.total_bytes)
            return
        for index, expected in enumerate(self.description.chunk_hashes):
            data = os.pread(descriptor, self._length(index), index * self.description.chunk_bytes)
            if hash_bytes(data) == expected:
                self.missing.discard(index)

    def _length(self, index: int) -> int:
        size = self.description.chunk_bytes
        return min(size, self.description.total_bytes - index * size)

    def _disk_errors(self) -> AbstractContextManager[None]:
        return disk_errors(f"The state cannot be kept in {self.path.parent}", "free space, or use another --dir")


def begun_round(folder: Path) -> int:
    """The round of the state of which an earlier process left chunks in ``folder``; 0: none."""
    rounds = [path.stem.removeprefix("state-") for path in folder.glob(f"state-*.{PART}")]
    return max((int(round) for round in rounds if round.isdecimal()), default=0)
