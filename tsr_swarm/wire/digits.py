"""Digits of a small base to bytes and back, as many a byte as fit: floor(log_base 256).

A byte holds whole digits, so the bytes of random digits are as random as the digits, and zstd's Huffman code, which
sees bytes, comes near the entropy of the digits where two or more share a byte.
"""

import numpy as np
from numpy.typing import NDArray

from tsr_swarm.config.layout import digits_per_byte
from tsr_swarm.errors import PeerError


def pack_digits(digits: NDArray[np.int32], base: int) -> bytes:
    """Pack a flat array of digits, 0 to base - 1, the first in the lowest place of its byte."""
    places = base ** np.arange(digits_per_byte(base))
    padded = np.concatenate((digits, np.zeros(-digits.size % places.size, dtype=np.int32)))
    return (padded.reshape(-1, places.size) @ places).astype(np.uint8).tobytes()


def unpack_digits(data: memoryview, count: int, base: int) -> NDArray[np.int32]:
    """Read ``count`` digits from exactly as many bytes as they need. Raises PeerError for all that is not legal."""
    places = base ** np.arange(digits_per_byte(base))
    packed = np.frombuffer(data, np.uint8)
    if packed.size != -(-count // places.size):
        raise PeerError("length", f"{count} digits of base {base} came as {packed.size} bytes; they are refused.")
    highest = base**places.size - 1
    if packed.size and int(packed.max()) > highest:
        raise PeerError("range", f"A byte of base {base} digits is {packed.max()}, above {highest}; it is refused.")
    table = (np.arange(highest + 1)[:, None] // places % base).astype(np.int32)
    digits: NDArray[np.int32] = table[packed].ravel()
    if digits[count:].any():
        raise PeerError("padding", "The padding of a packed section is not zero; the payload is refused.")
    return digits[:count]
