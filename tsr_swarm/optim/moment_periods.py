"""How often moments are averaged: DES-LOC's periods K_u and K_v (Iacob et al., arXiv 2505.22549, section 2)."""

import math

from tsr_swarm.config.run import RunConfig
from tsr_swarm.optim.muon import MOMENTUM


def own_moment_periods(config: RunConfig) -> tuple[int, int]:
    """K_u and K_v of a run's cores in steps; 0: never."""
    periods, optimizer = config.periods, config.optimizer
    return moment_periods(periods.k_u, periods.k_v, periods.k_x, optimizer.inner, optimizer.betas)


def moment_periods(k_u: int | str, k_v: int | str, k_x: int, inner: str, betas: tuple[float, float]) -> tuple[int, int]:
    """K_u and K_v in steps as they are set, or for "auto" the half-life of the moment that ``inner`` keeps."""
    beta1 = MOMENTUM if inner == "muon" else betas[0]
    first = half_life(beta1, k_x) if isinstance(k_u, str) else k_u
    second = half_life(betas[1], k_x) if isinstance(k_v, str) else k_v
    return first, second


def half_life(beta: float, k_x: int) -> int:
    """The steps ln 2 / -ln(beta) after which half of a moment is forgotten, in whole periods k_x, at least one."""
    steps = math.log(2) / -math.log(beta) if beta else 0.0
    return max(1, round(steps / k_x)) * k_x
