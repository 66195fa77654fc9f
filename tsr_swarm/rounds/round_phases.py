"""The leader's side of a round as a pure state machine: ``step(state, event, now) -> (state, actions)``.

    WAITING -> TRAIN -> EXCHANGE -> COMMIT -> (next round's) TRAIN ... -> FINISHED

The leader opens rounds, decides when one closes, and has its result proposed to the voters (rounds/raft_state.py
decides whether it stands). It touches no tensor, socket or clock. ``now`` is any clock that never runs backwards, in
seconds.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from tsr_swarm.rounds.deadlines import DeadlinePolicy, Decision, decide

SILENCE_SECONDS = 12.0  # a peer unheard for this long is taken for gone; it calls every two seconds
RETURN_SECONDS = 3.0  # a peer whose connection broke has this long to call again
MOST_DOUBLINGS = 4  # a peer that misses round after round is waited for in every 16th at last


class Phase(StrEnum):
    """Where the run is; the words of the wire and of the screen."""

    WAITING = "waiting"
    TRAIN = "train"
    EXCHANGE = "exchange"
    COMMIT = "commit"
    FINISHED = "finished"


@dataclass(frozen=True, slots=True)
class LeaderPolicy:
    """What the configuration says about rounds."""

    deadlines: DeadlinePolicy
    min_peers: int
    last_round: int  # 0: no end


@dataclass(frozen=True, slots=True)
class LeaderState:
    """Everything the leader knows. ``round`` is the open round, or the last committed one between rounds."""

    policy: LeaderPolicy
    round: int
    phase: Phase = Phase.WAITING
    members: Mapping[str, float] = field(default_factory=dict)  # peer_id -> the time by which it must be heard
    expected: frozenset[str] = frozenset()  # whom the open round waits for
    misses: Mapping[str, int] = field(default_factory=dict)  # peer_id -> rounds in a row that waited for it in vain
    arrivals: Mapping[str, float] = field(default_factory=dict)  # peer_id -> seconds after the round opened
    opened_at: float = 0.0
    has_opened: bool = False  # any round yet
    decision: Decision | None = None
    proposed: str = ""  # chain hash
    stands: bool = False  # what was proposed
    open_after: float = 0.0  # no round opens before: after a change of leaders peers need time to find the new one
    awaited: frozenset[str] = frozenset()  # but once all of these are here nobody need wait; empty: not known
    is_stopping: bool = False


# --- events -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Joined:
    peer_id: str


@dataclass(frozen=True, slots=True)
class Heard:
    peer_id: str


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The peer's connection broke; it may call again."""

    peer_id: str


@dataclass(frozen=True, slots=True)
class Left:
    peer_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Arrived:
    """Every shard of this peer's contribution is with its reducer."""

    peer_id: str
    round: int


@dataclass(frozen=True, slots=True)
class Reduced:
    """All shards of the round are reduced or void; ``chain`` names the result."""

    round: int
    chain: str


@dataclass(frozen=True, slots=True)
class Moved:
    """Shards of the open round went to other reducers: who had sent everything may have to send some of it again."""


@dataclass(frozen=True, slots=True)
class Decided:
    """A majority of the voters has journaled this result."""

    round: int
    chain: str


@dataclass(frozen=True, slots=True)
class Stop:
    """Finish the open round, then open no other."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event = Joined | Heard | Disconnected | Left | Arrived | Moved | Reduced | Decided | Stop | Tick

# --- actions ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BeginRound:
    """Announce this round."""

    round: int


@dataclass(frozen=True, slots=True)
class Reduce:
    """Take no further payload for this round; average what is there; answer with Reduced."""

    round: int
    reason: str


@dataclass(frozen=True, slots=True)
class Propose:
    """Ask every voter to journal this result."""

    round: int
    chain: str


@dataclass(frozen=True, slots=True)
class Commit:
    """A majority has journaled it: publish, apply, and let peers fetch it."""

    round: int
    chain: str


@dataclass(frozen=True, slots=True)
class Drop:
    """This peer is no longer a member."""

    peer_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Finish:
    """The run is over."""

    reason: str


@dataclass(frozen=True, slots=True)
class Explain:
    """The phase, the deadline or its reason changed; ``deadline`` is seconds from now, or None when there is none."""

    phase: Phase
    deadline: float | None
    reason: str


Action = BeginRound | Reduce | Propose | Commit | Drop | Finish | Explain


def step(state: LeaderState, event: Event, now: float) -> tuple[LeaderState, list[Action]]:
    """Take in one event. The same state, event and time always give the same answer."""
    state, actions = _take_in(state, event, now)
    state, silent = _drop_silent(state, now)
    state, progress = _progress(state, now)
    return state, [*actions, *silent, *progress]


def _take_in(state: LeaderState, event: Event, now: float) -> tuple[LeaderState, list[Action]]:
    match event:
        case Joined(peer_id):
            # A newcomer trains on the open round too if it is in time, but nobody waits for it.
            return replace(state, members={**state.members, peer_id: now + SILENCE_SECONDS}), []
        case Heard(peer_id) if peer_id in state.members:
            return replace(state, members={**state.members, peer_id: now + SILENCE_SECONDS}), []
        case Disconnected(peer_id) if peer_id in state.members:
            due = min(state.members[peer_id], now + RETURN_SECONDS)
            return replace(state, members={**state.members, peer_id: due}), []
        case Left(peer_id, reason) if peer_id in state.members:
            return _drop(state, peer_id, reason)
        case Arrived(peer_id, round) if _is_open(state, round) and peer_id not in state.arrivals:
            arrivals = {**state.arrivals, peer_id: now - state.opened_at}
            misses = {peer: count for peer, count in state.misses.items() if peer != peer_id}
            return replace(state, arrivals=arrivals, misses=misses, phase=Phase.EXCHANGE), []
        case Reduced(round, chain) if state.phase is Phase.COMMIT and round == state.round and not state.proposed:
            return replace(state, proposed=chain), [Propose(round, chain)]
        case Moved() if state.phase in (Phase.TRAIN, Phase.EXCHANGE):
            return replace(state, arrivals={}), []
        case Decided(round, chain) if state.phase is Phase.COMMIT and (round, chain) == (state.round, state.proposed):
            return replace(state, stands=True), []
        case Stop():
            return replace(state, is_stopping=True), []
        case _:
            return state, []


def _drop(state: LeaderState, peer_id: str, reason: str) -> tuple[LeaderState, list[Action]]:
    members = {peer: due for peer, due in state.members.items() if peer != peer_id}
    misses = {peer: count for peer, count in state.misses.items() if peer != peer_id}
    return replace(state, members=members, misses=misses, expected=state.expected - {peer_id}), [Drop(peer_id, reason)]


def _drop_silent(state: LeaderState, now: float) -> tuple[LeaderState, list[Action]]:
    actions: list[Action] = []
    for peer_id in [peer for peer, due in state.members.items() if now >= due]:
        state, dropped = _drop(state, peer_id, "its connection broke or it fell silent")
        actions += dropped
    return state, actions


def _is_open(state: LeaderState, round: int) -> bool:
    return state.phase in (Phase.TRAIN, Phase.EXCHANGE) and round == state.round


def _progress(state: LeaderState, now: float) -> tuple[LeaderState, list[Action]]:
    """Move on as far as the state allows; each move may allow the next."""
    actions: list[Action] = []
    if state.phase is Phase.COMMIT and state.stands:
        actions.append(Commit(state.round, state.proposed))
        state = replace(state, phase=Phase.WAITING, expected=frozenset(), arrivals={}, decision=None)
        state = replace(state, proposed="", stands=False)
    if state.phase is Phase.WAITING:
        return _between_rounds(state, now, actions)
    if state.phase in (Phase.TRAIN, Phase.EXCHANGE):
        return _close_if_due(state, now, actions)
    return state, actions


def _between_rounds(state: LeaderState, now: float, actions: list[Action]) -> tuple[LeaderState, list[Action]]:
    if state.is_stopping:
        return replace(state, phase=Phase.FINISHED), [*actions, Finish("it was asked to stop")]
    if state.policy.last_round and state.round >= state.policy.last_round:
        return replace(state, phase=Phase.FINISHED), [*actions, Finish(f"round {state.round} was the last")]
    # min_peers is for the first round of this leader; below the quorum no round could close.
    needed = max(state.policy.deadlines.quorum, 1 if state.has_opened else state.policy.min_peers)
    if len(state.members) < needed:
        reason = f"{len(state.members)} of {needed} peers are here"
        return _explain(state, Decision(close=False, deadline=0.0, reason=reason), None, actions)
    if now < state.open_after and not (state.awaited and state.awaited <= state.members.keys()):
        wait = Decision(close=False, deadline=0.0, reason="peers look for the new leader")
        return _explain(state, wait, None, actions)
    state = replace(state, phase=Phase.TRAIN, round=state.round + 1, opened_at=now, has_opened=True)
    state = replace(state, expected=_waited_for(state))
    return state, [*actions, BeginRound(state.round)]


def _waited_for(state: LeaderState) -> frozenset[str]:
    """A peer that is always late costs the others their patience in ever fewer rounds, and is never given up.

    One that was late by chance is waited for in the next round, as before. One that is a little slower than the rest
    is in time whenever it is waited for.
    """
    patient = {peer for peer in state.members if state.round % 2 ** _doublings(state, peer) == 0}
    return frozenset(patient or state.members)


def _doublings(state: LeaderState, peer: str) -> int:
    return min(max(0, state.misses.get(peer, 0) - 1), MOST_DOUBLINGS)


def _close_if_due(state: LeaderState, now: float, actions: list[Action]) -> tuple[LeaderState, list[Action]]:
    if not state.members and not state.arrivals:
        if state.is_stopping:
            return replace(state, phase=Phase.FINISHED), [*actions, Finish("it was asked to stop")]
        # Everybody left: the round stays open, and its ceiling starts anew when somebody comes back.
        idle = Decision(close=False, deadline=0.0, reason="no peer is here")
        return _explain(replace(state, opened_at=now), idle, None, actions)
    expected = state.expected or frozenset(state.members)
    decision = decide(now - state.opened_at, expected, state.arrivals, state.policy.deadlines)
    others = len((state.misses.keys() & state.members.keys()) - expected - state.arrivals.keys())
    if others and len(state.arrivals) >= state.policy.deadlines.quorum:
        slow = f"{decision.reason}; {others} that missed rounds before are not waited for"
        decision = replace(decision, reason=slow)
    if decision.close:
        missed = {peer: state.misses.get(peer, 0) + 1 for peer in expected - state.arrivals.keys()}
        state = replace(state, phase=Phase.COMMIT, decision=decision, misses={**state.misses, **missed})
        return state, [*actions, Reduce(state.round, decision.reason), Explain(Phase.COMMIT, None, decision.reason)]
    return _explain(state, decision, state.opened_at + decision.deadline - now, actions)


def _explain(
    state: LeaderState, decision: Decision, remaining: float | None, actions: list[Action]
) -> tuple[LeaderState, list[Action]]:
    """Say so when what people see of the round has changed."""
    if state.decision == decision:
        return state, actions
    return replace(state, decision=decision), [*actions, Explain(state.phase, remaining, decision.reason)]


def deadline_at(state: LeaderState) -> float | None:
    """When the open round closes at the latest, as known now."""
    if state.decision is None or state.phase not in (Phase.TRAIN, Phase.EXCHANGE):
        return None
    return state.opened_at + state.decision.deadline
