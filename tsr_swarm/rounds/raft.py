"""Who leads, and which rounds stand: Raft's rules for a log of rounds, of which one at a time is undecided. Pure.

A round stands once a majority of the voters has accepted it, journaled, in the term of one leader (Ongaro and
Ousterhout, "In search of an understandable consensus algorithm", 2014, sections 5.2 to 5.4; trial votes: Ongaro's
thesis, 9.6). Departures: the log is a chain, so a voter keeps its newest decided record and one that is accepted but
undecided; and the voters are part of each record and decide about what follows it. A leader leads only under the
voters that elected it: once a record with other voters stands, it stands for election again, under those. That makes
any change of voters safe, from one to three at once too, where Raft changes one at a time.

    follower -> (silence) -> trial -> candidate -> leader -> (a newer term, or no majority answers) -> follower
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace

from tsr_swarm.rounds.raft_state import (
    Action,
    BecomeLeader,
    CatchUp,
    Event,
    HardState,
    Heartbeat,
    HeartbeatReply,
    Message,
    PeerLost,
    Propose,
    RaftRole,
    Received,
    Result,
    RoundCommitted,
    RoundLearned,
    RoundRecord,
    Send,
    StepDown,
    Store,
    Stored,
    Tick,
    Voter,
    VoteReply,
    VoteRequest,
    majority,
)

BEAT_SECONDS = 1.0  # a leader is heard from this often; what is not answered is said again
SILENCE_SECONDS = 4.0  # a voter that hears no leader for once to twice this long stands for election


def begin(me: str, hard_state: HardState, now: float, lost: str = "") -> Voter:
    """A node as it starts, with what its journal says; ``lost``: chain hash of its tail, if its bytes are gone."""
    voter = Voter(me, hard_state, contact_at=now, lost=lost)
    # Alone, nobody else can lead: there is no reason to wait.
    return replace(voter, election_at=now if set(voter.voters) == {me} else now + _patience(voter))


def step(voter: Voter, event: Event, now: float) -> Result:
    """Take in one event. The same state, event and time always give the same answer."""
    match event:
        case Received(sender, message):
            return _received(voter, sender, message, now)
        case Propose(record):
            return _propose(voter, record, now)
        case Stored(record):
            return _stored(voter, record, now)
        case RoundLearned(record):
            return _learned(voter, record, now)
        case PeerLost(node):
            return _lost(voter, node, now), []
        case Tick():
            return _tick(voter, now)


def _received(voter: Voter, sender: str, message: Message, now: float) -> Result:
    match message:
        case VoteRequest():
            return _asked_for_vote(voter, sender, message, now)
        case VoteReply():
            return _heard_vote(voter, sender, message, now)
        case Heartbeat():
            return _heard_beat(voter, sender, message, now)
        case HeartbeatReply():
            return _heard_answer(voter, sender, message, now)


def wake_at(voter: Voter) -> float:
    """When the next Tick is due."""
    if voter.leads:
        return voter.beat_at
    return voter.election_at if voter.may_campaign else float("inf")


def has_majority(voter: Voter, now: float) -> bool:
    """Whether this leader has lately been answered by a majority of its voters."""
    return majority({*answering(voter, now), voter.me}, voter.voters)


def answering(voter: Voter, now: float) -> set[str]:
    """Nodes other than this leader that have answered it lately."""
    return {node for node, at in voter.answers.items() if now - at < 2 * SILENCE_SECONDS} - {voter.me}


# --- elections ----------------------------------------------------------------------------------------------------


def _patience(voter: Voter) -> float:
    """Once to twice the silence, drawn from name and term, so that two candidates seldom meet twice."""
    return SILENCE_SECONDS * (1 + _draw(voter))


def _impatience(voter: Voter) -> float:
    """Between two tries, when nobody leads that could be disturbed: half of that."""
    return _patience(voter) / 2


def _draw(voter: Voter) -> float:
    digest = hashlib.blake2b(f"{voter.me}/{voter.term}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") / 2**32


def _lost(voter: Voter, node: str, now: float) -> Voter:
    """A leader that cannot be reached is not waited for; whoever still hears it refuses the trial vote."""
    if voter.leads or voter.leader != node:
        return voter
    return replace(voter, leader="", election_at=min(voter.election_at, now + SILENCE_SECONDS * _draw(voter)))


def _tick(voter: Voter, now: float) -> Result:
    if voter.leads:
        if not has_majority(voter, now):
            return _follow(voter, voter.term, now, "it is cut off from the majority of voters")
        return _beat(voter, now) if now >= voter.beat_at else (voter, [])
    if not voter.may_campaign or now < voter.election_at:
        return voter, []
    if set(voter.voters) == {voter.me}:
        return _stand(voter, now)
    return _try(voter, now)


def _try(voter: Voter, now: float) -> Result:
    """Ask whether this node would be elected. Its own term moves only if so: one that was cut off disturbs nobody."""
    voter = replace(voter, role=RaftRole.PRE_CANDIDATE, leader="", granted=frozenset({voter.me}))
    voter = replace(voter, election_at=now + _impatience(voter))
    request = VoteRequest(voter.term + 1, voter.me, voter.hard_state.extent, is_pre_vote=True)
    return voter, [Send(voter, request) for voter in _others(voter)]


def _stand(voter: Voter, now: float) -> Result:
    """Begin a term, vote for oneself, and ask the others."""
    hard_state = replace(voter.hard_state, term=voter.term + 1, voted_for=voter.me)
    voter = replace(voter, hard_state=hard_state, role=RaftRole.CANDIDATE, leader="", granted=frozenset({voter.me}))
    voter = replace(voter, election_at=now + _impatience(voter), proposal=None, accepted=frozenset(), answers={})
    request = VoteRequest(hard_state.term, voter.me, hard_state.extent, is_pre_vote=False)
    return _then(voter, [Send(voter, request) for voter in _others(voter)], _count, now)


def _asked_for_vote(voter: Voter, sender: str, request: VoteRequest, now: float) -> Result:
    refusal = _refusal(voter, request, now)
    if request.is_pre_vote:
        reply = VoteReply(request.term, voter.term, not refusal, True, refusal or "granted")
        is_rival = voter.role is RaftRole.PRE_CANDIDATE and not refusal
        if is_rival and (request.extent, request.candidate) > (voter.hard_state.extent, voter.me):
            # Two that stand at once would split the votes: one of them withdraws.
            voter = replace(voter, role=RaftRole.FOLLOWER, granted=frozenset())
        return voter, [Send(sender, reply)]
    actions: list[Action] = []
    if request.term > voter.term:
        voter, actions = _follow(voter, request.term, now, "a newer term began")
    if not refusal:
        hard_state = replace(voter.hard_state, voted_for=request.candidate)
        voter = replace(voter, hard_state=hard_state, contact_at=now)
        voter = replace(voter, election_at=now + _patience(voter))
    reply = VoteReply(request.term, voter.term, not refusal, False, refusal or "granted")
    return voter, [*actions, Send(sender, reply)]


def _refusal(voter: Voter, request: VoteRequest, now: float) -> str:
    """Why this candidate does not get the vote; "" if it does."""
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


def _heard_vote(voter: Voter, sender: str, reply: VoteReply, now: float) -> Result:
    if reply.voter_term > voter.term:
        return _follow(voter, reply.voter_term, now, "a newer term began")
    if not reply.granted:
        return voter, []
    is_of_trial = voter.role is RaftRole.PRE_CANDIDATE and reply.is_pre_vote and reply.term == voter.term + 1
    is_of_term = voter.role is RaftRole.CANDIDATE and not reply.is_pre_vote and reply.term == voter.term
    if not (is_of_trial or is_of_term):
        return voter, []
    return _count(replace(voter, granted=voter.granted | {sender}), now)


def _count(voter: Voter, now: float) -> Result:
    if not majority(voter.granted, voter.voters):
        return voter, []
    if voter.role is RaftRole.PRE_CANDIDATE:
        return _stand(voter, now)
    voter = replace(voter, role=RaftRole.LEADER, leader=voter.me, answers=dict.fromkeys(voter.granted, now))
    lead: list[Action] = [BecomeLeader(voter.term, voter.hard_state.base)]
    if voter.hard_state.tail is not None:  # what this voter accepted may stand already: it is proposed anew, first
        return _then(voter, lead, _propose_tail, now)
    return _then(voter, lead, _beat, now)


def _follow(voter: Voter, term: int, now: float, reason: str) -> Result:
    """Give up what one was, and wait for a leader, in a newer term if there is one."""
    actions: list[Action] = [StepDown(reason)] if voter.leads else []
    if term > voter.term:
        voter = replace(voter, hard_state=replace(voter.hard_state, term=term, voted_for=""))
    voter = replace(voter, role=RaftRole.FOLLOWER, leader="", granted=frozenset(), wanted=None)
    voter = replace(voter, proposal=None, accepted=frozenset(), answers={}, contact_at=now)
    return replace(voter, election_at=now + _patience(voter)), actions


def _others(voter: Voter) -> list[str]:
    return [name for name in voter.voters if name != voter.me]


# --- the log ------------------------------------------------------------------------------------------------------


def _propose_tail(voter: Voter, now: float) -> Result:
    tail = voter.hard_state.tail
    assert tail is not None, "checked"
    return _propose(voter, tail, now)


def _propose(voter: Voter, record: RoundRecord, now: float) -> Result:
    """Accept one's own record and ask the voters. One that does not follow the newest decided is not proposed."""
    hard_state = voter.hard_state
    if not voter.leads or record.round != hard_state.base.round + 1 or record.parent != hard_state.base.chain:
        return voter, []
    hard_state = replace(hard_state, tail=record, tail_term=hard_state.term)
    voter = replace(voter, hard_state=hard_state, proposal=record, accepted=frozenset({voter.me}))
    return _decide(voter, now)


def _beat(voter: Voter, now: float) -> Result:
    beat = Heartbeat(voter.term, voter.hard_state.base, voter.proposal)
    voter = replace(voter, beat_at=now + BEAT_SECONDS)
    return voter, [Send(voter, beat) for voter in _others(voter)]


def _decide(voter: Voter, now: float) -> Result:
    record, voters = voter.proposal, voter.voters
    if record is None or not majority(voter.accepted, voters):
        return _beat(voter, now)
    hard_state = replace(voter.hard_state, base=record, tail=None, tail_term=0)
    voter = replace(voter, hard_state=hard_state, proposal=None, accepted=frozenset())
    actions: list[Action] = [RoundCommitted(record)]
    if set(record.voters) == set(voters):
        return _then(voter, actions, _beat, now)
    # Tell the old voters and the new what stands, then ask the new ones to lead under them.
    beat = Heartbeat(voter.term, record, None)
    told = [Send(voter, beat) for voter in sorted({*voters, *record.voters} - {voter.me})]
    if voter.me not in record.voters:
        actions += [*told, StepDown("it is no voter any more")]
        return replace(voter, role=RaftRole.FOLLOWER, leader="", contact_at=now), actions
    actions += [*told, StepDown("the voters change")]
    return _then(voter, actions, _stand, now)


def _heard_beat(voter: Voter, sender: str, beat: Heartbeat, now: float) -> Result:
    if beat.term < voter.term:
        reply = HeartbeatReply(voter.term, voter.hard_state.base.round, "", f"term {voter.term} has begun")
        return voter, [Send(sender, reply)]
    actions: list[Action] = []
    if beat.term > voter.term or voter.role is not RaftRole.FOLLOWER:
        if voter.leads and beat.term == voter.term:
            return voter, []  # another set of voters elected it in the same term; its records are the same or refused
        voter, actions = _follow(voter, beat.term, now, f"{sender} leads term {beat.term}")
    voter = replace(voter, leader=sender, contact_at=now, election_at=now + _patience(voter))
    voter, more = _take_base(voter, sender, beat.base)
    actions += more
    if beat.proposal is None:
        return voter, [*actions, Send(sender, _answer(voter, "", "following"))]
    voter, more = _take_proposal(voter, sender, beat.term, beat.proposal)
    return voter, [*actions, *more]


def _take_base(voter: Voter, sender: str, base: RoundRecord) -> Result:
    """What the leader knows to stand. It may be what this voter accepted; else it is fetched first."""
    hard_state = voter.hard_state
    if base.round <= hard_state.base.round:
        return voter, []
    if hard_state.tail == base:
        hard_state = replace(hard_state, base=base, tail=None, tail_term=0)
        return replace(voter, hard_state=hard_state), [RoundCommitted(base)]
    return voter, [CatchUp(base.round + 1, sender)]


def _take_proposal(voter: Voter, sender: str, term: int, record: RoundRecord) -> Result:
    hard_state = voter.hard_state
    if record.round <= hard_state.base.round:  # it stands already
        is_same = record.round < hard_state.base.round or record.chain == hard_state.base.chain
        chain, reason = (record.chain, "it stands") if is_same else ("", "another result of this round stands")
        return voter, [Send(sender, _answer(voter, chain, reason))]
    if record.parent != hard_state.base.chain or record.round != hard_state.base.round + 1:
        return voter, [CatchUp(record.round, sender), Send(sender, _answer(voter, "", "rounds are missing here"))]
    if hard_state.tail is not None and hard_state.tail_term == term:
        is_same = hard_state.tail == record
        chain, reason = (record.chain, "accepted") if is_same else ("", "another result was accepted in this term")
        return voter, [Send(sender, _answer(voter, chain, reason))]
    # its bytes first: what a majority has accepted, a majority can serve
    return replace(voter, wanted=(term, record)), [
        Store(record, sender),
        Send(sender, _answer(voter, "", "fetching it")),
    ]


def _stored(voter: Voter, record: RoundRecord, now: float) -> Result:
    """Accept what the leader of this very term still proposes."""
    hard_state = voter.hard_state
    is_wanted = voter.wanted == (voter.term, record) and voter.role is RaftRole.FOLLOWER
    voter = replace(voter, wanted=None) if is_wanted else voter
    if not is_wanted or record.parent != hard_state.base.chain or record.round != hard_state.base.round + 1:
        return voter, []
    hard_state = replace(hard_state, tail=record, tail_term=voter.term)
    voter = replace(voter, hard_state=hard_state, lost="")
    if not voter.leader:  # the line to it broke; its next beat is answered
        return voter, []
    return voter, [Send(voter.leader, _answer(voter, record.chain, "accepted"))]


def _answer(voter: Voter, accepted: str, reason: str) -> HeartbeatReply:
    return HeartbeatReply(voter.term, voter.hard_state.base.round, accepted, reason)


def _heard_answer(voter: Voter, sender: str, reply: HeartbeatReply, now: float) -> Result:
    if reply.term > voter.term:
        return _follow(voter, reply.term, now, "a newer term began")
    if not voter.leads or reply.term < voter.term:
        return voter, []
    voter = replace(voter, answers={**voter.answers, sender: now})
    if voter.proposal is None or reply.accepted != voter.proposal.chain or sender in voter.accepted:
        return voter, []
    voter = replace(voter, accepted=voter.accepted | {sender})
    return _decide(voter, now) if majority(voter.accepted, voter.voters) else (voter, [])


def _learned(voter: Voter, record: RoundRecord, now: float) -> Result:
    """A record that stands, from the log of rounds or with a state. What was promised in its place is void.

    A leader that learns of it has been overtaken: others lead, and maybe other voters decide.
    """
    hard_state = voter.hard_state
    if record.round <= hard_state.base.round:
        return voter, []
    voter = replace(voter, hard_state=replace(hard_state, base=record, tail=None, tail_term=0))
    if voter.role is not RaftRole.FOLLOWER:
        return _follow(voter, voter.term, now, f"it learned that round {record.round} stands")
    return replace(voter, election_at=now + _patience(voter)), []


def _then(voter: Voter, actions: Sequence[Action], more: Callable[[Voter, float], Result], now: float) -> Result:
    voter, rest = more(voter, now)
    return voter, [*actions, *rest]
