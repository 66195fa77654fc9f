"""``step(node, event, now) -> (node, actions)``: the whole of a node's decisions as one pure function.

The same node, event and time always give the same answer. Where a step changes ``node.voter.hard_state``, the shell
journals it before any action is carried out; if it cannot, the step has not happened, and an event that is no message
is put again later.
"""

from collections.abc import Sequence
from dataclasses import replace

from tsr_swarm.rounds import follower, leader, protocol, raft, reducing
from tsr_swarm.rounds import raft_state as cl
from tsr_swarm.rounds.peer import PeerState
from tsr_swarm.rounds.protocol import Action, Event
from tsr_swarm.rounds.raft_state import HardState
from tsr_swarm.rounds.state import Node, NodeIdentity, Result, then

ASLEEP_SECONDS = 8.0  # a node polls or beats more often; one without a step for so long was not running


def begin(identity: NodeIdentity, hard_state: HardState, peer: PeerState, now: float, lost: str = "") -> Node:
    """A node as it starts, with its journal and the round of its checkpoint.

    lost: chain hash of the proposal that it accepted, if its disk does not have that any more.
    """
    return Node(identity, raft.begin(identity.me, hard_state, now, lost), peer, stepped_at=now)


def step(node: Node, event: Event, now: float) -> Result:
    """Take in one event, and begin what follows from it."""
    if node.has_quit:
        return node, []
    if now > node.stepped_at + ASLEEP_SECONDS:
        node = follower.slept(node, now)
    node = replace(node, stepped_at=now)
    version = node.leader_role.version if node.leader_role is not None else 0
    result = _settle(_take_in(node, event, now), now)
    result = _settle(then(result, follower.act, now), now)
    result = _settle(then(result, leader.arrived_itself, now), now)
    result = then(result, lambda n, at: leader.flush(n, version, at), now)
    return _settle(then(result, follower.poll, now), now)


def wake_at(node: Node) -> float:
    """When the next Tick is due, if nothing happens before."""
    if node.has_quit:
        return float("inf")
    retry = node.progress.retry_at or float("inf")
    return min(raft.wake_at(node.voter), follower.poll_due(node), leader.due(node), retry)


def _take_in(node: Node, event: Event, now: float) -> Result:
    match event:
        case protocol.Received(sender, message):
            return _received(node, sender, message, now)
        case protocol.Unreachable(to, message):  # whatever matters is said again
            node = follower.lost(node, to, now) if isinstance(message, protocol.Poll) else node
            return _advise(node, cl.PeerLost(to), now)
        case protocol.PollBroken(peer):
            return leader.hung(node, peer, now)
        case protocol.Offered():
            return reducing.offered(node, event)
        case protocol.Averaged():
            return reducing.averaged(node, event)
        case protocol.Sealed(record):
            return leader.sealed(node, record, now)
        case protocol.Stored(record):
            return _advise(node, cl.Stored(record), now)
        case protocol.Trained():
            return follower.trained(node, event)
        case protocol.Uploaded():
            return follower.uploaded(node, event, now)
        case protocol.UploadFailed():
            return follower.upload_failed(node, event, now)
        case protocol.Applied():
            return follower.applied(node, event, now)
        case protocol.Restored():
            return follower.restored(node, event, now)
        case protocol.FetchFailed():
            return follower.fetch_failed(node, event, now)
        case protocol.Resumed():
            return follower.slept(node, now), []
        case protocol.Stop():
            return leader.stop(replace(node, is_leaving=True), now)
        case protocol.Tick():
            return then(_advise(node, cl.Tick(), now), _tick, now)


def _tick(node: Node, now: float) -> Result:
    if node.progress.retry_at and now >= node.progress.retry_at:
        node = replace(node, progress=replace(node.progress, retry_at=0.0))
    return leader.tick(node, now)


def _received(node: Node, sender: str, message: protocol.Message, now: float) -> Result:
    match message:
        case protocol.Poll():
            return leader.polled(node, message, now)
        case protocol.RoundUpdate():
            return follower.heard(node, sender, message, now)
        case protocol.Redirect():
            return follower.redirected(node, sender, message, now)
        case protocol.Close():
            return reducing.close(node, sender, message)
        case protocol.ShardDone():
            return leader.shard_done(node, sender, message, now)
        case protocol.Goodbye(peer):
            return leader.left(node, peer, now)
        case _:
            return _advise(node, cl.Received(sender, message), now)


def _advise(node: Node, event: cl.Event, now: float) -> Result:
    """Put an event to the voter, and do what follows from its answer."""
    voter, decisions = raft.step(node.voter, event, now)
    result: Result = (replace(node, voter=voter), [])
    for decision in decisions:
        result = then(result, lambda n, at, d=decision: _follow_up(n, d, at), now)  # type: ignore[misc]
    return result


def _follow_up(node: Node, decision: cl.Action, now: float) -> Result:
    match decision:
        case cl.Send(to, message):
            return node, [protocol.Send(to, message)]
        case cl.Store(record, source):
            return node, [protocol.Store(record, follower.makers(node, record), (source,))]
        case cl.CatchUp(round, source):
            peer = replace(node.peer, committed=max(node.peer.committed, round - 1))
            return replace(node, peer=peer, tracking=replace(node.tracking, leader=source)), []
        case cl.RoundCommitted(record):
            return leader.decided(node, record, now)
        case cl.BecomeLeader():
            return leader.take_over(node, now)
        case cl.StepDown(reason):
            stands_again = node.voter.role is not cl.RaftRole.FOLLOWER
            return node, [] if stands_again else [protocol.Notify(f"This node leads no more: {reason}.")]


def _settle(result: Result, now: float) -> Result:
    """What a node tells itself, and what it puts to its own voter, happens at once."""
    node, actions = result
    kept: list[Action] = []
    queue: list[Action] = list(actions)
    while queue:
        action = queue.pop(0)
        more: Sequence[Action] = ()
        match action:
            case protocol.Propose(record):
                node, more = _advise(node, cl.Propose(record), now)
            case protocol.Send(to, message) if to == node.me:
                node, more = _received(node, node.me, message, now)
            case _:
                kept.append(action)
        queue[:0] = more
    if node.leader_role is not None and node.voter.role in (cl.RaftRole.FOLLOWER, cl.RaftRole.PRE_CANDIDATE):
        node, told = leader.give_up(node)
        kept += told
    if node.leader_role is not None and node.voter.leads:
        node = follower.follow_oneself(node, leader.round_update(node), now)
    return node, kept
