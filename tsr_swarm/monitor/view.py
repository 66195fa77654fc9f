"""What is handed down to every pane four times a second, and small helpers to lay text out."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from textual.content import Content

from tsr_swarm.monitor.trouble import Trouble
from tsr_swarm.telemetry.snapshot import SwarmSnapshot
from tsr_swarm.telemetry.text import seconds_text

MUTED, STRONG, TROUBLE = "$foreground 65%", "bold $foreground", "bold $text-error"
DENSE_BAR, OWN_BAR, KIND_BAR = "$error", "$success", "$foreground 40%"
HELD_OUT, LOCAL = "bold $text-accent", "$text-secondary"


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A snapshot and the moment it is looked at, both by the run's clock."""

    snapshot: SwarmSnapshot = field(default_factory=SwarmSnapshot)
    now: float = 0.0
    trouble: Trouble | None = None
    is_frozen: bool = False

    @property
    def is_known(self) -> bool:
        """Whether anybody has told of the run yet."""
        return self.snapshot.time > 0

    @property
    def is_stale(self) -> bool:
        """Whether what is shown may be so no more. Of a run that is over nothing changes."""
        return self.trouble is not None and not self.snapshot.is_over

    @property
    def as_of(self) -> str:
        """When it was so; empty: now."""
        if self.trouble is None or not self.is_stale:
            return ""
        return "at the end" if self.trouble.seconds is None else f"{seconds_text(self.trouble.seconds)} ago"


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
    """``share`` of ``width`` cells in eighths; anything above nothing shows."""
    eighths = max(1 if share > 0 else 0, round(min(1.0, max(0.0, share)) * width * 8))
    full, rest = divmod(eighths, 8)
    return "█" * full + (" ▏▎▍▌▋▊▉"[rest] if rest else "")


def progress(share: float, width: int) -> str:
    """``share`` of a line of ``width`` cells is thick."""
    thick = round(min(1.0, max(0.0, share)) * width)
    return "━" * thick + "─" * (width - thick)


def rows_to_content(rows: Sequence[Content]) -> Content:
    """Lines under each other."""
    return Content("\n").join(rows)
