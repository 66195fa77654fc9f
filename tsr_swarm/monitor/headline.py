"""The top line: which run, what it is doing, and what everybody should know about it."""

from textual.content import Content
from textual.reactive import reactive
from textual.widget import Widget

from tsr_swarm.monitor.view import MUTED, STRONG, TROUBLE, View, cut, first_fitting
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
        # A coordinator that is gone is no trouble once its run has finished.
        trouble = self.view.trouble if snapshot.finished is None else ""
        hint = "; q closes the screen" if snapshot.finished is not None else ""
        state = cut(trouble or snapshot.state + hint, width - used)
        left.append((state, TROUBLE if trouble else ""))
        room = width - used - len(state) - 2
        note = first_fitting(room, *_notes(snapshot))
        return Content.assemble(*left, " " * (room + 2 - len(note)), (note, MUTED))


def _notes(snapshot: SwarmSnapshot) -> tuple[str, ...]:
    """How the run survives the loss of its coordinator, longest first."""
    if not snapshot.run_id:
        return ()
    if snapshot.voters < 3:
        votes = plural(snapshot.voters, "voter")
        point = "the coordinator is a single point of failure"
        return (f"{votes}: {point}", point, "no failover: see ? help", "no failover")
    return (f"{snapshot.voters} voters: the run survives its coordinator", f"{snapshot.voters} voters")
