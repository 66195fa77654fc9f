import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.wire import examples as ex
from tsr_swarm.config.manifest import Manifest
from tsr_swarm.config.round_plan import RoundPlan
from tsr_swarm.errors import PeerError
from tsr_swarm.telemetry import events as ev
from tsr_swarm.wire import messages as msg
from tsr_swarm.wire.compression import compress
from tsr_swarm.wire.fields import MAX_TERM, MAX_TOKENS
from tsr_swarm.wire.v1 import swarm_pb2 as pb


@given(header=ex.headers())
def test_a_contribution_is_read_as_it_was_written(header: msg.ContributionHeader) -> None:
    assert msg.open_envelope(msg.seal(header)) == header


@given(plan=ex.plans())
@example(plan=replace(ex.PLAN, round=1, parent=""))
def test_a_plan_is_read_as_it_was_written(plan: RoundPlan) -> None:
    assert msg.plan_from_proto(msg.plan_to_proto(plan), ex.BLOCKS) == plan


GOOD = {"kind": "core", "raw_bytes": 9, "wire_bytes": 9, "hash": b"h" * 32}
SECTION_FAULTS = [{"raw_bytes": 0}, {"wire_bytes": 0}, {"hash": b"h"}, {"kind": "x" * 17}]
HEADER_FAULTS: dict[str, list[Any]] = {
    "manifest_digest": [b"m" * 31],
    "round": [0, 2**63],
    "parent": [b"", b"p" * 33],
    "peer_id": ["", ex.PEER.upper(), ex.PEER + "\n"],
    "shard": [1024],
    "tokens": [0, MAX_TOKENS + 1],
    "steps": [10**7],
    "term": [MAX_TERM + 1],
    "local_loss": [math.nan, -math.inf],
    "kappas": [[math.nan, 0.5], [0.5, math.inf], [-1e-6, 0.5], [0.5, 1.001]],
    "energies": [[], [1.0], [1.0, 1.0, 1.0], [1.0, math.nan], [math.inf, 1.0], [1.0, -1e-30]],
    "sections": [*([pb.Section(**GOOD | fault)] for fault in SECTION_FAULTS), [pb.Section(**GOOD)] * 17],
}


@pytest.mark.parametrize(("field", "value"), ex.each(HEADER_FAULTS))
def test_contribution_fields_out_of_bounds_are_refused(field: str, value: object) -> None:
    measured = replace(ex.HEADER, kappas=(0.25, 0.5), energies=(1.0, 2.0))
    message = pb.ContributionHeader.FromString(msg.seal(measured).header)
    reason = ex.refusal_of(msg.open_envelope, pb.Envelope(header=ex.but(message, **{field: value}).SerializeToString()))
    assert reason == field or field == "sections"


def test_oversized_envelopes_are_refused_before_they_are_parsed() -> None:
    header = msg.seal(ex.HEADER).header
    assert ex.refusal_of(msg.open_envelope, pb.Envelope(header=bytes(msg.MAX_HEADER_BYTES + 1))) == "size"
    assert ex.refusal_of(msg.open_envelope, pb.Envelope(header=header, signature=bytes(65))) == "signature"
    assert ex.refusal_of(msg.open_envelope, pb.Envelope(header=header, certificate=bytes(8193))) == "certificate"


PLAN_FAULTS: dict[str, list[Any]] = {
    "round": [0],
    "first_step": [2**63],
    "steps": [0, 10**6 + 1],
    "lr_first": [math.nan, -1e-3],
    "lr_last": [math.inf],
    "decay": [0.0, 1.1],
    "parent": [b""],
    "tangent": [[2, 0], [0, 0], [4]],
    "range": [[1], list(range(100))],
    "project": [[1], list(range(100))],
    "choose": [[1], [2]],
    "draw": [[1], [0], [2]],
    "draw_numbers": [[], [1, 2]],
    "seed": [2**31],
    "first": [[1], [4], [2, 0], [0, 0]],
    "second": [[1], [4], [2, 0], [3, 3]],
}


@pytest.mark.parametrize(("field", "value"), ex.each(PLAN_FAULTS))
def test_plan_fields_out_of_bounds_are_refused(field: str, value: object) -> None:
    message = ex.but(msg.plan_to_proto(ex.PLAN), **{field: value})
    assert ex.refusal_of(msg.plan_from_proto, message, ex.BLOCKS) == field


@pytest.mark.parametrize("field", ["first", "second"])
def test_only_blocks_with_moments_in_shared_bases_send_any(field: str) -> None:
    """LoRDO's embedding has those of full size, which are its peer's own."""
    blocks = tuple(replace(block, is_lordo=True) for block in ex.BLOCKS)
    message = msg.plan_to_proto(replace(ex.PLAN, due=replace(ex.PLAN.due, first=frozenset(), second=frozenset({2, 3}))))
    assert msg.plan_from_proto(message, blocks).due.second == {2, 3}
    assert ex.refusal_of(msg.plan_from_proto, ex.but(message, **{field: [0]}), blocks) == field


READERS: dict[str, tuple[Callable[[bytes], object], bytes]] = {  # and a good message
    "header": (lambda data: msg.open_envelope(pb.Envelope(header=data)), msg.seal(ex.HEADER).header),
    "plan": (
        lambda data: msg.plan_from_proto(msg.parse(pb.RoundPlan, data, 10**4), ex.BLOCKS),
        msg.plan_to_proto(ex.PLAN).SerializeToString(),
    ),
    "published": (
        lambda data: msg.published_from_proto(msg.parse(pb.PublishedHeader, data, 10**4), ex.MANIFEST),
        msg.published_to_proto(ex.PUBLISHED).SerializeToString(),
    ),
}


@pytest.mark.parametrize("kind", READERS)
@given(data=st.binary(max_size=300), bit=st.integers(0, 10**4))
def test_random_bytes_and_flipped_bits_raise_only_peer_errors(kind: str, data: bytes, bit: int) -> None:
    read, good = READERS[kind]
    for received in (data, ex.flip(good, bit)):
        with suppress(PeerError):
            read(received)


@given(lines=ex.texts, last=st.integers(0, 2**53))
def test_lines_are_read_as_they_were_written(lines: list[str], last: int) -> None:
    assert msg.lines_from_proto(msg.lines_to_proto(lines, last)) == (lines, last)


def test_lines_of_many_peers_take_a_fifth_of_their_bytes_or_less() -> None:
    lines = [
        ev.encode(ev.DigestReported(round=3, peer=f"{peer * 2**100:032x}", name=f"peer-{peer}", digest="a" * 64), peer)
        for peer in range(100)
    ]
    assert 5 * msg.lines_to_proto(lines, 100).ByteSize() < sum(map(len, lines))


def test_the_longest_lines_of_a_log_are_accepted() -> None:
    line = "x" * ev.MAX_LINE
    assert msg.lines_from_proto(msg.lines_to_proto([line], 1)) == ([line], 1)


@given(frame=st.binary(min_size=1, max_size=64), size=st.integers(0, 2**32 - 1))
def test_damaged_lines_are_refused(frame: bytes, size: int) -> None:
    with pytest.raises(PeerError):
        msg.lines_from_proto(pb.WatchReply(lines=frame, lines_bytes=size))


@pytest.mark.parametrize(
    ("raw", "size"), [(b"\xff\xfe", 2), (bytes(2 * msg.MAX_LINES_BYTES), 2 * msg.MAX_LINES_BYTES), (b"ab", 1)]
)
def test_lines_that_are_no_text_or_too_long_or_of_another_length_are_refused(raw: bytes, size: int) -> None:
    with pytest.raises(PeerError):
        msg.lines_from_proto(pb.WatchReply(lines=compress(raw, 1), lines_bytes=size))


@given(result=ex.results())
def test_a_shard_result_is_read_as_it_was_written(result: msg.ShardResult) -> None:
    peers = tuple(sorted({*ex.CROWD, *result.included}))
    assert msg.result_from_proto(msg.result_to_proto(result, peers), peers) == result


@given(published=ex.published_headers())
def test_a_published_round_is_read_as_it_was_written(published: tuple[Manifest, msg.PublishedHeader]) -> None:
    manifest, header = published
    assert msg.published_from_proto(msg.published_to_proto(header), manifest) == header


RESULT_FAULTS = {
    "void": [
        pb.ShardResult(void=True, **more)
        for more in ({"tokens": 1}, {"absent": b"\1"}, {"sections": msg.sections_to_proto([ex.SECTION])})
    ],
    "absent": [pb.ShardResult(absent=bits, tokens=5) for bits in (b"\3", b"\4", b"\1\1", b"\1\0", b"\0")],
    "tokens": [pb.ShardResult(absent=b"\1", tokens=tokens) for tokens in (0, MAX_TOKENS + 1)]
    + [pb.ShardResult(tokens=1)],
    "sections": [pb.ShardResult(absent=b"\1", tokens=5, sections=msg.sections_to_proto([ex.SECTION] * 17))],
}


@pytest.mark.parametrize(("field", "result"), ex.each(RESULT_FAULTS))
def test_shard_results_that_contradict_themselves_are_refused(field: str, result: pb.ShardResult) -> None:
    assert ex.refusal_of(msg.result_from_proto, result, (ex.PEER, ex.OTHER)) == field
    good = msg.published_to_proto(ex.PUBLISHED)
    assert ex.refusal_of(msg.published_from_proto, ex.but(good, shards=[good.shards[0], result]), ex.MANIFEST) == field


def test_a_round_without_contributors_names_no_peer() -> None:
    void = replace(ex.PUBLISHED, shards=(msg.ShardResult(void=True),) * 2)
    message = msg.published_to_proto(void)
    assert msg.published_from_proto(message, ex.MANIFEST) == void
    assert ex.refusal_of(msg.published_from_proto, ex.but(message, included=[bytes(16)]), ex.MANIFEST) == "included"


def test_a_peer_costs_18_bytes_a_round_however_many_shards_it_is_in() -> None:
    alone = replace(ex.RESULTS[0], included=ex.CROWD[:1], tokens=2**30)
    many = replace(alone, included=ex.CROWD)
    rounds = [replace(ex.PUBLISHED, shards=(result, result)) for result in (alone, many)]
    one, all_ = (msg.published_to_proto(header).ByteSize() for header in rounds)
    assert all_ - one == 18 * (len(ex.CROWD) - 1)


PUBLISHED_FAULTS: dict[str, list[Any]] = {
    "voters": [[ex.OTHER, ex.PEER], list(ex.CROWD[:6])],
    "chain": [b"c" * 31],
    "shards": [msg.published_to_proto(ex.PUBLISHED).shards[:1]],
    "included": [[*map(bytes.fromhex, ids)] for ids in ((ex.OTHER, ex.PEER), (ex.PEER, ex.OTHER, ex.OTHER))],
}


@pytest.mark.parametrize(("field", "value"), ex.each(PUBLISHED_FAULTS))
def test_fields_of_a_round_out_of_bounds_are_refused(field: str, value: object) -> None:
    message = ex.but(msg.published_to_proto(ex.PUBLISHED), **{field: value})
    assert ex.refusal_of(msg.published_from_proto, message, ex.MANIFEST) == field


def chain(plan: RoundPlan = ex.PLAN, parent: bytes = b"\xab" * 32, **changes: Any) -> bytes:
    shard_blocks = changes.get("shard_blocks", ((0, 1), (2, 3)))
    results, voters = changes.get("results", ex.RESULTS), changes.get("voters", (ex.PEER, ex.OTHER))
    return msg.chain_hash(parent, plan, shard_blocks, results, voters)


def test_the_chain_hash_is_stable() -> None:
    """Golden: peers of different versions must agree on it. Change it only together with the protocol's version."""
    assert chain().hex() == "1e2890e904fb444a575307ada90e3f2143d60b7e995236a24ecb7cf177bf7b6a"


def test_the_chain_hash_covers_every_field() -> None:
    first, second = ex.RESULTS
    third = "f" * 31 + "e"
    plans = {"round": 8, "first_step": 0, "steps": 21, "lr_first": 2e-3, "lr_last": 2e-3, "decay": 1.0, "seed": 6}
    dues = [
        *({field: frozenset()} for field in ("tangent", "range", "project", "choose", "first", "second")),
        *({"draw": draw} for draw in ((), ((3, 8),))),
        {"first": ex.PLAN.due.second, "second": ex.PLAN.due.first},
    ]
    sections = [{"kind": "dense"}, {"raw_bytes": 101}, {"wire_bytes": 91}, {"hash": b"i" * 32}]
    of_first = [
        {"tokens": 1},
        *({"included": included} for included in ((ex.OTHER,), (ex.PEER,), (ex.PEER, ex.OTHER, third))),
        {"sections": ()},
        *({"sections": (replace(ex.SECTION, **change),)} for change in sections),
    ]
    hashes = [
        chain(),
        chain(parent=b""),
        chain(replace(ex.PLAN, parent="cd" * 32)),
        *(chain(replace(ex.PLAN, **{field: value})) for field, value in plans.items()),
        *(chain(replace(ex.PLAN, due=replace(ex.PLAN.due, **change))) for change in dues),
        chain(shard_blocks=((0,), (1, 2, 3))),
        *(chain(voters=voters) for voters in ((), (ex.PEER,), (ex.OTHER,), (ex.PEER, ex.OTHER, third))),
        *(chain(results=results) for results in ((second, first), (first,), (first, first))),
        chain(results=(first, replace(first, included=(ex.PEER,)))),
        chain(results=(replace(first, included=(ex.PEER,)), first)),
        *(chain(results=(replace(first, **change), second)) for change in of_first),
    ]
    assert len(set(hashes)) == len(hashes)
    assert {len(value) for value in hashes} == {32}
