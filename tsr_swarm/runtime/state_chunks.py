"""The consensus state as hashed chunks: what a joining peer downloads, and how it puts them together again."""

from collections.abc import Iterator
from dataclasses import dataclass

import safetensors
import safetensors.torch

from tsr_swarm.config.manifest import Manifest
from tsr_swarm.errors import PeerError
from tsr_swarm.optim.consensus import Consensus
from tsr_swarm.optim.drawn import are_drawn, drawn_bases
from tsr_swarm.wire.codec import hash_bytes
from tsr_swarm.wire.compression import compress, decompress
from tsr_swarm.wire.control import check_state_description
from tsr_swarm.wire.v1 import swarm_pb2

CHUNK_BYTES = 1 << 20
ZSTD_LEVEL = 1  # float32 weights hardly compress; a higher level only takes longer


@dataclass(frozen=True, slots=True)
class StateSnapshot:
    """The state after one round, ready to be served."""

    description: swarm_pb2.StateDescription
    data: bytes

    def chunks(self, first: int) -> Iterator[swarm_pb2.StateChunk]:
        """Chunk messages from number ``first`` on, compressed one at a time."""
        for index in range(first, len(self.description.chunk_hashes)):
            piece = self.data[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES]
            yield swarm_pb2.StateChunk(index=index, data=compress(piece, ZSTD_LEVEL))


def snapshot(manifest: Manifest, consensus: Consensus, round: int, chain: bytes) -> StateSnapshot:
    """Serialise the consensus after ``round``, as a copy. Bases that everybody can draw are left out."""
    data = safetensors.torch.save(consensus.weight_tensors() if are_drawn(manifest) else consensus.tensors())
    hashes = [hash_bytes(data[at : at + CHUNK_BYTES]) for at in range(0, len(data), CHUNK_BYTES)]
    description = swarm_pb2.StateDescription(
        round=round,
        digest=consensus.digest(),
        chain=chain,
        total_bytes=len(data),
        chunk_bytes=CHUNK_BYTES,
        chunk_hashes=hashes,
    )
    return StateSnapshot(description, data)


def legal_state_bytes(manifest: Manifest) -> int:
    """The most a state of this run can have: float32 weights, int16 bases, and safetensors' header of names."""
    numbers = sum(4 * b.size + (2 * b.basis_size if b.is_low_rank else 0) for b in manifest.blocks)
    return numbers + sum(3 * (len(block.name) + 256) for block in manifest.blocks) + 4096


class StateAssembly:
    """Chunks of one description as they arrive. A chunk that is not what its hash says is refused."""

    def __init__(self, description: swarm_pb2.StateDescription, manifest: Manifest) -> None:
        limit, total = legal_state_bytes(manifest), description.total_bytes
        if total > limit:
            raise PeerError(
                "state", f"The state offered has {total} bytes, more than the {limit} of this run; refused."
            )
        check_state_description(description)
        self.description = description
        self._chunks: list[bytes] = []

    @property
    def next_chunk(self) -> int:
        """Where to go on, also after a broken connection."""
        return len(self._chunks)

    @property
    def is_complete(self) -> bool:
        return len(self._chunks) == len(self.description.chunk_hashes)

    def add(self, chunk: swarm_pb2.StateChunk) -> None:
        """Take the next chunk; raises PeerError."""
        index, size = self.next_chunk, self.description.chunk_bytes
        if self.is_complete or chunk.index != index:
            raise PeerError("state", f"State chunk {chunk.index} came where {index} was due; the download is refused.")
        length = min(size, self.description.total_bytes - index * size)
        data = decompress(chunk.data, length)
        if hash_bytes(data) != self.description.chunk_hashes[index]:
            raise PeerError("state", f"State chunk {index} does not match its hash; it will be fetched again.")
        self._chunks.append(data)

    def consensus(self, manifest: Manifest) -> Consensus:
        """The whole state; raises PeerError if it is not a state of this run or not what its digest says."""
        try:
            tensors = safetensors.torch.load(b"".join(self._chunks))
        except safetensors.SafetensorError as error:
            raise PeerError("state", f"The state offered cannot be read ({error}); it is refused.") from error
        lift = manifest.config.optimizer.lift
        drawn = drawn_bases(manifest, self.description.round) if are_drawn(manifest) else None
        consensus = Consensus.from_tensors(manifest.blocks, tensors, lift, drawn)
        if consensus.digest() != self.description.digest:
            raise PeerError("state", "The state offered does not match its digest; it is refused.")
        return consensus
