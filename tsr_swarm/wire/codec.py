"""Grids to bytes and back. ``decode`` is the gate through which every number from a stranger comes.

A payload is one section a payload kind, in the order in which the kinds first appear among its slots. A section is
one zstd frame over its slots (see section.py). Every slot has one legal length, and so has every section.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tsr_swarm.config.layout import PayloadKind, Slot
from tsr_swarm.errors import PeerError
from tsr_swarm.lowrank.grid import Grid
from tsr_swarm.wire.compression import compress, compress_digits, decompress, max_wire_bytes
from tsr_swarm.wire.section import decode_section, encode_section

HASH_BYTES = 32


@dataclass(frozen=True, slots=True)
class Section:
    """All slots of one payload kind: one frame of ``wire_bytes``; ``hash`` is over the ``raw_bytes`` inside."""

    kind: str
    raw_bytes: int
    wire_bytes: int
    hash: bytes


def encode(slots: Sequence[Slot], grids: Mapping[Slot, Grid], level: int) -> tuple[tuple[Section, ...], bytes]:
    """Describe and join the frames of ``slots``. Raises RunError when a number is not finite or does not fit."""
    sections, frames = [], []
    for kind, members in _by_kind(slots).items():
        parts = encode_section(members, grids)
        raw = b"".join(parts)
        frame = compress(raw, level) if len(parts) == 1 else compress_digits(parts)
        sections.append(Section(kind.value, len(raw), len(frame), hash_bytes(raw)))
        frames.append(frame)
    return tuple(sections), b"".join(frames)


def decode(slots: Sequence[Slot], sections: Sequence[Section], data: bytes) -> dict[Slot, Grid]:
    """Check and open a payload. Each |value| <= 2**(bits-1) - 1, exponents are in range, floats are finite.

    Raises PeerError, and nothing else, whatever ``sections`` and ``data`` hold.
    """
    check_sections(slots, sections)
    if len(data) != wire_bytes(sections):
        raise PeerError("length", f"{len(data)} bytes came, {wire_bytes(sections)} were announced; they are refused.")
    grids: dict[Slot, Grid] = {}
    start = 0
    for section, members in zip(sections, _by_kind(slots).values(), strict=True):
        raw = decompress(data[start : start + section.wire_bytes], section.raw_bytes)
        start += section.wire_bytes
        if hash_bytes(raw) != section.hash:
            raise PeerError("hash", f"Section '{section.kind}' is not what its hash says; the payload is refused.")
        grids |= decode_section(members, memoryview(raw))
    return {slot: grids[slot] for slot in slots}


def check_sections(slots: Sequence[Slot], sections: Sequence[Section]) -> None:
    """Refuse sections that are not the one legal list for ``slots``, before any of their bytes are received."""
    legal = {kind.value: sum(s.raw_bytes for s in members) for kind, members in _by_kind(slots).items()}
    if [section.kind for section in sections] != list(legal):
        kinds = [section.kind[:16] for section in sections[:8]]
        raise PeerError("sections", f"The sections are {kinds}, this round's are {list(legal)}; they are refused.")
    for section in sections:
        exact = legal[section.kind]
        if section.raw_bytes != exact:
            raise PeerError(
                "raw_bytes", f"Section '{section.kind}' has {section.raw_bytes} raw bytes, not {exact}; it is refused."
            )
        if not 0 < section.wire_bytes <= max_wire_bytes(exact):
            raise PeerError(
                "wire_bytes",
                f"Section '{section.kind}' has {section.wire_bytes} wire bytes, not 1 to {max_wire_bytes(exact)}; "
                "it is refused.",
            )
        if len(section.hash) != HASH_BYTES:
            raise PeerError("hash", f"Section '{section.kind}' has a hash of {len(section.hash)} bytes, not 32.")


def wire_bytes(sections: Sequence[Section]) -> int:
    """Length of the joined frames."""
    return sum(section.wire_bytes for section in sections)


def hash_bytes(data: bytes) -> bytes:
    """BLAKE2b-256, the one hash of the wire."""
    return hashlib.blake2b(data, digest_size=HASH_BYTES).digest()


def _by_kind(slots: Sequence[Slot]) -> dict[PayloadKind, list[Slot]]:
    members: dict[PayloadKind, list[Slot]] = {}
    for slot in slots:
        members.setdefault(slot.part.kind, []).append(slot)
    return members
