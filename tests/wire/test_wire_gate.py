from dataclasses import replace

import pytest
import torch

from tests.fixtures import round_plan
from tests.steady import steady, wide
from tests.wire import examples
from tests.wire.examples import PEER, refusal_of
from tsr_swarm.config.blocks import Block, BlockRole
from tsr_swarm.config.layout import Slot, published_slots, upload_slots
from tsr_swarm.config.manifest import PROTOCOL_VERSION, Manifest
from tsr_swarm.config.round_plan import Due
from tsr_swarm.config.run import RoundConfig, RunConfig
from tsr_swarm.errors import PeerError
from tsr_swarm.lowrank.basis import BASIS_EXPONENT
from tsr_swarm.lowrank.grid import Grid
from tsr_swarm.wire.codec import Section, encode
from tsr_swarm.wire.gate import (
    CheckedContribution,
    check_header,
    check_published,
    decode_published,
    max_published_bytes,
    shard_slots,
    void_blocks,
)
from tsr_swarm.wire.messages import (
    PublishedHeader,
    ShardResult,
    chain_hash,
    open_envelope,
    published_to_proto,
    seal,
)
from tsr_swarm.wire.v1 import swarm_pb2 as pb

BLOCKS = (
    Block(name="embed", rows=8, cols=4, rank=2, role=BlockRole.EMBEDDING),
    Block(name="norm", rows=1, cols=1, rank=0, role=BlockRole.DENSE),
    Block(name="matrix", rows=4, cols=4, rank=2, role=BlockRole.MATRIX),
)
MANIFEST = Manifest("run1", RunConfig(optimizer=steady(), wire=wide(), round=RoundConfig(shards=2)), BLOCKS)
PARENT = b"\xab" * 32
PLAN = round_plan(7, steps=20, due=Due(tangent=frozenset({0}), aim=frozenset({2})), parent=PARENT.hex())
SHARD_BLOCKS = MANIFEST.shard_blocks
VOTERS = (PEER, "f" * 32)


def ones(slot: Slot) -> Grid:
    if slot.bits == 32:
        return Grid(torch.ones(slot.rows, slot.cols), torch.empty(0, dtype=torch.int32))
    exponents = [0] * slot.exponents or [BASIS_EXPONENT]
    return Grid(torch.ones(slot.rows, slot.cols, dtype=torch.int32), torch.tensor(exponents, dtype=torch.int32))


def payload(slots: tuple[Slot, ...]) -> tuple[tuple[Section, ...], bytes]:
    return encode(slots, {slot: ones(slot) for slot in slots}, 3)


UPLOAD = shard_slots(upload_slots(BLOCKS, PLAN.due, MANIFEST.config.wire), SHARD_BLOCKS[0])
SECTIONS, DATA = payload(UPLOAD)
HEADER = replace(
    examples.HEADER,
    protocol=PROTOCOL_VERSION,
    manifest_digest=bytes.fromhex(MANIFEST.digest),
    shard=0,
    tokens=1000,
    sections=SECTIONS,
)


def check(envelope: pb.Envelope) -> CheckedContribution:
    header = open_envelope(envelope)
    return check_header(header, manifest=MANIFEST, plan=PLAN, is_known=lambda peer: peer == PEER)


def test_a_good_contribution_passes_and_opens() -> None:
    contribution = check(seal(HEADER))
    assert contribution.header == HEADER
    assert list(contribution.decode(DATA)) == list(UPLOAD)


WRONG = [
    ("protocol", {"protocol": PROTOCOL_VERSION + 1}),
    ("manifest", {"manifest_digest": bytes(32)}),
    ("round", {"round": 6}),
    ("parent", {"parent": bytes(32)}),
    ("peer", {"peer_id": "f" * 32}),
    ("shard", {"shard": 2}),
    ("steps", {"steps": 21}),
    ("kappas", {"kappas": (0.5, 0.5), "energies": (1.0, 1.0)}),  # the shard's other block is dense
    ("sections", {"sections": ()}),
]


@pytest.mark.parametrize(("reason", "change"), [*WRONG, ("sections", {"shard": 1})])
def test_each_check_refuses_with_its_own_reason(reason: str, change: dict[str, object]) -> None:
    assert refusal_of(check, seal(replace(HEADER, **change))) == reason


def test_the_cheapest_failed_check_is_the_one_reported() -> None:
    header = HEADER
    for reason, change in reversed(WRONG):
        header = replace(header, **change)  # type: ignore[arg-type]
        assert refusal_of(check, seal(header)) == reason
    assert refusal_of(check, pb.Envelope(header=b"\xff" + seal(header).header)) == "malformed"
    assert refusal_of(check, pb.Envelope(header=b"\xff" * (1 << 17))) == "size"


def test_a_contribution_may_carry_a_measure_of_each_low_rank_block() -> None:
    measured = replace(HEADER, kappas=(0.5,), energies=(1.0,))
    assert check(seal(measured)).header == measured


def published(void: frozenset[int]) -> tuple[PublishedHeader, bytes]:
    """A committed round whose shards in ``void`` published nothing."""
    slots = published_slots(BLOCKS, PLAN.due, MANIFEST.config.wire)
    results, data = [], b""
    for index, blocks in enumerate(SHARD_BLOCKS):
        if index in void:
            results.append(ShardResult(void=True))
            continue
        sections, frames = payload(shard_slots(slots, blocks))
        results.append(ShardResult(False, (PEER,), 1000, sections))
        data += frames
    chain = chain_hash(PARENT, PLAN, SHARD_BLOCKS, results, VOTERS)
    return PublishedHeader(PLAN, SHARD_BLOCKS, tuple(results), chain, VOTERS), data


@pytest.mark.parametrize("void", [frozenset(), frozenset({0}), frozenset({1}), frozenset({0, 1})])
def test_a_published_round_passes_and_opens_without_its_void_shards(void: frozenset[int]) -> None:
    header, data = published(void)
    without_voters = replace(header, chain=chain_hash(PARENT, PLAN, SHARD_BLOCKS, header.shards), voters=())
    for good in (header, without_voters):
        assert check_published(published_to_proto(good), manifest=MANIFEST, parent=PARENT) == good
    blocks = void_blocks(header)
    assert blocks == frozenset(index for shard in void for index in SHARD_BLOCKS[shard])
    slots = published_slots(BLOCKS, PLAN.due, MANIFEST.config.wire, blocks)
    grids = decode_published(header, data, manifest=MANIFEST)
    assert grids.keys() == set(slots)
    for extra in (b"x", data):
        with pytest.raises(PeerError):
            decode_published(header, data + extra + b"x", manifest=MANIFEST)


def test_a_round_that_does_not_continue_the_chain_is_refused() -> None:
    header, _ = published(frozenset())
    other = replace(PLAN, steps=21)
    for wrong, parent in (
        (header, bytes(32)),
        (header, b""),
        (replace(header, chain=bytes(32)), PARENT),
        (replace(header, plan=other), PARENT),
        (replace(header, voters=VOTERS[:1]), PARENT),
        (replace(header, voters=()), PARENT),
    ):
        assert refusal_of(check_published, published_to_proto(wrong), manifest=MANIFEST, parent=parent) == "chain"


def test_published_sections_must_be_the_legal_ones() -> None:
    header, _ = published(frozenset())
    first, second = header.shards
    shards = (replace(first, sections=second.sections), second)
    wrong = replace(header, shards=shards, chain=chain_hash(PARENT, PLAN, SHARD_BLOCKS, shards, VOTERS))
    assert refusal_of(check_published, published_to_proto(wrong), manifest=MANIFEST, parent=PARENT) == "sections"


def test_no_round_is_larger_than_the_bound() -> None:
    low_rank = frozenset({0, 2})
    for tangent in (frozenset[int](), frozenset({0}), low_rank):
        for aim in (frozenset[int](), frozenset({2}), low_rank):
            slots = published_slots(BLOCKS, Due(tangent=tangent, aim=aim), MANIFEST.config.wire)
            _, data = payload(slots)
            assert len(data) <= max_published_bytes(MANIFEST)


def test_the_bound_has_room_for_moments_where_they_are_averaged() -> None:
    periods = replace(MANIFEST.config.periods, k_u=20, k_v="auto")
    manifest = replace(MANIFEST, config=replace(MANIFEST.config, periods=periods))
    due = Due(aim=frozenset({0, 2}), first=True, second=True)
    _, data = payload(published_slots(BLOCKS, due, manifest.config.wire))
    assert len(data) <= max_published_bytes(manifest)
    assert max_published_bytes(MANIFEST) < max_published_bytes(manifest)
