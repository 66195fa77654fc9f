"""Mostly zeros: the run of zeros before each non-zero, then the non-zeros themselves.

Three streams, to be compressed apart. Runs, one byte each: 1 + the zeros before a non-zero, up to 254; 255 for 254
zeros without a non-zero yet; 0 at the end. Levels: the non-zeros as digits, 2 (|q| - 1) + (q < 0). Zeros up to the one
legal length, which is that of no zeros at all. The runs of random zeros are geometric, which a Huffman code takes
within a few per cent of their entropy; bytes of the numbers themselves cost it at least a bit a byte.
"""

import numpy as np
from numpy.typing import NDArray

from tsr_swarm.config.layout import digits_per_byte, levels
from tsr_swarm.errors import PeerError
from tsr_swarm.wire.digits import pack_digits, unpack_digits

_LONGEST = 254  # the zeros of a byte of 255
_END = b"\x00"


def pack_runs(values: NDArray[np.int32], bits: int, length: int) -> tuple[bytes, bytes, bytes]:
    """Runs, levels and padding of a flat array, ``length`` bytes in all. Raises ValueError unless they fit ``bits``."""
    places = np.flatnonzero(values)
    nonzeros = values[places]
    magnitudes = np.abs(nonzeros)
    limit = levels(bits) // 2
    if magnitudes.size and int(magnitudes.max()) > limit:
        raise ValueError(f"a value of magnitude {magnitudes.max()} does not fit {bits} bits (+-{limit}).")
    zeros = np.diff(places, prepend=-1) - 1
    skips = zeros // _LONGEST
    ends = np.cumsum(skips + 1) - 1  # where each non-zero's own byte stands
    runs = np.full(int(ends[-1]) + 1 if ends.size else 0, _LONGEST + 1, dtype=np.uint8)
    runs[ends] = zeros % _LONGEST + 1
    digits = (2 * (magnitudes - 1) + (nonzeros < 0)).astype(np.int32)
    head, tail = runs.tobytes() + _END, pack_digits(digits, levels(bits) - 1)
    return head, tail, bytes(length - len(head) - len(tail))


def unpack_runs(data: memoryview, count: int, bits: int) -> NDArray[np.int32]:
    """Read ``count`` values from all of ``data``. Raises PeerError for what ``pack_runs`` would not have written."""
    packed = np.frombuffer(data, np.uint8)
    size = int(np.argmin(packed))  # the first zero, if there is one
    if packed[size] != 0 or (size and packed[size - 1] == _LONGEST + 1):
        raise PeerError("runs", "The runs of a sparse section do not end as runs end; the payload is refused.")
    runs = packed[:size].astype(np.int64)
    is_number = runs <= _LONGEST
    places = (np.cumsum(np.where(is_number, runs, _LONGEST)) - 1)[is_number]
    if places.size and int(places[-1]) >= count:
        raise PeerError("runs", f"The runs of a sparse section go beyond its {count} numbers; the payload is refused.")
    base = levels(bits) - 1
    end = size + 1 + -(-places.size // digits_per_byte(base))
    digits = unpack_digits(data[size + 1 : end], places.size, base)
    if packed[end:].any():
        raise PeerError("padding", "The padding of a sparse section is not zero; the payload is refused.")
    values = np.zeros(count, dtype=np.int32)
    values[places] = np.where(digits & 1, -1, 1) * (digits // 2 + 1)
    return values
