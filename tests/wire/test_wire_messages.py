import math
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from tests.wire.refusals import refusal_of
from tsr_swarm.config.blocks import Block, BlockRole
from tsr_swarm.config.manifest import Manifest
from tsr_swarm.config.round_plan import Due, RoundPlan
from tsr_swarm.config.run import RoundConfig, RunConfig
from tsr_swarm.errors import PeerError
from tsr_swarm.telemetry import events as ev
from tsr_swarm.wire.codec import Section
from tsr_swarm.wire.compression import compress
from tsr_swarm.wire.fields import MAX_ROUND, MAX_SEED, MAX_STEPS, MAX_TERM, MAX_TOKENS
from tsr_swarm.wire.messages import (
    MAX_HEADER_BYTES,
    MAX_LINES_BYTES,
    MAX_LOSS,
    ContributionHeader,
    PublishedHeader,
    ShardResult,
    chain_hash,
    lines_from_proto,
    lines_to_proto,
    open_envelope,
    parse,
    plan_from_proto,
    plan_to_proto,
    published_from_proto,
    published_to_proto,
    result_from_proto,
    result_to_proto,
    seal,
    sections_to_proto,
)
from tsr_swarm.wire.v1 import swarm_pb2 as pb

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
    due=Due(tangent=frozenset({0, 2}), aim=frozenset({2}), choose=frozenset({0}), draw=((3, 9),), first=True),
    parent="ab" * 32,
    seed=5,
)
MANIFESTS = [Manifest("run1", RunConfig(round=RoundConfig(shards=shards)), BLOCKS) for shards in range(1, 5)]
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
    blocks = draw(st.integers(0, 5))
    shares = st.lists(st.floats(0, 1, width=32), min_size=blocks, max_size=blocks).map(tuple)
    norms = st.lists(st.floats(0, 2.0**127, width=32), min_size=blocks, max_size=blocks).map(tuple)
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
        kappas=draw(shares),
        energies=draw(norms),
        term=draw(st.integers(0, MAX_TERM)),
    )


@st.composite
def plans(draw: st.DrawFn) -> RoundPlan:
    round = draw(st.integers(1, MAX_ROUND))
    drawn = draw(st.sets(st.sampled_from(LOW_RANK)))
    rest = st.sets(st.sampled_from(LOW_RANK)).map(lambda picked: frozenset(picked - drawn))
    aim = draw(rest)
    due = Due(
        tangent=draw(rest),
        aim=aim,
        choose=draw(rest) - aim,
        draw=tuple((block, draw(st.integers(0, 2**32 - 1))) for block in sorted(drawn)),
        first=draw(st.booleans()),
        second=draw(st.booleans()),
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


def changed(message: Message, field: str, value: object) -> Any:
    """A copy of ``message`` with one field set, repeated ones replaced."""
    copy = type(message).FromString(message.SerializeToString())
    copy.ClearField(field)
    current: Any = getattr(copy, field)
    if isinstance(value, list):
        current.extend(value)
    elif isinstance(value, Message):
        current.CopyFrom(value)
    else:
        setattr(copy, field, value)
    return copy


@given(header=headers())
def test_a_contribution_comes_back_as_it_was(header: ContributionHeader) -> None:
    assert open_envelope(seal(header)) == header


@given(plan=plans())
def test_a_plan_comes_back_as_it_was(plan: RoundPlan) -> None:
    assert plan_from_proto(plan_to_proto(plan), BLOCKS) == plan


@given(result=results())
def test_a_shard_result_comes_back_as_it_was(result: ShardResult) -> None:
    peers = tuple(sorted({*CROWD, *result.included}))
    assert result_from_proto(result_to_proto(result, peers), peers) == result


@given(published=published_headers())
def test_a_published_round_comes_back_as_it_was(published: tuple[Manifest, PublishedHeader]) -> None:
    manifest, header = published
    assert published_from_proto(published_to_proto(header), manifest) == header


def test_the_first_round_has_no_parent() -> None:
    first = replace(PLAN, round=1, parent="")
    assert plan_from_proto(plan_to_proto(first), BLOCKS) == first
    assert refusal_of(plan_from_proto, plan_to_proto(replace(PLAN, round=1)), BLOCKS) == "parent"
    assert refusal_of(plan_from_proto, plan_to_proto(replace(PLAN, parent="")), BLOCKS) == "parent"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("manifest_digest", b"m" * 31),
        ("round", 0),
        ("round", 2**63),
        ("parent", b""),
        ("parent", b"p" * 33),
        ("peer_id", ""),
        ("peer_id", PEER.upper()),
        ("peer_id", PEER + "\n"),
        ("shard", 1024),
        ("tokens", 0),
        ("tokens", MAX_TOKENS + 1),
        ("steps", 10**7),
        ("term", MAX_TERM + 1),
        ("local_loss", math.nan),
        ("local_loss", -math.inf),
        ("kappas", [math.nan, 0.5]),
        ("kappas", [0.5, math.inf]),
        ("kappas", [-1e-6, 0.5]),
        ("kappas", [0.5, 1.001]),
        ("energies", [1.0]),
        ("energies", [1.0, 1.0, 1.0]),
        ("energies", []),
        ("energies", [1.0, math.nan]),
        ("energies", [math.inf, 1.0]),
        ("energies", [1.0, -1e-30]),
        ("sections", [pb.Section(kind="core", raw_bytes=0, wire_bytes=9, hash=b"h" * 32)]),
        ("sections", [pb.Section(kind="core", raw_bytes=9, wire_bytes=0, hash=b"h" * 32)]),
        ("sections", [pb.Section(kind="core", raw_bytes=9, wire_bytes=9, hash=b"h")]),
        ("sections", [pb.Section(kind="x" * 17, raw_bytes=9, wire_bytes=9, hash=b"h" * 32)]),
        ("sections", [pb.Section(kind="core", raw_bytes=9, wire_bytes=9, hash=b"h" * 32)] * 17),
    ],
)
def test_contribution_fields_out_of_bounds_are_refused(field: str, value: object) -> None:
    measured = replace(HEADER, kappas=(0.25, 0.5), energies=(1.0, 2.0))
    message = pb.ContributionHeader.FromString(seal(measured).header)
    envelope = pb.Envelope(header=changed(message, field, value).SerializeToString())
    reason = refusal_of(open_envelope, envelope)
    assert reason == field or field == "sections"


def test_oversized_envelopes_are_refused_before_they_are_parsed() -> None:
    header = seal(HEADER).header
    assert refusal_of(open_envelope, pb.Envelope(header=bytes(MAX_HEADER_BYTES + 1))) == "size"
    assert refusal_of(open_envelope, pb.Envelope(header=header, signature=bytes(65))) == "signature"
    assert refusal_of(open_envelope, pb.Envelope(header=header, certificate=bytes(8193))) == "certificate"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("round", 0),
        ("first_step", 2**63),
        ("steps", 0),
        ("steps", 10**6 + 1),
        ("lr_first", math.nan),
        ("lr_first", -1e-3),
        ("lr_last", math.inf),
        ("decay", 0.0),
        ("decay", 1.1),
        ("tangent", [2, 0]),
        ("tangent", [0, 0]),
        ("tangent", [4]),
        ("choose", [1]),
        ("choose", [2]),
        ("draw", [1]),
        ("draw", [0]),
        ("draw", [2]),
        ("draw_numbers", []),
        ("draw_numbers", [1, 2]),
        ("seed", 2**31),
        ("aim", [1]),
        ("aim", list(range(100))),
    ],
)
def test_plan_fields_out_of_bounds_are_refused(field: str, value: object) -> None:
    message = changed(plan_to_proto(PLAN), field, value)
    assert refusal_of(plan_from_proto, message, BLOCKS) == field


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


def test_a_round_of_nobody_names_nobody() -> None:
    void = replace(PUBLISHED, shards=(ShardResult(void=True),) * 2)
    message = published_to_proto(void)
    assert published_from_proto(message, MANIFEST) == void
    assert refusal_of(published_from_proto, changed(message, "included", [bytes(16)]), MANIFEST) == "included"


def test_a_peer_costs_18_bytes_a_round_in_however_many_shards_it_is() -> None:
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
def test_voters_that_cannot_be_are_refused(voters: list[str]) -> None:
    message = changed(published_to_proto(PUBLISHED), "voters", voters)
    assert refusal_of(published_from_proto, message, MANIFEST) == "voters"


@given(data=st.binary(max_size=300))
def test_random_bytes_raise_only_peer_errors(data: bytes) -> None:
    with suppress(PeerError):
        open_envelope(pb.Envelope(header=data))
    with suppress(PeerError):
        plan_from_proto(parse(pb.RoundPlan, data, 1000), BLOCKS)
    with suppress(PeerError):
        published_from_proto(parse(pb.PublishedHeader, data, 1000), MANIFEST)


@given(data=st.data())
def test_flipped_bits_raise_only_peer_errors(data: st.DataObject) -> None:
    for good in (seal(HEADER).header, published_to_proto(PUBLISHED).SerializeToString()):
        bit = data.draw(st.integers(0, 8 * len(good) - 1))
        flipped = bytearray(good)
        flipped[bit // 8] ^= 1 << bit % 8
        with suppress(PeerError):
            open_envelope(pb.Envelope(header=bytes(flipped)))
        with suppress(PeerError):
            published_from_proto(parse(pb.PublishedHeader, bytes(flipped), 10**4), MANIFEST)


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


@given(lines=texts, last=st.integers(0, 2**53))
def test_lines_are_read_as_they_were_written(lines: list[str], last: int) -> None:
    assert lines_from_proto(lines_to_proto(lines, last)) == (lines, last)


def test_lines_of_many_peers_take_a_fifth_of_their_bytes_or_less() -> None:
    lines = [
        ev.encode(ev.DigestReported(round=3, peer=f"{peer * 2**100:032x}", name=f"peer-{peer}", digest="a" * 64), peer)
        for peer in range(100)
    ]
    assert 5 * lines_to_proto(lines, 100).ByteSize() < sum(map(len, lines))


def test_the_longest_lines_that_a_log_gives_at_once_are_taken() -> None:
    line = "x" * ev.MAX_LINE
    assert lines_from_proto(lines_to_proto([line], 1)) == ([line], 1)


@given(frame=st.binary(max_size=64), size=st.integers(0, 2**32 - 1))
def test_damaged_lines_are_refused(frame: bytes, size: int) -> None:
    message = pb.WatchReply(lines=frame, lines_bytes=size)
    if not frame and size <= MAX_LINES_BYTES:
        assert lines_from_proto(message) == ([], 0)
        return
    with pytest.raises(PeerError):
        lines_from_proto(message)


@pytest.mark.parametrize("raw", [b"\xff\xfe", bytes(MAX_LINES_BYTES + 1)])
def test_lines_that_are_no_text_or_too_long_are_refused(raw: bytes) -> None:
    with pytest.raises(PeerError, match=r"[Ll]ines"):
        lines_from_proto(pb.WatchReply(lines=compress(raw, 1), lines_bytes=len(raw)))


def test_lines_of_another_length_than_announced_are_refused() -> None:
    message = lines_to_proto(["a" * 100, "b"], 2)
    message.lines_bytes -= 1
    with pytest.raises(PeerError):
        lines_from_proto(message)
