"""The peer's side of a round: what it knows of the rounds, and what it should do next. Pure functions.

Training and exchange are separate activities. They meet at two points only: a published round is applied between two
rounds of training, and training starts from the newest applied round.
"""

from dataclasses import dataclass, replace
from enum import Enum, auto

from tsr_swarm.rounds.protocol import OpenRound
from tsr_swarm.rounds.raft_state import RoundRecord


@dataclass(frozen=True, slots=True)
class PeerState:
    """What a peer knows of the rounds. ``applied`` is the round that its consensus weights are at; -1: it has none."""

    applied: int = -1
    chain: str = ""  # chain hash at ``applied``
    is_member: bool = False  # of a run that somebody has told it about
    needs_state: bool = False
    committed: int = 0  # the newest round that may be fetched
    open_round: int = 0  # the round announced, 0: none
    open_parent: str = ""
    trained: int = 0  # the newest round this peer has a contribution of
    unsent: int = 0  # round of a contribution that is not uploaded yet, 0: none
    is_finished: bool = False


class Activity(Enum):
    """What a peer should do next."""

    WAIT = auto()  # for an update of the leader
    FETCH_STATE = auto()
    FETCH_ROUND = auto()  # the one after ``applied``
    UPLOAD = auto()
    TRAIN = auto()
    QUIT = auto()  # the run is over and everything published has been applied


def next_activity(state: PeerState) -> Activity:
    """Return what is most urgent. Applying what is published comes before sending, and sending before training."""
    if not state.is_member:
        return Activity.WAIT
    if state.applied < 0 or state.needs_state or _is_forked(state):
        return Activity.FETCH_STATE
    if state.committed > state.applied:
        return Activity.FETCH_ROUND
    if state.unsent and state.unsent == state.open_round:
        return Activity.UPLOAD
    if state.is_finished:
        return Activity.QUIT
    if state.open_round == state.applied + 1 and state.trained < state.open_round:
        return Activity.TRAIN
    return Activity.WAIT


def _is_forked(state: PeerState) -> bool:
    """Return whether the open round has another history than this peer, as after a coordinator lost its disk."""
    if not state.open_round:
        return False
    return state.open_round <= state.applied or (
        state.open_round == state.applied + 1 and state.open_parent != state.chain
    )


def is_stale(state: PeerState, training_round: int) -> bool:
    """Return whether training for ``training_round`` should stop early: the round has closed without this peer.

    The steps already taken are not lost; they stay in the residual and go out with the next contribution.
    """
    return state.committed >= training_round or state.needs_state or not state.is_member


def apply_update(state: PeerState, committed: int, plan: OpenRound | None, is_finished: bool) -> PeerState:
    """Take in what the leader says. It may be older than what is already known."""
    return replace(
        state,
        is_member=True,
        committed=max(state.committed, committed),
        open_round=plan.round if plan is not None else 0,
        open_parent=plan.parent if plan is not None else "",
        is_finished=is_finished,
    )


def apply_round(state: PeerState, record: RoundRecord) -> PeerState:
    """Note that a published round is in the consensus weights."""
    return replace(
        state,
        applied=record.round,
        chain=record.chain,
        committed=max(state.committed, record.round),
        open_round=0 if state.open_round <= record.round else state.open_round,  # until the next update
        unsent=0 if state.unsent <= record.round else state.unsent,
    )


def restore_state(state: PeerState, record: RoundRecord) -> PeerState:
    """Note that the consensus weights are a downloaded state, which may be older than what this peer knew of."""
    return replace(
        state,
        applied=record.round,
        chain=record.chain,
        needs_state=False,
        committed=record.round,
        open_round=0,  # until the next update
        trained=min(state.trained, record.round),
        unsent=0,
    )
