import hashlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsr_swarm.errors import PeerError
from tsr_swarm.wire.roster import Members, members_from_proto, members_to_proto, require_members
from tsr_swarm.wire.v1 import swarm_pb2 as pb

PEERS = tuple(f"{number:032x}" for number in range(6))
numbers = st.dictionaries(st.integers(1, 10**6), st.sampled_from(PEERS), max_size=6).map(
    lambda found: {peer: number for number, peer in found.items()}
)


def member(number: int, peer: int | None = None) -> pb.Member:
    return pb.Member(peer_id=(number if peer is None else peer).to_bytes(16, "big"), number=number)


@given(known=numbers)
def test_members_come_back_as_they_were(known: dict[str, int]) -> None:
    members = Members.of(known)
    assert members_from_proto(members_to_proto(members)) == members
    assert members.numbers == known
    assert list(members.peers) == sorted(known, key=lambda peer: known[peer])


@given(known=numbers, other=numbers)
def test_a_hash_names_one_list_in_whatever_order_it_was_heard(known: dict[str, int], other: dict[str, int]) -> None:
    backwards = dict(reversed(known.items()))
    assert Members.of(backwards).digest == Members.of(known).digest
    assert (Members.of(other).digest == Members.of(known).digest) == (other == known)


def test_who_has_no_number_is_no_member() -> None:
    assert Members.of({PEERS[0]: 0, PEERS[1]: 4}) == Members.of({PEERS[1]: 4})


def test_the_hash_is_of_16_bytes_and_a_number_for_each() -> None:
    """Golden: peers of different versions must agree on it."""
    text = bytes.fromhex(PEERS[5]) + struct.pack("<I", 1) + bytes.fromhex(PEERS[2]) + struct.pack("<I", 700)
    hasher = hashlib.blake2b(text, digest_size=32, person=b"tsr/v1/members")
    assert Members.of({PEERS[2]: 700, PEERS[5]: 1}).digest == hasher.digest()


@given(numbers=st.sets(st.integers(1, 10**6)), data=st.data())
def test_members_pass_only_in_ascending_order_and_each_once(numbers: set[int], data: st.DataObject) -> None:
    members = [member(number) for number in sorted(numbers)]
    require_members("members", members)
    for wrong in ([*members, data.draw(st.sampled_from(members))] if members else [member(0)], members[::-1]):
        if wrong == members:
            continue
        with pytest.raises(PeerError) as refusal:
            require_members("members", wrong)
        assert refusal.value.reason == "members"


@pytest.mark.parametrize(
    "members",
    [
        [member(0)],
        [member(10**6 + 1)],
        [member(3), member(2)],
        [member(3, peer=1), member(3, peer=2)],
        [member(2, peer=1), member(3, peer=1)],
    ],
    ids=["no number", "too large a number", "descending", "one number twice", "one peer twice"],
)
def test_members_that_cannot_be_are_refused(members: list[pb.Member]) -> None:
    with pytest.raises(PeerError) as refusal:
        require_members("members", members)
    assert refusal.value.reason == "members"


@pytest.mark.parametrize("peer_id", [b"", bytes(15), bytes(17), PEERS[0].encode()])
def test_a_member_is_named_by_16_bytes(peer_id: bytes) -> None:
    with pytest.raises(PeerError, match="16 bytes a peer"):
        require_members("members", [pb.Member(peer_id=peer_id, number=1)])


def test_no_more_members_than_can_be_included() -> None:
    with pytest.raises(PeerError, match="at most 10000 peers"):
        require_members("members", [member(1)] * 10_001)
