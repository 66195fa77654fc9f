"""A line for everything that happens in a rehearsal, and a digest of all lines: the same seed must give the same."""

import hashlib
from collections.abc import Mapping
from dataclasses import is_dataclass
from enum import Enum
from typing import Any


class Trace:
    """Hashes the lines, and keeps them if they are wanted."""

    def __init__(self, keeps_lines: bool) -> None:
        self.lines: list[str] = []
        self._keeps_lines = keeps_lines
        self._hash = hashlib.blake2b(digest_size=16)

    def add(self, now: float, who: str, what: str) -> None:
        line = f"{now:.3f} {who} {what}"
        self._hash.update(line.encode())
        if self._keeps_lines:
            self.lines.append(line)

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()


_SLOTS: dict[type, tuple[str, ...] | None] = {}


def brief(thing: Any) -> str:
    """A message, event or action in one line. Sets are sorted: their order is not the same in every process."""
    kind = type(thing)
    if kind is str:
        return str(thing)
    if kind is int or kind is bool:
        return repr(thing)
    if kind not in _SLOTS:
        _SLOTS[kind] = getattr(kind, "__slots__", None) if is_dataclass(kind) else None
    slots = _SLOTS[kind]
    if slots is None:
        return _plain(thing)
    return f"{kind.__name__}({' '.join([brief(getattr(thing, slot)) for slot in slots])})"


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, tuple):
        return f"[{' '.join(brief(item) for item in value)}]"
    if isinstance(value, frozenset):
        return f"{{{' '.join(sorted(brief(item) for item in value))}}}"
    if isinstance(value, Mapping):
        # in its own order: if that depends on the process, the digests are to show it
        return f"{{{' '.join(f'{brief(key)}:{brief(item)}' for key, item in value.items())}}}"
    return str(value)
