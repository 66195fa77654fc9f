"""Grids to bytes and back. Every number from another machine comes in through ``decode``.

A payload is one section a payload kind, in the order in which the kinds first appear among its slots. A section is
one zstd frame over its slots. Every slot has one legal length, and so has every section.

In a section, a slot is its exponents as int8, then its packed values (see packing.py), or little-endian float32 where
it has 32 bits. Slots with mantissas come after the others. All their exponents, then all their mantissas (uint8), come
before all their values: packed slot by slot, then as runs through all slots that have them.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tsr_swarm.config.layout import DENSE_BITS, PayloadKind, Slot, packed_bytes, runs_bytes
from tsr_swarm.errors import PeerError, RunError
from tsr_swarm.lowrank.basis import BASIS_EXPONENT
from tsr_swarm.lowrank.grid import EXPONENT_MAX, EXPONENT_MIN, MANTISSA_MAX, Grid
from tsr_swarm.wire.compression import compress, compress_digits, decompress, max_wire_bytes
from tsr_swarm.wire.packing import Integers, pack, pack_runs, unpack, unpack_runs

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
        parts = _encode_section(members, grids)
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
        grids |= _decode_section(members, memoryview(raw))
    return {slot: grids[slot] for slot in slots}


def check_sections(slots: Sequence[Slot], sections: Sequence[Section]) -> None:
    """Refuse sections that are not the one legal list for ``slots``, before any of their bytes are received."""
    legal = {kind.value: sum(s.raw_bytes for s in members) for kind, members in _by_kind(slots).items()}
    if [section.kind for section in sections] != list(legal):
        kinds = [section.kind[:16] for section in sections[:8]]
        raise PeerError("sections", f"The sections are {kinds}, this round's are {list(legal)}; they are refused.")
    for section in sections:
        has, exact = f"Section '{section.kind}' has", legal[section.kind]
        if section.raw_bytes != exact:
            raise PeerError("raw_bytes", f"{has} {section.raw_bytes} raw bytes, not {exact}; it is refused.")
        most = max_wire_bytes(exact)
        if not 0 < section.wire_bytes <= most:
            raise PeerError("wire_bytes", f"{has} {section.wire_bytes} wire bytes, not 1 to {most}; it is refused.")
        if len(section.hash) != HASH_BYTES:
            raise PeerError("hash", f"{has} a hash of {len(section.hash)} bytes, not 32.")


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


def _encode_section(slots: Sequence[Slot], grids: Mapping[Slot, Grid]) -> list[bytes]:
    """A section's bytes, in parts that are best compressed apart. Raises RunError for what must not be sent."""
    plain, coarse, sparse = _by_layout(slots)
    parts = [b"".join(_encode_plain(slot, grids[slot]) for slot in plain)]
    fine = [*coarse, *sparse]
    parts.append(b"".join(_encode_exponents(slot, grids[slot]) for slot in fine))
    parts.append(b"".join(_encode_mantissas(slot, grids[slot]) for slot in fine))
    parts.append(b"".join(_pack(slot, _multiples(slot, grids[slot])) for slot in coarse))
    if sparse:
        values = np.concatenate([_multiples(slot, grids[slot]) for slot in sparse])
        with _named(sparse[0]):
            parts += pack_runs(values, sparse[0].bits, sum(runs_bytes(slot.size, slot.bits) for slot in sparse))
    return [part for part in parts if part]


def _by_layout(slots: Sequence[Slot]) -> tuple[list[Slot], list[Slot], list[Slot]]:
    """Slots without mantissas, slots with them, and those of the latter that have runs; each in order."""
    plain = [slot for slot in slots if not slot.mantissas]
    coarse = [slot for slot in slots if slot.mantissas and not slot.has_runs]
    return plain, coarse, [slot for slot in slots if slot.mantissas and slot.has_runs]


def _encode_plain(slot: Slot, grid: Grid) -> bytes:
    if slot.bits != DENSE_BITS:
        return _encode_exponents(slot, grid) + _pack(slot, _values(slot, grid))
    values = _values(slot, grid)
    if not np.isfinite(values).all():
        raise RunError(f"Block {slot.block} has moved by NaN or Inf; lower optimizer.lr and start again.")
    return values.astype("<f4", copy=False).tobytes()


def _values(slot: Slot, grid: Grid) -> NDArray[Any]:
    shape = (slot.rows, slot.cols)
    if tuple(grid.values.shape) != shape:
        raise RunError(f"{slot.part} of block {slot.block} is {tuple(grid.values.shape)}, not {shape}; this is a bug.")
    return grid.values.detach().cpu().numpy().ravel()


def _encode_exponents(slot: Slot, grid: Grid) -> bytes:
    exponents = grid.exponents.cpu().numpy()
    legal = EXPONENT_MIN, EXPONENT_MAX
    if slot.exponents == 0:  # a basis: its one legal scale does not travel
        legal, exponents = (BASIS_EXPONENT, BASIS_EXPONENT), np.unique(exponents)
    if exponents.size and not legal[0] <= exponents.min() <= exponents.max() <= legal[1]:
        raise RunError(f"{slot.part} of block {slot.block} has exponents outside {legal}; lower optimizer.lr.")
    head = exponents[: slot.exponents].astype(np.int8).tobytes()
    if len(head) != slot.exponents:
        raise RunError(f"{slot.part} of block {slot.block} has {len(head)} exponents, not {slot.exponents}; a bug.")
    return head


def _encode_mantissas(slot: Slot, grid: Grid) -> bytes:
    mantissas = grid.mantissas.numpy()
    if mantissas.size != slot.mantissas or not 1 <= mantissas.min() <= mantissas.max() <= MANTISSA_MAX:
        raise RunError(f"{slot.part} of block {slot.block} has mantissas {mantissas[:8]}; this is a bug.")
    return mantissas.astype(np.uint8).tobytes()


def _multiples(slot: Slot, grid: Grid) -> Integers:
    """The values in steps of their mantissas."""
    steps, rest = np.divmod(_values(slot, grid).reshape(slot.rows, slot.cols), grid.mantissas.numpy()[:, None])
    if rest.any():
        raise RunError(f"{slot.part} of block {slot.block} has values between its steps; this is a bug.")
    return steps.ravel()


def _pack(slot: Slot, values: Integers) -> bytes:
    with _named(slot):
        return pack(values, slot.bits)


@contextmanager
def _named(slot: Slot) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise RunError(f"In {slot.part} of block {slot.block}, {error}") from error


def _decode_section(slots: Sequence[Slot], raw: memoryview) -> dict[Slot, Grid]:
    """Read a section of its one legal length. Raises PeerError for what ``_encode_section`` would not write."""
    plain, coarse, sparse = _by_layout(slots)
    grids = {}
    for slot in plain:
        grids[slot] = _decode_plain(slot, raw[: slot.raw_bytes])
        raw = raw[slot.raw_bytes :]
    fine = [*coarse, *sparse]
    exponents, raw = _cut(raw, [slot.exponents for slot in fine])
    mantissas, raw = _cut(raw, [slot.mantissas for slot in fine])
    bodies, raw = _cut(raw, [packed_bytes(slot.size, slot.bits) for slot in coarse])
    values = [unpack(body, slot.size, slot.bits) for slot, body in zip(coarse, bodies, strict=True)]
    if sparse:
        flat = unpack_runs(raw, sum(slot.size for slot in sparse), sparse[0].bits)
        values += np.split(flat, np.cumsum([slot.size for slot in sparse])[:-1])
    for slot, powers, factors, steps in zip(fine, exponents, mantissas, values, strict=True):
        scale = _decode_exponents(slot, powers), _decode_mantissas(slot, factors)
        grids[slot] = Grid(torch.from_numpy(steps).view(slot.rows, slot.cols) * scale[1][:, None], *scale)
    return grids


def _cut(raw: memoryview, lengths: Sequence[int]) -> tuple[list[memoryview], memoryview]:
    """Cut pieces of these lengths from the start; returns them and the rest."""
    ends = list(accumulate(lengths, initial=0))
    return [raw[start:end] for start, end in pairwise(ends)], raw[ends[-1] :]


def _decode_plain(slot: Slot, raw: memoryview) -> Grid:
    if slot.bits == DENSE_BITS:
        numbers = np.frombuffer(raw, "<f4", slot.size).astype(np.float32)
        if not np.isfinite(numbers).all():
            raise PeerError("not_finite", f"Block {slot.block} holds NaN or Inf; the payload is refused.")
        return Grid(torch.from_numpy(numbers).view(slot.rows, slot.cols), torch.empty(0, dtype=torch.int32))
    exponents = _decode_exponents(slot, raw[: slot.exponents])
    values = unpack(raw[slot.exponents :], slot.size, slot.bits)
    return Grid(torch.from_numpy(values).view(slot.rows, slot.cols), exponents)


def _decode_exponents(slot: Slot, raw: memoryview) -> Tensor:
    exponents = np.frombuffer(raw, np.int8).astype(np.int32)
    if slot.exponents == 0:
        exponents = np.array([BASIS_EXPONENT], dtype=np.int32)
    elif exponents.min() < EXPONENT_MIN or exponents.max() > EXPONENT_MAX:
        found = f"{slot.part} of block {slot.block} has exponents from {exponents.min()} to {exponents.max()}"
        raise PeerError("exponent", f"{found}, outside {EXPONENT_MIN} to {EXPONENT_MAX}; the payload is refused.")
    return torch.from_numpy(exponents)


def _decode_mantissas(slot: Slot, raw: memoryview) -> Tensor:
    mantissas = np.frombuffer(raw, np.uint8).astype(np.int32)
    if not mantissas.all():
        raise PeerError("mantissa", f"{slot.part} of block {slot.block} has a mantissa of 0; the payload is refused.")
    return torch.from_numpy(mantissas)
