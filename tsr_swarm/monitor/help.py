"""The help screen."""

import textwrap
from collections.abc import Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

from tsr_swarm.monitor.view import STRONG, rows_to_content

_KEYS = (
    ("c p b l", "only loss, peers, bytes or log; again or Esc: all"),
    ("Tab, arrows", "choose a pane, scroll it"),
    ("space", "freeze what you see; again to go on"),
    ("d", "dark or light"),
)
_WORDS = (
    ("held-out loss", "of the shared weights on text nobody trains on"),
    ("mean local", "mean of the peers' own losses while training"),
    ("lag", "rounds that a peer is behind the open one"),
    ("late", "its work goes out with its next payload"),
    ("dense", "what data-parallel training in fp32 would move"),
    ("overhead", "bytes the kernel counted beyond the payloads"),
    ("leads", "opens and closes the rounds; voters elect another when it is lost"),
    ("no failover", "fewer than 3 voters: who leads is a single point of failure"),
)
_LABEL = 15  # cells


class HelpScreen(ModalScreen[None]):
    """Keys, and the words on the screen."""

    BINDINGS: ClassVar[list[BindingType]] = [("escape,question_mark,q", "app.pop_screen", "Close")]

    def __init__(self, quit_note: str, invitation: Sequence[str] = ()) -> None:
        """``invitation``: what others type to join, and what has to be done before; a sentence or command each."""
        super().__init__()
        self._quit_note, self._invitation = quit_note, invitation

    def compose(self) -> ComposeResult:
        yield _HelpText(self._quit_note, self._invitation)


class _HelpText(VerticalScroll):
    """Labels and their texts, as wide as there is room."""

    def __init__(self, quit_note: str, invitation: Sequence[str]) -> None:
        super().__init__(id="help")
        self._quit_note, self._invitation = quit_note, invitation
        self.border_title = "Help: Esc closes it"

    def compose(self) -> ComposeResult:
        yield Static()

    def on_resize(self) -> None:
        width = self.scrollable_content_region.width
        self.query_one(Static).update(_content(self._quit_note, self._invitation, width))


def _content(quit_note: str, invitation: Sequence[str], width: int) -> Content:
    keys = (("q", f"quit. {quit_note}"), *_KEYS)
    invited = [*(Content(line) for line in invitation), Content("")] if invitation else []
    rows = [_row(label, text, width) for label, text in (*keys, ("", ""), *_WORDS)]
    return rows_to_content([*invited, *rows])


def _row(label: str, text: str, width: int) -> Content:
    """A label and its text, which goes on under its own beginning."""
    lines = ("\n" + " " * _LABEL).join(textwrap.wrap(text, max(1, width - _LABEL)))
    return Content.assemble((f"{label:<{_LABEL}}", STRONG), lines)
