"""Lines of a run's log recognised by their text: one run is told by several nodes, and each line counts once."""

from collections import OrderedDict

from tsr_swarm.telemetry.events import Event, PeerJoined, RunStarted

KEEP = 8192  # of each kind of event: more than the logs of two nodes can be apart


class Seen:
    """Remembers the newest ``keep`` lines of each kind, so that many of one kind push out none of another."""

    def __init__(self, keep: int = KEEP) -> None:
        self._keep = keep
        self._lines: dict[type[Event] | None, OrderedDict[int, None]] = {}

    def has(self, line: str, event: Event | None) -> bool:
        """Whether ``line``, which says ``event``, was here."""
        return hash(line) in self._lines.get(None if event is None else type(event), ())

    def is_new(self, line: str, event: Event | None) -> bool:
        """Whether ``line``, which says ``event``, was not here before; from now on it was."""
        key, kind = hash(line), None if event is None else type(event)
        lines = self._lines.setdefault(kind, OrderedDict())
        is_new = key not in lines
        lines[key] = None
        lines.move_to_end(key)
        if len(lines) > self._keep:
            lines.popitem(last=False)
        if is_new and kind is RunStarted:
            self._lines.pop(PeerJoined, None)  # its peers are forgotten with it: who is here is news again
        return is_new
