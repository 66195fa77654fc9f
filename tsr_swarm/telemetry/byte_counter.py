"""Wire bytes by direction and payload kind, counted at the RPC boundary."""

import threading
from collections import Counter
from enum import StrEnum


class Direction(StrEnum):
    """Which way bytes went, seen from the process that counts them."""

    SENT = "sent"
    RECEIVED = "received"


class ByteCounter:
    """Counts bytes by direction and payload kind; counts only grow. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[Direction, Counter[str]] = {direction: Counter() for direction in Direction}

    def add(self, direction: Direction, kind: str, count: int) -> None:
        with self._lock:
            self._counts[direction][kind] += count

    def totals(self, direction: Direction) -> dict[str, int]:
        """Bytes by payload kind since the start."""
        with self._lock:
            return dict(self._counts[direction])
