"""How long a simulated run would have taken: a line's rates and a peer's speed. Pure arithmetic.

Nothing is trained differently for it: bytes, round trips and local steps of a run give its time on any link.
"""

from dataclasses import dataclass, replace

from tsr_swarm.config.coerce import require

MBIT = 1e6
DENSE_STEPS = 200  # by default, one dense fp32 exchange takes as long as this many local steps


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One peer's line and speed; all peers have the same. Nothing is sent while a peer trains."""

    up: float = 20 * MBIT  # bits a second
    down: float = 100 * MBIT
    rtt: float = 0.05  # seconds a round trip
    step_seconds: float = 1.0  # one local step of an ordinary peer

    def __post_init__(self) -> None:
        for key in ("up", "down", "step_seconds"):
            require(0 < getattr(self, key) < float("inf"), f"link.{key}", getattr(self, key), "above 0")
        require(0 <= self.rtt < 3600, "link.rtt", self.rtt, "from 0 to below 3600 seconds")

    def line_seconds(self, sent: float, received: float, round_trips: float = 0) -> float:
        """Seconds to send, then receive, so many bytes: nobody can fetch an average before all have sent."""
        return 8 * sent / self.up + 8 * received / self.down + round_trips * self.rtt

    def seconds(self, step_times: float, sent: float, received: float, round_trips: float) -> float:
        """Seconds of a run, or of a part of it, with so many times of a local step, bytes and round trips."""
        return step_times * self.step_seconds + self.line_seconds(sent, received, round_trips)


def link_for(parameters: int, *, up: float, down: float, rtt: float, step_seconds: float | None = None) -> Link:
    """A line, and a step that takes as long as a 200th of one dense fp32 exchange of ``parameters`` numbers.

    The 60M shapes on 20 Mbit/s up and 100 Mbit/s down are such a case where a step takes 0.6 s. ``step_seconds``:
    that long instead.
    """
    line = Link(up=up, down=down, rtt=rtt)
    dense = line.line_seconds(4 * parameters, 4 * parameters)
    return replace(line, step_seconds=dense / DENSE_STEPS if step_seconds is None else step_seconds)
