"""The peer's side of a round as a pure decision: given what it knows, what should it do next?

Training and exchange are separate activities. They meet in two places only: a published round is applied between two
rounds of training, and training starts from the newest applied round.
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class PeerState:
    """What a peer knows. ``applied`` is the round its consensus weights are at; -1: it has none yet."""

    applied: int = -1
    chain: str = ""  # chain hash at ``applied``
    is_member: bool = False
    needs_state: bool = False
    committed: int = 0  # the newest round that may be fetched
    open_round: int = 0  # the round announced, 0: none
    open_parent: str = ""
    trained: int = 0  # the newest round this peer has a contribution of
    unsent: int = 0  # round of a contribution that is not uploaded yet, 0: none
    is_finished: bool = False


@dataclass(frozen=True, slots=True)
class LeaderUpdate:
    """What the leader said last."""

    committed: int
    open_round: int
    open_parent: str
    is_finished: bool
    unknown_peer: bool


@dataclass(frozen=True, slots=True)
class Join:
    """Register with the leader."""


@dataclass(frozen=True, slots=True)
class FetchState:
    """Download the newest state."""


@dataclass(frozen=True, slots=True)
class FetchRound:
    """Fetch a published round and apply it."""

    round: int


@dataclass(frozen=True, slots=True)
class Upload:
    """Send the contribution of this round."""

    round: int


@dataclass(frozen=True, slots=True)
class Train:
    """Take the local steps of this round."""

    round: int


@dataclass(frozen=True, slots=True)
class Wait:
    """Listen for news."""


@dataclass(frozen=True, slots=True)
class Quit:
    """The run is over and everything published has been applied."""


Action = Join | FetchState | FetchRound | Upload | Train | Wait | Quit


def hear(state: PeerState, news: LeaderUpdate) -> PeerState:
    """Take in what the leader says. It may be older than what is already known."""
    return replace(
        state,
        committed=max(state.committed, news.committed),
        open_round=news.open_round,
        open_parent=news.open_parent,
        is_finished=news.is_finished,
        is_member=state.is_member and not news.unknown_peer,
    )


def next_action(state: PeerState) -> Action:
    """The most urgent thing to do. Applying what is published comes before sending, sending before training."""
    if not state.is_member:
        return Join()
    if state.applied < 0 or state.needs_state or _is_forked(state):
        return FetchState()
    if state.committed > state.applied:
        return FetchRound(state.applied + 1)
    if state.unsent and state.unsent == state.open_round:
        return Upload(state.unsent)
    if state.is_finished:
        return Quit()
    if state.open_round == state.applied + 1 and state.trained < state.open_round:
        return Train(state.open_round)
    return Wait()


def _is_forked(state: PeerState) -> bool:
    """Whether the open round builds on another history than this peer's, as after a coordinator lost its disk."""
    if not state.open_round:
        return False
    return state.open_round <= state.applied or (
        state.open_round == state.applied + 1 and state.open_parent != state.chain
    )


def is_stale(state: PeerState, training_round: int) -> bool:
    """Whether training for ``training_round`` should stop early: the round has closed without this peer.

    The steps already taken are not lost; they stay in the residual and go out with the next contribution.
    """
    return state.committed >= training_round or state.needs_state or not state.is_member


def applied(state: PeerState, round: int, chain: str) -> PeerState:
    """A published round is now in the consensus weights."""
    committed, unsent = max(state.committed, round), 0 if state.unsent <= round else state.unsent
    open_round = 0 if state.open_round <= round else state.open_round  # it is over; the next news may be on its way
    return replace(state, applied=round, chain=chain, committed=committed, open_round=open_round, unsent=unsent)


def restored(state: PeerState, round: int, chain: str) -> PeerState:
    """The consensus weights are now a downloaded state. It may be older than what this peer knew of."""
    return replace(
        state,
        applied=round,
        chain=chain,
        needs_state=False,
        committed=round,
        open_round=0,  # until the next news
        trained=min(state.trained, round),
        unsent=0,
    )
