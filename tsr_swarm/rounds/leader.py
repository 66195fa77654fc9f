"""A node while it leads: polls come in, rounds open, close, are gathered from their reducers and put to the council."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from tsr_swarm.rounds import gather as ga
from tsr_swarm.rounds import round_phases as ld
from tsr_swarm.rounds.gather import Gather
from tsr_swarm.rounds.protocol import (
    Action,
    Close,
    Commit,
    Drop,
    Explain,
    Notify,
    Open,
    OpenRound,
    Poll,
    Propose,
    Redirect,
    ReducerSlot,
    RoundUpdate,
    Seal,
    Send,
    ShardDone,
)
from tsr_swarm.rounds.raft_state import RoundRecord
from tsr_swarm.rounds.shard_assignment import assign
from tsr_swarm.rounds.state import HeldPoll, Leading, MemberContact, Node, Result, then
from tsr_swarm.rounds.voters import next_voters

HOLD_SECONDS = 2.0  # a poll without news is answered after this long
SETTLE_SECONDS = 6.0  # a new leader opens no round before those of the last one have found it, or this has passed
FORGET_SECONDS = 30.0  # a voter unheard for this long is replaced
MOST_NODES = 8  # that everybody is told of, beside the voters

# --- beginning and end ------------------------------------------------------------------------------------------------


def take_over(node: Node, now: float) -> Result:
    """This node was elected. What it had accepted is being proposed anew; else the next round opens."""
    identity, proposal = node.identity, node.council.proposal
    before = node.leading  # where only the voters have changed
    round = proposal.round if proposal is not None else node.council.ledger.base.round
    phase = ld.Phase.COMMIT if proposal is not None else ld.Phase.WAITING
    has_opened = round > 0
    state = ld.LeaderState(
        identity.policy,
        round,
        phase=phase,
        has_opened=has_opened,
        proposed=proposal.chain if proposal is not None else "",
        opened_at=now,
        open_after=now + SETTLE_SECONDS if has_opened and before is None else now,
        awaited=node.contributors if node.contributors - {node.me} else frozenset(),
    )
    callers = {} if before is None else before.callers
    members = {peer: caller.due for peer, caller in callers.items() if caller.trains and caller.due > now}
    leading = Leading(replace(state, members=members), now, callers=callers, nodes=_reachable(callers), sealed=proposal)
    if before is not None:
        leading = replace(leading, version=before.version, sources=before.sources, holds=before.holds)
    node = replace(node, leading=leading)
    if identity.trains:
        node = replace(node, leading=_with_caller(node, _myself(node, now), node.me))
        return _lead(node, ld.Joined(node.me), now)
    return _lead(announce(node), ld.Tick(), now)


def give_up(node: Node) -> Result:
    """This node does not lead any more: whoever waits for its news must look for another."""
    assert node.leading is not None, "checked"
    redirect = Redirect(node.council.term, node.council.leader, node.council.ledger.base)
    return replace(node, leading=None), [Send(peer, redirect) for peer in sorted(node.leading.holds)]


# --- polls ------------------------------------------------------------------------------------------------------------


def polled(node: Node, poll: Poll, now: float) -> Result:
    """A peer calls: it joins, is heard, and gets the news or waits for some."""
    leading = node.leading
    if leading is None:
        hint = node.council.leader or node.guide.leader
        return node, [Send(poll.peer, Redirect(node.council.term, hint, node.council.ledger.base))]
    if not node.council.leads:  # it is being elected by the new voters
        return _held(node, poll, now), []
    known = leading.callers.get(poll.peer)
    since = known.since if known is not None else now
    caller = MemberContact(
        since, now + ld.SILENCE_SECONDS, now, poll.incarnation, poll.applied, poll.trains, poll.is_dialable
    )
    node = replace(node, leading=_with_caller(node, caller, poll.peer))
    result: Result = (node, [])
    if known is not None and known.incarnation != poll.incarnation:
        result = then(result, lambda n, at: _move(n, at), now)
    if poll.trains:
        is_member = poll.peer in leading.state.members
        event = ld.Heard(poll.peer) if is_member else ld.Joined(poll.peer)
        result = then(result, lambda n, at: _lead(n, event, at), now)
    result = then(result, lambda n, at: _arrived(n, poll.peer, poll.sent, at), now)
    return then(result, lambda n, at: _answer(n, poll, at), now)


def _answer(node: Node, poll: Poll, now: float) -> Result:
    leading = node.leading
    if leading is None:
        return node, []
    if poll.known != leading.version or poll.peer == node.me:
        return node, [Send(poll.peer, replace(news(node), number=poll.number))]
    return _held(node, poll, now), []


def _held(node: Node, poll: Poll, now: float) -> Node:
    leading = node.leading
    assert leading is not None, "only a leader holds polls"
    hold = HeldPoll(now + HOLD_SECONDS, poll.number)
    return replace(node, leading=replace(leading, holds={**leading.holds, poll.peer: hold}))


def _arrived(node: Node, peer: str, sent: tuple[int, int, int], now: float) -> Result:
    leading = node.leading
    if leading is None or leading.plan is None or sent != leading.plan.key:
        return node, []
    return _lead(node, ld.Arrived(peer, sent[0]), now)


def arrived_itself(node: Node, now: float) -> Result:
    """A leader does not poll itself: what it has sent as a peer is taken in here."""
    leading, plan = node.leading, node.plan
    if leading is None or leading.plan is None or plan is None or plan.key != leading.plan.key:
        return node, []
    if node.peer.trained != plan.round or node.peer.unsent or node.me in leading.state.arrivals:
        return node, []
    return _lead(node, ld.Arrived(node.me, plan.round), now)


def hung(node: Node, peer: str, now: float) -> Result:
    """A peer's held poll broke."""
    leading = node.leading
    if leading is None or peer not in leading.holds:
        return node, []
    holds = {other: hold for other, hold in leading.holds.items() if other != peer}
    node = replace(node, leading=replace(leading, holds=holds))
    if (caller := leading.callers.get(peer)) is None:
        return node, []
    caller = replace(caller, due=min(caller.due, now + ld.RETURN_SECONDS))
    node = replace(node, leading=_with_caller(node, caller, peer))
    return _lead(node, ld.Disconnected(peer), now)


def left(node: Node, peer: str, now: float) -> Result:
    """A peer said goodbye: it is no reducer and no voter any more either."""
    leading = node.leading
    if leading is None:
        return node, []
    callers = {other: caller for other, caller in leading.callers.items() if other != peer}
    holds = {other: hold for other, hold in leading.holds.items() if other != peer}
    node = replace(node, leading=replace(leading, callers=callers, holds=holds, nodes=_reachable(callers)))
    return then(_lead(node, ld.Left(peer, "it said goodbye"), now), _move, now)


def news(node: Node) -> RoundUpdate:
    """What this leader tells everybody."""
    leading = node.leading
    assert leading is not None, "only a leader has news"
    return RoundUpdate(
        term=node.council.term,
        leader=node.me,
        version=leading.version,
        base=node.council.ledger.base,
        sources=leading.sources,
        plan=leading.plan,
        nodes=leading.nodes,
        is_finished=is_over(leading.state),
    )


def is_over(state: ld.LeaderState) -> bool:
    """Whether the last round is done, so that peers may go. A leader that was only stopped is followed by another."""
    return state.phase is ld.Phase.FINISHED and 0 < state.policy.last_round <= state.round


def announce(node: Node) -> Node:
    """There is news: held polls are answered by ``flush``."""
    leading = node.leading
    assert leading is not None, "only a leader has news"
    return replace(node, leading=replace(leading, version=leading.version + 1))


def flush(node: Node, version: int, now: float) -> Result:
    """Answer the polls that wait, all of them if the news is newer than ``version``, else those whose time is up."""
    leading = node.leading
    if leading is None or not leading.holds or not node.council.leads:
        return node, []
    is_new = leading.version != version
    ready = {peer: hold for peer, hold in leading.holds.items() if is_new or now >= hold.until}
    if not ready:
        return node, []
    holds = {peer: hold for peer, hold in leading.holds.items() if peer not in ready}
    text = news(node)
    answers: list[Action] = [Send(peer, replace(text, number=hold.number)) for peer, hold in sorted(ready.items())]
    return replace(node, leading=replace(leading, holds=holds)), answers


# --- rounds -----------------------------------------------------------------------------------------------------------


def tick(node: Node, now: float) -> Result:
    """Time has passed for the round, its reducers and whoever was not heard."""
    leading = node.leading
    if leading is None or not node.council.leads:
        return node, []
    node = replace(node, leading=replace(leading, looked_at=now))
    if node.identity.trains:
        node = replace(node, leading=_with_caller(node, _myself(node, now), node.me))
    result = _lead(node, ld.Heard(node.me) if node.identity.trains else ld.Tick(), now)
    return then(then(result, _move, now), _gather, now)


def due(node: Node) -> float:
    """When ``tick`` or ``flush`` has something to do."""
    leading = node.leading
    if leading is None or not node.council.leads:
        return float("inf")
    # What is over has been dealt with, or waits for something else than time, as a round that has no peers to open.
    over = leading.looked_at
    times = [*(hold.until for hold in leading.holds.values()), *leading.state.members.values()]
    if (deadline := ld.deadline_at(leading.state)) is not None and deadline > over:
        times.append(deadline)
    if leading.state.phase in (ld.Phase.TRAIN, ld.Phase.EXCHANGE):
        times.append(leading.state.opened_at + leading.state.policy.deadlines.ceiling_seconds)
    if leading.state.phase is ld.Phase.WAITING and leading.state.open_after > over:
        times.append(leading.state.open_after)
    if leading.gather is not None:
        times += [leading.gather.deadline, leading.gather.asked_at + ga.AGAIN_SECONDS]
    return min(times, default=float("inf"))


def decided(node: Node, record: RoundRecord, now: float) -> Result:
    """The council says that this round stands."""
    if node.council.leads:
        return _lead(node, ld.Decided(record.round, record.chain), now)
    if node.leading is None:
        return node, []
    return _closed(node), [Commit(record)]  # it names other voters, who elect first


def _closed(node: Node) -> Node:
    """The round is over; who made its shards may be asked for them."""
    leading = node.leading
    assert leading is not None, "only a leader closes rounds"
    sources = tuple(place.node for place in leading.plan.places) if leading.plan is not None else ()
    return announce(replace(node, leading=replace(leading, plan=None, gather=None, sealed=None, sources=sources)))


def sealed(node: Node, record: RoundRecord, now: float) -> Result:
    """The round's result is on this node's disk: put it to the voters."""
    leading = node.leading
    if leading is None or record.round != leading.state.round or record.parent != node.council.ledger.base.chain:
        return node, []
    node = replace(node, leading=replace(leading, sealed=record))
    return _lead(node, ld.Reduced(record.round, record.chain), now)


def shard_done(node: Node, sender: str, message: ShardDone, now: float) -> Result:
    """A reducer answers."""
    leading = node.leading
    if leading is None or leading.gather is None:
        return node, []
    if message.term != node.council.term or message.round != leading.gather.round:
        return node, []
    gather = ga.result(leading.gather, sender, message.shard, message.result, now)
    return _gather(replace(node, leading=replace(leading, gather=gather)), now)


def stop(node: Node, now: float) -> Result:
    """Finish the open round, then open no other."""
    return _lead(node, ld.Stop(), now)


def _lead(node: Node, event: ld.Event, now: float) -> Result:
    leading = node.leading
    if leading is None or not node.council.leads:
        return node, []
    state, decisions = ld.step(leading.state, event, now)
    node = replace(node, leading=replace(leading, state=state))
    result: Result = (node, [])
    for decision in decisions:
        result = then(result, lambda n, at, d=decision: _carry_out(n, d, at), now)  # type: ignore[misc]
    return result


def _carry_out(node: Node, decision: ld.Action, now: float) -> Result:
    leading = node.leading
    if leading is None:
        return node, []
    match decision:
        case ld.BeginRound(round):
            places = _places(node, round, {}, now)
            plan = OpenRound(round, node.council.ledger.base.chain, node.council.term, 1, places)
            return announce(replace(node, leading=replace(leading, plan=plan))), [
                Open(round, frozenset(leading.state.members))
            ]
        case ld.Reduce(round):
            assert leading.plan is not None, "a round that closes was open"
            gather = Gather(round, tuple(place.node for place in leading.plan.places), now)
            return _gather(replace(node, leading=replace(leading, gather=gather)), now)
        case ld.Propose(round):
            assert leading.sealed is not None, "what is proposed was sealed"
            return node, [Propose(leading.sealed)]
        case ld.Commit():
            return _closed(node), [Commit(node.council.ledger.base)]
        case ld.Drop(peer_id, reason):
            return node, [Drop(peer_id, reason)]
        case ld.Finish(reason):
            return announce(node), [Explain(leading.state.round, ld.Phase.FINISHED.value, None, reason)]
        case ld.Explain(phase, deadline, reason):
            return node, [Explain(leading.state.round, phase.value, deadline, reason)]


def _gather(node: Node, now: float) -> Result:
    leading = node.leading
    if leading is None or leading.gather is None:
        return node, []
    gone = [reducer for reducer in leading.gather.reducers if not _is_here(node, reducer, now)]
    gather, asks = ga.progress(leading.gather, gone, now)
    node = replace(node, leading=replace(leading, gather=gather))
    assert leading.plan is not None, "a round that is gathered was open"
    actions: list[Action] = []
    for ask in asks:
        if isinstance(ask, ga.Complete):
            node = replace(node, leading=replace(leading, gather=None))
            voters = next_voters(node.council.voters, _serving(node, now), node.identity.first)
            return node, [Seal(gather.round, leading.plan.parent, ask.results, voters)]
        admitted = frozenset(leading.callers)
        close = Close(node.council.term, gather.round, leading.plan.parent, ask.shards, admitted)
        actions.append(Send(ask.reducer, close))
    return node, actions


# --- who is here ------------------------------------------------------------------------------------------------------


def _myself(node: Node, now: float) -> MemberContact:
    identity = node.identity
    known = node.leading.callers.get(node.me) if node.leading is not None else None
    since = known.since if known is not None else now
    return MemberContact(since, float("inf"), now, identity.incarnation, node.peer.applied, identity.trains, True)


def _with_caller(node: Node, caller: MemberContact, name: str) -> Leading:
    assert node.leading is not None, "only a leader is called"
    before = node.leading.callers
    callers = {**before, name: caller}
    # who can be dialled seldom changes, and is asked for with every poll
    nodes = node.leading.nodes if name in before else _reachable(callers)
    return replace(node.leading, callers=callers, nodes=nodes)


def _reachable(callers: Mapping[str, MemberContact]) -> tuple[str, ...]:
    """Some who can be dialled: a peer that lost this leader can ask them for the next. The newest callers first."""
    names = [name for name, caller in callers.items() if caller.is_dialable]
    return tuple(sorted(sorted(names, key=lambda name: -callers[name].since)[:MOST_NODES]))


def _is_here(node: Node, name: str, now: float) -> bool:
    if name == node.me:
        return True
    caller = node.leading.callers.get(name) if node.leading is not None else None
    return caller is not None and caller.due > now


def _places(node: Node, round: int, kept: dict[int, str], now: float) -> tuple[ReducerSlot, ...]:
    """Shards to those that can be dialled and lack no more than the round that was decided just now."""
    leading, identity = node.leading, node.identity
    assert leading is not None, "only a leader places shards"
    lives = {
        name: caller.incarnation
        for name, caller in leading.callers.items()
        if caller.is_dialable and caller.applied >= round - 2 and _is_here(node, name, now)
    }
    lives[identity.me] = identity.incarnation
    return tuple(ReducerSlot(name, lives[name]) for name in assign(identity.sizes, lives, kept))


def _move(node: Node, now: float) -> Result:
    """Shards of reducers that are gone, or were started anew, go to others while the round is open."""
    leading = node.leading
    if leading is None or leading.plan is None or leading.gather is not None:
        return node, []
    if leading.state.phase not in (ld.Phase.TRAIN, ld.Phase.EXCHANGE):
        return node, []
    plan = leading.plan
    lives = {name: caller.incarnation for name, caller in leading.callers.items()}
    lives[node.me] = node.identity.incarnation
    kept = {
        shard: place.node
        for shard, place in enumerate(plan.places)
        if _is_here(node, place.node, now) and lives.get(place.node) == place.incarnation
    }
    if len(kept) == len(plan.places):
        return node, []
    plan = replace(plan, version=plan.version + 1, places=_places(node, plan.round, kept, now))
    moved = Notify(
        f"{len(plan.places) - len(kept)} shards of round {plan.round} go to others: their reducers are gone."
    )
    node = announce(replace(node, leading=replace(leading, plan=plan)))
    return then((node, [moved]), lambda n, at: _lead(n, ld.Moved(), at), now)


def _serving(node: Node, now: float) -> Sequence[str]:
    """Who can be a voter from the next round on, the longest-serving first."""
    leading = node.leading
    assert leading is not None, "only a leader proposes voters"
    base = node.council.ledger.base.round
    here = {
        name: caller.since
        for name, caller in leading.callers.items()
        if caller.is_dialable and caller.applied >= base and now - caller.seen < FORGET_SECONDS
    }
    here[node.me] = min(here.get(node.me, leading.since), leading.since)
    if now - leading.since < FORGET_SECONDS:  # the others may not have found this leader yet
        here |= {voter: leading.since for voter in node.council.voters if voter not in here}
    return sorted(here, key=lambda name: (here[name], name))
