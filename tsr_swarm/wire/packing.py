"""Integers of 8, 12, 16 or 24 bits to bytes and back, as planes, and of 2, 3 or 4 bits, as digits.

Planes are two's complement, the least significant first. In planes, zstd finds what the high bytes of small numbers
have in common: orthonormal 12-bit bases come out about a tenth smaller than with pairs packed into three bytes.
Digits number the legal values 0, 1, -1, 2, -2 ...: 3 values of 2 bits, five a byte; 7 or 15 of 3 or 4 bits, two a byte.
"""

import numpy as np
from numpy.typing import NDArray

from tsr_swarm.config.layout import FEW_BITS, levels, packed_bytes
from tsr_swarm.errors import PeerError
from tsr_swarm.wire.digits import pack_digits, unpack_digits

PACKED_BITS = (2, 3, 4, 8, 12, 16, 24)

Integers = NDArray[np.int32]


def pack(values: Integers, bits: int) -> bytes:
    """Pack a flat array. Raises ValueError unless every |v| <= 2**(bits-1) - 1."""
    limit = _limit(bits)
    if values.size and (int(values.min()) < -limit or int(values.max()) > limit):
        raise ValueError(f"a value between {values.min()} and {values.max()} does not fit {bits} bits (+-{limit}).")
    if bits <= FEW_BITS:
        return pack_digits(np.where(values > 0, 2 * values - 1, -2 * values).astype(np.int32), levels(bits))
    planes = np.ascontiguousarray(values, dtype="<i4").view(np.uint8).reshape(-1, 4).T
    whole = planes[: bits // 8].tobytes()
    return whole if bits % 8 == 0 else whole + _pack_nibbles(planes[bits // 8])


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
    whole = bits // 8
    values = np.zeros(count, dtype=np.int32)
    for plane in range(whole):
        values |= np.frombuffer(data, np.uint8, count, plane * count).astype(np.int32) << (8 * plane)
    if bits % 8:
        values |= _unpack_nibbles(data[whole * count :], count) << (8 * whole)
    sign = np.int32(1 << (bits - 1))
    values = (values ^ sign) - sign  # extends the sign from `bits` to 32 bits
    if count and int(values.min()) < -limit:
        raise PeerError("range", f"A {bits}-bit value is {values.min()}, below -{limit}; the payload is refused.")
    return values


def _limit(bits: int) -> int:
    if bits not in PACKED_BITS:
        raise ValueError(f"{bits} bits cannot be packed; the widths are {PACKED_BITS}.")
    return int(2 ** (bits - 1) - 1)


def _pack_nibbles(plane: NDArray[np.uint8]) -> bytes:
    even = plane[0::2] & 15
    odd = np.zeros_like(even)
    odd[: plane.size // 2] = plane[1::2] & 15
    return (even | (odd << 4)).tobytes()


def _unpack_nibbles(data: memoryview, count: int) -> Integers:
    pairs = np.frombuffer(data, np.uint8)
    nibbles = np.stack((pairs & 15, pairs >> 4), axis=1).ravel()
    if nibbles[count:].any():
        raise PeerError("padding", "The padding of a packed section is not zero; the payload is refused.")
    return nibbles[:count].astype(np.int32)
