"""The reducer's side of a round: contributions come in, a leader closes the round, averages go out."""

from collections.abc import Collection, Mapping
from dataclasses import replace

from tsr_swarm.rounds import protocol
from tsr_swarm.rounds.state import Node, ReducerState, Result

AHEAD = 2  # rounds: a contribution may arrive before the update that announces its round


def offer(state: ReducerState, round: int, peer: str, shard: int, tokens: int) -> tuple[ReducerState, protocol.Verdict]:
    """Take a contribution that has passed the gate, or say why not. One that is late stays in the peer's residual."""
    if round != state.round:
        return state, protocol.Verdict(False, False, f"round {round} is not open; round {state.round} is")
    if (peer, shard) in state.held:
        return state, protocol.Verdict(True, False, "already here")
    if not state.is_open:
        return state, protocol.Verdict(False, False, f"round {round} has closed; the work stays in your residual")
    return replace(state, held={**state.held, (peer, shard): tokens}), protocol.Verdict(True, True, "in time")


def choose_included(state: ReducerState, shard: int, quorum: int, admitted: Collection[str]) -> frozenset[str]:
    """Return the admitted peers whose contribution to ``shard`` is averaged; none below the quorum."""
    peers = frozenset(peer for peer, held_shard in state.held if held_shard == shard and peer in admitted)
    return peers if len(peers) >= quorum else frozenset()


def take_offer(node: Node, event: protocol.Offered) -> Result:
    """Take a contribution, or say why not."""
    state = node.reducer or ReducerState(0)
    committed = max(node.peer.committed, node.voter.hard_state.base.round)
    if state.round < event.round <= committed + AHEAD:
        state = ReducerState(event.round, term=event.term)
    if event.round <= committed:
        verdict = protocol.Verdict(False, False, f"round {event.round} has closed; the work stays in your residual")
    else:
        state = _follow_term(state, event.round, event.term)
        state, verdict = offer(state, event.round, event.peer, event.shard, event.tokens)
    return replace(node, reducer=state), [protocol.Reply(event.peer, event.round, event.shard, verdict)]


def reopen(node: Node, plan: protocol.OpenRound) -> Node:
    """Follow a new leader's announcement of the same round: what is held still counts, and more may come."""
    if node.reducer is None:
        return node
    return replace(node, reducer=_follow_term(node.reducer, plan.round, plan.term))


def _follow_term(state: ReducerState, round: int, term: int) -> ReducerState:
    if round != state.round or term <= state.term:
        return state
    return ReducerState(round, held=state.held, term=term)


def close_shards(node: Node, sender: str, message: protocol.Close) -> Result:
    """Close shards and have them averaged; one that has too few contributions is void at once."""
    state = node.reducer or ReducerState(message.round)
    if (message.round, message.term) < (state.round, state.term):
        return node, []
    if message.round > state.round:
        state = ReducerState(message.round, term=message.term)
    if message.term > state.term:  # what was averaged for an older leader may lack what came since
        state = replace(state, term=message.term, done={}, averaging=frozenset())
    done, wanted = dict(state.done), dict[int, frozenset[str]]()
    for shard in message.shards:
        if shard in done or shard in state.averaging:
            continue
        peers = choose_included(state, shard, node.identity.policy.quorum, message.admitted)
        if peers:
            wanted[shard] = peers
        else:
            done[shard] = protocol.ShardDigest()
    state = replace(state, is_open=False, leader=sender, done=done, averaging=state.averaging | wanted.keys())
    average = [protocol.Average(message.term, message.round, wanted)] if wanted else []
    answers = _answers(state, {shard: done[shard] for shard in message.shards if shard in done})
    return replace(node, reducer=state), [*average, *answers]


def answer_average(node: Node, event: protocol.Averaged) -> Result:
    """Tell the leader that a shard is averaged, unless the round has moved on."""
    state = node.reducer
    if state is None or (event.round, event.term) != (state.round, state.term) or event.shard not in state.averaging:
        return node, []
    done = {**state.done, event.shard: event.result}
    state = replace(state, done=done, averaging=state.averaging - {event.shard})
    return replace(node, reducer=state), list(_answers(state, {event.shard: event.result}))


def _answers(state: ReducerState, results: Mapping[int, protocol.ShardDigest]) -> list[protocol.Send]:
    round, term = state.round, state.term
    return [
        protocol.Send(state.leader, protocol.ShardDone(term, round, shard, result))
        for shard, result in sorted(results.items())
    ]
