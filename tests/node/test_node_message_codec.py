"""Messages of the decisions come back as they were, and what is hostile does not come in."""

from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from tests.fixtures import round_plan
from tests.wire.examples import refusal_of
from tsr_swarm.config.blocks import Block, BlockRole
from tsr_swarm.config.manifest import Manifest
from tsr_swarm.config.round_plan import Due, RoundPlan
from tsr_swarm.config.run import RoundConfig, RunConfig
from tsr_swarm.errors import PeerError
from tsr_swarm.lowrank.sketch import Captured
from tsr_swarm.node import message_codec as mc
from tsr_swarm.node.round_cache import ReducedShard
from tsr_swarm.rounds import protocol as pt
from tsr_swarm.rounds import raft_state
from tsr_swarm.rounds.leases import Coverage, Lease
from tsr_swarm.rounds.raft_state import RoundRecord
from tsr_swarm.wire.codec import Section
from tsr_swarm.wire.messages import ShardResult
from tsr_swarm.wire.roster import Members
from tsr_swarm.wire.v1 import swarm_pb2 as pb

BLOCKS = (
    Block(name="embed", rows=8, cols=4, rank=2, role=BlockRole.EMBEDDING),
    Block(name="norm", rows=1, cols=1, rank=0, role=BlockRole.DENSE),
    Block(name="matrix", rows=4, cols=4, rank=2, role=BlockRole.MATRIX),
)
MANIFEST = Manifest("run1", RunConfig(round=RoundConfig(shards=2)), BLOCKS)
SHARD_BLOCKS = MANIFEST.shard_blocks  # a low-rank block in each
DIGEST = b"m" * 32
SENDER = "0123456789abcdef" * 2
HASH = b"h" * 32
ROUNDS = 2**40

rounds = st.integers(0, ROUNDS)
terms = st.integers(1, 2**40)
counts = st.integers(0, 2**50)
lives = st.integers(0, 2**63 - 1)
peer_ids = st.text("0123456789abcdef", min_size=32, max_size=32)
chains = st.binary(min_size=32, max_size=32).map(bytes.hex)
reasons = st.text("abc 09:,", max_size=160)
voters = st.sets(peer_ids, min_size=1, max_size=5).map(lambda ids: tuple(sorted(ids)))
sections = st.lists(
    st.builds(Section, st.just("core"), st.integers(1, 2**40), st.integers(1, 2**41), st.just(HASH)), max_size=16
)


@st.composite
def records(draw: st.DrawFn) -> RoundRecord:
    round = draw(st.one_of(st.integers(0, 2), rounds))
    chain = draw(chains) if round else ""
    return RoundRecord(round, chain, draw(chains) if round > 1 else "", draw(voters))


votes = st.builds(
    raft_state.VoteRequest, terms, st.just(SENDER), st.tuples(rounds, st.integers(0, 2**40)), st.booleans()
)
replies = st.builds(raft_state.VoteReply, terms, st.integers(0, 2**40), st.booleans(), st.booleans(), reasons)
beats = st.builds(raft_state.Heartbeat, terms, records(), st.none() | records())
answers = st.builds(raft_state.HeartbeatReply, terms, rounds, st.just("") | chains, reasons)
goodbyes = st.just(pt.Goodbye(SENDER))


@st.composite
def closes(draw: st.DrawFn) -> tuple[pt.Close, Members]:
    round = draw(st.integers(1, ROUNDS))
    numbers = draw(st.dictionaries(st.integers(1, 10**6), peer_ids, max_size=6))
    by_peer = {peer: number for number, peer in numbers.items()}
    shards = tuple(sorted(draw(st.sets(st.integers(0, 1)))))
    parent = draw(chains) if round > 1 else ""
    return pt.Close(draw(terms), round, parent, shards, frozenset(by_peer)), Members.of(by_peer)


Sample = tuple[pt.ShardDone, ReducedShard, Members | None]


@st.composite
def shards_done(draw: st.DrawFn) -> Sample:
    """A shard, and those of whom some are in it; nobody for a void one."""
    shard = draw(st.integers(0, 1))
    peers = draw(st.lists(peer_ids, max_size=20, unique=True))
    members = Members.of({peer: number for number, peer in enumerate(peers, 1)})
    included = tuple(sorted(draw(st.sets(st.sampled_from(peers))))) if peers else ()
    result = ShardResult(void=True)
    if included:
        tokens = draw(st.integers(len(included), 2**40))
        result = ShardResult(False, included, tokens, tuple(draw(sections)))
    seen = st.builds(Captured, st.floats(0, 1, width=32), st.floats(0, 2.0**127, width=32))
    low_rank = {0: 0, 1: 2}[shard]
    captured = draw(st.just({}) | seen.map(lambda captured: {low_rank: captured}))
    reduced = ReducedShard(result, draw(st.floats(-1e6, 1e6, width=32)), draw(counts), captured)
    done = pt.ShardDone(draw(terms), draw(st.integers(1, ROUNDS)), shard, reduced.decided)
    return done, reduced, members if included else None


keys = st.tuples(st.integers(1, ROUNDS), terms, st.integers(1, 2**50))
numbers_sent = st.just((0, 0, 0)) | keys
polls = st.builds(
    pt.Poll, peer_ids, lives, st.integers(-1, ROUNDS), st.booleans(), st.booleans(), numbers_sent, counts, counts
)


@st.composite
def news_and_plans(draw: st.DrawFn) -> tuple[pt.RoundUpdate, RoundPlan | None]:
    announced, plan = None, None
    named = peer_ids | st.sampled_from([SENDER, "f" * 32])  # some reduce round after round
    if draw(st.booleans()):
        round, term, version = draw(keys)
        parent = draw(chains) if round > 1 else ""
        places = tuple(pt.ReducerSlot(draw(named), draw(lives)) for _ in SHARD_BLOCKS)
        announced = pt.OpenRound(round, parent, term, version, places)
        due = Due(tangent=frozenset(draw(st.sets(st.sampled_from([0, 2])))))
        plan = round_plan(round, first_step=5, steps=20, lr_last=5e-4, decay=0.5, due=due, parent=parent)
    news = pt.RoundUpdate(
        term=draw(terms),
        leader=draw(peer_ids),
        version=draw(counts),
        base=draw(records()),
        sources=tuple(draw(st.lists(named, max_size=4))),
        plan=announced,
        nodes=tuple(draw(st.lists(peer_ids, max_size=8))),
        is_finished=draw(st.booleans()),
        number=draw(counts),
    )
    return news, plan


def known(members: Members | None) -> mc.Rosters:
    return lambda digest: members if members is not None and digest == members.digest else None


ALONE = Members.of({SENDER: 1})


def sent(request: pb.TellRequest) -> pb.TellRequest:
    """``request`` over the wire, with what its sender fills in."""
    request.manifest_digest, request.sender, request.address = DIGEST, SENDER, "192.0.2.7:7700"
    return pb.TellRequest.FromString(request.SerializeToString())


@given(message=votes | replies | beats | answers | goodbyes)
def test_messages_between_voters_come_back_as_they_were(message: Any) -> None:
    assert mc.decode_message(sent(mc.tell_to_proto(message)), MANIFEST, known(ALONE)) == mc.DecodedMessage(message)


@given(close=closes())
def test_a_close_comes_back_with_all_whom_it_admits(close: tuple[pt.Close, Members]) -> None:
    request = sent(mc.close_to_proto(*close))
    assert mc.decode_message(request, MANIFEST, known(close[1])) == mc.DecodedMessage(*close)


@given(done=shards_done())
def test_a_shard_comes_back_with_what_was_measured(done: Sample) -> None:
    message, reduced, members = done
    request = sent(mc.done_to_proto(message, reduced, members))
    assert mc.decode_message(request, MANIFEST, known(members)) == mc.DecodedMessage(message, reduced=reduced)
    assert len(request.shard_done.result.absent) <= 3, "a bit a peer"


@given(close=closes(), done=shards_done())
def test_a_message_with_an_unknown_list_of_peers_names_its_hash(close: tuple[pt.Close, Members], done: Sample) -> None:
    for request, members in ((mc.close_to_proto(*close), close[1]), (mc.done_to_proto(*done), done[2])):
        if members is not None:
            with pytest.raises(mc.UnknownRosterError) as unknown:
                mc.decode_message(sent(request), MANIFEST, known(None))
            assert unknown.value.digest == members.digest


@given(poll=polls)
def test_a_poll_comes_back_as_it_was(poll: pt.Poll) -> None:
    request = mc.poll_to_proto(poll)
    request.manifest_digest, request.address = DIGEST, "192.0.2.7:7700" if poll.is_dialable else ""
    assert mc.poll_from_proto(pb.PollRequest.FromString(request.SerializeToString())) == poll


@given(pair=news_and_plans())
def test_news_come_back_as_they_were(pair: tuple[pt.RoundUpdate, RoundPlan | None]) -> None:
    news, plan = pair
    message = pb.News.FromString(mc.news_to_proto(news, plan).SerializeToString())
    assert mc.news_from_proto(message, BLOCKS, 2) == (news, plan)


@given(redirect=st.builds(pt.Redirect, st.integers(0, 2**40), st.just("") | peer_ids, records()))
def test_a_redirect_comes_back_as_it_was(redirect: pt.Redirect) -> None:
    assert mc.redirect_from_proto(mc.redirect_to_proto(redirect)) == redirect


def test_a_long_reason_is_cut() -> None:
    reply = raft_state.VoteReply(3, 2, False, False, "x" * 1000)
    decoded = mc.decode_message(sent(mc.tell_to_proto(reply)), MANIFEST, known(ALONE))
    assert decoded.message == replace(reply, reason="x" * 160)


def test_a_plan_that_is_no_longer_announced_is_not_sent() -> None:
    news = pt.RoundUpdate(1, SENDER, 1, RoundRecord(voters=(SENDER,)), (), None, (), False)
    assert not mc.news_to_proto(news, round_plan()).HasField("plan")


def done(**changes: Any) -> pb.TellRequest:
    section = pb.Section(kind="core", raw_bytes=9, wire_bytes=9, hash=HASH)
    result = pb.ShardResult(tokens=5, sections=[section])
    good: dict[str, Any] = {"term": 1, "round": 1, "result": result, "kappas": [0.5], "energies": [1.0]}
    good["roster"] = ALONE.digest
    return sent(pb.TellRequest(shard_done=pb.ShardDone(**{**good, **changes})))


def closing(**changes: Any) -> pb.TellRequest:
    return sent(pb.TellRequest(close=pb.Close(**{"term": 1, "round": 1, "roster": HASH, **changes})))


@pytest.mark.parametrize(
    ("reason", "request_"),
    [
        ("shard", done(shard=2)),
        ("tokens", done(result=pb.ShardResult())),
        ("absent", done(result=pb.ShardResult(tokens=5, absent=b"\1"))),
        ("kappas", done(kappas=[0.5, 0.5], energies=[1.0, 1.0])),  # the shard's other block is dense
        ("local_loss", done(local_loss=float("nan"))),
        ("roster", done(roster=HASH)),
        ("shards", closing(shards=[1, 0])),
        ("shards", closing(shards=[2])),
        ("roster", closing()),
        ("parent", closing(round=2)),
    ],
)
def test_a_message_out_of_bounds_is_refused_by_field(reason: str, request_: pb.TellRequest) -> None:
    assert mc.decode_message(done(), MANIFEST, known(ALONE)).reduced is not None
    assert refusal_of(mc.decode_message, request_, MANIFEST, known(ALONE)) == reason


OPEN = pt.OpenRound(7, "ab" * 32, 2, 1, (pt.ReducerSlot(SENDER, 1), pt.ReducerSlot(SENDER, 1)))
NEWS = pt.RoundUpdate(2, SENDER, 1, RoundRecord(6, "ab" * 32, "cd" * 32, (SENDER,)), (), OPEN, (), False)
PLAN = round_plan(7, parent="ab" * 32)


def test_an_announcement_that_contradicts_its_plan_is_refused() -> None:
    good = mc.news_to_proto(NEWS, PLAN)
    assert mc.news_from_proto(good, BLOCKS, 2) == (NEWS, PLAN)
    for reason, spoil in (
        ("key.round", lambda plan: plan.key.MergeFrom(pb.PlanKey(round=8))),
        ("key.round", lambda plan: plan.ClearField("key")),
        ("places", lambda plan: plan.places.append(0)),
        ("places", lambda plan: plan.places.__setitem__(0, 1)),
        ("places", lambda plan: plan.ClearField("places")),
        ("round", lambda plan: plan.ClearField("plan")),
        ("tangent", lambda plan: plan.plan.tangent.append(1)),
    ):
        message = pb.News.FromString(good.SerializeToString())
        spoil(message.plan)
        assert refusal_of(mc.news_from_proto, message, BLOCKS, 2) == reason


def test_a_reducer_of_many_shards_is_named_once() -> None:
    reducers = [pt.ReducerSlot(f"{number:032x}", number) for number in range(4)]

    def size(count: int) -> int:
        plan = replace(NEWS.plan, reducers=tuple(reducers[shard % 4] for shard in range(count)))
        news = replace(NEWS, plan=plan, sources=plan.nodes)
        return mc.news_to_proto(news, PLAN).ByteSize()

    assert size(100) - size(60) == 2 * 40, "a byte for each, in the plan and of the round before"


def test_hostile_polls_news_and_redirects_are_refused_where_they_are_read() -> None:
    assert refusal_of(mc.poll_from_proto, pb.PollRequest()) == "manifest_digest"
    assert refusal_of(mc.news_from_proto, pb.News(), BLOCKS, 2) == "term"
    assert refusal_of(mc.redirect_from_proto, pb.Redirect()) == "base.voters"


parts = st.sets(st.integers(0, 8191)).map(frozenset)


@given(coverage=st.builds(Coverage, st.integers(1, ROUNDS), parts, parts))
def test_coverage_comes_back_and_takes_one_bit_for_each_part(coverage: Coverage) -> None:
    message = mc.coverage_to_proto(coverage)
    assert mc.coverage_from_proto(message, 8192) == coverage
    assert len(message.done) <= 1024
    last = max(coverage.done | coverage.ahead, default=0)
    assert refusal_of(mc.coverage_from_proto, message, last) == "coverage"


@given(lease=st.none() | st.builds(Lease, st.integers(1, ROUNDS), st.integers(0, 8191)))
def test_a_lease_comes_back_unless_the_data_has_no_such_part(lease: Lease | None) -> None:
    message = mc.lease_to_proto(lease, 5, 7)
    assert mc.lease_from_proto(message, 8192) == lease
    assert refusal_of(mc.lease_from_proto, message, message.part) == "lease.part"


def test_coverage_without_an_epoch_is_refused() -> None:
    assert refusal_of(mc.coverage_from_proto, pb.Coverage(), 8) == "coverage.epoch"


@given(data=st.data(), sample=shards_done())
def test_flipped_bits_raise_only_peer_errors(data: st.DataObject, sample: Sample) -> None:
    news = mc.news_to_proto(NEWS, PLAN).SerializeToString()
    for good in (sent(mc.done_to_proto(*sample)).SerializeToString(), news):
        bit = data.draw(st.integers(0, 8 * len(good) - 1))
        flipped = bytearray(good)
        flipped[bit // 8] ^= 1 << bit % 8
        with suppress(PeerError, DecodeError):
            mc.decode_message(pb.TellRequest.FromString(bytes(flipped)), MANIFEST, known(sample[2]))
        with suppress(PeerError, DecodeError):
            mc.news_from_proto(pb.News.FromString(bytes(flipped)), BLOCKS, 2)
