"""The top line: which run, what it is doing, and what everybody should know about it."""

from textual.content import Content
from textual.reactive import reactive
from textual.widget import Widget

from tsr_swarm.monitor.view import MUTED, STRONG, TROUBLE, View, cut, first_fitting
from tsr_swarm.telemetry.plain import FRAGILE
from tsr_swarm.telemetry.text import plural, seconds_text


class Headline(Widget):
    """One line."""

    view: reactive[View] = reactive(View)

    def __init__(self, title: str) -> None:
        super().__init__(id="headline")
        self._title = title

    def render(self) -> Content:
        width, view = self.size.width, self.view
        snapshot = view.snapshot
        title = "" if view.is_stale else first_fitting(width // 3, self._title, snapshot.run)
        left = [(title, STRONG), ("  ", "")] if title else []
        if view.is_frozen:
            left.append(("FROZEN (space goes on)  ", TROUBLE))
        used = sum(len(text) for text, _ in left)
        states = _states(view)
        state = first_fitting(width - used, *states) or cut(states[-1], width - used)
        is_trouble = view.is_stale or (snapshot.is_leaderless and not snapshot.is_over)
        left.append((state, TROUBLE if is_trouble else ""))
        room = width - used - len(state) - 2
        note = first_fitting(room, *_notes(view))
        return Content.assemble(*left, " " * (room + 2 - len(note)), (note, MUTED))


def _states(view: View) -> tuple[str, ...]:
    """What the run does, as far as is known; longest first."""
    snapshot, trouble = view.snapshot, view.trouble
    if snapshot.is_over:
        return (f"{snapshot.state}; q closes the screen", snapshot.state)
    if trouble is None or not view.is_stale:
        return (snapshot.state,)
    since = "" if trouble.seconds is None else f" for {seconds_text(trouble.seconds)}"
    own = f"; {snapshot.own_text}" if snapshot.own_text else ""
    last = f"; last known: {snapshot.state}" if snapshot.started is not None else ""
    text, short = f"{trouble.text}{since}", f"{trouble.short}{since}"
    return (text + own + last, text + own, short + own, *((short + last,) if not own else ()), text, short)


def _notes(view: View) -> tuple[str, ...]:
    """Who leads, and whether the run survives its loss; longest first."""
    snapshot = view.snapshot
    if not snapshot.run_id or snapshot.is_leaderless or snapshot.is_over or view.is_stale:
        return ()
    votes = plural(snapshot.voters, "voter")
    leads = f"{snapshot.leader} leads, " if snapshot.leader else ""
    if snapshot.is_safe:
        return (f"{leads}{votes}: the run survives its loss", f"{leads}{votes}", votes)
    if leads:
        return (f"{leads}{FRAGILE}", f"{leads}a single point of failure", f"{leads}no failover", "no failover")
    point = "the coordinator is a single point of failure"
    return (f"{votes}: {point}", point, "no failover: see ? help", "no failover")
