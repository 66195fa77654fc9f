"""Integers of 2 to 16 bits to bytes and back. Every array has one legal form.

Of 8 or 16 bits, as planes: two's complement, the least significant byte of all first. In planes, zstd finds what the
high bytes of small numbers have in common.

Of 2 to 6 bits, as digits that number the legal values 0, 1, -1, 2, -2 ...: 3 values of 2 bits, five a byte; 7 or 15
of 3 or 4 bits, two a byte; of more, one. A byte holds whole digits, floor(log_base 256) of them, so that the bytes of
random digits are as random, and zstd's Huffman code, which sees bytes, comes near the entropy of the digits.

Mostly zeros, as runs: three streams, to be compressed apart. Runs, one byte each: 1 + the zeros before a non-zero, up
to 254; 255 for 254 zeros without a non-zero yet; 0 at the end. Levels: the non-zeros as digits, 2 (|q| - 1) + (q < 0).
Zeros up to the one legal length, which is that of no zeros at all. Random zeros have geometric runs, which a Huffman
code brings within a few per cent of their entropy; bytes of the numbers themselves cost at least a bit a byte.
"""

import numpy as np
from numpy.typing import NDArray

from tsr_swarm.config.layout import FEW_BITS, digits_per_byte, levels, packed_bytes
from tsr_swarm.errors import PeerError

PACKED_BITS = (2, 3, 4, 5, 6, 8, 16)
_LONGEST = 254  # the zeros of a byte of 255
_END = b"\x00"

Integers = NDArray[np.int32]


def pack(values: Integers, bits: int) -> bytes:
    """Pack a flat array. Raises ValueError unless every |v| <= 2**(bits-1) - 1."""
    limit = _limit(bits)
    if values.size and (int(values.min()) < -limit or int(values.max()) > limit):
        raise ValueError(f"a value between {values.min()} and {values.max()} does not fit {bits} bits (+-{limit}).")
    if bits <= FEW_BITS:
        return pack_digits(np.where(values > 0, 2 * values - 1, -2 * values).astype(np.int32), levels(bits))
    planes = np.ascontiguousarray(values, dtype="<i4").view(np.uint8).reshape(-1, 4).T
    return planes[: bits // 8].tobytes()


def unpack(data: memoryview, count: int, bits: int) -> Integers:
    """Read ``count`` values from exactly ``packed_bytes(count, bits)`` bytes.

    Raises PeerError for a value that no sender may use, such as the most negative one, and for non-zero padding.
    """
    limit = _limit(bits)
    if len(data) != packed_bytes(count, bits):
        raise PeerError("length", f"{count} values of {bits} bits came as {len(data)} bytes; the payload is refused.")
    if bits <= FEW_BITS:
        digits = unpack_digits(data, count, levels(bits))
        return np.where(digits & 1, digits + 1, -digits) // 2
    values = np.zeros(count, dtype=np.int32)
    for plane in range(bits // 8):
        values |= np.frombuffer(data, np.uint8, count, plane * count).astype(np.int32) << (8 * plane)
    sign = np.int32(1 << (bits - 1))
    values = (values ^ sign) - sign  # extends the sign from `bits` to 32 bits
    if count and int(values.min()) < -limit:
        raise PeerError("range", f"A {bits}-bit value is {values.min()}, below -{limit}; the payload is refused.")
    return values


def _limit(bits: int) -> int:
    if bits not in PACKED_BITS:
        raise ValueError(f"{bits} bits cannot be packed; the widths are {PACKED_BITS}.")
    return int(2 ** (bits - 1) - 1)


def pack_digits(digits: Integers, base: int) -> bytes:
    """Pack a flat array of digits, 0 to base - 1, the first as the lowest digit of its byte."""
    powers = base ** np.arange(digits_per_byte(base))
    padded = np.concatenate((digits, np.zeros(-digits.size % powers.size, dtype=np.int32)))
    return (padded.reshape(-1, powers.size) @ powers).astype(np.uint8).tobytes()


def unpack_digits(data: memoryview, count: int, base: int) -> Integers:
    """Read ``count`` digits from exactly as many bytes as they need. Raises PeerError for what is not legal."""
    powers = base ** np.arange(digits_per_byte(base))
    packed = np.frombuffer(data, np.uint8)
    if packed.size != -(-count // powers.size):
        raise PeerError("length", f"{count} digits of base {base} came as {packed.size} bytes; they are refused.")
    highest = base**powers.size - 1
    if packed.size and int(packed.max()) > highest:
        raise PeerError("range", f"A byte of base {base} digits is {packed.max()}, above {highest}; it is refused.")
    table = (np.arange(highest + 1)[:, None] // powers % base).astype(np.int32)
    digits: Integers = table[packed].ravel()
    if digits[count:].any():
        raise PeerError("padding", "The padding of a packed section is not zero; the payload is refused.")
    return digits[:count]


def pack_runs(values: Integers, bits: int, length: int) -> tuple[bytes, bytes, bytes]:
    """Runs, levels and padding of a flat array, ``length`` bytes in all. Raises ValueError unless they fit ``bits``."""
    indices = np.flatnonzero(values)
    nonzeros = values[indices]
    magnitudes = np.abs(nonzeros)
    limit = levels(bits) // 2
    if magnitudes.size and int(magnitudes.max()) > limit:
        raise ValueError(f"a value of magnitude {magnitudes.max()} does not fit {bits} bits (+-{limit}).")
    zeros = np.diff(indices, prepend=-1) - 1
    skips = zeros // _LONGEST
    ends = np.cumsum(skips + 1) - 1  # where each non-zero's own byte stands
    runs = np.full(int(ends[-1]) + 1 if ends.size else 0, _LONGEST + 1, dtype=np.uint8)
    runs[ends] = zeros % _LONGEST + 1
    digits = (2 * (magnitudes - 1) + (nonzeros < 0)).astype(np.int32)
    head, tail = runs.tobytes() + _END, pack_digits(digits, levels(bits) - 1)
    return head, tail, bytes(length - len(head) - len(tail))


def unpack_runs(data: memoryview, count: int, bits: int) -> Integers:
    """Read ``count`` values from all of ``data``. Raises PeerError for what ``pack_runs`` would not have written."""
    packed = np.frombuffer(data, np.uint8)
    size = int(np.argmin(packed))  # the first zero, if there is one
    if packed[size] != 0 or (size and packed[size - 1] == _LONGEST + 1):
        raise PeerError("runs", "The runs of a sparse section do not end as runs end; the payload is refused.")
    runs = packed[:size].astype(np.int64)
    is_number = runs <= _LONGEST
    indices = (np.cumsum(np.where(is_number, runs, _LONGEST)) - 1)[is_number]
    if indices.size and int(indices[-1]) >= count:
        raise PeerError("runs", f"The runs of a sparse section go beyond its {count} numbers; the payload is refused.")
    base = levels(bits) - 1
    end = size + 1 + -(-indices.size // digits_per_byte(base))
    digits = unpack_digits(data[size + 1 : end], indices.size, base)
    if packed[end:].any():
        raise PeerError("padding", "The padding of a sparse section is not zero; the payload is refused.")
    values = np.zeros(count, dtype=np.int32)
    values[indices] = np.where(digits & 1, -1, 1) * (digits // 2 + 1)
    return values
