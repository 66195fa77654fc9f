"""Replies to polls: a caller that got them all has all news and contacts, in far fewer bytes than if each told all."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.node_context import make_node
from tests.published_rounds import plan_of, small_manifest
from tsr_swarm.node import poll_replies as module
from tsr_swarm.node.calls import KnownContacts
from tsr_swarm.node.message_codec import news_from_proto
from tsr_swarm.rounds.protocol import OpenRound, Redirect, ReducerSlot, RoundUpdate
from tsr_swarm.rounds.raft_state import RoundRecord
from tsr_swarm.transport.base import Caller
from tsr_swarm.wire.checks import MAX_CONTACTS, check
from tsr_swarm.wire.v1 import swarm_pb2 as pb

MANIFEST = small_manifest()
PLAN = plan_of(MANIFEST)
ME, LEADER, PEER = "0" * 32, "f" * 32, "a" * 32
NODES = tuple(letter * 32 for letter in "bcde")
CALLER = Caller("192.0.2.1")
NEWS = RoundUpdate(2, LEADER, 5, RoundRecord(voters=(LEADER,)), (), None, (), False)
OPEN = OpenRound(1, "", 2, 1, (ReducerSlot(NODES[0], 1), ReducerSlot(NODES[1], 2)))


class Rig:
    """A leader's replies; where others can be dialled is as the test says."""

    def __init__(self, addresses: dict[str, str] | None = None, address: str = "") -> None:
        node = make_node(ME, MANIFEST, address=address)
        self.context, self.replies = node.context, node.poll_replies
        self.context.round_cache.add_plan(PLAN)
        self.addresses: dict[str, str] = {}
        for node, address in (addresses or {}).items():
            self.move(node, address)

    def move(self, node: str, address: str) -> None:
        self.addresses[node] = address
        self.context.book.update(node, address)

    def ask(self, known: int, message: RoundUpdate | Redirect = NEWS, peer: str = PEER, life: int = 1) -> pb.PollReply:
        request = pb.PollRequest(peer_id=peer, incarnation=life, known=known)
        reply = self.replies.reply(request, message, CALLER)
        check(reply)
        return pb.PollReply.FromString(reply.SerializeToString())


def contacts(reply: pb.PollReply) -> dict[str, str]:
    return {contact.peer_id: contact.address for contact in reply.contacts}


@pytest.mark.parametrize("count", [MAX_CONTACTS - 1, MAX_CONTACTS])
def test_an_answer_has_no_more_contacts_than_are_taken_in(count: int) -> None:
    rig, nodes = Rig(address="192.0.2.9:1"), tuple(f"{number:032x}" for number in range(1, count + 1))
    for node in nodes:
        rig.move(node, "192.0.2.9:7")
    news = replace(NEWS, nodes=nodes[:4], sources=nodes[4:])
    assert list(contacts(rig.ask(0, news))) == [*nodes, ME][:MAX_CONTACTS]
    assert rig.ask(NEWS.version, news).HasField("unchanged")
    rig.move(nodes[0], "192.0.2.9:8")
    assert contacts(rig.ask(NEWS.version, news)) == {nodes[0]: "192.0.2.9:8"}


def test_a_caller_that_has_the_news_is_told_that_nothing_changed() -> None:
    rig = Rig()
    news = replace(NEWS, plan=OPEN, number=3)
    assert news_from_proto(rig.ask(0, news).news, MANIFEST.blocks, 2) == (news, PLAN)
    again = rig.ask(NEWS.version, replace(NEWS, plan=OPEN, number=4))
    assert again == pb.PollReply(unchanged=pb.Unchanged(term=2, version=5, number=4))
    assert again.ByteSize() <= 8
    assert rig.ask(NEWS.version, replace(NEWS, plan=OPEN, number=5)).unchanged.number == 5


@pytest.mark.parametrize(
    ("known", "changes", "life", "has_contacts"),
    [
        pytest.param(5, {"version": 6}, 1, False, id="a newer version"),
        pytest.param(5, {"term": 3}, 1, True, id="another term whose versions began anew"),
        pytest.param(5, {}, 2, True, id="the peer was started anew"),
        pytest.param(4, {}, 1, True, id="the answer before was lost"),
        pytest.param(0, {}, 1, True, id="the peer lost its leader for a while"),
    ],
)
def test_a_caller_that_may_lack_news_or_contacts_gets_them(
    known: int, changes: dict[str, Any], life: int, has_contacts: bool
) -> None:
    rig = Rig({LEADER: "192.0.2.7:1"})
    rig.ask(0)
    reply = rig.ask(known, replace(NEWS, **changes), life=life)
    assert (reply.HasField("news"), bool(reply.contacts)) == (True, has_contacts)


def test_contacts_are_told_once_and_again_where_they_have_moved() -> None:
    rig = Rig({LEADER: "192.0.2.7:1", NODES[0]: "192.0.2.7:2", NODES[1]: "192.0.2.7:3"})
    assert contacts(rig.ask(0, replace(NEWS, nodes=NODES))) == rig.addresses
    rig.move(NODES[2], "192.0.2.7:4")
    rig.move(NODES[0], "192.0.2.7:5")
    newer = replace(NEWS, nodes=NODES, version=6)
    assert contacts(rig.ask(5, newer)) == {NODES[0]: "192.0.2.7:5", NODES[2]: "192.0.2.7:4"}
    assert contacts(rig.ask(6, replace(newer, version=7))) == {}
    assert contacts(rig.ask(0, newer, peer="9" * 32)) == rig.addresses


def test_a_new_address_is_told_to_callers_that_may_dial_it() -> None:
    rig = Rig({LEADER: "192.0.2.7:1", NODES[0]: "192.0.2.7:2"})
    news = replace(NEWS, nodes=NODES[:1])
    rig.ask(0, news)
    rig.move(NODES[3], "192.0.2.7:9")
    assert rig.ask(5, news).HasField("unchanged"), "it is not named"
    rig.move(NODES[0], "192.0.2.7:3")
    reply = rig.ask(5, news)
    assert reply.HasField("news")
    assert contacts(reply) == {NODES[0]: "192.0.2.7:3"}
    assert rig.ask(5, news).HasField("unchanged")


def contact(node: str, port: int) -> pb.Contact:
    return pb.Contact(peer_id=node, address=f"192.0.2.7:{port}")


def test_contacts_told_by_a_leader_count_until_it_replaces_them_or_another_leads() -> None:
    kept, news = KnownContacts(), replace(NEWS, nodes=NODES[:2])
    both = [contact(NODES[0], 1), contact(NODES[1], 2)]
    assert kept.update(LEADER, 0, news, both) == both
    assert kept.update(LEADER, 5) == both, "somebody else may have said otherwise meanwhile"
    assert kept.update(LEADER, 5, news, [contact(NODES[1], 3)]) == [both[0], contact(NODES[1], 3)]
    assert kept.update(LEADER, 5, replace(news, nodes=NODES[:1]), []) == both[:1]
    assert kept.update(LEADER, 5, news, []) == both[:1], "who is named again is told again"
    assert kept.update(LEADER, 5, news, [contact(NODES[2], 4)]) == both[:1], "of others it need not speak"
    assert kept.update(PEER, 5, news, [both[1]]) == [both[1]]
    assert kept.update(PEER, 0, news, []) == []


def test_a_redirect_comes_with_its_contacts_and_ends_what_was_remembered() -> None:
    rig = Rig({LEADER: "192.0.2.7:1", NODES[0]: "192.0.2.7:2"})
    rig.ask(0)
    reply = rig.ask(5, Redirect(3, NODES[0], NEWS.base))
    assert contacts(reply) == rig.addresses
    assert rig.ask(5).HasField("news")


def test_callers_that_left_or_were_answered_long_ago_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig()
    rig.ask(0)
    rig.replies.forget(PEER)
    rig.replies.forget(PEER)
    assert rig.ask(5).HasField("news")
    monkeypatch.setattr(module, "MOST_CALLERS", 2)
    for peer in NODES[:2]:
        rig.ask(0, peer=peer)
    assert rig.ask(5).HasField("news")
    assert rig.ask(5, peer=NODES[1]).HasField("unchanged")


def test_news_are_built_once_until_they_or_the_rules_change(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[int] = []
    build = module.message_codec.news_to_proto

    def count(news: RoundUpdate, *rest: object) -> pb.News:
        built.append(news.version)
        return build(news, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(module.message_codec, "news_to_proto", count)
    rig = Rig()
    for number, peer in enumerate(NODES):
        assert rig.ask(0, replace(NEWS, number=number), peer=peer).news.number == number
    assert built == [5]
    rig.ask(5, replace(NEWS, version=6))
    rig.ask(5, replace(NEWS, version=6, is_finished=True))
    assert built == [5, 6, 6]
    rig.context.config = replace(MANIFEST.config, run=replace(MANIFEST.config.run, rounds=77))
    assert rig.ask(0, replace(NEWS, version=6, is_finished=True)).news.rules.rounds == 77


steps = st.lists(
    st.tuples(
        st.sampled_from(["news", "moves", "polls", "polls", "is lost", "starts anew"]),
        st.sampled_from(range(len(NODES))),
    ),
    max_size=40,
)


@given(story=steps)
def test_replies_of_differences_leave_a_caller_with_all_news_and_contacts(story: list[tuple[str, int]]) -> None:
    rig, news, kept, known, life = Rig(), NEWS, KnownContacts(), 0, 1
    held: RoundUpdate | None = None
    for place, (what, which) in enumerate(story):
        node = NODES[which]
        if what == "news":
            news = replace(news, version=news.version + 1, nodes=tuple(sorted({*news.nodes, node})))
        elif what == "moves":
            rig.move(node, f"192.0.2.7:{place + 1}")
        elif what == "starts anew":
            kept, known, life, held = KnownContacts(), 0, life + 1, None
        else:
            reply = rig.ask(known, replace(news, number=place), life=life)
            if what == "is lost":
                known = 0  # it takes its leader for lost
                continue
            if reply.HasField("news"):
                held, _ = news_from_proto(reply.news, MANIFEST.blocks, 2)
                book = kept.update(LEADER, known, held, reply.contacts)
            else:
                assert (reply.unchanged.term, reply.unchanged.version) == (held.term, held.version)
                held = replace(held, number=reply.unchanged.number)
                book = kept.update(LEADER, known)
            known = held.version
            assert held == replace(news, number=place)
            assert {said.peer_id: said.address for said in book} == {
                peer: rig.addresses[peer] for peer in news.nodes if peer in rig.addresses
            }
