"""Byte-level tokens: the held-out text, a peer's part of the training text, and batches drawn from it.

Which documents are held out, and which part each of the others is in, follows from a hash of its name, so peers whose
folders differ by a few files still agree on the others. Each ``warn`` is called with one sentence at a time about text
that cannot be read.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tsr_swarm.config.run import DataConfig
from tsr_swarm.errors import ConfigError
from tsr_swarm.train.corpus import Document, Warn, find_documents, ignore, read_documents, source_text

END_OF_DOCUMENT = 0  # a byte that text does not use
HELDOUT_SHARE = 0.05
_HELDOUT_LIMIT = 0.2  # a document that would hold out more than this share of the text stays in training
_SMALLEST_SHARE = 0.25  # of an even split; below this the text is cut into ranges instead


def heldout_tokens(data: DataConfig, warn: Warn = ignore) -> Tensor:
    """Read the text nobody trains on, uint8. Raises ConfigError when the source is too small for a sequence."""
    documents = find_documents(data.source, warn)
    heldout = heldout_documents(documents, data.sequence_length + 1)
    text = _read(heldout, warn) if heldout else _cut_tail(documents, data, warn)[1]
    return _tokens(text, data, f"the held-out text of data source {source_text(data.source)}", "add text")


def training_tokens(data: DataConfig, part: int, warn: Warn = ignore) -> Tensor:
    """Read part ``part`` (from 0) of the training text, uint8. The parts are disjoint and none is empty.

    Raises ConfigError when the source cannot give every part a sequence.
    """
    documents = find_documents(data.source, warn)
    minimum = data.sequence_length + 1
    heldout = heldout_documents(documents, minimum)
    if not heldout:
        return _range(_cut_tail(documents, data, warn)[0], data, part)
    held = set(heldout)
    training = [document for document in documents if document not in held]
    by_part = part_documents(training, data.parts, minimum)
    if by_part is None:
        return _range(_read(training, warn), data, part)
    return _part_tokens(_read(by_part[part], warn), data, part)


def private_tokens(source: str | tuple[str, ...], data: DataConfig, warn: Warn = ignore) -> Tensor:
    """Read all text of a peer's own files and folders, uint8. Raises ConfigError when there is less than a sequence."""
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
        """Windows (B, T+1) int64 at random positions. ``step`` is global; ``micro`` separates draws within a step."""
        key = f"{self.seed}/{self.number}/{step}/{micro}".encode()
        draws = hashlib.shake_256(key).digest(8 * self.batch_size)
        positions = self.tokens.numel() - self.sequence_length
        # 63 bits: the remainder's bias is below one in 2^30 for any text that fits in memory.
        starts = (torch.frombuffer(bytearray(draws), dtype=torch.int64) & (2**63 - 1)) % positions
        return self.tokens[starts[:, None] + torch.arange(self.sequence_length + 1)].long()


def heldout_documents(documents: Sequence[Document], minimum: int) -> tuple[Document, ...]:
    """Choose the documents nobody trains on: those whose hash is below 5 %, and more until there are ``minimum`` bytes.

    Empty when there is no such choice within 20 % of the text: then its last 5 % are held out.
    """
    limit = _HELDOUT_LIMIT * sum(document.size for document in documents)
    chosen, held = [], 0
    for document in sorted(documents, key=lambda document: (_draw("heldout", document), document.name)):
        if _draw("heldout", document) >= HELDOUT_SHARE and held >= minimum:
            break
        if held + document.size <= limit:
            chosen.append(document)
            held += document.size
    return tuple(sorted(chosen, key=lambda document: document.name)) if held >= minimum else ()


def part_documents(documents: Sequence[Document], parts: int, minimum: int) -> tuple[tuple[Document, ...], ...] | None:
    """Split ``documents`` into ``parts``; None when too few to give each ``minimum`` bytes and a fair share."""
    chosen: list[list[Document]] = [[] for _ in range(parts)]
    for document in documents:
        chosen[int(_draw("part", document) * parts)].append(document)
    sizes = [sum(document.size for document in part) for part in chosen]
    if min(sizes) < max(minimum, _SMALLEST_SHARE * sum(sizes) / parts):
        return None
    return tuple(tuple(part) for part in chosen)


def part_range(length: int, parts: int, part: int) -> tuple[int, int]:
    """Start and end of one of ``parts`` ranges that cover ``length`` bytes evenly."""
    return length * part // parts, length * (part + 1) // parts


def part_of(number: int, parts: int) -> int:
    """The part of the peer with ``number``, counted from 1."""
    return (number - 1) % parts


def _read(documents: Sequence[Document], warn: Warn) -> bytearray:
    return read_documents(documents, bytes([END_OF_DOCUMENT]), warn)


def _cut_tail(documents: Sequence[Document], data: DataConfig, warn: Warn) -> tuple[bytearray, bytearray]:
    """Read training and held-out text if no whole document can be held out."""
    text = _read(documents, warn)
    minimum = data.sequence_length + 1
    if len(text) < 2 * minimum:
        raise ConfigError(
            f"The data source {source_text(data.source)} has {len(text)} bytes, fewer than the {2 * minimum} of a "
            f"training and a held-out sequence; add text or lower data.sequence_length = {data.sequence_length}."
        )
    cut = len(text) - max(int(len(text) * HELDOUT_SHARE), minimum)
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


def _draw(purpose: str, document: Document) -> float:
    """A number in [0, 1) that follows from the document's name alone; 53 bits, so that it is exact."""
    name = document.name.encode("utf-8", "surrogateescape")
    digest = hashlib.blake2b(name, digest_size=8, person=purpose.encode()).digest()
    return (int.from_bytes(digest, "little") >> 11) / 2**53
