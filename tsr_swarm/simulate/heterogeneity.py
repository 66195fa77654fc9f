"""What differs between simulated peers: who is away, who is slow, and which text each has. Seeded, without a clock."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tsr_swarm.config.coerce import require
from tsr_swarm.config.run import DataConfig
from tsr_swarm.errors import ConfigError
from tsr_swarm.train.corpus import Warn, find_documents, ignore, read_documents
from tsr_swarm.train.data import END_OF_DOCUMENT, heldout_documents, part_range, training_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Heterogeneity:
    """The conditions of a run. By default all peers are active, equally fast, and have text of the same kind."""

    churn: float = 0.0  # chance that a peer is away ...
    away_steps: int = 20  # ... for this many steps, drawn anew for each such span
    straggler_share: float = 0.0  # of the peers, rounded
    straggler_factor: float = 1.0  # a straggler's step takes this many times as long
    heterogeneous: bool = False  # each peer has a contiguous run of the corpus' folders
    vocabulary: int = 0  # BPE tokens, learned from the training text; 0: the text is bytes

    def __post_init__(self) -> None:
        require(0 <= self.churn < 1, "churn", self.churn, "from 0 to below 1")
        require(self.away_steps >= 1, "away_steps", self.away_steps, "1 or more")
        require(0 <= self.straggler_share <= 1, "stragglers' share", self.straggler_share, "0 to 1")
        require(1 <= self.straggler_factor <= 1000, "stragglers' factor", self.straggler_factor, "1 to 1000")
        is_vocabulary = self.vocabulary == 0 or 257 <= self.vocabulary <= 2**20
        require(is_vocabulary, "vocabulary", self.vocabulary, "0 (bytes), or 257 to 1048576 BPE tokens")

    def slowness(self, seed: int, peers: int) -> tuple[float, ...]:
        """Return how many times as long as usual each peer takes for a step, the same in the whole run."""
        count = round(self.straggler_share * peers)
        slow = sorted(range(peers), key=lambda peer: _draw(seed, "slow", peer))[:count]
        return tuple(self.straggler_factor if peer in slow else 1.0 for peer in range(peers))

    def active_peers(self, seed: int, peers: int, step: int) -> tuple[int, ...]:
        """Return the peers, at least one, that take part in the exchange whose first local step is ``step``."""
        draws = {peer: _draw(seed, f"away/{step // self.away_steps}", peer) for peer in range(peers)}
        active = tuple(peer for peer, draw in draws.items() if draw >= self.churn)
        return active or (max(draws, key=lambda peer: draws[peer]),)

    def work(self, seed: int, peers: int, first_step: int, period: int) -> dict[int, int]:
        """Return, by active peer, the local steps it manages while a peer of ordinary speed takes ``period``."""
        slowness = self.slowness(seed, peers)
        return {peer: max(1, int(period / slowness[peer])) for peer in self.active_peers(seed, peers, first_step)}


def step_times(work: Mapping[int, int], slowness: tuple[float, ...]) -> float:
    """Return how long the local steps of one period take, in times of one ordinary step: the slowest peer decides."""
    return max(steps * slowness[peer] for peer, steps in work.items())


def peer_texts(data: DataConfig, heterogeneous: bool, warn: Warn = ignore) -> list[Tensor]:
    """Return the training text of each of ``data.parts`` peers, uint8. Raises ConfigError for too small a source.

    Heterogeneous: the documents in the order of their paths are cut into ranges of equal length, so that a peer has
    whole folders. Otherwise each peer has the part that a real one would have.
    """
    if not heterogeneous:
        return [training_tokens(data, part, warn) for part in range(data.parts)]
    minimum = data.sequence_length + 1
    documents = find_documents(data.source, warn)
    held = set(heldout_documents(documents, minimum))
    text = read_documents([d for d in documents if d not in held], bytes([END_OF_DOCUMENT]), warn)
    if not held or len(text) // data.parts < minimum:
        raise ConfigError(
            f"The data source {data.source!r} is too small to give each of {data.parts} peers a kind of text of its "
            "own; add files, or lower --peers."
        )
    ranges = [part_range(len(text), data.parts, part) for part in range(data.parts)]
    return [torch.frombuffer(text[start:end], dtype=torch.uint8) for start, end in ranges]


def _draw(seed: int, purpose: str, peer: int) -> float:
    """Return a number in [0, 1) that depends on the arguments alone."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{peer}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) / 2**53
