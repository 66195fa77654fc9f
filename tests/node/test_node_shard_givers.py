"""Who is asked for a shard: its maker, unless it has failed, then whoever has the round."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsr_swarm.node.sync.shard_givers import MAKER_SECONDS, ShardGivers
from tsr_swarm.telemetry.byte_counter import ByteCounter
from tsr_swarm.transport.client import SwarmClient
from tsr_swarm.transport.limits import STALL_SECONDS

CLIENTS = [SwarmClient(f"127.0.0.1:{port}", ByteCounter()) for port in range(1, 6)]
clients = st.sampled_from(CLIENTS)


@given(
    makers=st.lists(st.none() | clients, max_size=6),
    donors=st.lists(clients, max_size=3, unique=True),
    failed=st.lists(clients, max_size=3),
    shard=st.integers(0, 7),
)
def test_each_is_asked_once_and_a_maker_that_failed_only_as_a_donor(
    makers: list[SwarmClient | None], donors: list[SwarmClient], failed: list[SwarmClient], shard: int
) -> None:
    givers = ShardGivers(makers, donors)
    for client in failed:
        givers.fails(client)
    asked = givers.of(shard)
    maker = makers[shard] if shard < len(makers) else None
    assert len(set(asked)) == len(asked)
    assert set(asked) - {maker} == set(donors) - {maker}
    if maker is not None and maker not in failed:
        assert asked[0] is maker
    else:
        assert asked == donors


@pytest.mark.parametrize("mebibytes", [0.0, 0.5, 64.0])
def test_only_a_maker_is_hurried_and_only_while_the_run_waits(mebibytes: float) -> None:
    maker, donor, *_ = CLIENTS
    awaited = ShardGivers([maker, donor], [donor], is_awaited=True)
    assert awaited.seconds(maker, mebibytes, 3600.0) == (MAKER_SECONDS * (1 + mebibytes), MAKER_SECONDS)
    assert awaited.seconds(maker, mebibytes, 0.1) == (0.1, MAKER_SECONDS)
    assert awaited.seconds(donor, mebibytes, 3600.0) == (3600.0, STALL_SECONDS), "it has all bytes"
    assert ShardGivers([maker], [donor]).seconds(maker, mebibytes, 3600.0) == (3600.0, STALL_SECONDS)
