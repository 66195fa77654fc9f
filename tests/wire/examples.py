"""A plan, a contribution, a published round and their manifest, for tests of messages, and why one is refused."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from google.protobuf.message import Message
from hypothesis import strategies as st

from tsr_swarm.config.blocks import Block, BlockRole
from tsr_swarm.config.layout import DENSE_BITS, Slot
from tsr_swarm.config.manifest import Manifest
from tsr_swarm.config.round_plan import Due, RoundPlan
from tsr_swarm.config.run import RoundConfig, RunConfig
from tsr_swarm.errors import PeerError
from tsr_swarm.lowrank.basis import BASIS_EXPONENT
from tsr_swarm.lowrank.grid import EXPONENT_MAX, EXPONENT_MIN, MANTISSA_MAX, Grid
from tsr_swarm.wire.codec import Section
from tsr_swarm.wire.fields import MAX_ROUND, MAX_SEED, MAX_STEPS, MAX_TERM, MAX_TOKENS
from tsr_swarm.wire.messages import MAX_LOSS, ContributionHeader, PublishedHeader, ShardResult

BLOCKS = (
    Block(name="embed", rows=8, cols=4, rank=2, role=BlockRole.EMBEDDING),
    Block(name="norm", rows=1, cols=4, rank=0, role=BlockRole.DENSE),
    Block(name="matrix", rows=4, cols=4, rank=2, role=BlockRole.MATRIX),
    Block(name="drawn", rows=4, cols=4, rank=2, role=BlockRole.MATRIX),
)
PEER = "0123456789abcdef" * 2
OTHER = "f" * 32
PLAN = RoundPlan(
    round=7,
    first_step=120,
    steps=20,
    lr_first=1e-3,
    lr_last=5e-4,
    decay=0.999,
    due=Due(
        tangent=frozenset({0, 2}),
        range=frozenset({2}),
        project=frozenset({2}),
        choose=frozenset({0}),
        draw=((3, 9),),
        first=frozenset({0, 3}),
        second=frozenset({2}),
    ),
    parent="ab" * 32,
    seed=5,
)
MANIFESTS = [Manifest("run1", RunConfig(round=RoundConfig(shards=shards)).definite(), BLOCKS) for shards in range(1, 5)]
MANIFEST = MANIFESTS[1]
SHARDS = MANIFEST.shard_blocks
SECTION = Section("core", 100, 90, b"h" * 32)
HEADER = ContributionHeader(
    protocol=1,
    manifest_digest=b"m" * 32,
    round=7,
    parent=b"\xab" * 32,
    peer_id=PEER,
    shard=1,
    tokens=40960,
    steps=20,
    local_loss=2.5,
    sections=(SECTION,),
    term=3,
)
RESULTS = (ShardResult(False, (PEER, OTHER), 81920, (SECTION,)), ShardResult(void=True))
PUBLISHED = PublishedHeader(PLAN, SHARDS, RESULTS, b"c" * 32, (PEER, OTHER))
LOW_RANK = (0, 2, 3)
CROWD = tuple(f"{number:032x}" for number in range(12))
peer_ids = st.text("0123456789abcdef", min_size=32, max_size=32)
hashes = st.binary(min_size=32, max_size=32)
sections = st.lists(
    st.builds(
        Section,
        kind=st.text("abcdefghijklmnopqrstuvwxyz_", min_size=1, max_size=16),
        raw_bytes=st.integers(1, 2**40),
        wire_bytes=st.integers(1, 2**41),
        hash=hashes,
    ),
    max_size=16,
).map(tuple)
texts = st.lists(st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"])))
voters = st.sets(peer_ids, max_size=5).map(lambda ids: tuple(sorted(ids)))


def parents(round: int) -> st.SearchStrategy[bytes]:
    return hashes if round > 1 else st.just(b"")


@st.composite
def headers(draw: st.DrawFn) -> ContributionHeader:
    round = draw(st.integers(1, MAX_ROUND))
    measured = draw(st.lists(st.tuples(st.floats(0, 1, width=32), st.floats(0, 2.0**127, width=32)), max_size=5))
    return ContributionHeader(
        protocol=draw(st.integers(0, 2**32 - 1)),
        manifest_digest=draw(hashes),
        round=round,
        parent=draw(parents(round)),
        peer_id=draw(peer_ids),
        shard=draw(st.integers(0, 1023)),
        tokens=draw(st.integers(1, MAX_TOKENS)),
        steps=draw(st.integers(0, MAX_STEPS)),
        local_loss=draw(st.floats(-MAX_LOSS, MAX_LOSS, width=32)),
        sections=draw(sections),
        kappas=tuple(kappa for kappa, _ in measured),
        energies=tuple(energy for _, energy in measured),
        term=draw(st.integers(0, MAX_TERM)),
    )


@st.composite
def plans(draw: st.DrawFn) -> RoundPlan:
    round = draw(st.integers(1, MAX_ROUND))
    drawn = draw(st.sets(st.sampled_from(LOW_RANK)))
    rest = st.sets(st.sampled_from(LOW_RANK)).map(lambda picked: frozenset(picked - drawn))
    passes = draw(rest), draw(rest)
    due = Due(
        tangent=draw(rest),
        range=passes[0],
        project=passes[1],
        choose=draw(rest).difference(*passes),
        draw=tuple((block, draw(st.integers(0, 2**32 - 1))) for block in sorted(drawn)),
        first=frozenset(draw(st.sets(st.sampled_from(LOW_RANK)))),
        second=frozenset(draw(st.sets(st.sampled_from(LOW_RANK)))),
    )
    return RoundPlan(
        round=round,
        first_step=draw(st.integers(0, MAX_ROUND)),
        steps=draw(st.integers(1, MAX_STEPS)),
        lr_first=draw(st.floats(0, 1)),
        lr_last=draw(st.floats(0, 1)),
        decay=draw(st.floats(0, 1, exclude_min=True)),
        due=due,
        parent=draw(parents(round)).hex(),
        seed=draw(st.integers(0, MAX_SEED)),
    )


@st.composite
def results(draw: st.DrawFn) -> ShardResult:
    included = tuple(sorted(draw(st.sets(st.sampled_from(CROWD) | peer_ids, max_size=8))))
    if not included:
        return ShardResult(void=True)
    return ShardResult(False, included, draw(st.integers(len(included), MAX_TOKENS)), draw(sections))


@st.composite
def published_headers(draw: st.DrawFn) -> tuple[Manifest, PublishedHeader]:
    manifest = draw(st.sampled_from(MANIFESTS))
    shards = tuple(draw(results()) for _ in manifest.shard_blocks)
    return manifest, PublishedHeader(draw(plans()), manifest.shard_blocks, shards, draw(hashes), draw(voters))


def but(message: Message, **changes: Any) -> Any:
    """A copy of ``message`` with some of its fields set otherwise, and alternatives of those removed."""
    oneofs = [{field.name for field in oneof.fields} for oneof in message.DESCRIPTOR.oneofs]
    replaced = set().union(*(names for names in oneofs if names & changes.keys()))
    kept = {field.name: value for field, value in message.ListFields() if field.name not in replaced}
    return type(message)(**{**kept, **changes})


def flip(data: bytes, bit: int) -> bytes:
    """``data`` with one bit changed, counted around."""
    flipped = bytearray(data)
    flipped[bit // 8 % len(data)] ^= 1 << bit % 8
    return bytes(flipped)


def each(faults: dict[str, list[Any]]) -> list[tuple[str, Any]]:
    """Each field with each of its wrong values."""
    return [(field, value) for field, values in faults.items() for value in values]


def refusal_of(call: Callable[..., Any], *arguments: Any, **keywords: Any) -> str:
    """The reason of the PeerError that a call raises, with one short sentence."""
    with pytest.raises(PeerError) as refusal:
        call(*arguments, **keywords)
    assert str(refusal.value).endswith(".")
    assert len(str(refusal.value)) < 300
    return refusal.value.reason


def random_grid(slot: Slot, rng: np.random.Generator) -> Grid:
    """Any legal numbers."""
    shape = (slot.rows, slot.cols)
    if slot.bits == DENSE_BITS:
        values = rng.standard_normal(shape).astype(np.float32)
        return Grid(torch.from_numpy(values), torch.empty(0, dtype=torch.int32))
    limit = 2 ** (slot.bits - 1) - 1
    integers = rng.integers(-limit, limit, shape, dtype=np.int32, endpoint=True)
    exponents = rng.integers(EXPONENT_MIN, EXPONENT_MAX, slot.exponents, dtype=np.int32, endpoint=True)
    if slot.exponents == 0:
        exponents = np.array([BASIS_EXPONENT], dtype=np.int32)
    if not slot.mantissas:
        return Grid(torch.from_numpy(integers), torch.from_numpy(exponents))
    integers *= rng.random(shape) < slot.density
    mantissas = rng.integers(1, MANTISSA_MAX, slot.mantissas, dtype=np.int32, endpoint=True)
    return Grid(*map(torch.from_numpy, (integers * mantissas[:, None], exponents, mantissas)))
