"""A node's shards: contributions come in, a leader closes the round, averages go out."""

from collections.abc import Mapping
from dataclasses import replace

from tsr_swarm.rounds import reducer as rd
from tsr_swarm.rounds.gather import ShardDigest
from tsr_swarm.rounds.protocol import Average, Averaged, Close, Offered, OpenRound, Reply, Send, ShardDone
from tsr_swarm.rounds.state import Node, Reducing, Result

AHEAD = 2  # rounds: a contribution may be quicker than the news


def offered(node: Node, event: Offered) -> Result:
    """Take a contribution, or say why not."""
    shards = len(node.identity.sizes)
    reducing = node.reducer or Reducing(rd.ReducerState(0, shards))
    known = max(node.peer.committed, node.voter.hard_state.base.round)
    if reducing.state.round < event.round <= known + AHEAD:
        reducing = Reducing(rd.ReducerState(event.round, shards), event.term)
    if event.round <= known:
        verdict = rd.Verdict(False, False, f"round {event.round} has closed; the work stays in your residual")
        return replace(node, reducer=reducing), [Reply(event.peer, event.round, event.shard, verdict)]
    reducing = _reopened(reducing, event.round, event.term)
    state, verdict = rd.offer(reducing.state, event.round, event.peer, event.shard, event.tokens)
    node = replace(node, reducer=replace(reducing, state=state))
    return node, [Reply(event.peer, event.round, event.shard, verdict)]


def reopened(node: Node, plan: OpenRound) -> Node:
    """A new leader asks for the same round again: what is held still counts, and more may come."""
    if node.reducer is None:
        return node
    return replace(node, reducer=_reopened(node.reducer, plan.round, plan.term))


def _reopened(reducing: Reducing, round: int, term: int) -> Reducing:
    if round != reducing.state.round or term <= reducing.term:
        return reducing
    return Reducing(replace(reducing.state, is_open=True), term)


def close(node: Node, sender: str, message: Close) -> Result:
    """Close shards and have them averaged; one that has too few contributions is void at once."""
    shards = len(node.identity.sizes)
    reducing = node.reducer or Reducing(rd.ReducerState(message.round, shards))
    if (message.round, message.term) < (reducing.state.round, reducing.term):
        return node, []
    if message.round > reducing.state.round:
        reducing = Reducing(rd.ReducerState(message.round, shards), message.term)
    if message.term > reducing.term:  # what was averaged for an older leader may lack what came since
        reducing = replace(reducing, term=message.term, done={}, under_way=frozenset())
    state = rd.close(reducing.state)
    done, wanted = dict(reducing.done), dict[int, frozenset[str]]()
    for shard in message.shards:
        if shard in done or shard in reducing.under_way:
            continue
        peers = rd.included(state, shard, node.identity.policy.deadlines.quorum, message.admitted)
        if peers:
            wanted[shard] = peers
        else:
            done[shard] = ShardDigest()
    under_way = reducing.under_way | wanted.keys()
    reducing = replace(reducing, state=state, leader=sender, done=done, under_way=under_way)
    node = replace(node, reducer=reducing)
    asked = {shard: done[shard] for shard in message.shards if shard in done}
    average = [Average(message.term, message.round, wanted)] if wanted else []
    return node, [*average, *_answers(reducing, asked)]


def averaged(node: Node, event: Averaged) -> Result:
    """Tell the leader, unless the round has moved on."""
    reducing = node.reducer
    if reducing is None or (event.round, event.term) != (reducing.state.round, reducing.term):
        return node, []
    if event.shard not in reducing.under_way:
        return node, []
    reducing = replace(
        reducing,
        done={**reducing.done, event.shard: event.result},
        under_way=reducing.under_way - {event.shard},
    )
    return replace(node, reducer=reducing), list(_answers(reducing, {event.shard: event.result}))


def _answers(reducing: Reducing, results: Mapping[int, ShardDigest]) -> list[Send]:
    round, term = reducing.state.round, reducing.term
    return [Send(reducing.leader, ShardDone(term, round, shard, result)) for shard, result in sorted(results.items())]
