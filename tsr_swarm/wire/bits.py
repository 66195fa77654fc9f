"""Sets of small numbers as bits: bit i of byte j stands for 8 j + i."""

from collections.abc import Iterable


def to_bits(places: Iterable[int]) -> bytes:
    """A set as bytes, as short as can be: the last one is not zero."""
    bits = bytearray()
    for place in sorted(places, reverse=True):
        bits = bits or bytearray(place // 8 + 1)
        bits[place // 8] |= 1 << place % 8
    return bytes(bits)


def from_bits(bits: bytes) -> frozenset[int]:
    """The set that ``to_bits`` wrote."""
    return frozenset(8 * place + bit for place, byte in enumerate(bits) for bit in range(8) if byte >> bit & 1)
