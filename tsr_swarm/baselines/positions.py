"""Which entries of a chunk are sent, as one integer: the enumerative code, the shortest of one length for all sets.

Cover, IEEE Trans. Inf. Theory 19 (1973), in the order of the combinatorial number system: the set p_1 < ... < p_k of
positions 0 to n - 1 has the number C(p_1, 1) + ... + C(p_k, k), which counts the sets before it. Every number below
C(n, k) is a set, so a code of code_bits(n, k) bits has one length for all sets, and payloads can be counted unwritten.
"""

from collections.abc import Sequence
from math import comb


def code_bits(size: int, kept: int) -> int:
    """Return the bits of a set of ``kept`` positions among ``size``: log2 C(size, kept), rounded up."""
    return (comb(size, kept) - 1).bit_length()


def encode(positions: Sequence[int]) -> int:
    """Return the number of a set of positions, which ascend from 0 or more."""
    return sum(comb(position, count) for count, position in enumerate(positions, start=1))


def decode(number: int, size: int, kept: int) -> list[int]:
    """Return the set of positions, ascending, whose number it is. Raises ValueError where there is none."""
    if not 0 <= number < comb(size, kept):
        raise ValueError(f"{number} is not the number of {kept} positions among {size}; it must be below C(n, k).")
    positions = []
    position = size
    for count in range(kept, 0, -1):
        position -= 1
        while (before := comb(position, count)) > number:
            position -= 1
        number -= before
        positions.append(position)
    return positions[::-1]
