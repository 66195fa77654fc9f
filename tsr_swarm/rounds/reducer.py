"""The reducer's side of a round: which contributions count, once each, until the round closes. Pure decisions."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True, slots=True)
class ReducerState:
    """Contributions held for the open round: ``(peer_id, shard) -> tokens``."""

    round: int
    shards: int
    is_open: bool = True
    held: Mapping[tuple[str, int], int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Verdict:
    """``counted``: a candidate for the included set. ``is_new``: its bytes must be kept (a repeat changes nothing)."""

    counted: bool
    is_new: bool
    reason: str


def offer(state: ReducerState, round: int, peer_id: str, shard: int, tokens: int) -> tuple[ReducerState, Verdict]:
    """Take a contribution that has passed the gate, or say why not. A late one is never merged: see its residual."""
    if round != state.round:
        return state, Verdict(False, False, f"round {round} is not open; round {state.round} is")
    if (peer_id, shard) in state.held:
        return state, Verdict(True, False, "already here")
    if not state.is_open:
        return state, Verdict(False, False, f"round {round} has closed; the work stays in your residual")
    return replace(state, held={**state.held, (peer_id, shard): tokens}), Verdict(True, True, "in time")


def is_complete(state: ReducerState, peer_id: str) -> bool:
    """Whether every shard of this peer's contribution is here."""
    return all((peer_id, shard) in state.held for shard in range(state.shards))


def close(state: ReducerState) -> ReducerState:
    """Take nothing more."""
    return replace(state, is_open=False)


def included(state: ReducerState, shard: int, quorum: int, admitted: Collection[str] | None = None) -> frozenset[str]:
    """Peers whose contribution to ``shard`` is averaged; empty, which makes the shard void, below the quorum.

    ``admitted``: nobody else counts. None: whoever could offer was admitted.
    """
    peers = frozenset(peer for peer, held_shard in state.held if held_shard == shard)
    peers = peers if admitted is None else peers & frozenset(admitted)
    return peers if len(peers) >= quorum else frozenset()
