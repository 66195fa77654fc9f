"""Who trains on what: which documents are held out, and which part of the rest a peer has. Pure decisions.

Both follow from a hash of each document's name, so peers whose folders differ by a few files still agree on the others.
"""

import hashlib
from collections.abc import Sequence

from tsr_swarm.train.corpus import Document

HELDOUT_SHARE = 0.05
_HELDOUT_LIMIT = 0.2  # a document that would hold out more than this share of the text stays in training
_SMALLEST_SHARE = 0.25  # of an even split; below this the text is cut into ranges instead


def heldout_documents(documents: Sequence[Document], minimum: int) -> tuple[Document, ...]:
    """The documents nobody trains on: those whose hash is below 5 %, and more until there are ``minimum`` bytes.

    Empty when there is no such choice within 20 % of the text: then its last 5 % are held out, see ``heldout_tail``.
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


def heldout_tail(length: int, minimum: int) -> int:
    """Bytes held out at the end of a text of ``length`` bytes that no document could be spared from."""
    return max(int(length * HELDOUT_SHARE), minimum)


def part_documents(documents: Sequence[Document], parts: int, minimum: int) -> tuple[tuple[Document, ...], ...] | None:
    """Deal ``documents`` to ``parts`` parts, or None when too few to give each ``minimum`` bytes and a fair share."""
    dealt: list[list[Document]] = [[] for _ in range(parts)]
    for document in documents:
        dealt[int(_draw("part", document) * parts)].append(document)
    sizes = [sum(document.size for document in part) for part in dealt]
    if min(sizes) < max(minimum, _SMALLEST_SHARE * sum(sizes) / parts):
        return None
    return tuple(tuple(part) for part in dealt)


def part_range(length: int, parts: int, part: int) -> tuple[int, int]:
    """Start and end of one of ``parts`` ranges that cover ``length`` bytes evenly."""
    return length * part // parts, length * (part + 1) // parts


def part_of(number: int, parts: int) -> int:
    """The part of the peer with ``number``, counted from 1."""
    return (number - 1) % parts


def _draw(purpose: str, document: Document) -> float:
    """A number in [0, 1) that follows from the document's name alone; 53 bits, so that it is exact."""
    name = document.name.encode("utf-8", "surrogateescape")
    digest = hashlib.blake2b(name, digest_size=8, person=purpose.encode()).digest()
    return (int.from_bytes(digest, "little") >> 11) / 2**53
