"""Contributions at a reducer: checked before their bytes come, and again, in short, once they are here."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace

import pytest

from tests.node.test_node_contribution_store import MANIFEST, PEERS, SHARD_BLOCKS, plan_of, work_of
from tests.node_context import open_node
from tsr_swarm.errors import PeerError, UnreachableError
from tsr_swarm.exchange.contribution import pack
from tsr_swarm.node import contribution_store
from tsr_swarm.node.node import SwarmNode
from tsr_swarm.rounds import protocol as pt
from tsr_swarm.rounds.protocol import Verdict
from tsr_swarm.wire.messages import ContributionHeader, seal
from tsr_swarm.wire.v1 import swarm_pb2 as pb

PLAN = plan_of(1, "")
HEADER, DATA = pack(MANIFEST, PEERS[0], work_of(PEERS[0], 1, ""), 0, SHARD_BLOCKS[0])


@dataclass
class Leader:
    """Takes down what it is to tell people; its own node is the reducer."""

    members: set[str] = field(default_factory=lambda: set(PEERS))
    refusals: list[str] = field(default_factory=list)

    @property
    def round_reporter(self) -> "Leader":
        return self

    def is_admitted(self, peer: str) -> bool:
        return peer in self.members

    def refused(self, header: ContributionHeader, error: PeerError) -> None:
        self.refusals.append(error.reason)


@pytest.fixture
async def node() -> AsyncIterator[SwarmNode]:
    async with open_node("e" * 32, MANIFEST) as node:
        node.context.leader = Leader()  # type: ignore[assignment]
        node.contributions.open_round(PLAN)
        yield node


async def test_the_gate_is_passed_once_for_each_payload(node: SwarmNode, monkeypatch: pytest.MonkeyPatch) -> None:
    passed: list[int] = []
    check = contribution_store.check_header

    def count(header: ContributionHeader, **rest: object) -> object:
        passed.append(header.round)
        return check(header, **rest)  # type: ignore[arg-type]

    monkeypatch.setattr(contribution_store, "check_header", count)
    contribution = node.reducer.expect(seal(HEADER))
    submitted = asyncio.create_task(node.reducer.submit(contribution, DATA))
    (offered,) = await node.context.driver.seen(pt.Offered)
    assert (offered.peer, offered.round, offered.shard, offered.tokens) == (PEERS[0], 1, 0, HEADER.tokens)
    node.reducer.reply(pt.Reply(PEERS[0], 1, 0, Verdict(counted=True, is_new=True, reason="")))
    assert (await submitted).counted
    assert passed == [1]
    assert node.contributions.job(1, 0, frozenset(PEERS[:1]), {PEERS[0]: 1}).held, "it is held"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"round": 7, "parent": b"\xcd" * 32}, None),
        ({"manifest_digest": bytes(32)}, "manifest"),
        ({"manifest_digest": b"\xcd" * 32}, "manifest"),
        ({"tokens": 2**40}, "tokens"),
        ({"sections": ()}, "sections"),
    ],
)
async def test_what_the_gate_refuses_is_refused_before_any_byte_comes(
    node: SwarmNode, changes: dict[str, object], reason: str | None
) -> None:
    with pytest.raises(UnreachableError if reason is None else PeerError):
        node.reducer.expect(seal(replace(HEADER, **changes)))  # type: ignore[arg-type]
    assert node.context.leader.refusals == ([] if reason is None else [reason])


async def test_bytes_that_are_no_envelope_are_refused(node: SwarmNode) -> None:
    with pytest.raises(PeerError):
        node.reducer.expect(pb.Envelope(header=b"\xff" * 100))
    assert node.context.leader.refusals == []


@pytest.mark.parametrize("change", ["next round", "parent", "due", "member", "bytes"])
async def test_what_changed_while_the_bytes_came_is_refused_with_its_reason(node: SwarmNode, change: str) -> None:
    contribution, data = node.reducer.expect(seal(HEADER)), DATA
    says = {
        "next round": "The payload is for round 1, but round 2 is open here.",
        "parent": "The payload starts from other weights than round 1; fetch the state.",
        "due": "this round's are ",
        "member": "This reducer does not know that peer yet; try again.",
        "bytes": None,
    }[change]
    if change == "next round":
        node.contributions.open_round(plan_of(2, "ab" * 32))
    elif change == "parent":
        node.contributions.open_round(replace(PLAN, parent="ab" * 32))
    elif change == "due":
        node.contributions.open_round(replace(PLAN, due=replace(PLAN.due, range=frozenset(), tangent=frozenset())))
    elif change == "member":
        node.context.leader.members.clear()
    else:
        data = bytes(len(DATA))
    with pytest.raises(UnreachableError if change == "member" else PeerError, match=says):
        await node.reducer.submit(contribution, data)
    assert len(node.context.leader.refusals) == (change != "member")
    assert node.context.driver.events == []
