from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given

from tests.wire.examples import (
    CROWD,
    MANIFEST,
    OTHER,
    PEER,
    PLAN,
    PUBLISHED,
    RESULTS,
    SECTION,
    changed,
    published_headers,
    results,
)
from tests.wire.refusals import refusal_of
from tsr_swarm.config.manifest import Manifest
from tsr_swarm.config.round_plan import RoundPlan
from tsr_swarm.wire.fields import MAX_TOKENS
from tsr_swarm.wire.messages import (
    PublishedHeader,
    ShardResult,
    chain_hash,
    published_from_proto,
    published_to_proto,
    result_from_proto,
    result_to_proto,
    sections_to_proto,
)
from tsr_swarm.wire.v1 import swarm_pb2 as pb


@given(result=results())
def test_a_shard_result_is_read_as_it_was_written(result: ShardResult) -> None:
    peers = tuple(sorted({*CROWD, *result.included}))
    assert result_from_proto(result_to_proto(result, peers), peers) == result


@given(published=published_headers())
def test_a_published_round_is_read_as_it_was_written(published: tuple[Manifest, PublishedHeader]) -> None:
    manifest, header = published
    assert published_from_proto(published_to_proto(header), manifest) == header


@pytest.mark.parametrize(
    ("field", "result"),
    [
        ("void", pb.ShardResult(void=True, tokens=1)),
        ("void", pb.ShardResult(void=True, absent=b"\1")),
        ("void", pb.ShardResult(void=True, sections=sections_to_proto([SECTION]))),
        ("absent", pb.ShardResult(absent=b"\3", tokens=5)),
        ("absent", pb.ShardResult(absent=b"\4", tokens=5)),
        ("absent", pb.ShardResult(absent=b"\1\1", tokens=5)),
        ("absent", pb.ShardResult(absent=b"\1\0", tokens=5)),
        ("absent", pb.ShardResult(absent=b"\0", tokens=5)),
        ("tokens", pb.ShardResult(absent=b"\1", tokens=0)),
        ("tokens", pb.ShardResult(tokens=1)),
        ("tokens", pb.ShardResult(absent=b"\2", tokens=MAX_TOKENS + 1)),
        ("sections", pb.ShardResult(absent=b"\1", tokens=5, sections=sections_to_proto([SECTION] * 17))),
    ],
)
def test_shard_results_that_contradict_themselves_are_refused(field: str, result: pb.ShardResult) -> None:
    assert refusal_of(result_from_proto, result, (PEER, OTHER)) == field
    good = published_to_proto(PUBLISHED)
    assert refusal_of(published_from_proto, changed(good, "shards", [good.shards[0], result]), MANIFEST) == field
    assert refusal_of(published_from_proto, changed(good, "shards", [good.shards[0]]), MANIFEST) == "shards"


@pytest.mark.parametrize(
    "included",
    [
        [OTHER, PEER],
        [PEER, PEER, OTHER],
        ["00" * 16, PEER, OTHER],
        [PEER, OTHER, OTHER[:30]],
    ],
    ids=["descending", "twice", "in no shard", "short"],
)
def test_a_round_names_its_peers_in_one_way_only(included: list[str]) -> None:
    good = published_to_proto(PUBLISHED)
    if len(included) > 2:
        good.shards[0].absent = b"\1"
    message = changed(good, "included", [bytes.fromhex(peer) for peer in included])
    assert refusal_of(published_from_proto, message, MANIFEST) == "included"


def test_a_round_without_contributors_names_no_peer() -> None:
    void = replace(PUBLISHED, shards=(ShardResult(void=True),) * 2)
    message = published_to_proto(void)
    assert published_from_proto(message, MANIFEST) == void
    assert refusal_of(published_from_proto, changed(message, "included", [bytes(16)]), MANIFEST) == "included"


def test_a_peer_costs_18_bytes_a_round_however_many_shards_it_is_in() -> None:
    alone = replace(RESULTS[0], included=CROWD[:1], tokens=2**30)
    many = replace(alone, included=CROWD)
    one, all_ = (published_to_proto(replace(PUBLISHED, shards=(result, result))).ByteSize() for result in (alone, many))
    assert all_ - one == 18 * (len(CROWD) - 1)


@pytest.mark.parametrize(
    "voters",
    [
        [OTHER, PEER],
        [PEER, PEER],
        [PEER, "a name"],
        [PEER.upper()],
        [f"{number:032x}" for number in range(6)],
    ],
    ids=["descending", "twice", "no id", "upper case", "six"],
)
def test_illegal_voters_are_refused(voters: list[str]) -> None:
    message = changed(published_to_proto(PUBLISHED), "voters", voters)
    assert refusal_of(published_from_proto, message, MANIFEST) == "voters"


def chain(plan: RoundPlan = PLAN, parent: bytes = b"\xab" * 32, **changes: Any) -> bytes:
    shard_blocks = changes.get("shard_blocks", ((0, 1), (2, 3)))
    results, voters = changes.get("results", RESULTS), changes.get("voters", (PEER, OTHER))
    return chain_hash(parent, plan, shard_blocks, results, voters)


def test_the_chain_hash_is_stable() -> None:
    """Golden: peers of different versions must agree on it. Change it only together with the protocol's version."""
    assert chain().hex() == "896b1c3efca3dd8f3b23c62d982bcd10ed955fbe91ddaa2b62c1a15c3eff3431"


def test_the_chain_hash_covers_every_field() -> None:
    first, second = RESULTS
    hashes = [
        chain(),
        chain(parent=b""),
        chain(replace(PLAN, round=8)),
        chain(replace(PLAN, first_step=0)),
        chain(replace(PLAN, steps=21)),
        chain(replace(PLAN, lr_first=2e-3)),
        chain(replace(PLAN, lr_last=2e-3)),
        chain(replace(PLAN, decay=1.0)),
        chain(replace(PLAN, due=replace(PLAN.due, tangent=frozenset({0})))),
        chain(replace(PLAN, due=replace(PLAN.due, aim=frozenset()))),
        chain(replace(PLAN, due=replace(PLAN.due, choose=frozenset()))),
        chain(replace(PLAN, due=replace(PLAN.due, draw=()))),
        chain(replace(PLAN, due=replace(PLAN.due, draw=((3, 8),)))),
        chain(replace(PLAN, due=replace(PLAN.due, first=False))),
        chain(replace(PLAN, due=replace(PLAN.due, second=True))),
        chain(replace(PLAN, due=replace(PLAN.due, first=False, second=True))),
        chain(replace(PLAN, seed=6)),
        chain(replace(PLAN, parent="cd" * 32)),
        chain(shard_blocks=((0,), (1, 2, 3))),
        chain(voters=()),
        chain(voters=(PEER,)),
        chain(voters=(OTHER,)),
        chain(voters=(PEER, OTHER, "f" * 31 + "e")),
        chain(results=(second, first)),
        chain(results=(first,)),
        chain(results=(replace(first, tokens=1), second)),
        chain(results=(replace(first, included=(OTHER,)), second)),
        chain(results=(replace(first, included=(PEER, OTHER, "f" * 31 + "e")), second)),
        chain(results=(first, replace(first, included=(PEER,)))),
        chain(results=(replace(first, included=(PEER,)), first)),
        chain(results=(first, first)),
        chain(results=(replace(first, included=(PEER,)), second)),
        chain(results=(replace(first, sections=()), second)),
        *(
            chain(results=(replace(first, sections=(replace(SECTION, **change),)), second))
            for change in ({"kind": "dense"}, {"raw_bytes": 101}, {"wire_bytes": 91}, {"hash": b"i" * 32})
        ),
    ]
    assert len(set(hashes)) == len(hashes)
    assert {len(value) for value in hashes} == {32}
