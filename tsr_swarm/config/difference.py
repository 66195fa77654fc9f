"""Which keys of two configurations differ, for people."""

from dataclasses import fields

from tsr_swarm.config.coerce import shown
from tsr_swarm.config.run import RunConfig

_MOST = 5  # keys that are named; more are counted


def differences(begun: RunConfig, given: RunConfig) -> str:
    """``optimizer.lr = 0.01 (now 0.5), run.seed = 0 (now 1)``: the keys whose values differ; "" when none does."""
    found = [
        f"{section.name}.{key.name} = {shown(before)} (now {shown(now)})"
        for section in fields(begun)
        for key in fields(getattr(begun, section.name))
        if (before := getattr(getattr(begun, section.name), key.name))
        != (now := getattr(getattr(given, section.name), key.name))
    ]
    more = [f"and {len(found) - _MOST} more"] if len(found) > _MOST else []
    return ", ".join(found[:_MOST] + more)
