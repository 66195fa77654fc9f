"""What others type to join the run on this screen."""

from dataclasses import dataclass

from textual.content import Content
from textual.reactive import reactive
from textual.widgets import Static

from tsr_swarm.monitor.view import MUTED, STRONG


@dataclass(frozen=True, slots=True, kw_only=True)
class Invitation:
    """``command`` is the line to paste, ``label`` says who can, ``note`` what has to be done before."""

    label: str
    command: str
    note: str = ""

    @property
    def lines(self) -> list[str]:
        """As it is printed."""
        return [f"{self.label}  {self.command}", *([self.note] if self.note else [])]


class InvitationLine(Static):
    """The command, whole: where it is too long for one line it goes on in the next. Nothing without an invitation."""

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
