"""What a peer's own process says, beside the account of the whole swarm that its screen follows. Pure."""

from dataclasses import replace

from tsr_swarm.telemetry import events as e
from tsr_swarm.telemetry.fold import with_line
from tsr_swarm.telemetry.plain import describe, is_alert, name_of
from tsr_swarm.telemetry.snapshot import LogLine, SwarmSnapshot
from tsr_swarm.telemetry.text import clean

_WAITS = "waits for a leader"


def note_own(snapshot: SwarmSnapshot, time: float, event: e.Event) -> SwarmSnapshot:
    """Take in an event of the peer whose screen this is. What it tells of the swarm is told by the swarm already."""
    started = time if snapshot.started is None else snapshot.started
    after = _apply(replace(snapshot, started=started), event)
    text = describe(event) if _is_worth_a_line(event) else None
    if text is None:
        return after
    return with_line(after, LogLine(time=time, text=clean(f"this peer: {text}"), is_alert=is_alert(event)))


def _apply(s: SwarmSnapshot, event: e.Event) -> SwarmSnapshot:
    match event:
        case e.Joined():
            return replace(s, own_name=name_of(event.name), own_state="trains on")
        case e.RoundApplied() if s.own_state == _WAITS and event.round <= s.round:
            return s  # whom it has lost had told it of that round
        case e.StateReceived() | e.RoundApplied():
            return replace(s, own_state="trains on")
        case e.CatchingUp():
            return replace(s, own_state="catches up")
        case e.LeaderLost():
            lost = replace(s, is_leaderless=True, phase="waiting", phase_reason="", deadline=None)
            return replace(lost, own_state=_WAITS)
        case e.Left():
            return replace(s, own_end=clean(event.reason))
    return s


def _is_worth_a_line(event: e.Event) -> bool:
    """A round that its work was in is told for all peers; one that it missed concerns this one."""
    if isinstance(event, e.RoundApplied):
        return not event.included
    return isinstance(event, e.OwnEvent | e.LeaderLost | e.Warned)
