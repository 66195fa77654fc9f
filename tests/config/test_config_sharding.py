"""Shards: every block in one, about the same bytes in each, and the same for everybody."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from tsr_swarm.config.manifest import Manifest, decode_manifest, make_manifest
from tsr_swarm.config.run import ModelConfig, RoundConfig, RunConfig
from tsr_swarm.config.sharding import block_bytes, split_blocks
from tsr_swarm.rounds.assignment import SLACK, assign
from tsr_swarm.train.llama import parameter_shapes


@given(sizes=st.lists(st.integers(1, 10**6), min_size=1, max_size=40), shards=st.integers(1, 50))
def test_every_block_is_in_exactly_one_shard(sizes: list[int], shards: int) -> None:
    parts = split_blocks(sizes, shards)
    assert sorted(index for part in parts for index in part) == list(range(len(sizes)))
    assert all(parts)
    assert len(parts) == min(shards, len(sizes))


def manifest_of(shards: int) -> Manifest:
    """A decoder whose embedding and head have most numbers, and send as much as any other matrix."""
    config = RunConfig(model=ModelConfig(vocab_size=8192, tie_word_embeddings=False))
    config = replace(config, round=RoundConfig(shards=shards))
    return make_manifest("run", config, parameter_shapes(config.model))


@given(shards=st.integers(1, 64))
def test_shards_have_about_the_same_bytes_and_everybody_finds_the_same(shards: int) -> None:
    manifest = manifest_of(shards)
    sizes = manifest.shard_bytes
    of_blocks = block_bytes(manifest.blocks, manifest.config.wire)
    assert sum(sizes) == sum(of_blocks)
    assert max(sizes) - min(sizes) <= max(of_blocks)
    elsewhere = decode_manifest(manifest.encoded)
    assert elsewhere.shard_blocks == manifest.shard_blocks
    assert elsewhere.shard_bytes == sizes


def test_reducers_get_about_the_same_bytes_although_embedding_and_head_have_most_numbers() -> None:
    manifest = manifest_of(64)
    numbers = sorted(block.size for block in manifest.blocks)
    assert sum(numbers[-2:]) > sum(numbers) / 2
    sizes, names = manifest.shard_bytes, [f"node-{number}" for number in range(9)]
    loads = dict.fromkeys(names, 0)
    for shard, node in enumerate(assign(sizes, names)):
        loads[node] += sizes[shard]
    assert max(loads.values()) <= SLACK * sum(sizes) / len(names)
