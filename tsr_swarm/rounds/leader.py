"""A node as the leader: polls come in; rounds open, close, are gathered from their reducers and put to the voters."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from tsr_swarm.rounds import protocol
from tsr_swarm.rounds import round_phases as phases
from tsr_swarm.rounds.raft_state import RoundRecord, next_voters
from tsr_swarm.rounds.reducer import assign
from tsr_swarm.rounds.round_phases import AGAIN_SECONDS, CloseRound, Gather, LeaderState, Phase
from tsr_swarm.rounds.state import Arguments, HeldPoll, LeaderRole, MemberContact, Node, Result, then

HOLD_SECONDS = 2.0  # a poll without an update is answered after this long
SETTLE_SECONDS = 6.0  # a new leader opens no round before peers of the last one have found it, or this has passed
FORGET_SECONDS = 30.0  # a voter that has not called for this long is replaced
MOST_NODES = 8  # that everybody is told of, beside the voters


def take_over(node: Node, now: float) -> Result:
    """Begin to lead. What this node had accepted is being proposed again; else the next round opens."""
    identity, proposal = node.identity, node.voter.proposal
    before = node.leader_role  # where only the voters have changed
    round = proposal.round if proposal is not None else node.voter.hard_state.base.round
    contacts = {} if before is None else before.contacts
    state = LeaderState(
        identity.policy,
        round,
        phase=Phase.COMMIT if proposal is not None else Phase.WAITING,
        members={peer: contact.due for peer, contact in contacts.items() if contact.trains and contact.due > now},
        has_opened=round > 0,
        proposed=proposal.chain if proposal is not None else "",
        opened_at=now,
        open_after=now + SETTLE_SECONDS if round > 0 and before is None else now,
        awaited=node.contributors if node.contributors - {node.me} else frozenset(),
    )
    role = LeaderRole(state, now, contacts=contacts, nodes=_dialable(contacts))
    if before is not None:
        role = replace(role, version=before.version, sources=before.sources, held_polls=before.held_polls)
    node = replace(node, leader_role=role)
    if identity.trains:
        return _advance(_add_itself(node, now), now, phases.add_member, node.me)
    return _advance(announce(node), now, phases.tick)


def give_up(node: Node) -> Result:
    """Stop leading: whoever waits for an update must look for another leader."""
    redirect = protocol.Redirect(node.voter.term, node.voter.leader, node.voter.hard_state.base)
    return replace(node, leader_role=None), [protocol.Send(peer, redirect) for peer in sorted(_role(node).held_polls)]


def _role(node: Node) -> LeaderRole:
    assert node.leader_role is not None, "this node leads"
    return node.leader_role


def take_poll(node: Node, poll: protocol.Poll, now: float) -> Result:
    """Take in a peer's call, and answer it or hold it until there is an update."""
    role = node.leader_role
    if role is None:
        leader = node.voter.leader or node.tracking.leader
        return node, [protocol.Send(poll.peer, protocol.Redirect(node.voter.term, leader, node.voter.hard_state.base))]
    if not node.voter.leads:  # it is being elected by the new voters
        return _hold(node, poll, now), []
    known = role.contacts.get(poll.peer)
    since, due = known.since if known is not None else now, now + phases.SILENCE_SECONDS
    contact = MemberContact(since, due, now, poll.incarnation, poll.applied, poll.trains, poll.is_dialable)
    result: Result = (_with_contact(node, contact, poll.peer), [])
    if known is not None and known.incarnation != poll.incarnation:
        result = then(result, _move_shards, now)
    if poll.trains:
        change = phases.keep_member if poll.peer in role.state.members else phases.add_member
        result = then(result, _advance, now, change, poll.peer)
    result = then(result, _count_arrival, poll, now)
    return then(result, _answer, poll, now)


def _count_arrival(node: Node, poll: protocol.Poll, now: float) -> Result:
    role = node.leader_role
    if role is None or role.plan is None or poll.sent != role.plan.key:
        return node, []
    return _advance(node, now, phases.add_arrival, poll.peer, role.plan.round)


def _answer(node: Node, poll: protocol.Poll, now: float) -> Result:
    role = node.leader_role
    if role is not None and (poll.known != role.version or poll.peer == node.me):
        return node, [protocol.Send(poll.peer, replace(round_update(node), number=poll.number))]
    return _hold(node, poll, now), []


def _hold(node: Node, poll: protocol.Poll, now: float) -> Node:
    role = _role(node)
    held = HeldPoll(now + HOLD_SECONDS, poll.number)
    return replace(node, leader_role=replace(role, held_polls={**role.held_polls, poll.peer: held}))


def count_own_arrival(node: Node, now: float) -> Result:
    """Note what this leader has sent as a peer; it does not poll itself."""
    role, plan = node.leader_role, node.plan
    if role is None or role.plan is None or plan is None or plan.key != role.plan.key:
        return node, []
    if node.peer.trained != plan.round or node.peer.unsent or node.me in role.state.arrivals:
        return node, []
    return _advance(node, now, phases.add_arrival, node.me, plan.round)


def break_poll(node: Node, peer: str, now: float) -> Result:
    """Expect a peer whose held poll broke to call again soon."""
    role = node.leader_role
    if role is None or peer not in role.held_polls:
        return node, []
    held = {other: poll for other, poll in role.held_polls.items() if other != peer}
    node = replace(node, leader_role=replace(role, held_polls=held))
    if (contact := role.contacts.get(peer)) is None:
        return node, []
    contact = replace(contact, due=min(contact.due, now + phases.RETURN_SECONDS))
    return _advance(_with_contact(node, contact, peer), now, phases.disconnect, peer)


def take_goodbye(node: Node, peer: str, now: float) -> Result:
    """Forget a peer that leaves: it is no reducer and no voter any more either."""
    role = node.leader_role
    if role is None:
        return node, []
    contacts = {other: contact for other, contact in role.contacts.items() if other != peer}
    held = {other: poll for other, poll in role.held_polls.items() if other != peer}
    node = replace(node, leader_role=replace(role, contacts=contacts, held_polls=held, nodes=_dialable(contacts)))
    return then(_advance(node, now, phases.remove_member, peer, "it said goodbye"), _move_shards, now)


def round_update(node: Node) -> protocol.RoundUpdate:
    """Make what this leader tells everybody."""
    role = _role(node)
    last_round = role.state.policy.last_round
    # Peers may go after the last round. A leader that was only asked to stop has a successor.
    is_finished = role.state.phase is Phase.FINISHED and 0 < last_round <= role.state.round
    return protocol.RoundUpdate(
        term=node.voter.term,
        leader=node.me,
        version=role.version,
        base=node.voter.hard_state.base,
        sources=role.sources,
        plan=role.plan,
        nodes=role.nodes,
        is_finished=is_finished,
    )


def announce(node: Node) -> Node:
    """Begin a new version of the update; ``flush`` answers held polls with it."""
    role = _role(node)
    return replace(node, leader_role=replace(role, version=role.version + 1))


def flush(node: Node, version: int, now: float) -> Result:
    """Answer the held polls: all of them if the update is newer than ``version``, else those whose time is up."""
    role = node.leader_role
    if role is None or not node.voter.leads:
        return node, []
    is_new = role.version != version
    ready = {peer: poll for peer, poll in role.held_polls.items() if is_new or now >= poll.until}
    if not ready:
        return node, []
    held = {peer: poll for peer, poll in role.held_polls.items() if peer not in ready}
    update = round_update(node)
    answers: list[protocol.Action] = [
        protocol.Send(peer, replace(update, number=poll.number)) for peer, poll in sorted(ready.items())
    ]
    return replace(node, leader_role=replace(role, held_polls=held)), answers


def tick(node: Node, now: float) -> Result:
    """Do what is due for the round, its reducers and members that do not call any more."""
    role = node.leader_role
    if role is None or not node.voter.leads:
        return node, []
    node = replace(node, leader_role=replace(role, ticked_at=now))
    if node.identity.trains:
        result = _advance(_add_itself(node, now), now, phases.keep_member, node.me)
    else:
        result = _advance(node, now, phases.tick)
    return then(then(result, _move_shards, now), _gather, now)


def due_at(node: Node) -> float:
    """Return when ``tick`` or ``flush`` has something to do."""
    role = node.leader_role
    if role is None or not node.voter.leads:
        return float("inf")
    # What is over was done, or waits for something else than time, as a round that has no peers to open.
    over = role.ticked_at
    times = [*(poll.until for poll in role.held_polls.values()), *role.state.members.values()]
    if (deadline := phases.deadline_at(role.state)) > over:
        times.append(deadline)
    if phases.is_open(role.state):
        times.append(role.state.opened_at + role.state.policy.ceiling_seconds)
    if role.state.phase is Phase.WAITING and role.state.open_after > over:
        times.append(role.state.open_after)
    if role.gather is not None:
        times += [role.gather.deadline, role.gather.asked_at + AGAIN_SECONDS]
    return min(times, default=float("inf"))


def end_round(node: Node, record: RoundRecord, now: float) -> Result:
    if node.voter.leads:
        return _advance(node, now, phases.commit, record)
    if node.leader_role is None:
        return node, []
    return _clear_round(node), [protocol.Commit(record)]  # it names other voters, who elect first


def _clear_round(node: Node) -> Node:
    """Forget the round that is over, but for its reducers, which may be asked for its shards."""
    role = _role(node)
    sources = role.plan.nodes if role.plan is not None else ()
    return announce(replace(node, leader_role=replace(role, plan=None, gather=None, sources=sources)))


def propose(node: Node, record: RoundRecord, now: float) -> Result:
    """Put the round's result, which is on this node's disk, to the voters."""
    role = node.leader_role
    if role is None or record.round != role.state.round or record.parent != node.voter.hard_state.base.chain:
        return node, []
    return _advance(node, now, phases.propose, record)


def take_shard(node: Node, sender: str, message: protocol.ShardDone, now: float) -> Result:
    """Take in a reducer's answer."""
    role = node.leader_role
    if role is None or role.gather is None:
        return node, []
    if message.term != node.voter.term or message.round != role.gather.round:
        return node, []
    gather = phases.take_answer(role.gather, sender, message.shard, message.result, now)
    return _gather(replace(node, leader_role=replace(role, gather=gather)), now)


def stop(node: Node, now: float) -> Result:
    """Finish the open round, then open no other."""
    return _advance(node, now, phases.stop)


def _advance(
    node: Node, now: float, change: Callable[[LeaderState, float, *Arguments], phases.Outcome], *args: *Arguments
) -> Result:
    """Change the state of the rounds with a function of rounds/round_phases.py, and do what follows."""
    role = node.leader_role
    if role is None or not node.voter.leads:
        return node, []
    state, decisions = change(role.state, now, *args)
    result: Result = (replace(node, leader_role=replace(role, state=state)), [])
    for decision in decisions:
        result = then(result, _carry_out, decision, now)
    return result


def _carry_out(node: Node, decision: phases.PhaseAction, now: float) -> Result:
    role = _role(node)
    match decision:
        case protocol.Open(round):
            reducers = _assign_shards(node, round, {}, now)
            plan = protocol.OpenRound(round, node.voter.hard_state.base.chain, node.voter.term, 1, reducers)
            return announce(replace(node, leader_role=replace(role, plan=plan))), [decision]
        case CloseRound():
            assert role.plan is not None, "a round that closes was open"
            gather = Gather(role.state.round, role.plan.nodes, now)
            return _gather(replace(node, leader_role=replace(role, gather=gather)), now)
        case protocol.Commit():
            return _clear_round(node), [decision]
        case protocol.Explain(phase=Phase.FINISHED):
            return announce(node), [decision]
        case _:
            return node, [decision]


def _gather(node: Node, now: float) -> Result:
    """Ask the reducers for missing shards; seal the round when none is waited for."""
    role = node.leader_role
    if role is None or role.gather is None:
        return node, []
    gather, plan = role.gather, role.plan
    assert plan is not None, "a round that is gathered was open"
    lost = {reducer for reducer in gather.reducers if not _is_here(node, reducer, now)}
    missing = phases.missing_shards(gather, lost, now)
    if not missing:
        voters = next_voters(node.voter.voters, _longest_serving(node, now), node.identity.first)
        node = replace(node, leader_role=replace(role, gather=None))
        return node, [protocol.Seal(gather.round, plan.parent, gather.results, voters)]
    if now < gather.asked_at + AGAIN_SECONDS:
        return node, []
    node = replace(node, leader_role=replace(role, gather=replace(gather, asked_at=now)))
    term, admitted = node.voter.term, frozenset(role.contacts)
    return node, [
        protocol.Send(reducer, protocol.Close(term, gather.round, plan.parent, shards, admitted))
        for reducer, shards in missing.items()
    ]


def _add_itself(node: Node, now: float) -> Node:
    """Count this leader, which trains, among its contacts."""
    known = _role(node).contacts.get(node.me)
    since, identity = known.since if known is not None else now, node.identity
    contact = MemberContact(since, float("inf"), now, identity.incarnation, node.peer.applied, identity.trains, True)
    return _with_contact(node, contact, node.me)


def _with_contact(node: Node, contact: MemberContact, name: str) -> Node:
    role = _role(node)
    contacts = {**role.contacts, name: contact}
    # Which nodes can be dialled seldom changes, and is asked for with every poll.
    nodes = role.nodes if name in role.contacts else _dialable(contacts)
    return replace(node, leader_role=replace(role, contacts=contacts, nodes=nodes))


def _dialable(contacts: Mapping[str, MemberContact]) -> tuple[str, ...]:
    """Return some that can be dialled, the newest first: a peer that lost this leader can ask them for the next."""
    names = [name for name, contact in contacts.items() if contact.is_dialable]
    return tuple(sorted(sorted(names, key=lambda name: -contacts[name].since)[:MOST_NODES]))


def _is_here(node: Node, name: str, now: float) -> bool:
    contact = _role(node).contacts.get(name)
    return name == node.me or (contact is not None and contact.due > now)


def _assign_shards(node: Node, round: int, kept: dict[int, str], now: float) -> tuple[protocol.ReducerSlot, ...]:
    """Assign the shards to nodes that can be dialled and lack no more than the round that was committed just now."""
    role, identity = _role(node), node.identity
    incarnations = {
        name: contact.incarnation
        for name, contact in role.contacts.items()
        if contact.is_dialable and contact.applied >= round - 2 and _is_here(node, name, now)
    }
    incarnations[identity.me] = identity.incarnation
    return tuple(protocol.ReducerSlot(name, incarnations[name]) for name in assign(identity.sizes, incarnations, kept))


def _move_shards(node: Node, now: float) -> Result:
    """Assign the shards of reducers that are gone, or were started again, to others while the round is open."""
    role = node.leader_role
    if role is None or role.plan is None or role.gather is not None or not phases.is_open(role.state):
        return node, []
    plan = role.plan
    incarnations = {name: contact.incarnation for name, contact in role.contacts.items()}
    incarnations[node.me] = node.identity.incarnation
    kept = {
        shard: slot.node
        for shard, slot in enumerate(plan.reducers)
        if _is_here(node, slot.node, now) and incarnations.get(slot.node) == slot.incarnation
    }
    moved = len(plan.reducers) - len(kept)
    if not moved:
        return node, []
    plan = replace(plan, version=plan.version + 1, reducers=_assign_shards(node, plan.round, kept, now))
    text = f"{moved} shards of round {plan.round} go to others: their reducers are gone."
    node = announce(replace(node, leader_role=replace(role, plan=plan)))
    return then((node, [protocol.Notify(text)]), _advance, now, phases.clear_arrivals)


def _longest_serving(node: Node, now: float) -> Sequence[str]:
    """Return the nodes that can be voters from the next round on, the longest-serving first."""
    role = _role(node)
    base = node.voter.hard_state.base.round
    here = {
        name: contact.since
        for name, contact in role.contacts.items()
        if contact.is_dialable and contact.applied >= base and now - contact.seen < FORGET_SECONDS
    }
    here[node.me] = min(here.get(node.me, role.since), role.since)
    if now - role.since < FORGET_SECONDS:  # the others may not have found this leader yet
        here |= {name: role.since for name in node.voter.voters if name not in here}
    return sorted(here, key=lambda name: (here[name], name))
