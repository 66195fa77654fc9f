"""The phases of a round, as its leader decides on them: pure functions ``(state, now, ...) -> (state, actions)``.

    WAITING -> TRAIN -> EXCHANGE -> COMMIT -> (next round's) TRAIN ... -> FINISHED

The leader opens rounds, decides when one closes, and has its result proposed to the voters (rounds/raft.py decides
whether it is committed). ``now`` is any clock that never runs backwards, in seconds.

The deadline of a round follows the arrivals: once half of the expected contributions are here, the rest have as long
again as the arrivals suggest. Nobody waits for a peer that is far slower than the others; its work is not lost, since
it stays in that peer's residual.

The leader then tells every reducer to close its shards, and collects the average of each. The shards of a reducer that
does not answer in time are void: the work in them stays in the residuals of the peers.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from statistics import median

from tsr_swarm.rounds.protocol import Commit, Drop, Explain, Open, Propose, ShardDigest
from tsr_swarm.rounds.raft_state import RoundRecord

SILENCE_SECONDS = 12.0  # a peer that has not called for this long is taken for gone; it calls every two seconds
RETURN_SECONDS = 3.0  # a peer whose connection broke has this long to call again
MOST_DOUBLINGS = 4  # a peer that is late round after round is waited for in every 16th at last
SPREAD = 5.0  # grace in median absolute deviations of the arrivals ...
SHARE = 0.5  # ... or as a share of the median arrival, whichever is longer
AGAIN_SECONDS = 1.0  # a reducer that has not answered is asked again
PATIENCE_SECONDS = 5.0  # for a reducer, beyond three times what the quickest half needed


class Phase(StrEnum):
    """Where the run is; the words of the wire and of the screen."""

    WAITING = "waiting"
    TRAIN = "train"
    EXCHANGE = "exchange"
    COMMIT = "commit"
    FINISHED = "finished"


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundPolicy:
    """What the run's configuration says about rounds."""

    quorum: int
    floor_seconds: float  # shortest grace for late contributions
    ceiling_seconds: float  # longest round
    min_peers: int  # before the first round opens
    last_round: int  # 0: no end


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether to close the round, its deadline in seconds after it opened, and the reason, for people."""

    close: bool
    deadline: float
    reason: str


@dataclass(frozen=True, slots=True)
class LeaderState:
    """What a leader knows of its rounds. ``round`` is the open one, or between rounds the last committed one."""

    policy: RoundPolicy
    round: int
    phase: Phase = Phase.WAITING
    members: Mapping[str, float] = field(default_factory=dict)  # peer -> the time by which it must call
    expected: frozenset[str] = frozenset()  # whom the open round waits for
    late_rounds: Mapping[str, int] = field(default_factory=dict)  # peer -> rounds in a row that waited for it in vain
    arrivals: Mapping[str, float] = field(default_factory=dict)  # peer -> seconds after the round opened
    opened_at: float = 0.0
    has_opened: bool = False  # any round yet
    decision: Decision | None = None  # the newest, of the open round
    proposed: str = ""  # chain hash of the result that was put to the voters
    open_after: float = 0.0  # no round opens before: after a change of leaders peers need time to find the new one
    awaited: frozenset[str] = frozenset()  # but once all of these are here nobody need wait; empty: not known
    is_stopping: bool = False


@dataclass(frozen=True, slots=True)
class CloseRound:
    """The leader's decision to take no further contribution for the open round, and to have it averaged."""


PhaseAction = Open | CloseRound | Propose | Commit | Drop | Explain
Outcome = tuple[LeaderState, list[PhaseAction]]


def add_member(state: LeaderState, now: float, peer: str) -> Outcome:
    """Take in a peer that calls. A newcomer may be in the open round too if it is in time, but nobody waits for it."""
    return tick(replace(state, members={**state.members, peer: now + SILENCE_SECONDS}), now)


def keep_member(state: LeaderState, now: float, peer: str) -> Outcome:
    """Give a member that calls more time, unless it was dropped."""
    return add_member(state, now, peer) if peer in state.members else tick(state, now)


def disconnect(state: LeaderState, now: float, peer: str) -> Outcome:
    """Note that a peer's connection broke. It has a short time to call again."""
    if peer in state.members:
        due = min(state.members[peer], now + RETURN_SECONDS)
        state = replace(state, members={**state.members, peer: due})
    return tick(state, now)


def remove_member(state: LeaderState, now: float, peer: str, reason: str) -> Outcome:
    """Take out a peer that leaves."""
    if peer not in state.members:
        return tick(state, now)
    state, dropped = _drop(state, peer, reason)
    state, actions = tick(state, now)
    return state, [dropped, *actions]


def add_arrival(state: LeaderState, now: float, peer: str, round: int) -> Outcome:
    """Note that every shard of this peer's contribution to ``round`` is with its reducer."""
    if is_open(state) and round == state.round and peer not in state.arrivals:
        arrivals = {**state.arrivals, peer: now - state.opened_at}
        state = replace(state, arrivals=arrivals, late_rounds=_without(state.late_rounds, peer), phase=Phase.EXCHANGE)
    return tick(state, now)


def clear_arrivals(state: LeaderState, now: float) -> Outcome:
    """Note that shards have gone to other reducers: peers that had sent everything may have to send some again."""
    return tick(replace(state, arrivals={}) if is_open(state) else state, now)


def propose(state: LeaderState, now: float, record: RoundRecord) -> Outcome:
    """Put the result of the closed round to the voters, once."""
    if state.phase is not Phase.COMMIT or record.round != state.round or state.proposed:
        return tick(state, now)
    state, actions = tick(replace(state, proposed=record.chain), now)
    return state, [Propose(record), *actions]


def commit(state: LeaderState, now: float, record: RoundRecord) -> Outcome:
    """End the round: a majority of the voters has journaled this result."""
    if state.phase is not Phase.COMMIT or (record.round, record.chain) != (state.round, state.proposed):
        return tick(state, now)
    state, dropped = _drop_silent(state, now)
    state = replace(state, phase=Phase.WAITING, expected=frozenset(), arrivals={}, decision=None, proposed="")
    state, actions = tick(state, now)
    return state, [*dropped, Commit(record), *actions]


def stop(state: LeaderState, now: float) -> Outcome:
    """Finish the open round, then open no other."""
    return tick(replace(state, is_stopping=True), now)


def tick(state: LeaderState, now: float) -> Outcome:
    """Drop members that do not call any more, then move on as far as the state allows."""
    state, dropped = _drop_silent(state, now)
    if state.phase is Phase.WAITING:
        state, actions = _open_if_ready(state, now)
    elif is_open(state):
        state, actions = _close_if_due(state, now)
    else:
        actions = []
    return state, [*dropped, *actions]


def is_open(state: LeaderState) -> bool:
    """Return whether there is a round that takes contributions."""
    return state.phase in (Phase.TRAIN, Phase.EXCHANGE)


def deadline_at(state: LeaderState) -> float:
    """Return when the open round closes at the latest, as known now; infinity if none is open."""
    if state.decision is None or not is_open(state):
        return float("inf")
    return state.opened_at + state.decision.deadline


def decide(elapsed: float, expected: Collection[str], arrivals: Mapping[str, float], policy: RoundPolicy) -> Decision:
    """Decide whether to close a round that opened ``elapsed`` seconds ago.

    expected: peers whose contribution is waited for. arrivals: seconds from the opening to each contribution, also of
    peers that left since.
    """
    missing = [peer for peer in expected if peer not in arrivals]
    here, wanted, ceiling = len(arrivals), len(arrivals) + len(missing), policy.ceiling_seconds
    waiting = f"waiting for {len(missing)} of {wanted}"
    if elapsed >= ceiling:
        return Decision(True, ceiling, f"the ceiling was reached with {here} here")
    if here < policy.quorum:
        return Decision(False, ceiling, f"{here} of a quorum of {policy.quorum} here")
    if not missing:
        return Decision(True, elapsed, f"all {here} payloads are here")
    if 2 * here < wanted:
        return Decision(False, ceiling, waiting)
    middle = median(arrivals.values())
    deviation = median(abs(offset - middle) for offset in arrivals.values())
    # The last arrival plus a grace that grows with how long, and how unevenly, the others took.
    deadline = max(arrivals.values()) + max(policy.floor_seconds, SPREAD * deviation, SHARE * middle)
    deadline = min(ceiling, deadline)
    if elapsed >= deadline:
        return Decision(True, deadline, f"{len(missing)} of {wanted} missed the deadline")
    return Decision(False, deadline, waiting)


def _without(counts: Mapping[str, int], peer: str) -> dict[str, int]:
    return {other: count for other, count in counts.items() if other != peer}


def _drop(state: LeaderState, peer: str, reason: str) -> tuple[LeaderState, Drop]:
    members = {other: due for other, due in state.members.items() if other != peer}
    state = replace(state, members=members, late_rounds=_without(state.late_rounds, peer))
    return replace(state, expected=state.expected - {peer}), Drop(peer, reason)


def _drop_silent(state: LeaderState, now: float) -> Outcome:
    actions: list[PhaseAction] = []
    for peer in [peer for peer, due in state.members.items() if now >= due]:
        state, dropped = _drop(state, peer, "its connection broke or it fell silent")
        actions.append(dropped)
    return state, actions


def _open_if_ready(state: LeaderState, now: float) -> Outcome:
    if state.is_stopping:
        return _finish(state, "it was asked to stop")
    if state.policy.last_round and state.round >= state.policy.last_round:
        return _finish(state, f"round {state.round} was the last")
    # min_peers is for the first round of this leader; below the quorum no round could close.
    needed = max(state.policy.quorum, 1 if state.has_opened else state.policy.min_peers)
    if len(state.members) < needed:
        return _explain(state, Decision(False, 0.0, f"{len(state.members)} of {needed} peers are here"), None)
    if now < state.open_after and not (state.awaited and state.awaited <= state.members.keys()):
        return _explain(state, Decision(False, 0.0, "peers look for the new leader"), None)
    state = replace(state, phase=Phase.TRAIN, round=state.round + 1, opened_at=now, has_opened=True)
    state = replace(state, expected=_choose_expected(state))
    return state, [Open(state.round, frozenset(state.members))]


def _choose_expected(state: LeaderState) -> frozenset[str]:
    """Choose whom the round waits for: in ever fewer rounds for a peer that is always late, and never not at all.

    A peer that was late once is waited for in the next round, as before. A peer that is a little slower than the rest
    is in time whenever it is waited for.
    """
    doublings = {peer: min(max(0, count - 1), MOST_DOUBLINGS) for peer, count in state.late_rounds.items()}
    waited_for = {peer for peer in state.members if state.round % 2 ** doublings.get(peer, 0) == 0}
    return frozenset(waited_for or state.members)


def _close_if_due(state: LeaderState, now: float) -> Outcome:
    if not state.members and not state.arrivals:
        if state.is_stopping:
            return _finish(state, "it was asked to stop")
        # Everybody left: the round stays open, and its ceiling starts anew when somebody comes back.
        return _explain(replace(state, opened_at=now), Decision(False, 0.0, "no peer is here"), None)
    expected = state.expected or frozenset(state.members)
    decision = decide(now - state.opened_at, expected, state.arrivals, state.policy)
    others = len((state.late_rounds.keys() & state.members.keys()) - expected - state.arrivals.keys())
    if others and len(state.arrivals) >= state.policy.quorum:
        slow = f"{decision.reason}; {others} that missed rounds before are not waited for"
        decision = replace(decision, reason=slow)
    if not decision.close:
        return _explain(state, decision, state.opened_at + decision.deadline - now)
    late = {peer: state.late_rounds.get(peer, 0) + 1 for peer in expected - state.arrivals.keys()}
    state = replace(state, phase=Phase.COMMIT, decision=decision, late_rounds={**state.late_rounds, **late})
    return state, [CloseRound(), Explain(state.round, state.phase.value, None, decision.reason)]


def _finish(state: LeaderState, reason: str) -> Outcome:
    state = replace(state, phase=Phase.FINISHED)
    return state, [Explain(state.round, state.phase.value, None, reason)]


def _explain(state: LeaderState, decision: Decision, remaining: float | None) -> Outcome:
    """Tell people if what they see of the round has changed. ``remaining``: seconds until it closes."""
    if state.decision == decision:
        return state, []
    explanation = Explain(state.round, state.phase.value, remaining, decision.reason)
    return replace(state, decision=decision), [explanation]


@dataclass(frozen=True, slots=True)
class Gather:
    """The shards of one closed round, as far as they were answered."""

    round: int
    reducers: tuple[str, ...]  # by shard
    closed_at: float
    asked_at: float = float("-inf")
    answers: Mapping[int, ShardDigest] = field(default_factory=dict)  # by shard
    delays: tuple[float, ...] = ()  # seconds from closing to each answer

    @property
    def deadline(self) -> float:
        """When shards without an answer are given up."""
        if 2 * len(self.delays) < len(self.reducers):
            return self.closed_at + 2 * PATIENCE_SECONDS
        middle = sorted(self.delays)[(len(self.delays) - 1) // 2]
        return self.closed_at + PATIENCE_SECONDS + 3 * middle

    @property
    def results(self) -> tuple[ShardDigest, ...]:
        """By shard; void where there is no answer."""
        return tuple(self.answers.get(shard, ShardDigest()) for shard in range(len(self.reducers)))


def take_answer(gather: Gather, sender: str, shard: int, result: ShardDigest, now: float) -> Gather:
    """Take in a reducer's answer; one of another reducer, or a second one, changes nothing."""
    is_asked = 0 <= shard < len(gather.reducers) and gather.reducers[shard] == sender
    if not is_asked or shard in gather.answers:
        return gather
    return replace(gather, answers={**gather.answers, shard: result}, delays=(*gather.delays, now - gather.closed_at))


def missing_shards(gather: Gather, lost: Collection[str], now: float) -> dict[str, tuple[int, ...]]:
    """Return the shards that are still waited for, by reducer. ``lost``: reducers that are known to be gone."""
    missing: dict[str, tuple[int, ...]] = {}
    if now < gather.deadline:
        for shard, reducer in enumerate(gather.reducers):
            if shard not in gather.answers and reducer not in lost:
                missing[reducer] = (*missing.get(reducer, ()), shard)
    return dict(sorted(missing.items()))
