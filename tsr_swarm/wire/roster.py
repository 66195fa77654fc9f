"""Who takes part in a run, and whose work is in a round.

A list of members is named by its hash. A round names its peers once, and each shard only those whose work is not in it,
as bits: bit i of byte j stands for 8 j + i. Each has one legal form, because it is hashed.
"""

import hashlib
import itertools
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from tsr_swarm.wire.fields import require, require_between, require_peer_bytes
from tsr_swarm.wire.v1 import swarm_pb2 as pb

MAX_INCLUDED = 10**4  # peers in a round
MAX_NUMBER = 10**6  # the largest of one; how many there may be is MAX_INCLUDED


@dataclass(frozen=True, slots=True)
class Members:
    """The peers that train, ascending by number, which is their order in sums. ``digest`` names them, 32 bytes."""

    numbers: Mapping[str, int]
    peers: tuple[str, ...]
    digest: bytes

    @classmethod
    def of(cls, numbers: Mapping[str, int]) -> Self:
        """The peers of ``numbers``, without those whose number is 0."""
        order = sorted((number, peer) for peer, number in numbers.items() if number)
        hasher = hashlib.blake2b(digest_size=32, person=b"tsr/v1/members")
        for number, peer in order:
            hasher.update(bytes.fromhex(peer) + struct.pack("<I", number))
        return cls({peer: number for number, peer in order}, tuple(peer for _, peer in order), hasher.digest())


def members_to_proto(members: Members) -> list[pb.Member]:
    return [pb.Member(peer_id=bytes.fromhex(peer), number=members.numbers[peer]) for peer in members.peers]


def members_from_proto(messages: Sequence[pb.Member]) -> Members:
    """Read members. Raises PeerError unless ``require_members`` passes."""
    require_members("members", messages)
    return Members.of({message.peer_id.hex(): message.number for message in messages})


def require_members(field: str, members: Sequence[pb.Member]) -> None:
    """Require peers ascending by number, no number and no peer twice. Raises PeerError."""
    require(len(members) <= MAX_INCLUDED, field, len(members), f"at most {MAX_INCLUDED} peers")
    for member in members:
        require_peer_bytes(field, member.peer_id)
        require_between(field, member.number, 1, MAX_NUMBER)
    ascending = all(a.number < b.number for a, b in itertools.pairwise(members))
    require(ascending, field, [member.number for member in members[:8]], "ascending by number, each number once")
    different = len({member.peer_id for member in members})
    require(different == len(members), field, different, f"{len(members)} different peers")


def to_bits(numbers: Iterable[int]) -> bytes:
    """A set of small numbers as bytes, as few as possible: the last one is not zero."""
    bits = bytearray()
    for number in sorted(numbers, reverse=True):
        bits = bits or bytearray(number // 8 + 1)
        bits[number // 8] |= 1 << number % 8
    return bytes(bits)


def from_bits(bits: bytes) -> frozenset[int]:
    return frozenset(8 * index + bit for index, byte in enumerate(bits) for bit in range(8) if byte >> bit & 1)


def everyone(shards: Iterable[Iterable[str]]) -> tuple[str, ...]:
    """The peers that are in one or more of ``shards``, ascending."""
    return tuple(sorted(frozenset[str]().union(*shards)))


def peers_from_bytes(field: str, values: Sequence[bytes]) -> tuple[str, ...]:
    """Read peer ids of 16 bytes each, ascending, each once. Raises PeerError."""
    require(len(values) <= MAX_INCLUDED, field, len(values), f"at most {MAX_INCLUDED} peers")
    for value in values:
        require_peer_bytes(field, value)
    ascending = all(a < b for a, b in itertools.pairwise(values))
    require(ascending, field, len(values), "ascending peers, each once")
    return tuple(value.hex() for value in values)


def absent(peers: Sequence[str], included: Sequence[str]) -> bytes:
    """Those of ``peers`` that are not ``included``, as bits; all that are included are among ``peers``."""
    if len(included) == len(peers):
        return b""
    known = frozenset(included)
    return to_bits(index for index, peer in enumerate(peers) if peer not in known)


def without(peers: tuple[str, ...], bits: bytes) -> tuple[str, ...]:
    """Those of ``peers`` that ``bits`` do not mark as absent, one or more, in order. Raises PeerError."""
    require(8 * len(bits) < len(peers) + 8, "absent", len(bits), f"a bit for each of {len(peers)} peers at most")
    require(not bits or bits[-1] != 0, "absent", len(bits), "bytes of which the last is not zero")
    missing = from_bits(bits)
    require(not missing or max(missing) < len(peers), "absent", len(bits), f"bits of {len(peers)} peers")
    require(len(missing) < len(peers), "absent", len(missing), f"fewer than all of {len(peers)} peers")
    if not missing:
        return peers
    return tuple(peer for index, peer in enumerate(peers) if index not in missing)


def require_each_included(peers: Sequence[str], shards: Iterable[bytes]) -> None:
    """Require each of ``peers`` in some shard; ``shards`` are the bits of those absent from each. Raises PeerError."""
    nowhere = (1 << len(peers)) - 1
    for bits in shards:
        nowhere &= int.from_bytes(bits, "little")
    require(nowhere == 0, "included", nowhere.bit_count(), "peers that are in a shard")
