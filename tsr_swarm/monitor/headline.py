"""The top line: which run, what it is doing, and what everybody should know about it."""

from textual.content import Content
from textual.reactive import reactive
from textual.widget import Widget

from tsr_swarm.monitor.view import MUTED, STRONG, TROUBLE, View, cut, first_fitting
from tsr_swarm.telemetry.plain import FRAGILE
from tsr_swarm.telemetry.snapshot import SwarmSnapshot
from tsr_swarm.telemetry.text import plural


class Headline(Widget):
    """One line."""

    view: reactive[View] = reactive(View)

    def __init__(self, title: str) -> None:
        super().__init__(id="headline")
        self._title = title

    def render(self) -> Content:
        width = self.size.width
        snapshot = self.view.snapshot
        title = first_fitting(width // 3, self._title, snapshot.run)
        left = [(title, STRONG), ("  ", "")] if title else []
        if self.view.is_frozen:
            left.append(("FROZEN (space goes on)  ", TROUBLE))
        used = sum(len(text) for text, _ in left)
        # Whoever is gone is no trouble once the run has finished.
        is_over = snapshot.finished is not None
        trouble = "" if is_over else self.view.trouble
        is_trouble = not is_over and (bool(trouble) or snapshot.is_leaderless)
        hint = "; q closes the screen" if is_over else ""
        state = cut(trouble or snapshot.state + hint, width - used)
        left.append((state, TROUBLE if is_trouble else ""))
        room = width - used - len(state) - 2
        note = first_fitting(room, *_notes(snapshot))
        return Content.assemble(*left, " " * (room + 2 - len(note)), (note, MUTED))


def _notes(snapshot: SwarmSnapshot) -> tuple[str, ...]:
    """Who leads, and whether the run survives its loss; longest first."""
    if not snapshot.run_id or snapshot.is_leaderless:
        return ()
    votes = plural(snapshot.voters, "voter")
    leads = f"{snapshot.leader} leads, " if snapshot.leader else ""
    if snapshot.is_safe:
        return (f"{leads}{votes}: the run survives its loss", f"{leads}{votes}", votes)
    if leads:
        return (f"{leads}{FRAGILE}", f"{leads}a single point of failure", f"{leads}no failover", "no failover")
    point = "the coordinator is a single point of failure"
    return (f"{votes}: {point}", point, "no failover: see ? help", "no failover")
