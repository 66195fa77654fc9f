from hypothesis import given
from hypothesis import strategies as st

from tsr_swarm.config.shards import split_blocks


@given(sizes=st.lists(st.integers(1, 10**6), min_size=1, max_size=40), shards=st.integers(1, 50))
def test_every_block_is_in_exactly_one_shard(sizes: list[int], shards: int) -> None:
    parts = split_blocks(sizes, shards)
    assert sorted(index for part in parts for index in part) == list(range(len(sizes)))
    assert all(parts)
    assert len(parts) == min(shards, len(sizes))
