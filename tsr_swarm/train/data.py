"""Byte-level tokens: the held-out text, a peer's part of the training text, and batches drawn from it.

Each ``warn`` hears, a sentence at a time, what of the text could not be read.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tsr_swarm.config.run import DataConfig
from tsr_swarm.errors import ConfigError
from tsr_swarm.train.corpus import Document, find_documents, read_documents, source_text
from tsr_swarm.train.split import heldout_documents, heldout_tail, part_documents, part_range
from tsr_swarm.train.unread import Warn, ignore

END_OF_DOCUMENT = 0  # a byte that text does not use


def heldout_tokens(data: DataConfig, warn: Warn = ignore) -> Tensor:
    """The text nobody trains on, uint8. Raises ConfigError when the source is too small for a sequence."""
    documents = find_documents(data.source, warn)
    heldout = heldout_documents(documents, data.sequence_length + 1)
    text = _read(heldout, warn) if heldout else _cut_tail(documents, data, warn)[1]
    return _tokens(text, data, f"the held-out text of data source {source_text(data.source)}", "add text")


def training_tokens(data: DataConfig, part: int, warn: Warn = ignore) -> Tensor:
    """Part ``part`` (from 0) of the training text, uint8. The parts are disjoint and none is empty.

    Raises ConfigError when the source cannot give every part a sequence.
    """
    documents = find_documents(data.source, warn)
    minimum = data.sequence_length + 1
    heldout = heldout_documents(documents, minimum)
    if not heldout:
        return _range(_cut_tail(documents, data, warn)[0], data, part)
    held = set(heldout)
    training = [document for document in documents if document not in held]
    dealt = part_documents(training, data.parts, minimum)
    if dealt is None:
        return _range(_read(training, warn), data, part)
    return _part_tokens(_read(dealt[part], warn), data, part)


def private_tokens(source: str | tuple[str, ...], data: DataConfig, warn: Warn = ignore) -> Tensor:
    """All text of a peer's own files and folders, uint8. Raises ConfigError when there is less than a sequence."""
    return _tokens(_read(find_documents(source, warn), warn), data, f"the data {source_text(source)}", "add text")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenStream:
    """Batches for one peer, each a pure function of (seed, peer number, step): resuming needs no generator state."""

    tokens: Tensor  # of any integer type; bytes are uint8
    seed: int
    number: int  # the peer's
    batch_size: int
    sequence_length: int

    def batch(self, step: int, micro: int = 0) -> Tensor:
        """Windows (B, T+1) int64 at random places. ``step`` is global; ``micro`` separates draws within a step."""
        key = f"{self.seed}/{self.number}/{step}/{micro}".encode()
        draws = hashlib.shake_256(key).digest(8 * self.batch_size)
        places = self.tokens.numel() - self.sequence_length
        # 63 bits: the remainder's bias is below one in 2^30 for any text that fits in memory.
        starts = (torch.frombuffer(bytearray(draws), dtype=torch.int64) & (2**63 - 1)) % places
        return self.tokens[starts[:, None] + torch.arange(self.sequence_length + 1)].long()


def _read(documents: Sequence[Document], warn: Warn) -> bytearray:
    return read_documents(documents, bytes([END_OF_DOCUMENT]), warn)


def _cut_tail(documents: Sequence[Document], data: DataConfig, warn: Warn) -> tuple[bytearray, bytearray]:
    """Training and held-out text where no whole document could be held out."""
    text = _read(documents, warn)
    minimum = data.sequence_length + 1
    if len(text) < 2 * minimum:
        raise ConfigError(
            f"The data source {source_text(data.source)} has {len(text)} bytes, fewer than the {2 * minimum} of a "
            f"training and a held-out sequence; add text or lower data.sequence_length = {data.sequence_length}."
        )
    cut = len(text) - heldout_tail(len(text), minimum)
    return text[:cut], text[cut:]


def _range(text: bytearray, data: DataConfig, part: int) -> Tensor:
    start, end = part_range(len(text), data.parts, part)
    return _part_tokens(text[start:end], data, part)


def _part_tokens(text: bytearray, data: DataConfig, part: int) -> Tensor:
    what = f"part {part + 1} of {data.parts} of data source {source_text(data.source)}"
    return _tokens(text, data, what, f"add text or lower data.parts = {data.parts}")


def _tokens(text: bytearray, data: DataConfig, what: str, remedy: str) -> Tensor:
    needed = data.sequence_length + 1
    if len(text) < needed:
        has = f"{what[0].upper()}{what[1:]} has {len(text)} bytes"
        raise ConfigError(f"{has}, fewer than the {needed} of one sequence; {remedy}.")
    return torch.frombuffer(text, dtype=torch.uint8)
