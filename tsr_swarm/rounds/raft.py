"""Raft's rules for a log of rounds: who leads, and which rounds are committed. Pure functions on a Voter.

A round is committed once a majority of the voters has journaled it, in the term of one leader (Ongaro and Ousterhout,
"In search of an understandable consensus algorithm", 2014, sections 5.2 to 5.4; pre-votes: Ongaro's thesis, 9.6).
There are two departures. The log is a hash chain with at most one uncommitted record, so a voter keeps its newest
committed record and one that it has accepted. And the voters are part of each record, and decide about the next one: a
leader leads only under the voters that elected it, and when a record with other voters is committed, it stands for
election again under those. That makes any change of voters safe, also from one to three at once, where Raft changes
one voter at a time.

    follower -> (no heartbeat) -> pre-candidate -> candidate -> leader -> (a newer term, or no majority) -> follower
"""

import hashlib
from dataclasses import replace

from tsr_swarm.rounds.protocol import Notify, Send, Store
from tsr_swarm.rounds.raft_state import (
    BecomeLeader,
    CatchUp,
    HardState,
    Heartbeat,
    HeartbeatReply,
    RaftMessage,
    RaftRole,
    RoundCommitted,
    RoundRecord,
    Voter,
    VoteReply,
    VoteRequest,
    is_majority,
)

RaftAction = Send | Store | Notify | CatchUp | RoundCommitted | BecomeLeader
RaftResult = tuple[Voter, list[RaftAction]]

BEAT_SECONDS = 1.0  # between two heartbeats; each repeats what was not answered
SILENCE_SECONDS = 4.0  # a voter without a heartbeat for once to twice this long stands for election


def begin(me: str, hard_state: HardState, now: float, lost: str = "") -> Voter:
    """Make the voter of a node that starts. ``lost``: chain hash of the journaled tail, if its bytes are gone."""
    voter = Voter(me, hard_state, contact_at=now, lost=lost)
    # Alone, nobody else can lead: there is no reason to wait.
    return replace(voter, election_at=now if set(voter.voters) == {me} else now + _election_timeout(voter))


def receive(voter: Voter, sender: str, message: RaftMessage, now: float) -> RaftResult:
    """Take in a message of another voter."""
    match message:
        case VoteRequest():
            return _answer_vote_request(voter, sender, message, now)
        case VoteReply():
            return _take_vote(voter, sender, message, now)
        case Heartbeat():
            return _take_heartbeat(voter, sender, message, now)
        case HeartbeatReply():
            return _take_heartbeat_reply(voter, sender, message, now)


def tick(voter: Voter, now: float) -> RaftResult:
    """Send heartbeats, step down or stand for election, if it is time to."""
    if voter.leads:
        if not is_majority({*answering(voter, now), voter.me}, voter.voters):
            return _become_follower(voter, voter.term, now, "it is cut off from the majority of voters")
        return _send_heartbeats(voter, now) if now >= voter.beat_at else (voter, [])
    if not voter.may_campaign or now < voter.election_at:
        return voter, []
    if set(voter.voters) == {voter.me}:
        return _stand_for_election(voter, now)
    return _ask_for_pre_votes(voter, now)


def wake_at(voter: Voter) -> float:
    """Return when the next ``tick`` is due."""
    if voter.leads:
        return voter.beat_at
    return voter.election_at if voter.may_campaign else float("inf")


def answering(voter: Voter, now: float) -> set[str]:
    """Return the nodes other than this leader that have answered it lately."""
    return {node for node, at in voter.answered_at.items() if now - at < 2 * SILENCE_SECONDS} - {voter.me}


def _election_timeout(voter: Voter) -> float:
    """Return once to twice the silence, drawn from name and term, so that candidates seldom stand at the same time."""
    return SILENCE_SECONDS * (1 + _random_fraction(voter))


def _random_fraction(voter: Voter) -> float:
    digest = hashlib.blake2b(f"{voter.me}/{voter.term}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") / 2**32


def give_up_leader(voter: Voter, node: str, now: float) -> Voter:
    """Stop waiting for a leader that cannot be reached. Voters that still reach it refuse the pre-vote."""
    if voter.leads or voter.leader != node:
        return voter
    soon = now + SILENCE_SECONDS * _random_fraction(voter)
    return replace(voter, leader="", election_at=min(voter.election_at, soon))


def _ask_for_pre_votes(voter: Voter, now: float) -> RaftResult:
    """Ask whether this node would be elected. Its term moves only if so, so that a node that was cut off harms none."""
    voter = replace(voter, role=RaftRole.PRE_CANDIDATE, leader="", votes=frozenset({voter.me}))
    voter = replace(voter, election_at=now + _election_timeout(voter) / 2)  # nobody leads who could be disturbed
    request = VoteRequest(voter.term + 1, voter.me, voter.hard_state.extent, is_pre_vote=True)
    return voter, [Send(other, request) for other in _others(voter)]


def _stand_for_election(voter: Voter, now: float) -> RaftResult:
    """Begin a term, vote for oneself, and ask the others."""
    hard_state = replace(voter.hard_state, term=voter.term + 1, voted_for=voter.me)
    voter = replace(voter, hard_state=hard_state, role=RaftRole.CANDIDATE, leader="", votes=frozenset({voter.me}))
    voter = replace(voter, proposal=None, accepted=frozenset(), answered_at={})
    voter = replace(voter, election_at=now + _election_timeout(voter) / 2)
    request = VoteRequest(hard_state.term, voter.me, hard_state.extent, is_pre_vote=False)
    requests = [Send(other, request) for other in _others(voter)]
    voter, actions = _lead_if_elected(voter, now)
    return voter, [*requests, *actions]


def _answer_vote_request(voter: Voter, sender: str, request: VoteRequest, now: float) -> RaftResult:
    refusal = _refusal(voter, request, now)
    reply = VoteReply(request.term, voter.term, not refusal, request.is_pre_vote, refusal or "granted")
    if request.is_pre_vote:
        is_rival = voter.role is RaftRole.PRE_CANDIDATE and not refusal
        if is_rival and (request.extent, request.candidate) > (voter.hard_state.extent, voter.me):
            # Two candidates at once would split the votes: one of them withdraws.
            voter = replace(voter, role=RaftRole.FOLLOWER, votes=frozenset())
        return voter, [Send(sender, reply)]
    actions: list[RaftAction] = []
    if request.term > voter.term:
        voter, actions = _become_follower(voter, request.term, now, "a newer term began")
    if not refusal:
        hard_state = replace(voter.hard_state, voted_for=request.candidate)
        voter = replace(voter, hard_state=hard_state, contact_at=now, election_at=now + _election_timeout(voter))
    return voter, [*actions, Send(sender, replace(reply, voter_term=voter.term))]


def _refusal(voter: Voter, request: VoteRequest, now: float) -> str:
    """Return why this candidate does not get the vote; "" if it does."""
    hard_state = voter.hard_state
    if request.term < hard_state.term or (request.is_pre_vote and request.term == hard_state.term):
        return f"term {request.term} is over, term {hard_state.term} has begun"
    if request.extent < hard_state.extent:
        base, tail_term = hard_state.base, hard_state.tail_term
        return f"round {base.round} stands, the next was accepted in term {tail_term}: yours ends before"
    if request.is_pre_vote:
        if voter.leads or (voter.leader and now - voter.contact_at < SILENCE_SECONDS):
            return f"{voter.leader or voter.me} leads"
        return ""
    if request.term == hard_state.term and hard_state.voted_for not in ("", request.candidate):
        return f"the vote of term {request.term} went to {hard_state.voted_for}"
    return ""


def _take_vote(voter: Voter, sender: str, reply: VoteReply, now: float) -> RaftResult:
    if reply.voter_term > voter.term:
        return _become_follower(voter, reply.voter_term, now, "a newer term began")
    is_pre_vote = voter.role is RaftRole.PRE_CANDIDATE and reply.is_pre_vote and reply.term == voter.term + 1
    is_vote = voter.role is RaftRole.CANDIDATE and not reply.is_pre_vote and reply.term == voter.term
    if not reply.granted or not (is_pre_vote or is_vote):
        return voter, []
    return _lead_if_elected(replace(voter, votes=voter.votes | {sender}), now)


def _lead_if_elected(voter: Voter, now: float) -> RaftResult:
    if not is_majority(voter.votes, voter.voters):
        return voter, []
    if voter.role is RaftRole.PRE_CANDIDATE:
        return _stand_for_election(voter, now)
    voter = replace(voter, role=RaftRole.LEADER, leader=voter.me, answered_at=dict.fromkeys(voter.votes, now))
    # What this voter accepted may be committed already: it is proposed again, before anything else.
    tail = voter.hard_state.tail
    voter, actions = propose(voter, tail, now) if tail is not None else _send_heartbeats(voter, now)
    return voter, [BecomeLeader(), *actions]


def _become_follower(voter: Voter, term: int, now: float, reason: str) -> RaftResult:
    """Give up any other role, and wait for a leader of ``term``, which may be newer than this voter's."""
    actions: list[RaftAction] = [_lost_leadership(reason)] if voter.leads else []
    if term > voter.term:
        voter = replace(voter, hard_state=replace(voter.hard_state, term=term, voted_for=""))
    voter = replace(voter, role=RaftRole.FOLLOWER, leader="", votes=frozenset(), pending=None)
    voter = replace(voter, proposal=None, accepted=frozenset(), answered_at={}, contact_at=now)
    return replace(voter, election_at=now + _election_timeout(voter)), actions


def _lost_leadership(reason: str) -> Notify:
    return Notify(f"This node leads no more: {reason}.")


def _others(voter: Voter) -> list[str]:
    return [name for name in voter.voters if name != voter.me]


def propose(voter: Voter, record: RoundRecord, now: float) -> RaftResult:
    """Accept one's own record, whose bytes are stored, and ask the voters. It must follow the newest committed one."""
    if not voter.leads or not _is_next(voter, record):
        return voter, []
    hard_state = replace(voter.hard_state, tail=record, tail_term=voter.term)
    return _commit_or_ask(replace(voter, hard_state=hard_state, proposal=record, accepted=frozenset({voter.me})), now)


def _is_next(voter: Voter, record: RoundRecord) -> bool:
    base = voter.hard_state.base
    return record.round == base.round + 1 and record.parent == base.chain


def _send_heartbeats(voter: Voter, now: float) -> RaftResult:
    heartbeat = Heartbeat(voter.term, voter.hard_state.base, voter.proposal)
    voter = replace(voter, beat_at=now + BEAT_SECONDS)
    return voter, [Send(other, heartbeat) for other in _others(voter)]


def _commit_or_ask(voter: Voter, now: float) -> RaftResult:
    record, voters = voter.proposal, voter.voters
    if record is None or not is_majority(voter.accepted, voters):
        return _send_heartbeats(voter, now)
    voter = replace(voter, hard_state=_committed(voter, record), proposal=None, accepted=frozenset())
    if set(record.voters) == set(voters):
        voter, actions = _send_heartbeats(voter, now)
        return voter, [RoundCommitted(record), *actions]
    # Tell the old voters and the new what is committed, then ask the new ones to lead under them.
    heartbeat = Heartbeat(voter.term, record, None)
    told = [Send(name, heartbeat) for name in sorted({*voters, *record.voters} - {voter.me})]
    if voter.me not in record.voters:
        voter = replace(voter, role=RaftRole.FOLLOWER, leader="", contact_at=now)
        return voter, [RoundCommitted(record), *told, _lost_leadership("it is no voter any more")]
    voter, actions = _stand_for_election(voter, now)
    return voter, [RoundCommitted(record), *told, *actions]


def _committed(voter: Voter, record: RoundRecord) -> HardState:
    return replace(voter.hard_state, base=record, tail=None, tail_term=0)


def _take_heartbeat(voter: Voter, sender: str, beat: Heartbeat, now: float) -> RaftResult:
    if beat.term < voter.term:
        return voter, [Send(sender, _reply(voter, "", f"term {voter.term} has begun"))]
    actions: list[RaftAction] = []
    if beat.term > voter.term or voter.role is not RaftRole.FOLLOWER:
        if voter.leads and beat.term == voter.term:
            return voter, []  # another set of voters elected it in the same term; its records are the same or refused
        voter, actions = _become_follower(voter, beat.term, now, f"{sender} leads term {beat.term}")
    voter = replace(voter, leader=sender, contact_at=now, election_at=now + _election_timeout(voter))
    voter, more = _take_base(voter, sender, beat.base)
    actions += more
    if beat.proposal is None:
        return voter, [*actions, Send(sender, _reply(voter, "", "following"))]
    voter, more = _take_proposal(voter, sender, beat.term, beat.proposal)
    return voter, [*actions, *more]


def _take_base(voter: Voter, sender: str, base: RoundRecord) -> RaftResult:
    """Take in what the leader knows to be committed: it is what this voter accepted, or has to be fetched."""
    if base.round <= voter.hard_state.base.round:
        return voter, []
    if voter.hard_state.tail == base:
        return replace(voter, hard_state=_committed(voter, base)), [RoundCommitted(base)]
    return voter, [CatchUp(base.round + 1, sender)]


def _take_proposal(voter: Voter, sender: str, term: int, record: RoundRecord) -> RaftResult:
    base, tail = voter.hard_state.base, voter.hard_state.tail
    if record.round <= base.round:  # it is committed already
        is_same = record.round < base.round or record.chain == base.chain
        answer = (record.chain, "it stands") if is_same else ("", "another result of this round stands")
        return voter, [Send(sender, _reply(voter, *answer))]
    if not _is_next(voter, record):
        return voter, [CatchUp(record.round, sender), Send(sender, _reply(voter, "", "rounds are missing here"))]
    if tail is not None and voter.hard_state.tail_term == term:
        answer = (record.chain, "accepted") if tail == record else ("", "another result was accepted in this term")
        return voter, [Send(sender, _reply(voter, *answer))]
    # Its bytes come first: what a majority has accepted, a majority can serve.
    fetching = Send(sender, _reply(voter, "", "fetching it"))
    return replace(voter, pending=(term, record)), [Store(record, (), (sender,)), fetching]


def accept_stored(voter: Voter, record: RoundRecord) -> RaftResult:
    """Accept a record whose bytes are stored now, if the leader of this very term still proposes it."""
    if voter.pending != (voter.term, record) or voter.role is not RaftRole.FOLLOWER:
        return voter, []
    voter = replace(voter, pending=None)
    if not _is_next(voter, record):
        return voter, []
    voter = replace(voter, hard_state=replace(voter.hard_state, tail=record, tail_term=voter.term), lost="")
    if not voter.leader:  # its connection broke; its next heartbeat is answered
        return voter, []
    return voter, [Send(voter.leader, _reply(voter, record.chain, "accepted"))]


def _reply(voter: Voter, accepted: str, reason: str) -> HeartbeatReply:
    return HeartbeatReply(voter.term, voter.hard_state.base.round, accepted, reason)


def _take_heartbeat_reply(voter: Voter, sender: str, reply: HeartbeatReply, now: float) -> RaftResult:
    if reply.term > voter.term:
        return _become_follower(voter, reply.term, now, "a newer term began")
    if not voter.leads or reply.term < voter.term:
        return voter, []
    voter = replace(voter, answered_at={**voter.answered_at, sender: now})
    if voter.proposal is None or reply.accepted != voter.proposal.chain or sender in voter.accepted:
        return voter, []
    voter = replace(voter, accepted=voter.accepted | {sender})
    return _commit_or_ask(voter, now) if is_majority(voter.accepted, voter.voters) else (voter, [])


def learn(voter: Voter, record: RoundRecord, now: float) -> Voter:
    """Take in a committed record, from the log of rounds or with a state. An accepted record in its stead is void.

    A leader that learns of it has been overtaken: others lead, and maybe other voters decide.
    """
    if record.round <= voter.hard_state.base.round:
        return voter
    voter = replace(voter, hard_state=_committed(voter, record))
    if voter.role is RaftRole.FOLLOWER:
        return replace(voter, election_at=now + _election_timeout(voter))
    return _become_follower(voter, voter.term, now, "")[0]
