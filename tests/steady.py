"""Settings for tests that are about one thing at a time, whatever the defaults are: Adam in cores whose bases hold
still between refreshes, aimed by gradients, and payloads that round little and lose nothing."""

from typing import Any

from tsr_swarm.config.run import OptimizerConfig, WireConfig

OPTIMIZER: dict[str, Any] = {"aim": "gradient", "inner": "adam", "rank": "d/2", "lr": 3e-3, "feedback": True}
WIRE: dict[str, Any] = {"core_bits": 8, "published_bits": 16}


def steady(**changes: Any) -> OptimizerConfig:
    return OptimizerConfig(**OPTIMIZER | changes)


def wide(**changes: Any) -> WireConfig:
    return WireConfig(**WIRE | changes)
