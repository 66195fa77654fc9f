"""Who trains together, over what line, and how fast."""

from dataclasses import dataclass

from tsr_swarm.plan.link import Link


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """``tokens`` are of one step of all peers together; ``step_seconds`` None leaves it to the default rule."""

    model: str
    peers: int
    link: Link
    tokens: int
    step_seconds: float | None = None

    @property
    def peer_tokens(self) -> float:
        """Of one step of one peer."""
        return self.tokens / self.peers
