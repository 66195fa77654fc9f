"""Who takes part: peers and their numbers, which a hash can stand for wherever the list is known."""

import hashlib
import itertools
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from tsr_swarm.wire.fields import require, require_between, require_peer_bytes
from tsr_swarm.wire.included import MAX_INCLUDED
from tsr_swarm.wire.v1 import swarm_pb2 as pb

MAX_NUMBER = 10**6  # the largest of one; how many there may be is MAX_INCLUDED


@dataclass(frozen=True, slots=True)
class Members:
    """Peers that train, ascending by number; a number gives the place in sums. ``digest`` names them, 32 bytes."""

    numbers: Mapping[str, int]
    peers: tuple[str, ...]
    digest: bytes

    @classmethod
    def of(cls, numbers: Mapping[str, int]) -> Self:
        """Those of ``numbers``, each with its own; who has none, which is 0, is left out."""
        order = sorted((number, peer) for peer, number in numbers.items() if number)
        hasher = hashlib.blake2b(digest_size=32, person=b"tsr/v1/members")
        for number, peer in order:
            hasher.update(bytes.fromhex(peer) + struct.pack("<I", number))
        return cls({peer: number for number, peer in order}, tuple(peer for _, peer in order), hasher.digest())


def members_to_proto(members: Members) -> list[pb.Member]:
    """The list, ascending by number."""
    return [pb.Member(peer_id=bytes.fromhex(peer), number=members.numbers[peer]) for peer in members.peers]


def members_from_proto(messages: Sequence[pb.Member]) -> Members:
    """Raises PeerError unless ``require_members`` passes."""
    require_members("members", messages)
    return Members.of({message.peer_id.hex(): message.number for message in messages})


def require_members(field: str, members: Sequence[pb.Member]) -> None:
    """Peers that train, ascending by number; no number and no peer twice."""
    require(len(members) <= MAX_INCLUDED, field, len(members), f"at most {MAX_INCLUDED} peers")
    for member in members:
        require_peer_bytes(field, member.peer_id)
        require_between(field, member.number, 1, MAX_NUMBER)
    ascending = all(a.number < b.number for a, b in itertools.pairwise(members))
    require(ascending, field, [member.number for member in members[:8]], "ascending by number, each number once")
    different = len({member.peer_id for member in members})
    require(different == len(members), field, different, f"{len(members)} different peers")
