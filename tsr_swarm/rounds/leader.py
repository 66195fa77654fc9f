"""A node while it leads: polls come in, rounds open, close, are gathered from their reducers and put to the voter."""

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
from tsr_swarm.rounds.state import HeldPoll, LeaderRole, MemberContact, Node, Result, then
from tsr_swarm.rounds.voters import next_voters

HOLD_SECONDS = 2.0  # a poll without news is answered after this long
SETTLE_SECONDS = 6.0  # a new leader opens no round before those of the last one have found it, or this has passed
FORGET_SECONDS = 30.0  # a voter unheard for this long is replaced
MOST_NODES = 8  # that everybody is told of, beside the voters

# --- beginning and end ------------------------------------------------------------------------------------------------


def take_over(node: Node, now: float) -> Result:
    """This node was elected. What it had accepted is being proposed anew; else the next round opens."""
    identity, proposal = node.identity, node.voter.proposal
    before = node.leader_role  # where only the voters have changed
    round = proposal.round if proposal is not None else node.voter.hard_state.base.round
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
    contacts = {} if before is None else before.contacts
    members = {peer: contact.due for peer, contact in contacts.items() if contact.trains and contact.due > now}
    role = LeaderRole(
        replace(state, members=members), now, contacts=contacts, nodes=_reachable(contacts), sealed=proposal
    )
    if before is not None:
        role = replace(role, version=before.version, sources=before.sources, held_polls=before.held_polls)
    node = replace(node, leader_role=role)
    if identity.trains:
        node = replace(node, leader_role=_with_contact(node, _myself(node, now), node.me))
        return _lead(node, ld.Joined(node.me), now)
    return _lead(announce(node), ld.Tick(), now)


def give_up(node: Node) -> Result:
    """This node does not lead any more: whoever waits for its news must look for another."""
    assert node.leader_role is not None, "checked"
    redirect = Redirect(node.voter.term, node.voter.leader, node.voter.hard_state.base)
    return replace(node, leader_role=None), [Send(peer, redirect) for peer in sorted(node.leader_role.held_polls)]


# --- polls ------------------------------------------------------------------------------------------------------------


def polled(node: Node, poll: Poll, now: float) -> Result:
    """A peer calls: it joins, is heard, and gets the news or waits for some."""
    role = node.leader_role
    if role is None:
        hint = node.voter.leader or node.tracking.leader
        return node, [Send(poll.peer, Redirect(node.voter.term, hint, node.voter.hard_state.base))]
    if not node.voter.leads:  # it is being elected by the new voters
        return _hold(node, poll, now), []
    known = role.contacts.get(poll.peer)
    since = known.since if known is not None else now
    contact = MemberContact(
        since, now + ld.SILENCE_SECONDS, now, poll.incarnation, poll.applied, poll.trains, poll.is_dialable
    )
    node = replace(node, leader_role=_with_contact(node, contact, poll.peer))
    result: Result = (node, [])
    if known is not None and known.incarnation != poll.incarnation:
        result = then(result, lambda n, at: _move(n, at), now)
    if poll.trains:
        is_member = poll.peer in role.state.members
        event = ld.Heard(poll.peer) if is_member else ld.Joined(poll.peer)
        result = then(result, lambda n, at: _lead(n, event, at), now)
    result = then(result, lambda n, at: _arrived(n, poll.peer, poll.sent, at), now)
    return then(result, lambda n, at: _answer(n, poll, at), now)


def _answer(node: Node, poll: Poll, now: float) -> Result:
    role = node.leader_role
    if role is None:
        return node, []
    if poll.known != role.version or poll.peer == node.me:
        return node, [Send(poll.peer, replace(round_update(node), number=poll.number))]
    return _hold(node, poll, now), []


def _hold(node: Node, poll: Poll, now: float) -> Node:
    role = node.leader_role
    assert role is not None, "only a leader holds polls"
    hold = HeldPoll(now + HOLD_SECONDS, poll.number)
    return replace(node, leader_role=replace(role, held_polls={**role.held_polls, poll.peer: hold}))


def _arrived(node: Node, peer: str, sent: tuple[int, int, int], now: float) -> Result:
    role = node.leader_role
    if role is None or role.plan is None or sent != role.plan.key:
        return node, []
    return _lead(node, ld.Arrived(peer, sent[0]), now)


def arrived_itself(node: Node, now: float) -> Result:
    """A leader does not poll itself: what it has sent as a peer is taken in here."""
    role, plan = node.leader_role, node.plan
    if role is None or role.plan is None or plan is None or plan.key != role.plan.key:
        return node, []
    if node.peer.trained != plan.round or node.peer.unsent or node.me in role.state.arrivals:
        return node, []
    return _lead(node, ld.Arrived(node.me, plan.round), now)


def hung(node: Node, peer: str, now: float) -> Result:
    """A peer's held poll broke."""
    role = node.leader_role
    if role is None or peer not in role.held_polls:
        return node, []
    held_polls = {other: hold for other, hold in role.held_polls.items() if other != peer}
    node = replace(node, leader_role=replace(role, held_polls=held_polls))
    if (contact := role.contacts.get(peer)) is None:
        return node, []
    contact = replace(contact, due=min(contact.due, now + ld.RETURN_SECONDS))
    node = replace(node, leader_role=_with_contact(node, contact, peer))
    return _lead(node, ld.Disconnected(peer), now)


def left(node: Node, peer: str, now: float) -> Result:
    """A peer said goodbye: it is no reducer and no voter any more either."""
    role = node.leader_role
    if role is None:
        return node, []
    contacts = {other: contact for other, contact in role.contacts.items() if other != peer}
    held_polls = {other: hold for other, hold in role.held_polls.items() if other != peer}
    node = replace(
        node, leader_role=replace(role, contacts=contacts, held_polls=held_polls, nodes=_reachable(contacts))
    )
    return then(_lead(node, ld.Left(peer, "it said goodbye"), now), _move, now)


def round_update(node: Node) -> RoundUpdate:
    """What this leader tells everybody."""
    role = node.leader_role
    assert role is not None, "only a leader has news"
    return RoundUpdate(
        term=node.voter.term,
        leader=node.me,
        version=role.version,
        base=node.voter.hard_state.base,
        sources=role.sources,
        plan=role.plan,
        nodes=role.nodes,
        is_finished=is_over(role.state),
    )


def is_over(state: ld.LeaderState) -> bool:
    """Whether the last round is done, so that peers may go. A leader that was only stopped is followed by another."""
    return state.phase is ld.Phase.FINISHED and 0 < state.policy.last_round <= state.round


def announce(node: Node) -> Node:
    """There is news: held polls are answered by ``flush``."""
    role = node.leader_role
    assert role is not None, "only a leader has news"
    return replace(node, leader_role=replace(role, version=role.version + 1))


def flush(node: Node, version: int, now: float) -> Result:
    """Answer the polls that wait, all of them if the news is newer than ``version``, else those whose time is up."""
    role = node.leader_role
    if role is None or not role.held_polls or not node.voter.leads:
        return node, []
    is_new = role.version != version
    ready = {peer: hold for peer, hold in role.held_polls.items() if is_new or now >= hold.until}
    if not ready:
        return node, []
    held_polls = {peer: hold for peer, hold in role.held_polls.items() if peer not in ready}
    text = round_update(node)
    answers: list[Action] = [Send(peer, replace(text, number=hold.number)) for peer, hold in sorted(ready.items())]
    return replace(node, leader_role=replace(role, held_polls=held_polls)), answers


# --- rounds -----------------------------------------------------------------------------------------------------------


def tick(node: Node, now: float) -> Result:
    """Time has passed for the round, its reducers and whoever was not heard."""
    role = node.leader_role
    if role is None or not node.voter.leads:
        return node, []
    node = replace(node, leader_role=replace(role, looked_at=now))
    if node.identity.trains:
        node = replace(node, leader_role=_with_contact(node, _myself(node, now), node.me))
    result = _lead(node, ld.Heard(node.me) if node.identity.trains else ld.Tick(), now)
    return then(then(result, _move, now), _gather, now)


def due(node: Node) -> float:
    """When ``tick`` or ``flush`` has something to do."""
    role = node.leader_role
    if role is None or not node.voter.leads:
        return float("inf")
    # What is over has been dealt with, or waits for something else than time, as a round that has no peers to open.
    over = role.looked_at
    times = [*(hold.until for hold in role.held_polls.values()), *role.state.members.values()]
    if (deadline := ld.deadline_at(role.state)) is not None and deadline > over:
        times.append(deadline)
    if role.state.phase in (ld.Phase.TRAIN, ld.Phase.EXCHANGE):
        times.append(role.state.opened_at + role.state.policy.deadlines.ceiling_seconds)
    if role.state.phase is ld.Phase.WAITING and role.state.open_after > over:
        times.append(role.state.open_after)
    if role.gather is not None:
        times += [role.gather.deadline, role.gather.asked_at + ga.AGAIN_SECONDS]
    return min(times, default=float("inf"))


def decided(node: Node, record: RoundRecord, now: float) -> Result:
    """The voter says that this round stands."""
    if node.voter.leads:
        return _lead(node, ld.Decided(record.round, record.chain), now)
    if node.leader_role is None:
        return node, []
    return _closed(node), [Commit(record)]  # it names other voters, who elect first


def _closed(node: Node) -> Node:
    """The round is over; who made its shards may be asked for them."""
    role = node.leader_role
    assert role is not None, "only a leader closes rounds"
    sources = role.plan.nodes if role.plan is not None else ()
    return announce(replace(node, leader_role=replace(role, plan=None, gather=None, sealed=None, sources=sources)))


def sealed(node: Node, record: RoundRecord, now: float) -> Result:
    """The round's result is on this node's disk: put it to the voters."""
    role = node.leader_role
    if role is None or record.round != role.state.round or record.parent != node.voter.hard_state.base.chain:
        return node, []
    node = replace(node, leader_role=replace(role, sealed=record))
    return _lead(node, ld.Reduced(record.round, record.chain), now)


def shard_done(node: Node, sender: str, message: ShardDone, now: float) -> Result:
    """A reducer answers."""
    role = node.leader_role
    if role is None or role.gather is None:
        return node, []
    if message.term != node.voter.term or message.round != role.gather.round:
        return node, []
    gather = ga.result(role.gather, sender, message.shard, message.result, now)
    return _gather(replace(node, leader_role=replace(role, gather=gather)), now)


def stop(node: Node, now: float) -> Result:
    """Finish the open round, then open no other."""
    return _lead(node, ld.Stop(), now)


def _lead(node: Node, event: ld.Event, now: float) -> Result:
    role = node.leader_role
    if role is None or not node.voter.leads:
        return node, []
    state, decisions = ld.step(role.state, event, now)
    node = replace(node, leader_role=replace(role, state=state))
    result: Result = (node, [])
    for decision in decisions:
        result = then(result, lambda n, at, d=decision: _carry_out(n, d, at), now)  # type: ignore[misc]
    return result


def _carry_out(node: Node, decision: ld.Action, now: float) -> Result:
    role = node.leader_role
    if role is None:
        return node, []
    match decision:
        case ld.BeginRound(round):
            reducers = _assign_reducers(node, round, {}, now)
            plan = OpenRound(round, node.voter.hard_state.base.chain, node.voter.term, 1, reducers)
            return announce(replace(node, leader_role=replace(role, plan=plan))), [
                Open(round, frozenset(role.state.members))
            ]
        case ld.Reduce(round):
            assert role.plan is not None, "a round that closes was open"
            gather = Gather(round, role.plan.nodes, now)
            return _gather(replace(node, leader_role=replace(role, gather=gather)), now)
        case ld.Propose(round):
            assert role.sealed is not None, "what is proposed was sealed"
            return node, [Propose(role.sealed)]
        case ld.Commit():
            return _closed(node), [Commit(node.voter.hard_state.base)]
        case ld.Drop(peer_id, reason):
            return node, [Drop(peer_id, reason)]
        case ld.Finish(reason):
            return announce(node), [Explain(role.state.round, ld.Phase.FINISHED.value, None, reason)]
        case ld.Explain(phase, deadline, reason):
            return node, [Explain(role.state.round, phase.value, deadline, reason)]


def _gather(node: Node, now: float) -> Result:
    role = node.leader_role
    if role is None or role.gather is None:
        return node, []
    gone = [reducer for reducer in role.gather.reducers if not _is_here(node, reducer, now)]
    gather, asks = ga.progress(role.gather, gone, now)
    node = replace(node, leader_role=replace(role, gather=gather))
    assert role.plan is not None, "a round that is gathered was open"
    actions: list[Action] = []
    for ask in asks:
        if isinstance(ask, ga.Complete):
            node = replace(node, leader_role=replace(role, gather=None))
            voters = next_voters(node.voter.voters, _serving(node, now), node.identity.first)
            return node, [Seal(gather.round, role.plan.parent, ask.results, voters)]
        admitted = frozenset(role.contacts)
        close = Close(node.voter.term, gather.round, role.plan.parent, ask.shards, admitted)
        actions.append(Send(ask.reducer, close))
    return node, actions


# --- who is here ------------------------------------------------------------------------------------------------------


def _myself(node: Node, now: float) -> MemberContact:
    identity = node.identity
    known = node.leader_role.contacts.get(node.me) if node.leader_role is not None else None
    since = known.since if known is not None else now
    return MemberContact(since, float("inf"), now, identity.incarnation, node.peer.applied, identity.trains, True)


def _with_contact(node: Node, contact: MemberContact, name: str) -> LeaderRole:
    assert node.leader_role is not None, "only a leader is called"
    before = node.leader_role.contacts
    contacts = {**before, name: contact}
    # who can be dialled seldom changes, and is asked for with every poll
    nodes = node.leader_role.nodes if name in before else _reachable(contacts)
    return replace(node.leader_role, contacts=contacts, nodes=nodes)


def _reachable(contacts: Mapping[str, MemberContact]) -> tuple[str, ...]:
    """Some who can be dialled: a peer that lost this leader can ask them for the next. The newest contacts first."""
    names = [name for name, contact in contacts.items() if contact.is_dialable]
    return tuple(sorted(sorted(names, key=lambda name: -contacts[name].since)[:MOST_NODES]))


def _is_here(node: Node, name: str, now: float) -> bool:
    if name == node.me:
        return True
    contact = node.leader_role.contacts.get(name) if node.leader_role is not None else None
    return contact is not None and contact.due > now


def _assign_reducers(node: Node, round: int, kept: dict[int, str], now: float) -> tuple[ReducerSlot, ...]:
    """Shards to those that can be dialled and lack no more than the round that was decided just now."""
    role, identity = node.leader_role, node.identity
    assert role is not None, "only a leader assigns shards"
    lives = {
        name: contact.incarnation
        for name, contact in role.contacts.items()
        if contact.is_dialable and contact.applied >= round - 2 and _is_here(node, name, now)
    }
    lives[identity.me] = identity.incarnation
    return tuple(ReducerSlot(name, lives[name]) for name in assign(identity.sizes, lives, kept))


def _move(node: Node, now: float) -> Result:
    """Shards of reducers that are gone, or were started anew, go to others while the round is open."""
    role = node.leader_role
    if role is None or role.plan is None or role.gather is not None:
        return node, []
    if role.state.phase not in (ld.Phase.TRAIN, ld.Phase.EXCHANGE):
        return node, []
    plan = role.plan
    lives = {name: contact.incarnation for name, contact in role.contacts.items()}
    lives[node.me] = node.identity.incarnation
    kept = {
        shard: slot.node
        for shard, slot in enumerate(plan.reducers)
        if _is_here(node, slot.node, now) and lives.get(slot.node) == slot.incarnation
    }
    if len(kept) == len(plan.reducers):
        return node, []
    plan = replace(plan, version=plan.version + 1, reducers=_assign_reducers(node, plan.round, kept, now))
    moved = Notify(
        f"{len(plan.reducers) - len(kept)} shards of round {plan.round} go to others: their reducers are gone."
    )
    node = announce(replace(node, leader_role=replace(role, plan=plan)))
    return then((node, [moved]), lambda n, at: _lead(n, ld.Moved(), at), now)


def _serving(node: Node, now: float) -> Sequence[str]:
    """Who can be a voter from the next round on, the longest-serving first."""
    role = node.leader_role
    assert role is not None, "only a leader proposes voters"
    base = node.voter.hard_state.base.round
    here = {
        name: contact.since
        for name, contact in role.contacts.items()
        if contact.is_dialable and contact.applied >= base and now - contact.seen < FORGET_SECONDS
    }
    here[node.me] = min(here.get(node.me, role.since), role.since)
    if now - role.since < FORGET_SECONDS:  # the others may not have found this leader yet
        here |= {voter: role.since for voter in node.voter.voters if voter not in here}
    return sorted(here, key=lambda name: (here[name], name))
