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


def begin(me: str, ledger: HardState, now: float, lost: str = "") -> Voter:
    """A node as it starts, with what its journal says; ``lost``: chain hash of its tail, if its bytes are gone."""
    council = Voter(me, ledger, heard_at=now, lost=lost)
    # Alone, nobody else can lead: there is no reason to wait.
    return replace(council, stand_at=now if set(council.voters) == {me} else now + _patience(council))


def step(council: Voter, event: Event, now: float) -> Result:
    """Take in one event. The same state, event and time always give the same answer."""
    match event:
        case Received(sender, message):
            return _received(council, sender, message, now)
        case Propose(record):
            return _propose(council, record, now)
        case Stored(record):
            return _stored(council, record, now)
        case RoundLearned(record):
            return _learned(council, record, now)
        case PeerLost(node):
            return _lost(council, node, now), []
        case Tick():
            return _tick(council, now)


def _received(council: Voter, sender: str, message: Message, now: float) -> Result:
    match message:
        case VoteRequest():
            return _asked_for_vote(council, sender, message, now)
        case VoteReply():
            return _heard_vote(council, sender, message, now)
        case Heartbeat():
            return _heard_beat(council, sender, message, now)
        case HeartbeatReply():
            return _heard_answer(council, sender, message, now)


def wake_at(council: Voter) -> float:
    """When the next Tick is due."""
    if council.leads:
        return council.beat_at
    return council.stand_at if council.may_stand else float("inf")


def has_majority(council: Voter, now: float) -> bool:
    """Whether this leader has lately been answered by a majority of its voters."""
    return majority({*answering(council, now), council.me}, council.voters)


def answering(council: Voter, now: float) -> set[str]:
    """Nodes other than this leader that have answered it lately."""
    return {node for node, at in council.answers.items() if now - at < 2 * SILENCE_SECONDS} - {council.me}


# --- elections ----------------------------------------------------------------------------------------------------


def _patience(council: Voter) -> float:
    """Once to twice the silence, drawn from name and term, so that two candidates seldom meet twice."""
    return SILENCE_SECONDS * (1 + _draw(council))


def _impatience(council: Voter) -> float:
    """Between two tries, when nobody leads that could be disturbed: half of that."""
    return _patience(council) / 2


def _draw(council: Voter) -> float:
    digest = hashlib.blake2b(f"{council.me}/{council.term}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") / 2**32


def _lost(council: Voter, node: str, now: float) -> Voter:
    """A leader that cannot be reached is not waited for; whoever still hears it refuses the trial vote."""
    if council.leads or council.leader != node:
        return council
    return replace(council, leader="", stand_at=min(council.stand_at, now + SILENCE_SECONDS * _draw(council)))


def _tick(council: Voter, now: float) -> Result:
    if council.leads:
        if not has_majority(council, now):
            return _follow(council, council.term, now, "it is cut off from the majority of voters")
        return _beat(council, now) if now >= council.beat_at else (council, [])
    if not council.may_stand or now < council.stand_at:
        return council, []
    if set(council.voters) == {council.me}:
        return _stand(council, now)
    return _try(council, now)


def _try(council: Voter, now: float) -> Result:
    """Ask whether this node would be elected. Its own term moves only if so: one that was cut off disturbs nobody."""
    council = replace(council, role=RaftRole.TRIAL, leader="", granted=frozenset({council.me}))
    council = replace(council, stand_at=now + _impatience(council))
    request = VoteRequest(council.term + 1, council.me, council.ledger.extent, is_trial=True)
    return council, [Send(voter, request) for voter in _others(council)]


def _stand(council: Voter, now: float) -> Result:
    """Begin a term, vote for oneself, and ask the others."""
    ledger = replace(council.ledger, term=council.term + 1, voted_for=council.me)
    council = replace(council, ledger=ledger, role=RaftRole.CANDIDATE, leader="", granted=frozenset({council.me}))
    council = replace(council, stand_at=now + _impatience(council), proposal=None, accepted=frozenset(), answers={})
    request = VoteRequest(ledger.term, council.me, ledger.extent, is_trial=False)
    return _then(council, [Send(voter, request) for voter in _others(council)], _count, now)


def _asked_for_vote(council: Voter, sender: str, request: VoteRequest, now: float) -> Result:
    refusal = _refusal(council, request, now)
    if request.is_trial:
        reply = VoteReply(request.term, council.term, not refusal, True, refusal or "granted")
        is_rival = council.role is RaftRole.TRIAL and not refusal
        if is_rival and (request.extent, request.candidate) > (council.ledger.extent, council.me):
            # Two that stand at once would split the votes: one of them withdraws.
            council = replace(council, role=RaftRole.FOLLOWER, granted=frozenset())
        return council, [Send(sender, reply)]
    actions: list[Action] = []
    if request.term > council.term:
        council, actions = _follow(council, request.term, now, "a newer term began")
    if not refusal:
        ledger = replace(council.ledger, voted_for=request.candidate)
        council = replace(council, ledger=ledger, heard_at=now)
        council = replace(council, stand_at=now + _patience(council))
    reply = VoteReply(request.term, council.term, not refusal, False, refusal or "granted")
    return council, [*actions, Send(sender, reply)]


def _refusal(council: Voter, request: VoteRequest, now: float) -> str:
    """Why this candidate does not get the vote; "" if it does."""
    ledger = council.ledger
    if request.term < ledger.term or (request.is_trial and request.term == ledger.term):
        return f"term {request.term} is over, term {ledger.term} has begun"
    if request.extent < ledger.extent:
        return f"round {ledger.base.round} stands, the next was accepted in term {ledger.tail_term}: yours ends before"
    if request.is_trial:
        if council.leads or (council.leader and now - council.heard_at < SILENCE_SECONDS):
            return f"{council.leader or council.me} leads"
        return ""
    if request.term == ledger.term and ledger.voted_for not in ("", request.candidate):
        return f"the vote of term {request.term} went to {ledger.voted_for}"
    return ""


def _heard_vote(council: Voter, sender: str, reply: VoteReply, now: float) -> Result:
    if reply.voter_term > council.term:
        return _follow(council, reply.voter_term, now, "a newer term began")
    if not reply.granted:
        return council, []
    is_of_trial = council.role is RaftRole.TRIAL and reply.is_trial and reply.term == council.term + 1
    is_of_term = council.role is RaftRole.CANDIDATE and not reply.is_trial and reply.term == council.term
    if not (is_of_trial or is_of_term):
        return council, []
    return _count(replace(council, granted=council.granted | {sender}), now)


def _count(council: Voter, now: float) -> Result:
    if not majority(council.granted, council.voters):
        return council, []
    if council.role is RaftRole.TRIAL:
        return _stand(council, now)
    council = replace(council, role=RaftRole.LEADER, leader=council.me, answers=dict.fromkeys(council.granted, now))
    lead: list[Action] = [BecomeLeader(council.term, council.ledger.base)]
    if council.ledger.tail is not None:  # what this voter accepted may stand already: it is proposed anew, first
        return _then(council, lead, _propose_tail, now)
    return _then(council, lead, _beat, now)


def _follow(council: Voter, term: int, now: float, reason: str) -> Result:
    """Give up what one was, and wait for a leader, in a newer term if there is one."""
    actions: list[Action] = [StepDown(reason)] if council.leads else []
    if term > council.term:
        council = replace(council, ledger=replace(council.ledger, term=term, voted_for=""))
    council = replace(council, role=RaftRole.FOLLOWER, leader="", granted=frozenset(), wanted=None)
    council = replace(council, proposal=None, accepted=frozenset(), answers={}, heard_at=now)
    return replace(council, stand_at=now + _patience(council)), actions


def _others(council: Voter) -> list[str]:
    return [voter for voter in council.voters if voter != council.me]


# --- the log ------------------------------------------------------------------------------------------------------


def _propose_tail(council: Voter, now: float) -> Result:
    tail = council.ledger.tail
    assert tail is not None, "checked"
    return _propose(council, tail, now)


def _propose(council: Voter, record: RoundRecord, now: float) -> Result:
    """Accept one's own record and ask the voters. One that does not follow the newest decided is not proposed."""
    ledger = council.ledger
    if not council.leads or record.round != ledger.base.round + 1 or record.parent != ledger.base.chain:
        return council, []
    ledger = replace(ledger, tail=record, tail_term=ledger.term)
    council = replace(council, ledger=ledger, proposal=record, accepted=frozenset({council.me}))
    return _decide(council, now)


def _beat(council: Voter, now: float) -> Result:
    beat = Heartbeat(council.term, council.ledger.base, council.proposal)
    council = replace(council, beat_at=now + BEAT_SECONDS)
    return council, [Send(voter, beat) for voter in _others(council)]


def _decide(council: Voter, now: float) -> Result:
    record, voters = council.proposal, council.voters
    if record is None or not majority(council.accepted, voters):
        return _beat(council, now)
    ledger = replace(council.ledger, base=record, tail=None, tail_term=0)
    council = replace(council, ledger=ledger, proposal=None, accepted=frozenset())
    actions: list[Action] = [RoundCommitted(record)]
    if set(record.voters) == set(voters):
        return _then(council, actions, _beat, now)
    # Tell the old voters and the new what stands, then ask the new ones to lead under them.
    beat = Heartbeat(council.term, record, None)
    told = [Send(voter, beat) for voter in sorted({*voters, *record.voters} - {council.me})]
    if council.me not in record.voters:
        actions += [*told, StepDown("it is no voter any more")]
        return replace(council, role=RaftRole.FOLLOWER, leader="", heard_at=now), actions
    actions += [*told, StepDown("the voters change")]
    return _then(council, actions, _stand, now)


def _heard_beat(council: Voter, sender: str, beat: Heartbeat, now: float) -> Result:
    if beat.term < council.term:
        reply = HeartbeatReply(council.term, council.ledger.base.round, "", f"term {council.term} has begun")
        return council, [Send(sender, reply)]
    actions: list[Action] = []
    if beat.term > council.term or council.role is not RaftRole.FOLLOWER:
        if council.leads and beat.term == council.term:
            return council, []  # another set of voters elected it in the same term; its records are the same or refused
        council, actions = _follow(council, beat.term, now, f"{sender} leads term {beat.term}")
    council = replace(council, leader=sender, heard_at=now, stand_at=now + _patience(council))
    council, more = _take_base(council, sender, beat.base)
    actions += more
    if beat.proposal is None:
        return council, [*actions, Send(sender, _answer(council, "", "following"))]
    council, more = _take_proposal(council, sender, beat.term, beat.proposal)
    return council, [*actions, *more]


def _take_base(council: Voter, sender: str, base: RoundRecord) -> Result:
    """What the leader knows to stand. It may be what this voter accepted; else it is fetched first."""
    ledger = council.ledger
    if base.round <= ledger.base.round:
        return council, []
    if ledger.tail == base:
        ledger = replace(ledger, base=base, tail=None, tail_term=0)
        return replace(council, ledger=ledger), [RoundCommitted(base)]
    return council, [CatchUp(base.round + 1, sender)]


def _take_proposal(council: Voter, sender: str, term: int, record: RoundRecord) -> Result:
    ledger = council.ledger
    if record.round <= ledger.base.round:  # it stands already
        is_same = record.round < ledger.base.round or record.chain == ledger.base.chain
        chain, reason = (record.chain, "it stands") if is_same else ("", "another result of this round stands")
        return council, [Send(sender, _answer(council, chain, reason))]
    if record.parent != ledger.base.chain or record.round != ledger.base.round + 1:
        return council, [CatchUp(record.round, sender), Send(sender, _answer(council, "", "rounds are missing here"))]
    if ledger.tail is not None and ledger.tail_term == term:
        is_same = ledger.tail == record
        chain, reason = (record.chain, "accepted") if is_same else ("", "another result was accepted in this term")
        return council, [Send(sender, _answer(council, chain, reason))]
    # its bytes first: what a majority has accepted, a majority can serve
    return replace(council, wanted=(term, record)), [
        Store(record, sender),
        Send(sender, _answer(council, "", "fetching it")),
    ]


def _stored(council: Voter, record: RoundRecord, now: float) -> Result:
    """Accept what the leader of this very term still proposes."""
    ledger = council.ledger
    is_wanted = council.wanted == (council.term, record) and council.role is RaftRole.FOLLOWER
    council = replace(council, wanted=None) if is_wanted else council
    if not is_wanted or record.parent != ledger.base.chain or record.round != ledger.base.round + 1:
        return council, []
    ledger = replace(ledger, tail=record, tail_term=council.term)
    council = replace(council, ledger=ledger, lost="")
    if not council.leader:  # the line to it broke; its next beat is answered
        return council, []
    return council, [Send(council.leader, _answer(council, record.chain, "accepted"))]


def _answer(council: Voter, accepted: str, reason: str) -> HeartbeatReply:
    return HeartbeatReply(council.term, council.ledger.base.round, accepted, reason)


def _heard_answer(council: Voter, sender: str, reply: HeartbeatReply, now: float) -> Result:
    if reply.term > council.term:
        return _follow(council, reply.term, now, "a newer term began")
    if not council.leads or reply.term < council.term:
        return council, []
    council = replace(council, answers={**council.answers, sender: now})
    if council.proposal is None or reply.accepted != council.proposal.chain or sender in council.accepted:
        return council, []
    council = replace(council, accepted=council.accepted | {sender})
    return _decide(council, now) if majority(council.accepted, council.voters) else (council, [])


def _learned(council: Voter, record: RoundRecord, now: float) -> Result:
    """A record that stands, from the log of rounds or with a state. What was promised in its place is void.

    A leader that learns of it has been overtaken: others lead, and maybe other voters decide.
    """
    ledger = council.ledger
    if record.round <= ledger.base.round:
        return council, []
    council = replace(council, ledger=replace(ledger, base=record, tail=None, tail_term=0))
    if council.role is not RaftRole.FOLLOWER:
        return _follow(council, council.term, now, f"it learned that round {record.round} stands")
    return replace(council, stand_at=now + _patience(council)), []


def _then(council: Voter, actions: Sequence[Action], more: Callable[[Voter, float], Result], now: float) -> Result:
    council, rest = more(council, now)
    return council, [*actions, *rest]
