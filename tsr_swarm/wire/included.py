"""Whose work is in a round: its peers are named once, and by shard only those who are not in it, as bits.

There is one legal form, because it is hashed into the chain.
"""

import itertools
from collections.abc import Iterable, Sequence

from tsr_swarm.wire.bits import from_bits, to_bits
from tsr_swarm.wire.fields import require, require_peer_bytes

MAX_INCLUDED = 10**4  # peers in a round


def everyone(shards: Iterable[Iterable[str]]) -> tuple[str, ...]:
    """The peers that are in one of ``shards`` or more, ascending."""
    return tuple(sorted(frozenset[str]().union(*shards)))


def peers_from_bytes(field: str, values: Sequence[bytes]) -> tuple[str, ...]:
    """Peer ids of 16 bytes each, ascending, each once. Raises PeerError."""
    require(len(values) <= MAX_INCLUDED, field, len(values), f"at most {MAX_INCLUDED} peers")
    for value in values:
        require_peer_bytes(field, value)
    ascending = all(a < b for a, b in itertools.pairwise(values))
    require(ascending, field, len(values), "ascending peers, each once")
    return tuple(value.hex() for value in values)


def absent(peers: Sequence[str], included: Sequence[str]) -> bytes:
    """Who of ``peers`` is not ``included``, as bits; all that are included are among them."""
    if len(included) == len(peers):
        return b""
    known = frozenset(included)
    return to_bits(place for place, peer in enumerate(peers) if peer not in known)


def without(peers: tuple[str, ...], bits: bytes) -> tuple[str, ...]:
    """Those of ``peers`` that are not absent by ``bits``, one or more, in their order. Raises PeerError."""
    require(8 * len(bits) < len(peers) + 8, "absent", len(bits), f"a bit for each of {len(peers)} peers at most")
    require(not bits or bits[-1] != 0, "absent", len(bits), "bytes of which the last is not zero")
    missing = from_bits(bits)
    require(not missing or max(missing) < len(peers), "absent", len(bits), f"bits of {len(peers)} peers")
    require(len(missing) < len(peers), "absent", len(missing), f"fewer than all of {len(peers)} peers")
    if not missing:
        return peers
    return tuple(peer for place, peer in enumerate(peers) if place not in missing)


def require_each_included(peers: Sequence[str], shards: Iterable[bytes]) -> None:
    """Each of ``peers`` is in one of ``shards`` or more, of which these are the bits of who is absent. PeerError."""
    nowhere = (1 << len(peers)) - 1
    for bits in shards:
        nowhere &= int.from_bytes(bits, "little")
    require(nowhere == 0, "included", nowhere.bit_count(), "peers that are in a shard")
