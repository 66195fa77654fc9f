"""Labelled sentences: read, split into training and held-out, dealt to peers. Pure functions of text and seed."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Sentence:
    text: str
    label: int  # 1: people rated it positive


def read(ratings: str) -> list[Sentence]:
    """Lines of number, mean rating from -4 to 4, sentence, separated by tabs.

    The label is the rating's sign. Sentences rated zero are left out, and so is the second of two equal ones: it could
    be held out from a training that has seen it. Raises ValueError for anything else.
    """
    found: dict[str, Sentence] = {}
    for place, line in enumerate(ratings.splitlines(), 1):
        _, rating, text = line.split("\t")
        score, text = float(rating), text.strip()
        if not (-4 <= score <= 4 and text):
            raise ValueError(f"line {place} is not a rating from -4 to 4 and a sentence: {line[:80]!r}")
        if score:
            found.setdefault(text.casefold(), Sentence(text, int(score > 0)))
    return list(found.values())


def split(sentences: Sequence[Sentence], heldout: int) -> tuple[list[Sentence], list[Sentence]]:
    """Training and ``heldout`` held-out sentences, which are chosen by hash: the same whatever the seed of a run."""
    if not 0 < heldout < len(sentences):
        raise ValueError(
            f"{heldout} of {len(sentences)} sentences cannot be held out; choose 1 to {len(sentences) - 1}."
        )
    ranked = sorted(sentences, key=lambda sentence: hashlib.sha256(sentence.text.encode()).digest())
    return ranked[heldout:], ranked[:heldout]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Share:
    """One peer's part of the training sentences, in its own order. A batch is a pure function of the step."""

    rows: Tensor  # int64 (sentences, length + 1): tokens, then the label
    number: int  # the peer's, from 1
    batch_size: int

    def batch(self, step: int, micro: int = 0) -> Tensor:
        """Rows (batch_size, length + 1) in turn, from the start again at the end.

        Micro-batches 1, 2, ... of a gradient sketch are those of the local steps that follow it.
        """
        first = (step + max(0, micro - 1)) * self.batch_size
        return self.rows[torch.arange(first, first + self.batch_size) % len(self.rows)]


def deal(rows: Tensor, peers: int, batch_size: int, seed: int) -> list[Share]:
    """Shuffle by ``seed`` and deal one by one: shares are disjoint, and differ in size by one sentence at most."""
    if len(rows) < peers * batch_size:
        raise ValueError(f"{len(rows)} sentences are fewer than one batch of {batch_size} for each of {peers} peers.")
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    return [Share(rows=rows[order[peer::peers]], number=peer + 1, batch_size=batch_size) for peer in range(peers)]


def by_length(rows: Tensor, batch_size: int, pad: int) -> list[Tensor]:
    """Places (<= batch_size,) of all rows in batches of like length, so that little padding is computed."""
    order = torch.argsort((rows[:, :-1] != pad).sum(1), stable=True)
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def pack_bits(correct: Sequence[bool]) -> str:
    """One bit a sentence, as hexadecimal digits."""
    digits = math.ceil(len(correct) / 4)
    return f"{sum(int(bit) << place for place, bit in enumerate(correct)):0{digits}x}" if correct else ""


def unpack_bits(digits: str, count: int) -> list[bool]:
    """``pack_bits`` undone."""
    number = int(digits or "0", 16)
    return [bool(number >> place & 1) for place in range(count)]
