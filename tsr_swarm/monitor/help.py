"""The command that others paste to join the run, and the help screen."""

import textwrap
from collections.abc import Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.content import Content
from textual.reactive import reactive
from textual.screen import ModalScreen
from textual.widgets import Static

from tsr_swarm.monitor.view import MUTED, NEWLINE, STRONG, TextPane, View
from tsr_swarm.telemetry.plain import Invitation

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


class InvitationLine(Static):
    """Shows the whole command, on several lines where one is too short; hidden without an invitation."""

    invitation: reactive[Invitation | None] = reactive(None)

    def watch_invitation(self) -> None:
        self.display = self.invitation is not None
        self._draw()

    def on_resize(self) -> None:
        self._draw()

    def _draw(self) -> None:
        if self.invitation is None:
            return
        label, command = self.invitation.label, self.invitation.command
        has_room = len(label) + 2 + len(command) <= self.content_region.width
        parts = [(label, MUTED), ("  ", "")] if has_room else []
        self.update(Content.assemble(*parts, (command, STRONG)))


class HelpScreen(ModalScreen[None]):
    """Explains the keys and the words on the screen."""

    BINDINGS: ClassVar[list[BindingType]] = [("escape,question_mark,q", "app.pop_screen", "Close")]

    def __init__(self, quit_note: str, invitation: Sequence[str] = ()) -> None:
        """``invitation``: what others type to join, and what has to be done before; a sentence or command each."""
        super().__init__()
        self._text = _HelpText(quit_note, invitation)

    def compose(self) -> ComposeResult:
        yield self._text


class _HelpText(TextPane):
    """Labels and their texts, as wide as there is room."""

    def __init__(self, quit_note: str, invitation: Sequence[str]) -> None:
        super().__init__(id="help")
        self._quit_note, self._invitation = quit_note, invitation
        self.border_title = "Help: Esc closes it"

    def content(self, view: View, width: int) -> Content:
        invited = [*map(Content, self._invitation), Content("")] if self._invitation else []
        labelled = (("q", f"quit. {self._quit_note}"), *_KEYS, ("", ""), *_WORDS)
        return NEWLINE.join([*invited, *(_row(label, text, width) for label, text in labelled)])


def _row(label: str, text: str, width: int) -> Content:
    """A label and its text, which goes on under its own beginning."""
    lines = ("\n" + " " * _LABEL).join(textwrap.wrap(text, max(1, width - _LABEL)))
    return Content.assemble((f"{label:<{_LABEL}}", STRONG), lines)
