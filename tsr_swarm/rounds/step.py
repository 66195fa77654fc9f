"""``step(node, event, now) -> (node, actions)``: all decisions of a node as one pure function.

The same node, event and time always give the same answer. Where a step changes ``node.voter.hard_state``, the caller
journals it before it carries out any action; if it cannot, the step has not happened, and an event that is no message
is put again later.
"""

from collections.abc import Sequence
from dataclasses import replace

from tsr_swarm.rounds import follower, leader, protocol, raft, reducer
from tsr_swarm.rounds.protocol import Action, Event
from tsr_swarm.rounds.raft import RaftAction, RaftResult
from tsr_swarm.rounds.raft_state import BecomeLeader, CatchUp, HardState, RaftRole, RoundCommitted
from tsr_swarm.rounds.state import Node, NodeIdentity, PeerState, Result, then

ASLEEP_SECONDS = 8.0  # a node polls or sends heartbeats more often; without a step for so long it was not running


def begin(identity: NodeIdentity, hard_state: HardState, peer: PeerState, now: float, lost: str = "") -> Node:
    """Make a node that starts, from its journal and the round of its checkpoint.

    lost: chain hash of the proposal that it accepted, if its disk does not have that any more.
    """
    return Node(identity, raft.begin(identity.me, hard_state, now, lost), peer, stepped_at=now)


def step(node: Node, event: Event, now: float) -> Result:
    """Take in one event, and begin what follows from it."""
    if node.has_quit:
        return node, []
    if now > node.stepped_at + ASLEEP_SECONDS:
        node = follower.expire_updates(node, now)
    node = replace(node, stepped_at=now)
    version = node.leader_role.version if node.leader_role is not None else 0
    result = _settle(_take_in(node, event, now), now)
    result = _settle(then(result, follower.act, now), now)
    result = _settle(then(result, leader.count_own_arrival, now), now)
    result = then(result, leader.flush, version, now)
    return _settle(then(result, follower.poll, now), now)


def wake_at(node: Node) -> float:
    """Return when the next Tick is due, if nothing happens before."""
    if node.has_quit:
        return float("inf")
    retry = node.progress.retry_at or float("inf")
    return min(raft.wake_at(node.voter), follower.poll_due_at(node), leader.due_at(node), retry)


def _take_in(node: Node, event: Event, now: float) -> Result:
    match event:
        case protocol.Received(sender, message):
            return _receive(node, sender, message, now)
        case protocol.Unreachable(to, message):  # whatever matters is sent again
            node = follower.fail_poll(node, to, now) if isinstance(message, protocol.Poll) else node
            return replace(node, voter=raft.give_up_leader(node.voter, to, now)), []
        case protocol.PollBroken(peer):
            return leader.break_poll(node, peer, now)
        case protocol.Offered():
            return reducer.take_offer(node, event)
        case protocol.Averaged():
            return reducer.answer_average(node, event)
        case protocol.Sealed(record):
            return leader.propose(node, record, now)
        case protocol.Stored(record):
            return _follow_up(node, raft.accept_stored(node.voter, record), now)
        case protocol.Trained():
            return follower.end_training(node, event), []
        case protocol.Uploaded():
            return follower.end_upload(node, event, now), []
        case protocol.UploadFailed():
            return follower.fail_upload(node, event, now), []
        case protocol.Applied():
            return follower.end_apply(node, event, now), []
        case protocol.Restored():
            return follower.end_restore(node, event, now), []
        case protocol.FetchFailed():
            return follower.fail_fetch(node, event, now), []
        case protocol.Resumed():
            return follower.expire_updates(node, now), []
        case protocol.Stop():
            return leader.stop(replace(node, is_leaving=True), now)
        case protocol.Tick():
            node, actions = _follow_up(node, raft.tick(node.voter, now), now)
            if node.progress.retry_at and now >= node.progress.retry_at:
                node = replace(node, progress=replace(node.progress, retry_at=0.0))
            return then((node, actions), leader.tick, now)


def _receive(node: Node, sender: str, message: protocol.Message, now: float) -> Result:
    match message:
        case protocol.Poll():
            return leader.take_poll(node, message, now)
        case protocol.RoundUpdate():
            return follower.take_update(node, sender, message, now)
        case protocol.Redirect():
            return follower.take_redirect(node, sender, message, now)
        case protocol.Close():
            return reducer.close_shards(node, sender, message)
        case protocol.ShardDone():
            return leader.take_shard(node, sender, message, now)
        case protocol.Goodbye(peer):
            return leader.take_goodbye(node, peer, now)
        case _:
            return _follow_up(node, raft.receive(node.voter, sender, message, now), now)


def _follow_up(node: Node, answer: RaftResult, now: float) -> Result:
    """Do what follows from Raft's answer."""
    voter, decisions = answer
    result: Result = (replace(node, voter=voter), [])
    for decision in decisions:
        result = then(result, _carry_out, decision, now)
    return result


def _carry_out(node: Node, decision: RaftAction, now: float) -> Result:
    match decision:
        case protocol.Send() | protocol.Notify():
            return node, [decision]
        case protocol.Store(record):
            return node, [replace(decision, sources=follower.proposal_reducers(node, record))]
        case CatchUp(round, source):
            peer = replace(node.peer, committed=max(node.peer.committed, round - 1))
            return replace(node, peer=peer, tracking=replace(node.tracking, leader=source)), []
        case RoundCommitted(record):
            return leader.end_round(node, record, now)
        case BecomeLeader():
            return leader.take_over(node, now)


def _settle(result: Result, now: float) -> Result:
    """Carry out at once what a node proposes to its own voter, and what it sends to itself."""
    node, actions = result
    kept: list[Action] = []
    queue: list[Action] = list(actions)
    while queue:
        action = queue.pop(0)
        more: Sequence[Action] = ()
        match action:
            case protocol.Propose(record):
                node, more = _follow_up(node, raft.propose(node.voter, record, now), now)
            case protocol.Send(to, message) if to == node.me:
                node, more = _receive(node, node.me, message, now)
            case _:
                kept.append(action)
        queue[:0] = more
    if node.leader_role is not None and node.voter.role in (RaftRole.FOLLOWER, RaftRole.PRE_CANDIDATE):
        node, told = leader.give_up(node)
        kept += told
    if node.leader_role is not None and node.voter.leads:
        node = follower.follow_itself(node, leader.round_update(node), now)
    return node, kept
