"""A node as a follower: it finds the leader, takes in its updates, and does what rounds/state.py finds most urgent."""

from dataclasses import replace

from tsr_swarm.rounds import protocol, raft, reducer, state
from tsr_swarm.rounds.raft_state import HardState, RoundRecord
from tsr_swarm.rounds.round_phases import Phase
from tsr_swarm.rounds.state import Activity, LocalProgress, Node, Result, known_nodes

POLL_SECONDS = 5.0  # a poll that is not answered by then is taken for lost; a leader holds it for two
RETRY_SECONDS = 1.0  # between two tries of whatever did not work
UNLED_SECONDS = 20.0  # after a start, until a node that has the last round takes it that nobody leads any more
MOST_HOPS = 3  # redirects that are followed without a pause


def poll(node: Node, now: float) -> Result:
    """Poll the leader, or a node that may know it, unless an answer is being waited for."""
    tracking = node.tracking
    if node.voter.leads or node.has_quit:
        return node, []
    if tracking.asked and now >= tracking.asked_at + POLL_SECONDS:
        node = fail_poll(node, tracking.asked, now)
        tracking = node.tracking
    others = known_nodes(node)
    known = tracking.leader or (node.voter.leader if node.voter.leader != node.me else "")  # it beats voters first
    if tracking.asked or now < tracking.next_at or not (known or others):
        return node, []
    to = known or others[tracking.turn % len(others)]
    turn = tracking.turn if known else tracking.turn + 1
    tracking = replace(tracking, asked=to, asked_at=now, turn=turn, number=tracking.number + 1)
    node = replace(node, tracking=tracking)
    return node, [protocol.Send(to, _make_poll(node))]


def _make_poll(node: Node) -> protocol.Poll:
    plan, identity = node.plan, node.identity
    has_sent = plan is not None and node.peer.trained == plan.round and not node.peer.unsent
    return protocol.Poll(
        peer=node.me,
        incarnation=identity.incarnation,
        applied=node.peer.applied,
        trains=identity.trains,
        is_dialable=identity.is_dialable,
        sent=plan.key if plan is not None and has_sent else (0, 0, 0),
        known=node.tracking.version,
        number=node.tracking.number,
    )


def poll_due_at(node: Node) -> float:
    """Return when ``poll`` has something to do."""
    tracking = node.tracking
    if node.voter.leads or node.has_quit or not (tracking.asked or tracking.leader or known_nodes(node)):
        return float("inf")
    return tracking.asked_at + POLL_SECONDS if tracking.asked else tracking.next_at


def fail_poll(node: Node, to: str, now: float) -> Node:
    """Give up a poll: the polled node cannot be reached, and another one may lead."""
    tracking = node.tracking
    if tracking.asked != to:
        return node
    leader = "" if tracking.leader == to else tracking.leader
    return replace(node, tracking=replace(tracking, leader=leader, asked="", version=0, next_at=now + RETRY_SECONDS))


def take_redirect(node: Node, sender: str, message: protocol.Redirect, now: float) -> Result:
    """Ask the node that the sender, which does not lead, takes for the leader."""
    tracking = node.tracking
    if tracking.asked != sender:
        return node, []
    leader = message.leader if message.leader not in (node.me, sender) else ""
    # Two nodes that take each other for the leader would send this one to and fro.
    wait = 0.0 if leader and tracking.hops < MOST_HOPS else RETRY_SECONDS
    tracking = replace(tracking, leader=leader, asked="", version=0, hops=tracking.hops + 1, next_at=now + wait)
    if message.base.round <= node.peer.applied:
        return replace(node, tracking=tracking), []
    # A round is committed that this node lacks: that round may make it a voter, and nobody else may be left to lead.
    peer = replace(node.peer, is_member=True, committed=max(node.peer.committed, message.base.round))
    return replace(node, tracking=replace(tracking, nodes=(*message.base.voters, sender)), peer=peer), []


def take_update(node: Node, sender: str, update: protocol.RoundUpdate, now: float) -> Result:
    """Take in the update of a leader, unless it is out of date.

    Terms count within one set of voters: after a change of voters they may begin lower. A later round is newer.
    """
    tracking = node.tracking
    if update.number < tracking.oldest:
        return node, []
    asked = "" if tracking.asked == sender else tracking.asked
    if _was_set_back(node, sender, update):
        return _follow(_set_back(node, update.base, now), update, asked, now), []
    if (update.base.round, update.term) < (tracking.round, tracking.term):
        leader = "" if tracking.leader == sender else tracking.leader
        tracking = replace(tracking, asked=asked, leader=leader, next_at=now + RETRY_SECONDS)
        return replace(node, tracking=tracking), []
    if update.term == tracking.term and update.version < tracking.version and tracking.leader == update.leader:
        return node, []  # a newer one overtook it on its way
    return _follow(node, update, asked, now), []


def _was_set_back(node: Node, sender: str, update: protocol.RoundUpdate) -> bool:
    """Return whether the only voter has lost committed rounds, as when its disk was restored from a copy.

    Nobody else can lead, so its history goes on. Its answer to the newest poll cannot be out of date.
    """
    alone, tracking = (node.identity.first,), node.tracking
    is_alone = alone == (sender,) == (update.leader,) == update.base.voters == node.voter.voters and node.me != sender
    is_older = (update.base.round, update.term) < (tracking.round, tracking.term)
    return is_alone and is_older and update.number == tracking.number


def _set_back(node: Node, base: RoundRecord, now: float) -> Node:
    needs_state = node.peer.needs_state or node.peer.applied > base.round
    peer = replace(node.peer, committed=base.round, unsent=0, needs_state=needs_state)
    return replace(node, voter=raft.begin(node.me, HardState(base), now), plan=None, peer=peer)


def follow_itself(node: Node, update: protocol.RoundUpdate, now: float) -> Node:
    """Take in the update that this node sends as the leader."""
    tracking = node.tracking
    if (tracking.term, tracking.version, tracking.leader) != (update.term, update.version, node.me):
        return _follow(node, update, "", now)
    return node


def _follow(node: Node, update: protocol.RoundUpdate, asked: str, now: float) -> Node:
    tracking = replace(
        node.tracking,
        leader=update.leader,
        round=update.base.round,
        term=update.term,
        version=update.version,
        asked=asked,
        next_at=now,
        hops=0,
        nodes=(*update.base.voters, *update.nodes),
        sources=update.sources,
    )
    # The open round may be over: this node may have read elsewhere that it is committed.
    newest = max(node.peer.applied, node.voter.hard_state.base.round)
    plan = update.plan if update.plan is not None and update.plan.round > newest else None
    peer = state.apply_update(node.peer, update.base.round, update.is_finished)
    node = replace(node, tracking=tracking, plan=plan, peer=peer)
    if plan is None:
        return node
    progress = node.progress
    if progress.round != plan.round:
        progress = replace(progress, round=plan.round, sent={}, sending=frozenset(), refused=frozenset())
    elif progress.term != plan.term:
        sent = {shard: slot for shard, slot in progress.sent.items() if shard not in progress.refused}
        progress = replace(progress, sent=sent, refused=frozenset())
    node = replace(node, progress=replace(progress, term=plan.term))
    if peer.trained == plan.round > peer.applied and _unsent_shards(node, plan.reducers):
        node = replace(node, peer=replace(peer, unsent=plan.round))  # a shard has moved
    return reducer.reopen(node, plan)


def expire_updates(node: Node, now: float) -> Node:
    """Wait for a new update before anything is done: the machine slept, and what it knew may be out of date."""
    oldest = node.tracking.number + 1
    tracking = replace(node.tracking, asked="", version=0, next_at=now, oldest=oldest)
    return replace(node, tracking=tracking, plan=None, peer=replace(node.peer, unsent=0))


def act(node: Node, now: float) -> Result:
    """Begin what is most urgent, unless it is under way."""
    if node.has_quit:
        return node, []
    committed = max(node.peer.committed, node.voter.hard_state.base.round)
    node = replace(node, peer=replace(node.peer, committed=committed)) if committed != node.peer.committed else node
    activity = state.next_activity(node.peer, node.plan)
    if _is_left_behind(node, activity, now):
        return _quit(replace(node, peer=replace(node.peer, is_finished=True)), "the run has finished")
    ends_a_round = activity in (Activity.FETCH_ROUND, Activity.UPLOAD) or _has_a_round_open(node)
    if node.is_leaving and (_is_unled(node) or not ends_a_round):
        return _quit(node, "it was asked to stop")
    match activity:
        case Activity.FETCH_STATE:
            return _fetch(node, 0, now)
        case Activity.FETCH_ROUND:
            return _fetch(node, node.peer.applied + 1, now)
        case Activity.UPLOAD:
            return _upload(node, now)
        case Activity.TRAIN if node.identity.trains and node.plan is not None and not node.progress.is_training:
            return replace(node, progress=replace(node.progress, is_training=True)), [protocol.Train(node.plan)]
        case Activity.QUIT if not _is_needed(node, now):
            return _quit(node, "the run has finished")
        case _:
            return node, []


def _is_left_behind(node: Node, activity: Activity, now: float) -> bool:
    """Return whether this node has the last round and nobody leads: the last leader may have left already.

    After a start it first waits for other nodes that were started, and that may lack the last round.
    """
    if not 0 < node.identity.policy.last_round <= node.peer.applied or not _is_unled(node):
        return False
    has_waited = node.peer.is_member or now >= node.voter.contact_at + UNLED_SECONDS
    return activity is Activity.WAIT and has_waited


def _is_unled(node: Node) -> bool:
    return node.leader_role is None and not node.tracking.leader


def _has_a_round_open(node: Node) -> bool:
    """Return whether there is a round that this node leads, or whose average its work may be in."""
    role = node.leader_role
    if role is not None and node.voter.leads and role.state.phase not in (Phase.WAITING, Phase.FINISHED):
        return True
    return node.plan is not None and node.peer.trained == node.plan.round > node.peer.applied


def _is_needed(node: Node, now: float) -> bool:
    """Return whether others need this node after the last round.

    A leader stays until everybody has the round, and voters stay as long as the leader, which needs them.
    """
    voters, last = node.voter.voters, node.voter.hard_state.base.round
    if node.leader_role is None:
        return node.me in voters and node.tracking.leader != ""
    contacts = node.leader_role.contacts
    others = {name: contact for name, contact in contacts.items() if name != node.me and contact.due > now}
    if any(name not in voters or contact.applied < last for name, contact in others.items()):
        return True
    # A voter that answers and has not polled this leader yet polls others, and would find no leader any more.
    return any(name not in contacts for name in raft.answering(node.voter, now))


def _quit(node: Node, reason: str) -> Result:
    leader = node.tracking.leader
    goodbye = [protocol.Send(leader, protocol.Goodbye(node.me))] if leader not in ("", node.me) else []
    return replace(node, has_quit=True), [*goodbye, protocol.Quit(reason)]


def _fetch(node: Node, round: int, now: float) -> Result:
    """Fetch a round; 0: a state."""
    if node.progress.is_fetching or now < node.progress.retry_at:
        return node, []
    known = (node.tracking.leader, *known_nodes(node))
    donors = tuple(dict.fromkeys(donor for donor in known if donor not in ("", node.me)))
    node = replace(node, progress=replace(node.progress, is_fetching=True))
    if not round:
        return node, [protocol.FetchState(donors)]
    return node, [protocol.FetchRound(round, node.tracking.sources if round == node.peer.committed else (), donors)]


def proposal_reducers(node: Node, proposal: RoundRecord) -> tuple[str, ...]:
    """Return by shard who reduces this proposal of the leader that this node follows; empty if it was not told."""
    plan, proposed = node.plan, (proposal.round, proposal.parent, node.voter.term)
    return plan.nodes if plan is not None and (plan.round, plan.parent, plan.term) == proposed else ()


def reducers_of(node: Node, round: int) -> tuple[str, ...]:
    """Return by shard who reduces the open round, or reduced the newest committed one; empty for any other round."""
    if node.plan is not None and node.plan.round == round:
        return node.plan.nodes
    return node.tracking.sources if node.tracking.round == round else ()


def _unsent_shards(node: Node, reducers: tuple[protocol.ReducerSlot, ...]) -> list[int]:
    sent = node.progress.sent
    return [shard for shard, slot in enumerate(reducers) if sent.get(shard) != slot]


def _upload(node: Node, now: float) -> Result:
    plan, progress = node.plan, node.progress
    if plan is None or plan.round != node.peer.unsent or now < progress.retry_at:
        return node, []
    due = [shard for shard in _unsent_shards(node, plan.reducers) if shard not in progress.sending]
    node = replace(node, progress=replace(progress, sending=progress.sending | frozenset(due)))
    return node, [protocol.Upload(plan.term, plan.round, shard, plan.reducers[shard]) for shard in due]


def end_training(node: Node, event: protocol.Trained) -> Node:
    """Offer the contribution if it is whole and its round still open."""
    node = replace(node, progress=replace(node.progress, is_training=False))
    if event.is_whole and event.round > node.peer.applied:
        node = replace(node, peer=replace(node.peer, trained=event.round, unsent=event.round))
    return node


def end_upload(node: Node, event: protocol.Uploaded, now: float) -> Node:
    """Note that a shard is with its reducer. When all are, the leader is told at once."""
    progress = node.progress
    if event.round != progress.round or node.peer.trained != event.round:
        return node
    if event.counted or event.term == progress.term:
        progress = replace(progress, sent={**progress.sent, event.shard: event.reducer})
    refused = progress.refused if event.counted else progress.refused | {event.shard}
    node = replace(node, progress=replace(progress, refused=refused, sending=progress.sending - {event.shard}))
    if node.plan is None or node.plan.round != event.round or _unsent_shards(node, node.plan.reducers):
        return node
    return _poll_at_once(replace(node, peer=replace(node.peer, unsent=0)), now)


def _poll_at_once(node: Node, now: float) -> Node:
    return replace(node, tracking=replace(node.tracking, asked="", next_at=now))


def fail_upload(node: Node, event: protocol.UploadFailed, now: float) -> Node:
    """Try again in a while, if the shard still belongs there."""
    if event.round != node.progress.round:
        return node
    sending = node.progress.sending - {event.shard}
    return replace(node, progress=replace(node.progress, sending=sending, retry_at=now + RETRY_SECONDS))


def end_apply(node: Node, event: protocol.Applied, now: float) -> Node:
    """Note that a round is in the weights; the voter learns that it is committed."""
    node = replace(node, progress=replace(node.progress, is_fetching=False))
    if event.record.round != node.peer.applied + 1:
        return node
    voter, peer = raft.learn(node.voter, event.record, now), state.apply_round(node.peer, event.record)
    node = replace(node, voter=voter, peer=peer, contributors=event.contributors)
    # A leader stays until everybody has the last round.
    return _poll_at_once(node, now) if node.peer.is_finished else node


def end_restore(node: Node, event: protocol.Restored, now: float) -> Node:
    """Note that a state was downloaded. What was trained before is void: the next update says what to do."""
    progress = LocalProgress(is_training=node.progress.is_training)
    voter, peer = raft.learn(node.voter, event.record, now), state.restore_state(node.peer, event.record)
    node = replace(node, progress=progress, voter=voter, plan=None, contributors=frozenset(), peer=peer)
    return replace(node, tracking=replace(node.tracking, asked="", version=0, next_at=now))


def fail_fetch(node: Node, event: protocol.FetchFailed, now: float) -> Node:
    """Try again in a while; a round that nobody keeps is in the state."""
    peer = replace(node.peer, needs_state=True) if event.is_gone else node.peer
    progress = replace(node.progress, is_fetching=False, retry_at=now + RETRY_SECONDS)
    return replace(node, peer=peer, progress=progress)
