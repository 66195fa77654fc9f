"""Bytes of blocks: what sketches cost beyond cores, which budgets leave room for them, and shards of equal size."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.steady import OPTIMIZER
from tsr_swarm.config.blocks import Block, BlockRole
from tsr_swarm.config.layout import block_bytes, check_budget, core_upload, sketch_costs, split_blocks, upload_slots
from tsr_swarm.config.load import run_config_from_mapping
from tsr_swarm.config.manifest import decode_manifest, make_manifest
from tsr_swarm.config.round_plan import Due
from tsr_swarm.config.run import ModelConfig, RoundConfig, RunConfig, WireConfig
from tsr_swarm.errors import ConfigError
from tsr_swarm.train.llama import parameter_shapes

BLOCKS = (
    Block(name="embed_tokens.weight", rows=96, cols=32, rank=8, role=BlockRole.EMBEDDING),
    Block(name="norm.weight", rows=1, cols=32, rank=0, role=BlockRole.DENSE),
    Block(name="up.weight", rows=48, cols=32, rank=8, role=BlockRole.MATRIX),
    Block(name="q.weight", rows=32, cols=32, rank=8, role=BlockRole.MATRIX),
)
LOW_RANK = (0, 2, 3)
FULL = {"local_space": "full", "aim": "displacement"}


def config(budget: int, optimizer: dict[str, Any] = FULL) -> RunConfig:
    return run_config_from_mapping({"optimizer": OPTIMIZER | optimizer, "round": {"budget_kb": budget}})


@given(
    st.sets(st.sampled_from(LOW_RANK)),
    st.sampled_from([4, 8, 16]),
    st.sampled_from([2, 3, 4, 8, 16]),
    st.sampled_from([0.2, 1.0]),
)
def test_an_upload_costs_its_cores_and_what_each_sketch_adds(
    tangent: set[int], sketch_bits: int, core_bits: int, density: float
) -> None:
    wire = WireConfig(sketch_bits=sketch_bits, core_bits=core_bits, core_density=density if core_bits <= 8 else 1.0)
    upload = sum(slot.raw_bytes for slot in upload_slots(BLOCKS, Due(tangent=frozenset(tangent)), wire))
    costs = sketch_costs(BLOCKS, wire)
    assert tuple(costs) == LOW_RANK
    assert upload == core_upload(BLOCKS, wire) + sum(costs[index] for index in tangent)


def test_a_budget_too_small_for_any_one_sketch_is_refused_with_the_least_that_would_do() -> None:
    """Dense 128, cores of 3 bits 3 x (8 + 8 + 32); the embedding's sketch of 5 bits 32 + (96 + 32) x 8 instead."""
    wire = WireConfig()
    assert (core_upload(BLOCKS, wire), sketch_costs(BLOCKS, wire)[0]) == (128 + 3 * 48, 1056 - 48)
    check_budget(config(2), BLOCKS)
    check_budget(config(0), BLOCKS)
    with pytest.raises(ConfigError) as error:
        check_budget(config(1), BLOCKS)
    assert str(error.value) == (
        "round.budget_kb = 1 is too little: cores and dense blocks take 0.3 kB of an upload and the largest sketch "
        "1.0 kB more; set it to 2 or more, or to 0."
    )
    with pytest.raises(ConfigError, match=r"round\.budget_kb = 1 is too little"):
        make_manifest("run", config(1), {"up.weight": (256, 128)})


def test_a_budget_is_the_leaders_own_and_not_part_of_a_manifest() -> None:
    with_one, without = (make_manifest("run", config(budget), {"up.weight": (256, 128)}) for budget in (500, 0))
    assert with_one.digest == without.digest
    assert decode_manifest(with_one.encoded).config.round.budget_kb == 0


@given(sizes=st.lists(st.integers(1, 10**6), min_size=1, max_size=40), shards=st.integers(1, 50))
def test_every_block_is_in_exactly_one_shard(sizes: list[int], shards: int) -> None:
    parts = split_blocks(sizes, shards)
    assert sorted(index for part in parts for index in part) == list(range(len(sizes)))
    assert all(parts)
    assert len(parts) == min(shards, len(sizes))


@given(shards=st.integers(1, 64))
def test_shards_have_about_the_same_bytes_and_everybody_finds_the_same(shards: int) -> None:
    """Of a decoder whose embedding and head have most numbers, and send as much as any other matrix."""
    model = ModelConfig(vocab_size=8192, tie_word_embeddings=False)
    config = RunConfig(model=model, round=RoundConfig(shards=shards))
    manifest = make_manifest("run", config, parameter_shapes(config.model))
    sizes = manifest.shard_bytes
    of_blocks = block_bytes(manifest.blocks, manifest.config.wire)
    assert sum(sizes) == sum(of_blocks)
    assert max(sizes) - min(sizes) <= max(of_blocks)
    elsewhere = decode_manifest(manifest.encoded)
    assert elsewhere.shard_blocks == manifest.shard_blocks
    assert elsewhere.shard_bytes == sizes
