from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.wire import examples
from tests.wire.examples import BLOCKS, LOW_RANK, MANIFEST, OTHER, PEER, PLAN, SHARDS, random_grid, refusal_of
from tsr_swarm.config.layout import Slot, published_slots, upload_slots
from tsr_swarm.config.manifest import PROTOCOL_VERSION
from tsr_swarm.config.round_plan import Due
from tsr_swarm.errors import PeerError
from tsr_swarm.wire import gate
from tsr_swarm.wire.codec import Section, encode
from tsr_swarm.wire.messages import PublishedHeader, ShardResult, chain_hash, open_envelope, published_to_proto, seal
from tsr_swarm.wire.v1 import swarm_pb2 as pb

PARENT = bytes.fromhex(PLAN.parent)
VOTERS = (PEER, OTHER)


def payload(slots: Sequence[Slot]) -> tuple[tuple[Section, ...], bytes]:
    rng = np.random.default_rng(0)
    return encode(slots, {slot: random_grid(slot, rng) for slot in slots}, 3)


UPLOAD = gate.shard_slots(upload_slots(BLOCKS, PLAN.due, MANIFEST.config.wire), SHARDS[1])
SECTIONS, DATA = payload(UPLOAD)
HEADER = replace(
    examples.HEADER, protocol=PROTOCOL_VERSION, manifest_digest=bytes.fromhex(MANIFEST.digest), sections=SECTIONS
)


def check(envelope: pb.Envelope) -> gate.CheckedContribution:
    header = open_envelope(envelope)
    return gate.check_header(header, manifest=MANIFEST, plan=PLAN, is_known=lambda peer: peer == PEER)


def test_a_good_contribution_passes_and_opens() -> None:
    measured = replace(HEADER, kappas=(0.5,) * len(LOW_RANK), energies=(1.0,) * len(LOW_RANK))
    for header in (HEADER, measured):
        contribution = check(seal(header))
        assert contribution.header == header
        assert list(contribution.decode(DATA)) == list(UPLOAD)


WRONG: list[tuple[str, dict[str, Any]]] = [
    ("protocol", {"protocol": PROTOCOL_VERSION + 1}),
    ("manifest", {"manifest_digest": bytes(32)}),
    ("round", {"round": 6}),
    ("parent", {"parent": bytes(32)}),
    ("peer", {"peer_id": OTHER}),
    ("shard", {"shard": 2}),
    ("tokens", {"tokens": 20 * 16 * 128 + 1}),
    ("steps", {"steps": 21}),
    ("kappas", {"kappas": (0.5, 0.5), "energies": (1.0, 1.0)}),
    ("sections", {"sections": ()}),
]


@pytest.mark.parametrize(("reason", "change"), [*WRONG, ("sections", {"shard": 0})])
def test_each_check_refuses_with_its_own_reason(reason: str, change: dict[str, Any]) -> None:
    assert refusal_of(check, seal(replace(HEADER, **change))) == reason


def test_the_cheapest_failed_check_is_the_one_reported() -> None:
    header = HEADER
    for reason, change in reversed(WRONG):
        header = replace(header, **change)
        assert refusal_of(check, seal(header)) == reason
    assert refusal_of(check, pb.Envelope(header=b"\xff" + seal(header).header)) == "malformed"
    assert refusal_of(check, pb.Envelope(header=b"\xff" * (1 << 17))) == "size"


def published(void: frozenset[int]) -> tuple[PublishedHeader, bytes]:
    """A committed round whose shards in ``void`` published nothing."""
    slots = published_slots(BLOCKS, PLAN.due, MANIFEST.config.wire)
    results, data = [], b""
    for index, blocks in enumerate(SHARDS):
        if index in void:
            results.append(ShardResult(void=True))
            continue
        sections, frames = payload(gate.shard_slots(slots, blocks))
        results.append(ShardResult(False, (PEER,), 1000, sections))
        data += frames
    chain = chain_hash(PARENT, PLAN, SHARDS, results, VOTERS)
    return PublishedHeader(PLAN, SHARDS, tuple(results), chain, VOTERS), data


@pytest.mark.parametrize("void", [frozenset(), frozenset({0}), frozenset({1}), frozenset({0, 1})])
def test_a_published_round_passes_and_opens_without_its_void_shards(void: frozenset[int]) -> None:
    header, data = published(void)
    without_voters = replace(header, chain=chain_hash(PARENT, PLAN, SHARDS, header.shards), voters=())
    for good in (header, without_voters):
        assert gate.check_published(published_to_proto(good), manifest=MANIFEST, parent=PARENT) == good
    blocks = gate.void_blocks(header)
    assert blocks == frozenset(index for shard in void for index in SHARDS[shard])
    slots = published_slots(BLOCKS, PLAN.due, MANIFEST.config.wire, blocks)
    assert gate.decode_published(header, data, manifest=MANIFEST).keys() == set(slots)
    for extra in (b"x", data + b"x"):
        with pytest.raises(PeerError):
            gate.decode_published(header, data + extra, manifest=MANIFEST)


@pytest.mark.parametrize(
    ("change", "parent"),
    [
        ({}, bytes(32)),
        ({}, b""),
        ({"chain": bytes(32)}, PARENT),
        ({"plan": replace(PLAN, steps=21)}, PARENT),
        *(({"voters": voters}, PARENT) for voters in (VOTERS[:1], ())),
    ],
)
def test_a_round_that_does_not_continue_the_chain_is_refused(change: dict[str, Any], parent: bytes) -> None:
    header = replace(published(frozenset())[0], **change)
    assert refusal_of(gate.check_published, published_to_proto(header), manifest=MANIFEST, parent=parent) == "chain"


def test_published_sections_must_be_the_legal_ones() -> None:
    header, _ = published(frozenset())
    first, second = header.shards
    shards = (replace(first, sections=second.sections), second)
    wrong = replace(header, shards=shards, chain=chain_hash(PARENT, PLAN, SHARDS, shards, VOTERS))
    assert refusal_of(gate.check_published, published_to_proto(wrong), manifest=MANIFEST, parent=PARENT) == "sections"


@pytest.mark.parametrize("tangent", [frozenset(), frozenset({0}), frozenset(LOW_RANK)])
@pytest.mark.parametrize("passes", [frozenset(), frozenset({2}), frozenset(LOW_RANK)])
def test_no_round_is_larger_than_the_bound_which_has_room_for_moments(
    tangent: frozenset[int], passes: frozenset[int]
) -> None:
    periods = replace(MANIFEST.config.periods, k_r=40, k_u=20, k_v="auto")
    optimizer = replace(MANIFEST.config.optimizer, inner="adam")
    averaging = replace(MANIFEST, config=replace(MANIFEST.config, optimizer=optimizer, periods=periods))
    for manifest, moments in ((MANIFEST, frozenset[int]()), (averaging, frozenset(LOW_RANK))):
        due = Due(tangent=tangent, range=passes, project=passes, first=moments, second=moments)
        _, data = payload(published_slots(BLOCKS, due, manifest.config.wire))
        assert len(data) <= gate.max_published_bytes(manifest)
    assert gate.max_published_bytes(MANIFEST) < gate.max_published_bytes(averaging)
