"""Train a language model together over ordinary home internet, exchanging only low-rank cores and sketches."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["TSRAdam", "__version__"]

if TYPE_CHECKING:
    from tsr_swarm.optim.tsr_adam import TSRAdam


def __getattr__(name: str) -> Any:
    # Public names load on first use: torch takes seconds to import, and the monitor never needs it.
    if name == "TSRAdam":
        from tsr_swarm.optim.tsr_adam import TSRAdam

        return TSRAdam
    raise AttributeError(f"module 'tsr_swarm' has no attribute {name!r}")
