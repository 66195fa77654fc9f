import hashlib
import struct
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.wire.examples import refusal_of
from tsr_swarm.errors import PeerError
from tsr_swarm.wire import roster
from tsr_swarm.wire.v1 import swarm_pb2 as pb

PEERS = tuple(f"{number:032x}" for number in range(20))
TOO_MANY = roster.MAX_INCLUDED + 1
NO_IDS = b"", bytes(15), bytes(17), PEERS[0].encode()
numbers = st.dictionaries(st.integers(1, 10**6), st.sampled_from(PEERS[:6]), max_size=6).map(
    lambda found: {peer: number for number, peer in found.items()}
)
peers = st.sets(st.sampled_from(PEERS), min_size=1).map(lambda found: tuple(sorted(found)))


def member(number: int, peer: int | None = None) -> pb.Member:
    return pb.Member(peer_id=(number if peer is None else peer).to_bytes(16, "big"), number=number)


@given(known=numbers)
def test_members_are_read_as_they_were_written(known: dict[str, int]) -> None:
    members = roster.Members.of(known)
    assert roster.members_from_proto(roster.members_to_proto(members)) == members
    assert members.numbers == known
    assert list(members.peers) == sorted(known, key=lambda peer: known[peer])


@given(known=numbers, other=numbers)
def test_a_hash_names_one_list_whatever_its_order(known: dict[str, int], other: dict[str, int]) -> None:
    backwards = dict(reversed(known.items()))
    assert roster.Members.of(backwards).digest == roster.Members.of(known).digest
    assert (roster.Members.of(other).digest == roster.Members.of(known).digest) == (other == known)


def test_a_peer_without_a_number_is_no_member() -> None:
    assert roster.Members.of({PEERS[0]: 0, PEERS[1]: 4}) == roster.Members.of({PEERS[1]: 4})


def test_the_hash_is_of_16_bytes_and_a_number_for_each() -> None:
    """Golden: peers of different versions must agree on it."""
    text = bytes.fromhex(PEERS[5]) + struct.pack("<I", 1) + bytes.fromhex(PEERS[2]) + struct.pack("<I", 700)
    hasher = hashlib.blake2b(text, digest_size=32, person=b"tsr/v1/members")
    assert roster.Members.of({PEERS[2]: 700, PEERS[5]: 1}).digest == hasher.digest()


@pytest.mark.parametrize(
    "members",
    [
        [member(0)],
        [member(10**6 + 1)],
        [member(3), member(2)],
        [member(3, peer=1), member(3, peer=2)],
        [member(2, peer=1), member(3, peer=1)],
        *([pb.Member(peer_id=peer_id, number=1)] for peer_id in NO_IDS),
        [member(1)] * TOO_MANY,
    ],
    ids=["no number", "large number", "descending", "number twice", "peer twice", *"1234", "too many"],
)
def test_illegal_members_are_refused(members: list[pb.Member]) -> None:
    assert refusal_of(roster.require_members, "members", members) == "members"


@given(numbers=st.sets(st.integers(0, 8191)))
def test_a_set_is_written_in_as_few_bytes_as_possible(numbers: set[int]) -> None:
    bits = roster.to_bits(numbers)
    assert roster.from_bits(bits) == numbers
    assert len(bits) == (max(numbers) // 8 + 1 if numbers else 0)


@given(bits=st.binary(max_size=1024))
def test_any_bits_are_a_set(bits: bytes) -> None:
    assert len(roster.from_bits(bits)) == sum(byte.bit_count() for byte in bits)
    assert roster.to_bits(roster.from_bits(bits)) == bits.rstrip(b"\0")


def test_zero_is_the_lowest_bit_of_the_first_byte() -> None:
    assert roster.to_bits([9, 0]) == bytes([1, 2])


@given(everybody=peers, data=st.data())
def test_the_peers_of_a_shard_are_read_from_the_bits_of_the_absent_ones(
    everybody: tuple[str, ...], data: st.DataObject
) -> None:
    included = tuple(peer for peer in everybody if data.draw(st.booleans())) or everybody[:1]
    bits = roster.absent(everybody, included)
    assert roster.without(everybody, bits) == included
    assert len(bits) <= -(-len(everybody) // 8)
    assert (bits == b"") == (included == everybody)


@given(everybody=peers, bits=st.binary(max_size=4))
def test_each_shard_has_one_legal_form(everybody: tuple[str, ...], bits: bytes) -> None:
    with suppress(PeerError):
        assert roster.absent(everybody, roster.without(everybody, bits)) == bits


@given(shards=st.lists(peers, max_size=4))
def test_a_round_names_each_peer_of_a_shard_once(shards: list[tuple[str, ...]]) -> None:
    named = roster.everyone(shards)
    assert roster.peers_from_bytes("included", [bytes.fromhex(peer) for peer in named]) == named
    roster.require_each_included(named, [roster.absent(named, shard) for shard in shards])
    for peer in named:
        elsewhere = [roster.absent(named, [other for other in shard if other != peer]) for shard in shards]
        assert refusal_of(roster.require_each_included, named, elsewhere) == "included"


@pytest.mark.parametrize(
    "values",
    [*([peer_id] for peer_id in NO_IDS), [bytes(16)] * 2, [b"b" * 16, b"a" * 16], [bytes(16)] * TOO_MANY],
    ids=[*"1234", "twice", "descending", "too many"],
)
def test_illegal_peers_are_refused(values: list[bytes]) -> None:
    assert refusal_of(roster.peers_from_bytes, "included", values) == "included"
