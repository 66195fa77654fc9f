"""Builders of what tests of several folders need, small and legal, with changes on request; and a check they share."""

import asyncio
import time
from typing import Any

from tsr_swarm.config.round_plan import Due, RoundPlan
from tsr_swarm.config.run import ModelConfig
from tsr_swarm.discovery.identity import Identity
from tsr_swarm.discovery.records import PeerRecord, PeerRole
from tsr_swarm.rounds.raft_state import HardState, RoundRecord
from tsr_swarm.rounds.round_phases import RoundPolicy
from tsr_swarm.rounds.state import Node, NodeIdentity, PeerState
from tsr_swarm.rounds.step import begin
from tsr_swarm.telemetry.events import RunStarted

TINY_MODEL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}  # a step takes milliseconds
GENESIS = RoundRecord(voters=("c",))  # of a run whose coordinator is c


def tiny_model(**changes: Any) -> ModelConfig:
    return ModelConfig(**TINY_MODEL | {"max_position_embeddings": 128} | changes)


def round_plan(round: int = 1, **changes: Any) -> RoundPlan:
    """A round of one step that asks for nothing but cores."""
    plan: dict[str, Any] = {"first_step": 0, "steps": 1, "lr_first": 0.1, "lr_last": 0.1, "decay": 1.0}
    return RoundPlan(round=round, **plan | {"due": Due(), "parent": ""} | changes)


def round_policy(**changes: Any) -> RoundPolicy:
    """For an endless run of at least one peer."""
    policy: dict[str, Any] = {"quorum": 1, "floor_seconds": 2.0, "ceiling_seconds": 60.0}
    return RoundPolicy(**policy | {"min_peers": 1, "last_round": 0} | changes)


def started_node(
    me: str,
    trains: bool = True,
    base: RoundRecord = GENESIS,
    known: tuple[str, ...] = (),
    **policy: Any,
) -> Node:
    """A node that starts at ``base`` in a run of two shards; c is the coordinator."""
    identity = NodeIdentity(
        me=me,
        incarnation=1,
        trains=trains,
        is_dialable=True,
        first="c",
        known=known,
        sizes=(1, 1),
        policy=round_policy(**policy),
    )
    return begin(identity, HardState(base), PeerState(applied=base.round, chain=base.chain), 0.0)


def run_started(**changes: Any) -> RunStarted:
    """The first event of a run called chat."""
    numbers = {"rounds": 10, "min_peers": 1, "parameters": 1000, "k_x": 20, "voters": 1}
    texts = {"run": "chat", "run_id": "r1", "address": "192.0.2.1:7700", "local_space": "core", "rank": "d/2"}
    return RunStarted(**numbers | texts | {"version": "0.1.0"} | changes)  # type: ignore[arg-type]


def peer_record(identity: Identity, now: float | None = None, **changes: Any) -> PeerRecord:
    """Of a peer called alice in run1, for the ten minutes from ``now``."""
    issued = time.time() if now is None else now
    texts = {"run_id": "run1", "run": "chat", "peer_id": identity.peer_id, "name": "alice", "address": "192.0.2.7:7700"}
    record: dict[str, Any] = texts | {
        "parameters": 1000,
        "round": 7,
        "role": PeerRole.PEER,
        "issued": issued,
        "expires": issued + 600,
    }
    return PeerRecord(**record | changes)


async def assert_no_task_is_left(before: set[asyncio.Task[Any]]) -> None:
    """Whatever was started since ends by itself; what was cancelled may still be on its way out."""
    begun = asyncio.all_tasks() - before - {asyncio.current_task()}
    if begun:
        _, pending = await asyncio.wait(begun, timeout=30)
        assert not pending
