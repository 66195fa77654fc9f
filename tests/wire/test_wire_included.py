from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsr_swarm.errors import PeerError
from tsr_swarm.wire.included import (
    MAX_INCLUDED,
    absent,
    everyone,
    peers_from_bytes,
    require_each_included,
    without,
)

PEERS = tuple(f"{number:032x}" for number in range(20))
peers = st.sets(st.sampled_from(PEERS), min_size=1).map(lambda found: tuple(sorted(found)))


@given(everybody=peers, data=st.data())
def test_who_is_in_a_shard_comes_back_from_who_is_not(everybody: tuple[str, ...], data: st.DataObject) -> None:
    included = tuple(peer for peer in everybody if data.draw(st.booleans())) or everybody[:1]
    bits = absent(everybody, included)
    assert without(everybody, bits) == included
    assert len(bits) <= -(-len(everybody) // 8)
    assert (bits == b"") == (included == everybody)


@given(everybody=peers, bits=st.binary(max_size=4))
def test_there_is_one_form_of_every_shard_and_nothing_else_is_read(everybody: tuple[str, ...], bits: bytes) -> None:
    with suppress(PeerError):
        assert absent(everybody, without(everybody, bits)) == bits


@given(shards=st.lists(peers, max_size=4))
def test_everyone_is_named_once_and_is_in_a_shard(shards: list[tuple[str, ...]]) -> None:
    named = everyone(shards)
    assert peers_from_bytes("included", [bytes.fromhex(peer) for peer in named]) == named
    require_each_included(named, [absent(named, shard) for shard in shards])
    for peer in named:
        elsewhere = [absent(named, [other for other in shard if other != peer]) for shard in shards]
        with pytest.raises(PeerError) as refusal:
            require_each_included(named, elsewhere)
        assert refusal.value.reason == "included"


@pytest.mark.parametrize(
    "values",
    [
        [bytes(15)],
        [bytes(17)],
        [b""],
        [PEERS[0].encode()],
        [bytes(16), bytes(16)],
        [b"b" * 16, b"a" * 16],
        [bytes(16)] * (MAX_INCLUDED + 1),
    ],
    ids=["short", "long", "empty", "as text", "twice", "descending", "too many"],
)
def test_peers_that_cannot_be_are_refused(values: list[bytes]) -> None:
    with pytest.raises(PeerError) as refusal:
        peers_from_bytes("included", values)
    assert refusal.value.reason == "included"
