"""Which node reduces which shard, and a reducer's part in a round.

A shard goes to the node that ranks highest for it by rendezvous hashing (Thaler and Ravishankar, "Using name-based
mappings to increase hit rates", 1998) among those that are not yet full (Mirrokni, Thorup and Zadimoghaddam,
"Consistent hashing with bounded loads", 2018). Whoever knows the nodes finds the same answer, and nodes get about the
same. Then contributions come in, a leader closes the round, and averages go out.
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction

from tsr_swarm.rounds import protocol
from tsr_swarm.rounds.state import Node, ReducerState, Result

SLACK = Fraction(5, 4)  # a node takes up to this many times its even share, or one shard
AHEAD = 2  # rounds: a contribution may arrive before the update that announces its round


def assign(sizes: Sequence[int], nodes: Collection[str], kept: Mapping[int, str] | None = None) -> tuple[str, ...]:
    """Return the reducer of every shard.

    sizes: bytes of a contribution, by shard; the larger shards choose first. kept: shards that stay where they are, as
    far as their node is among ``nodes``. Raises ValueError without nodes.
    """
    if not nodes:
        raise ValueError("0 nodes can reduce; at least the leader must.")
    reducers = {shard: node for shard, node in (kept or {}).items() if node in nodes}
    loads = dict.fromkeys(nodes, 0)
    for shard, node in reducers.items():
        loads[node] += sizes[shard]
    limit = SLACK * sum(sizes) / len(nodes)
    for shard in sorted(set(range(len(sizes))) - reducers.keys(), key=lambda s: (-sizes[s], s)):
        order = sorted(nodes, key=lambda node: (_weight(shard, node), node), reverse=True)
        fits = [node for node in order if loads[node] == 0 or loads[node] + sizes[shard] <= limit]
        node = fits[0] if fits else min(order, key=lambda n: loads[n])
        reducers[shard] = node
        loads[node] += sizes[shard]
    return tuple(reducers[shard] for shard in range(len(sizes)))


def _weight(shard: int, node: str) -> bytes:
    return hashlib.blake2b(f"{shard}/{node}".encode(), digest_size=8).digest()


def take_offer(node: Node, event: protocol.Offered) -> Result:
    """Take a contribution that has passed the gate, or say why not. One that is late stays in the peer's residual."""
    state, round, key = node.reducer, event.round, (event.peer, event.shard)
    committed = max(node.peer.committed, node.voter.hard_state.base.round)
    if state.round < round <= committed + AHEAD:
        state = ReducerState(round, term=event.term)
    if round > committed:
        state = _follow_term(state, round, event.term)
    closed = protocol.Verdict(False, False, f"round {round} has closed; the work stays in your residual")
    if round <= committed:
        verdict = closed
    elif round != state.round:
        verdict = protocol.Verdict(False, False, f"round {round} is not open; round {state.round} is")
    elif key in state.held:
        verdict = protocol.Verdict(True, False, "already here")
    elif not state.is_open:
        verdict = closed
    else:
        verdict = protocol.Verdict(True, True, "in time")
        state = replace(state, held={**state.held, key: event.tokens})
    return replace(node, reducer=state), [protocol.Reply(event.peer, round, event.shard, verdict)]


def reopen(node: Node, plan: protocol.OpenRound) -> Node:
    """Follow a new leader's announcement of the same round: what is held still counts, and more may come."""
    return replace(node, reducer=_follow_term(node.reducer, plan.round, plan.term))


def _follow_term(state: ReducerState, round: int, term: int) -> ReducerState:
    if round != state.round or term <= state.term:
        return state
    return ReducerState(round, held=state.held, term=term)


def close_shards(node: Node, sender: str, message: protocol.Close) -> Result:
    """Close shards and have them averaged; one that has too few contributions is void at once."""
    state = node.reducer
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
        peers = frozenset(peer for peer, held in state.held if held == shard and peer in message.admitted)
        if len(peers) >= node.identity.policy.quorum:
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
    if (event.round, event.term) != (state.round, state.term) or event.shard not in state.averaging:
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
