"""The event log: what happened, newest at the bottom."""

import textwrap

from textual.content import Content

from tsr_swarm.monitor.view import ALERT, MUTED, TextPane, View, join_rows
from tsr_swarm.telemetry.snapshot import LogLine

_STAMP = 9  # cells for "hhh:mm:ss"


class LogPane(TextPane):
    """Stays at the newest line until it is scrolled up."""

    def on_mount(self) -> None:
        self.border_title = "Events, h:mm:ss since the start"
        self.anchor()

    def depends_on(self, view: View) -> tuple[object, ...]:
        return (view.snapshot.log,)

    def content(self, view: View, width: int) -> Content:
        """Each line with its time; long ones go on under their own beginning."""
        if not view.snapshot.log:
            return Content.styled("Nothing has happened yet.", MUTED)
        start = view.snapshot.started or 0.0
        return join_rows([row for line in view.snapshot.log for row in _rows(line, start, width)])


def _rows(line: LogLine, start: float, width: int) -> list[Content]:
    """One line, wrapped. An alert is marked with ``!``, not only by its colour."""
    mark, style = ("! ", ALERT) if line.is_alert else ("  ", "")
    room = max(20, width - _STAMP - len(mark))
    head, *rest = textwrap.wrap(line.text, room) or [""]
    first = Content.assemble((f"{_elapsed(line.time - start):>{_STAMP}}", MUTED), (mark, ALERT), (head, style))
    return [first, *(Content.styled(" " * (_STAMP + len(mark)) + text, style) for text in rest)]


def _elapsed(seconds: float) -> str:
    whole = max(0, int(seconds))
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
