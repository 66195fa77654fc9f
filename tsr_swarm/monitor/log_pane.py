"""The event log: what happened, newest at the bottom."""

import textwrap

from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.content import Content
from textual.reactive import reactive
from textual.widgets import Static

from tsr_swarm.monitor.view import MUTED, TROUBLE, View, rows_to_content
from tsr_swarm.telemetry.snapshot import LogLine, SwarmSnapshot

_STAMP = 9  # cells for "hhh:mm:ss"


class LogPane(VerticalScroll):
    """Stays at the newest line until it is scrolled up."""

    view: reactive[View] = reactive(View)

    def compose(self) -> ComposeResult:
        yield Static(id="log-text")

    def on_mount(self) -> None:
        self.border_title = "Events, h:mm:ss since the start"
        self.anchor()

    def watch_view(self, before: View, view: View) -> None:
        if before.snapshot.log is not view.snapshot.log:
            self._show()

    def on_resize(self) -> None:
        self._show()

    def _show(self) -> None:
        for text in self.query("#log-text").results(Static):
            text.update(log_content(self.view.snapshot, self.scrollable_content_region.width))


def log_content(snapshot: SwarmSnapshot, width: int) -> Content:
    """Each line with its time; long ones go on under their own beginning. Trouble is marked with ``!``."""
    if not snapshot.log:
        return Content.styled("Nothing has happened yet.", MUTED)
    start = snapshot.started or 0.0
    return rows_to_content([row for line in snapshot.log for row in _rows(line, start, width)])


def _rows(line: LogLine, start: float, width: int) -> list[Content]:
    mark, style = ("! ", TROUBLE) if line.is_trouble else ("  ", "")
    room = max(20, width - _STAMP - len(mark))
    head, *rest = textwrap.wrap(line.text, room) or [""]
    first = Content.assemble((f"{_elapsed(line.time - start):>{_STAMP}}", MUTED), (mark, TROUBLE), (head, style))
    return [first, *(Content.styled(" " * (_STAMP + len(mark)) + text, style) for text in rest)]


def _elapsed(seconds: float) -> str:
    whole = max(0, int(seconds))
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
