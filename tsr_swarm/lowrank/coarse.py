"""Grids of few bits: the step is a mantissa of 8 bits times a power of two, because a power alone wastes up to half
of the few levels that there are.

Values are q * M with |q| <= 2**(bits - 1) - 1 and 1 <= M <= 255: whatever sums integers with power-of-two scales, such
as the exact lift, takes them as they are, since 127 * 255 fits 16 bits.
Letters: x (rows, cols) the numbers, q integers, M mantissas, e exponents, s = M 2**e the step.
"""

import math

import torch
from torch import Tensor

from tsr_swarm.lowrank.grid import (
    EXPONENT_MAX,
    EXPONENT_MIN,
    MANTISSA_MAX,
    Grid,
    finite,
    integer_limit,
    powers_of_two,
)

DEAD_ZONE = 0.15  # how far beyond half a step a number must be for the next level
_MANTISSA_BITS = 8
_NOISE_BITS = 24


def quantise_coarse(x: Tensor, bits: int, exponents: int, seed: int | None = None) -> Grid:
    """Round ``x`` to ``bits`` wide multiples of one step a row, with ``exponents`` powers of two: rows or 1.

    A row's step is its largest magnitude through 2**(bits - 1) - 1, rounded up to its mantissa: by less than a 127th
    where it has its own exponent, by less than a 127th of the longest row's step where all share one.
    Without ``seed`` to the nearest, with an error of at most half a step. With ``seed`` to one of the two neighbours,
    q = floor(x / s + u), u uniform in (0, 1) and drawn from integers, so that the same seed gives the same bits on
    every machine and the mean over seeds is x to 2**-25 steps (Alistarh et al., QSGD, arXiv 1610.02132, section 3.1;
    it scales by the norm, here the largest magnitude is the last level and nothing is ever clamped).
    Numbers beyond the grid's end at EXPONENT_MAX are clamped to it. Raises RunError for numbers that are not finite.
    """
    x = finite(x)
    limit = integer_limit(bits)
    steps = x.abs().amax(dim=1) / limit
    own = [_exponent(step) for step in (steps.tolist() if exponents != 1 else [float(steps.max())])]
    mantissas = torch.ceil(steps * powers_of_two([-e for e in own])).clamp_(1, MANTISSA_MAX)
    scaled = x / (mantissas * powers_of_two(own))[:, None]
    rounded = torch.round(scaled) if seed is None else torch.floor(scaled + _noise(scaled, seed))
    return _grid(rounded.clamp_(-limit, limit), mantissas, own)


def quantise_dead_zone(x: Tensor, density: float, bits: int) -> Grid:
    """Keep about ``density`` of the entries of ``x``, the largest, on one grid of ``bits`` wide multiples.

    q = sign(x) min(floor(|x| / s + 1/2 - DEAD_ZONE), 2**(bits - 1) - 1), with s such that just the round(density *
    size) largest entries, and what ties with the last of them, are not 0 (Sullivan, IEEE Trans. Inf. Theory 42, 1996:
    uniform thresholds beyond a dead zone). Departing from it, the step sent is not s but that of least squares for
    these q, sum(|x| |q|) / sum(q**2): it keeps 4 % more of the energy of a tenth of near-Gaussian numbers, for no byte.
    Where fewer entries are non-zero than may be sent, s is the largest through the highest level.
    Raises RunError for numbers that are not finite.
    """
    x = finite(x)
    magnitudes, limit = x.abs(), integer_limit(bits)
    kept = max(1, round(density * x.numel()))
    threshold = float(magnitudes.flatten().kthvalue(x.numel() - kept + 1).values)
    threshold = threshold or (0.5 + DEAD_ZONE) * float(magnitudes.max()) / limit
    if threshold < math.ldexp(1.0, EXPONENT_MIN + _MANTISSA_BITS):  # zeros, or as good as
        return _grid(torch.zeros_like(x), torch.ones(1, dtype=torch.float64, device="cpu"), [EXPONENT_MIN])
    levels = torch.floor(magnitudes / (threshold / (0.5 + DEAD_ZONE)) + (0.5 - DEAD_ZONE))
    # the clamp from below is for the threshold itself, which may come out of the division a hair too small
    levels = levels.clamp_(1, limit) * (magnitudes >= threshold)
    step = float((magnitudes * levels).sum() / levels.square().sum())
    exponent = _exponent(step)
    mantissa = min(max(round(math.ldexp(step, -exponent)), 1), MANTISSA_MAX)
    return _grid(levels * x.sign(), torch.tensor([mantissa], dtype=torch.float64, device="cpu"), [exponent])


def _exponent(step: float) -> int:
    """The e in range for which step / 2**e, rounded up, has 8 bits."""
    exponent = math.frexp(step)[1] - _MANTISSA_BITS if step else EXPONENT_MIN
    exponent += math.ceil(math.ldexp(step, -exponent)) > MANTISSA_MAX
    return min(max(exponent, EXPONENT_MIN), EXPONENT_MAX)


def _noise(like: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randint(0, 1 << _NOISE_BITS, like.shape, generator=generator, device="cpu")
    return (draws.to(torch.float64) + 0.5) * math.ldexp(1.0, -_NOISE_BITS)


def _grid(multiples: Tensor, mantissas: Tensor, exponents: list[int]) -> Grid:
    values = (multiples * mantissas[:, None]).to(torch.int32)
    return Grid(values, torch.tensor(exponents, dtype=torch.int32, device="cpu"), mantissas.to(torch.int32))
