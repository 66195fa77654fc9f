"""What every part of the screen is given four times a second, and what the parts share to lay text out."""

from dataclasses import dataclass, field

from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.content import Content
from textual.reactive import reactive
from textual.widgets import Static

from tsr_swarm.monitor.sources import Outage
from tsr_swarm.telemetry.snapshot import SwarmSnapshot
from tsr_swarm.telemetry.text import seconds_text

MUTED, STRONG, ALERT = "$foreground 65%", "bold $foreground", "bold $text-error"
NEWLINE = Content("\n")


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A snapshot and the moment it is looked at, both by the run's clock."""

    snapshot: SwarmSnapshot = field(default_factory=SwarmSnapshot)
    now: float = 0.0
    outage: Outage | None = None
    is_frozen: bool = False

    @property
    def is_known(self) -> bool:
        """Whether any event of the run has arrived yet."""
        return self.snapshot.time > 0

    @property
    def is_stale(self) -> bool:
        """Whether the run may have moved on from what is shown; one that is over does not."""
        return self.outage is not None and not self.snapshot.is_over

    @property
    def as_of(self) -> str:
        """How old a stale view is; empty for a fresh one."""
        if self.outage is None or not self.is_stale:
            return ""
        return "at the end" if self.outage.seconds is None else f"{seconds_text(self.outage.seconds)} ago"


class TextPane(VerticalScroll):
    """A scrolling pane of text, written anew when what it depends on or its width has changed."""

    view: reactive[View] = reactive(View)

    def content(self, view: View, width: int) -> Content:
        """Lay out the text for ``width`` cells."""
        raise NotImplementedError

    def depends_on(self, view: View) -> tuple[object, ...]:
        """The parts of ``view`` that the text is made of; they are compared by identity."""
        return view.snapshot, view.is_stale

    def compose(self) -> ComposeResult:
        yield Static()

    def watch_view(self, before: View, view: View) -> None:
        if any(old is not new for old, new in zip(self.depends_on(before), self.depends_on(view), strict=True)):
            self.write()

    def on_resize(self) -> None:
        self.write()

    def write(self) -> None:
        """Show the text of the newest view; nothing before the pane is mounted."""
        for text in self.query(Static):
            text.update(self.content(self.view, self.scrollable_content_region.width))


def first_fitting(width: int, *variants: str) -> str:
    """The first, longest-first, of ``variants`` that fits, so that nothing is cut inside a word."""
    return next((text for text in variants if len(text) <= width), "")


def cut(text: str, width: int) -> str:
    """``text``, or as many whole words of it as fit with an ellipsis; inside a word only when there is but one."""
    if len(text) <= width:
        return text
    kept = text[: max(0, width - 1)]
    words = kept if text[len(kept)] == " " else kept.rpartition(" ")[0]
    return (words.rstrip(" ,") or kept) + "…" if width > 0 else ""


def bar(share: float, width: int) -> str:
    """A bar over ``share`` of ``width`` cells, in eighths of a cell; any share above 0 is visible."""
    eighths = max(1 if share > 0 else 0, round(min(1.0, max(0.0, share)) * width * 8))
    full, rest = divmod(eighths, 8)
    return "█" * full + (" ▏▎▍▌▋▊▉"[rest] if rest else "")


def progress(share: float, width: int) -> str:
    """A line of ``width`` cells, thick over ``share`` of it."""
    thick = round(min(1.0, max(0.0, share)) * width)
    return "━" * thick + "─" * (width - thick)
