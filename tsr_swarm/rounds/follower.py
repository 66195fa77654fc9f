"""A node as a follower: it finds the leader, hears the news, and does what rounds/peer.py finds most urgent."""

from dataclasses import replace

from tsr_swarm.rounds import peer as pr
from tsr_swarm.rounds import raft
from tsr_swarm.rounds import raft_state as cl
from tsr_swarm.rounds.protocol import (
    Applied,
    FetchFailed,
    FetchRound,
    FetchState,
    Goodbye,
    OpenRound,
    Poll,
    Quit,
    Redirect,
    ReducerSlot,
    Restored,
    RoundUpdate,
    Send,
    Train,
    Trained,
    Upload,
    Uploaded,
    UploadFailed,
)
from tsr_swarm.rounds.raft_state import RoundRecord
from tsr_swarm.rounds.reducing import reopened
from tsr_swarm.rounds.round_phases import Phase
from tsr_swarm.rounds.state import LocalProgress, Node, Result, known_nodes

POLL_SECONDS = 5.0  # a poll that is not answered by then is taken for lost; a leader holds it for two
RETRY_SECONDS = 1.0  # between two tries of whatever did not work
UNLED_SECONDS = 20.0  # until a node that was started after the last round takes it that nobody leads any more
MOST_HOPS = 3  # from hint to hint without a rest
IDLE = (Phase.WAITING, Phase.FINISHED)

# --- the leader -----------------------------------------------------------------------------------------------------


def poll(node: Node, now: float) -> Result:
    """Ask whoever leads, or may know who does, unless an answer is being waited for."""
    tracking = node.tracking
    if node.voter.leads or node.has_quit:
        return node, []
    if tracking.asked and now >= tracking.asked_at + POLL_SECONDS:
        node = lost(node, tracking.asked, now)
        tracking = node.tracking
    others = known_nodes(node)
    known = tracking.leader or (node.voter.leader if node.voter.leader != node.me else "")  # it beats voters first
    if tracking.asked or now < tracking.next_at or not (known or others):
        return node, []
    to = known or others[tracking.turn % len(others)]
    turn = tracking.turn if known else tracking.turn + 1
    tracking = replace(tracking, asked=to, asked_at=now, turn=turn, number=tracking.number + 1)
    node = replace(node, tracking=tracking)
    return node, [Send(to, request(node))]


def request(node: Node) -> Poll:
    """What this node says of itself."""
    plan, identity = node.plan, node.identity
    has_sent = plan is not None and node.peer.trained == plan.round and not node.peer.unsent
    return Poll(
        peer=node.me,
        incarnation=identity.incarnation,
        applied=node.peer.applied,
        trains=identity.trains,
        is_dialable=identity.is_dialable,
        sent=plan.key if plan is not None and has_sent else (0, 0, 0),
        known=node.tracking.version,
        number=node.tracking.number,
    )


def poll_due(node: Node) -> float:
    """When ``poll`` has something to do."""
    tracking = node.tracking
    if node.voter.leads or node.has_quit or not (tracking.asked or tracking.leader or known_nodes(node)):
        return float("inf")
    return tracking.asked_at + POLL_SECONDS if tracking.asked else tracking.next_at


def lost(node: Node, to: str, now: float) -> Node:
    """Whom this node polled cannot be reached: somebody else may lead."""
    tracking = node.tracking
    if tracking.asked != to:
        return node
    leader = "" if tracking.leader == to else tracking.leader
    tracking = replace(tracking, leader=leader, asked="", version=0, next_at=now + RETRY_SECONDS)
    return replace(node, tracking=tracking)


def redirected(node: Node, sender: str, message: Redirect, now: float) -> Result:
    """Who was asked does not lead, but may know who does."""
    tracking = node.tracking
    if tracking.asked != sender:
        return node, []
    leader = message.leader if message.leader not in (node.me, sender) else ""
    # Two that each take the other for the leader would send this node to and fro.
    wait = 0.0 if leader and tracking.hops < MOST_HOPS else RETRY_SECONDS
    tracking = replace(tracking, leader=leader, asked="", version=0, hops=tracking.hops + 1, next_at=now + wait)
    if message.base.round <= node.peer.applied:
        return replace(node, tracking=tracking), []
    # A round stands that this node has not: it may be a voter by it, and nobody else may be left to lead.
    peer = replace(node.peer, is_member=True, committed=max(node.peer.committed, message.base.round))
    return replace(node, tracking=replace(tracking, nodes=(*message.base.voters, sender)), peer=peer), []


def heard(node: Node, sender: str, news: RoundUpdate, now: float) -> Result:
    """Take in the news of a leader; one that was overtaken has nothing to say.

    Terms count within one set of voters: after a change of voters they may begin lower. A later round is newer.
    """
    tracking = node.tracking
    if news.number < tracking.oldest:
        return node, []
    asked = "" if tracking.asked == sender else tracking.asked
    if _was_set_back(node, sender, news):
        return _guided(_set_back(node, news.base, now), news, asked, now), []
    if (news.base.round, news.term) < (tracking.round, tracking.term):
        leader = "" if tracking.leader == sender else tracking.leader
        tracking = replace(tracking, asked=asked, leader=leader, next_at=now + RETRY_SECONDS)
        return replace(node, tracking=tracking), []
    if news.term == tracking.term and news.version < tracking.version and tracking.leader == news.leader:
        return node, []  # overtaken on its way
    return _guided(node, news, asked, now), []


def _was_set_back(node: Node, sender: str, news: RoundUpdate) -> bool:
    """Whether the only voter there is has lost rounds that stood, as with a disk restored from a copy.

    Nobody else can lead, so its history is the one that goes on. Its answer to the newest poll is no old news.
    """
    alone, tracking = (node.identity.first,), node.tracking
    is_alone = alone == (sender,) == (news.leader,) == news.base.voters == node.voter.voters and node.me != sender
    return (
        is_alone and news.number == tracking.number and (news.base.round, news.term) < (tracking.round, tracking.term)
    )


def _set_back(node: Node, base: RoundRecord, now: float) -> Node:
    voter = raft.begin(node.me, cl.HardState(base), now)
    has_more = node.peer.applied > base.round
    peer = replace(node.peer, committed=base.round, open_round=0, unsent=0)
    return replace(node, voter=voter, plan=None, peer=replace(peer, needs_state=peer.needs_state or has_more))


def follow_oneself(node: Node, news: RoundUpdate, now: float) -> Node:
    """A leader hears its own news, and sends what it has sent to itself."""
    tracking = node.tracking
    if (tracking.term, tracking.version, tracking.leader) != (news.term, news.version, node.me):
        return _guided(node, news, "", now)
    return node


def _guided(node: Node, news: RoundUpdate, asked: str, now: float) -> Node:
    tracking = replace(
        node.tracking,
        leader=news.leader,
        round=news.base.round,
        term=news.term,
        version=news.version,
        asked=asked,
        next_at=now,
        hops=0,
        nodes=(*news.base.voters, *news.nodes),
        sources=news.sources,
        is_finished=news.is_finished,
    )
    return _planned(replace(node, tracking=tracking), news)


def _planned(node: Node, news: RoundUpdate) -> Node:
    is_over = news.plan is not None and news.plan.round <= max(node.peer.applied, node.voter.hard_state.base.round)
    plan = None if is_over else news.plan  # told before this node read elsewhere that the round stands
    said = pr.LeaderUpdate(
        committed=news.base.round,
        open_round=plan.round if plan else 0,
        open_parent=plan.parent if plan else "",
        is_finished=news.is_finished,
        unknown_peer=False,
    )
    node = replace(node, plan=plan, peer=replace(pr.hear(node.peer, said), is_member=True))
    if plan is None:
        return node
    if node.progress.round != plan.round:
        work = replace(node.progress, round=plan.round, sent={}, sending=frozenset(), refused=frozenset())
        node = replace(node, progress=replace(work, term=plan.term))
    elif node.progress.term != plan.term:
        sent = {shard: slot for shard, slot in node.progress.sent.items() if shard not in node.progress.refused}
        node = replace(node, progress=replace(node.progress, sent=sent, refused=frozenset(), term=plan.term))
    if node.peer.trained == plan.round > node.peer.applied and _unsent(node, plan.reducers):
        node = replace(node, peer=replace(node.peer, unsent=plan.round))  # a shard has moved
    return reopened(node, plan)


def slept(node: Node, now: float) -> Node:
    """The machine was asleep. Nothing is done about what it knew before it has heard the news."""
    tracking = replace(node.tracking, asked="", version=0, next_at=now, oldest=node.tracking.number + 1)
    peer = replace(node.peer, open_round=0, unsent=0)
    return replace(node, tracking=tracking, plan=None, peer=peer)


# --- what a peer does -------------------------------------------------------------------------------------------------


def act(node: Node, now: float) -> Result:
    """Begin what is most urgent, unless it is under way."""
    if node.has_quit:
        return node, []
    committed = max(node.peer.committed, node.voter.hard_state.base.round)
    node = replace(node, peer=replace(node.peer, committed=committed)) if committed != node.peer.committed else node
    action = pr.next_action(node.peer)
    if _has_the_end(node, action, now):
        return _quit(replace(node, tracking=replace(node.tracking, is_finished=True)), "the run has finished")
    if node.is_leaving and (_is_alone(node) or not (_has_a_round_open(node) or _finishes_a_round(action))):
        return _quit(node, "it was asked to stop")
    match action:
        case pr.FetchState():
            return _fetch(node, 0, now)
        case pr.FetchRound(round):
            return _fetch(node, round, now)
        case pr.Upload(round):
            return _upload(node, round, now)
        case pr.Train() if node.identity.trains and node.plan is not None and not node.progress.is_training:
            return replace(node, progress=replace(node.progress, is_training=True)), [Train(node.plan)]
        case pr.Quit() if not _is_needed(node, now):
            return _quit(node, "the run has finished")
        case _:
            return node, []


def _has_the_end(node: Node, action: pr.Action, now: float) -> bool:
    """Whether this node has the last round and nobody leads: who led the run to its end may be gone already.

    One that was started anew first waits for others that were, and that may lack the last round.
    """
    if not 0 < node.identity.policy.last_round <= node.peer.applied or not _is_alone(node):
        return False
    return isinstance(action, pr.Wait) or (isinstance(action, pr.Join) and now >= node.voter.contact_at + UNLED_SECONDS)


def _is_alone(node: Node) -> bool:
    return node.leader_role is None and not node.tracking.leader


def _finishes_a_round(action: pr.Action) -> bool:
    return isinstance(action, pr.FetchRound | pr.Upload)


def _has_a_round_open(node: Node) -> bool:
    """Whether there is a round that this node leads, or whose average its work may be in."""
    if node.leader_role is not None and node.voter.leads and node.leader_role.state.phase not in IDLE:
        return True
    return node.peer.trained > node.peer.applied and node.peer.trained == node.peer.open_round


def _is_needed(node: Node, now: float) -> bool:
    """After the last round a leader stays until everybody has it, and voters as long as the leader: it needs them."""
    voters, last = node.voter.voters, node.voter.hard_state.base.round
    if node.leader_role is None:
        return node.me in voters and node.tracking.leader != ""
    others = {
        name: contact for name, contact in node.leader_role.contacts.items() if name != node.me and contact.due > now
    }
    if any(name not in voters or contact.applied < last for name, contact in others.items()):
        return True
    # one that answers and has not polled this leader yet: it asks elsewhere, and would find nobody who leads any more
    return any(name not in node.leader_role.contacts for name in raft.answering(node.voter, now))


def _quit(node: Node, reason: str) -> Result:
    goodbye = [Send(node.tracking.leader, Goodbye(node.me))] if node.tracking.leader not in ("", node.me) else []
    return replace(node, has_quit=True), [*goodbye, Quit(reason)]


def _fetch(node: Node, round: int, now: float) -> Result:
    if node.progress.is_fetching or now < node.progress.retry_at:
        return node, []
    known = (node.tracking.leader, *known_nodes(node))
    donors = tuple(dict.fromkeys(donor for donor in known if donor not in ("", node.me)))
    node = replace(node, progress=replace(node.progress, is_fetching=True))
    if not round:
        return node, [FetchState(donors)]
    sources = node.tracking.sources if round == node.peer.committed else ()
    return node, [FetchRound(round, sources, donors)]


def makers(node: Node, proposal: RoundRecord) -> tuple[str, ...]:
    """By shard, who made it for this proposal of the leader that this node follows; empty where it was not told."""
    plan, proposed = node.plan, (proposal.round, proposal.parent, node.voter.term)
    return _nodes(plan) if plan is not None and (plan.round, plan.parent, plan.term) == proposed else ()


def sources(node: Node, round: int) -> tuple[str, ...]:
    """By shard, who makes it or made it, of a round that is open or is the newest that stands; empty where unknown."""
    if node.plan is not None and node.plan.round == round:
        return _nodes(node.plan)
    return node.tracking.sources if node.tracking.round == round else ()


def _nodes(plan: OpenRound) -> tuple[str, ...]:
    return plan.nodes


def _unsent(node: Node, reducers: tuple[ReducerSlot, ...]) -> list[int]:
    sent = node.progress.sent
    return [shard for shard, slot in enumerate(reducers) if sent.get(shard) != slot]


def _upload(node: Node, round: int, now: float) -> Result:
    plan = node.plan
    if plan is None or plan.round != round or now < node.progress.retry_at:
        return node, []
    due = [shard for shard in _unsent(node, plan.reducers) if shard not in node.progress.sending]
    node = replace(node, progress=replace(node.progress, sending=node.progress.sending | frozenset(due)))
    return node, [Upload(plan.term, round, shard, plan.reducers[shard]) for shard in due]


# --- what became of it ------------------------------------------------------------------------------------------------


def trained(node: Node, event: Trained) -> Result:
    """The contribution is ready; it is offered if its round is still open."""
    node = replace(node, progress=replace(node.progress, is_training=False))
    if event.is_whole and event.round > node.peer.applied:
        node = replace(node, peer=replace(node.peer, trained=event.round, unsent=event.round))
    return node, []


def uploaded(node: Node, event: Uploaded, now: float) -> Result:
    """A shard is where it belongs. When all are, the leader is told at once."""
    if event.round != node.progress.round or node.peer.trained != event.round:
        return node, []
    work = replace(node.progress, sending=node.progress.sending - {event.shard})
    if event.counted or event.term == work.term:
        work = replace(work, sent={**work.sent, event.shard: event.reducer})
    if not event.counted:
        work = replace(work, refused=work.refused | {event.shard})
    node = replace(node, progress=work)
    if node.plan is None or node.plan.round != event.round or _unsent(node, node.plan.reducers):
        return node, []
    node = replace(node, peer=replace(node.peer, unsent=0))
    return replace(node, tracking=replace(node.tracking, asked="", next_at=now)), []


def upload_failed(node: Node, event: UploadFailed, now: float) -> Result:
    """Try again in a while, if the shard still belongs there."""
    if event.round != node.progress.round:
        return node, []
    sending = node.progress.sending - {event.shard}
    return replace(node, progress=replace(node.progress, sending=sending, retry_at=now + RETRY_SECONDS)), []


def applied(node: Node, event: Applied, now: float) -> Result:
    """A round is in the weights; the voter learns that it stands."""
    record = event.record
    node = replace(node, progress=replace(node.progress, is_fetching=False))
    if record.round != node.peer.applied + 1:
        return node, []
    voter, _ = raft.step(node.voter, cl.RoundLearned(record), now)
    node = replace(node, voter=voter, peer=pr.applied(node.peer, record.round, record.chain))
    node = replace(node, contributors=event.contributors)
    if node.tracking.is_finished:  # a leader stays until everybody has the last round
        node = replace(node, tracking=replace(node.tracking, asked="", next_at=now))
    return node, []


def restored(node: Node, event: Restored, now: float) -> Result:
    """A state was downloaded. What was trained before it is void: the next news says what to do."""
    record = event.record
    work = LocalProgress(is_training=node.progress.is_training)
    voter, _ = raft.step(node.voter, cl.RoundLearned(record), now)
    node = replace(node, progress=work, voter=voter, plan=None, contributors=frozenset())
    node = replace(node, peer=pr.restored(node.peer, record.round, record.chain))
    return replace(node, tracking=replace(node.tracking, asked="", version=0, next_at=now)), []


def fetch_failed(node: Node, event: FetchFailed, now: float) -> Result:
    """Try again in a while; a round that nobody keeps is in the state."""
    peer = replace(node.peer, needs_state=True) if event.is_gone else node.peer
    work = replace(node.progress, is_fetching=False, retry_at=now + RETRY_SECONDS)
    return replace(node, peer=peer, progress=work), []
