"""Text for people: units, and names from other machines made harmless."""

import math
import unicodedata

NAME_LENGTH = 32
LINE_LENGTH = 400
REASON_LENGTH = 200  # of what a library says, which may quote whole messages
# Control, format (bidirectional overrides, zero width), surrogate, private, unassigned; line and paragraph separators.
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def clean(text: str, limit: int = LINE_LENGTH) -> str:
    """One line of at most ``limit`` visible characters: no escape codes, no direction overrides, no newlines."""
    visible = "".join(_visible(character) for character in text[: 4 * limit])
    line = " ".join(visible.split())
    return line if len(line) <= limit and len(text) <= 4 * limit else line[: limit - 1] + "…"


def _visible(character: str) -> str:
    if character in "\t\n\r":
        return " "
    return "" if unicodedata.category(character) in _HIDDEN else character


def bytes_text(count: float) -> str:
    """``1.25 MB``: three digits, powers of a thousand."""
    return f"{_scaled(count, ('B', 'kB', 'MB', 'GB', 'TB', 'PB', 'EB'))}"


def count_text(count: float) -> str:
    """``12.3 k``: a count of tokens, parameters or tokens a second, three digits."""
    return _scaled(count, ("", "k", "M", "G", "T", "P", "E")).rstrip()


def _scaled(number: float, units: tuple[str, ...]) -> str:
    place = 0
    while abs(number) >= 999.5 and place < len(units) - 1:
        number, place = number / 1000, place + 1
    digits = 0 if place == 0 or abs(number) >= 99.95 else 1 if abs(number) >= 9.995 else 2
    return f"{number:.{digits}f} {units[place]}"


def seconds_text(seconds: float) -> str:
    """``0.8 s``, ``42 s``, ``3 min 20 s``, ``2 h 05 min`` or ``3 d 04 h``."""
    if seconds < 9.95:
        return f"{max(0.0, seconds):.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = whole // 60
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes // 1440} d {minutes // 60 % 24:02d} h"


def loss_text(loss: float | None) -> str:
    """Three decimals, or a dash when there is none."""
    return "-" if loss is None else f"{loss:.3f}"


def factor_text(dense_bytes: float, wire_bytes: float) -> str:
    """How many times fewer bytes than dense training: ``174x``; a dash before there is anything to compare."""
    if dense_bytes <= 0 or wire_bytes <= 0:
        return "-"
    factor = dense_bytes / wire_bytes
    return f"{factor:.0f}x" if factor >= 9.95 else f"{factor:.1f}x"


def reason_text(error: Exception) -> str:
    """Why something failed, for the middle of a sentence: one line, of the system's errors without number and path."""
    if isinstance(error, FileExistsError):
        return "a file is in its place"
    text = (isinstance(error, OSError) and error.strerror) or str(error)
    first, *_ = text.strip().splitlines() or [type(error).__name__]
    return clean(first, REASON_LENGTH)


def plural(count: int, noun: str) -> str:
    """``1 peer``, ``2 peers``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def coverage_text(epoch: int, share: float) -> str:
    """``epoch 1, 37 % of the data``."""
    return f"epoch {epoch}, {math.floor(100 * share)} % of the data"
