"""Grids to bytes and back. ``decode`` is the gate through which every number from a stranger comes.

A payload is one section a payload kind, in the order in which the kinds first appear among its slots. A section is
one zstd frame over its slots in order; a slot is its exponents as int8, then its packed values (see packing.py), or
little-endian float32 where it has 32 bits. Every slot has one legal length, and so has every section.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tsr_swarm.config.layout import DENSE_BITS, PayloadKind, Slot
from tsr_swarm.errors import PeerError, RunError
from tsr_swarm.lowrank.basis import BASIS_EXPONENT
from tsr_swarm.lowrank.grid import EXPONENT_MAX, EXPONENT_MIN, Grid
from tsr_swarm.wire.compression import compress, decompress, max_wire_bytes
from tsr_swarm.wire.packing import pack, unpack

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
        raw = b"".join(_encode_slot(slot, grids[slot]) for slot in members)
        frame = compress(raw, level)
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
        grids |= _decode_section(members, memoryview(raw))
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


def _encode_slot(slot: Slot, grid: Grid) -> bytes:
    shape = (slot.rows, slot.cols)
    if tuple(grid.values.shape) != shape:
        raise RunError(f"{slot.part} of block {slot.block} is {tuple(grid.values.shape)}, not {shape}; this is a bug.")
    values = grid.values.detach().cpu().numpy().ravel()
    if slot.bits == DENSE_BITS:
        if not np.isfinite(values).all():
            raise RunError(f"Block {slot.block} has moved by NaN or Inf; lower optimizer.lr and start again.")
        return values.astype("<f4", copy=False).tobytes()
    exponents = grid.exponents.cpu().numpy()
    legal = EXPONENT_MIN, EXPONENT_MAX
    if slot.exponents == 0:  # a basis: its one legal scale does not travel
        legal, exponents = (BASIS_EXPONENT, BASIS_EXPONENT), np.unique(exponents)
    if exponents.size and not legal[0] <= exponents.min() <= exponents.max() <= legal[1]:
        raise RunError(f"{slot.part} of block {slot.block} has exponents outside {legal}; lower optimizer.lr.")
    head = exponents[: slot.exponents].astype(np.int8).tobytes()
    if len(head) != slot.exponents:
        raise RunError(f"{slot.part} of block {slot.block} has {len(head)} exponents, not {slot.exponents}; a bug.")
    try:
        return head + pack(values, slot.bits)
    except ValueError as error:
        raise RunError(f"In {slot.part} of block {slot.block}, {error}") from error


def _decode_section(slots: Sequence[Slot], raw: memoryview) -> dict[Slot, Grid]:
    grids = {}
    start = 0
    for slot in slots:
        grids[slot] = _decode_slot(slot, raw[start : start + slot.raw_bytes])
        start += slot.raw_bytes
    return grids


def _decode_slot(slot: Slot, raw: memoryview) -> Grid:
    count = slot.rows * slot.cols
    if slot.bits == DENSE_BITS:
        numbers = np.frombuffer(raw, "<f4", count).astype(np.float32)
        if not np.isfinite(numbers).all():
            raise PeerError("not_finite", f"Block {slot.block} holds NaN or Inf; the payload is refused.")
        return Grid(torch.from_numpy(numbers).view(slot.rows, slot.cols), torch.empty(0, dtype=torch.int32))
    exponents = np.frombuffer(raw, np.int8, slot.exponents).astype(np.int32)
    if slot.exponents == 0:
        exponents = np.array([BASIS_EXPONENT], dtype=np.int32)
    elif exponents.min() < EXPONENT_MIN or exponents.max() > EXPONENT_MAX:
        raise PeerError(
            "exponent",
            f"{slot.part} of block {slot.block} has exponents from {exponents.min()} to {exponents.max()}, "
            f"outside {EXPONENT_MIN} to {EXPONENT_MAX}; the payload is refused.",
        )
    values = unpack(raw[slot.exponents :], count, slot.bits)
    return Grid(torch.from_numpy(values).view(slot.rows, slot.cols), torch.from_numpy(exponents))
