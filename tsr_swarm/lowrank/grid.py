"""Numbers on integer grids with power-of-two scales: all that crosses the wire, and all that the exact lift takes in.

A power-of-two scale keeps every conversion between integers and float64 exact, on every machine. Grids of few bits take
a mantissa of 8 bits times a power of two as their step, because a power alone wastes up to half of the few levels that
there are: values are q * M with |q| <= 2**(bits - 1) - 1 and 1 <= M <= 255. Whatever sums integers with power-of-two
scales, such as the exact lift, takes them as they are, since 127 * 255 fits 16 bits.
Letters: x (rows, cols) the numbers, q integers, M mantissas, e exponents, s = M 2**e the step.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tsr_swarm.errors import RunError

EXPONENT_MIN, EXPONENT_MAX = -126, 64  # what the wire carries: fits int8, and far from float64's own limits
MANTISSA_MAX = 255  # what the wire carries: fits uint8
MAX_EXACT_RANK = 4096
FIXED_EXPONENT = -11  # of integers that travel without exponents: the 12-bit bases
DEAD_ZONE = 0.15  # how far beyond half a step a number must be for the next level
_MANTISSA_BITS = 8
_NOISE_BITS = 24
_NO_MANTISSAS = torch.empty(0, dtype=torch.int32, device="cpu")


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """Numbers on an integer grid: number = value * 2**exponent of its row, or of the whole. Lives on the CPU.

    values: int32 (rows, cols), or float32 for numbers that are kept as they are.
    exponents: int32 (rows,) or (1,); (0,) where there is no scale (float32) or a fixed one (a basis, 2**-11).
    mantissas: int32 (rows,) or (1,), 1 to 255, where all values of a row, or of the whole, are multiples of one, which
        is how so few values occur that few bits number them; (0,) elsewhere. Only the wire looks at them.
    """

    values: Tensor
    exponents: Tensor
    mantissas: Tensor = _NO_MANTISSAS

    def numbers(self) -> Tensor:
        """The numbers in float64 (rows, cols), exactly."""
        values = self.values.to(torch.float64)
        if self.values.is_floating_point():
            return values
        if self.exponents.numel() == 0:
            return values * math.ldexp(1.0, FIXED_EXPONENT)
        return values * powers_of_two(self.exponents.tolist())[:, None]

    def exponent(self) -> int:
        """The one exponent of a grid that is used in exact sums. Raises RunError if it has several or none."""
        if self.exponents.numel() != 1:
            raise RunError(f"An exact sum takes matrices of one exponent, not of {self.exponents.numel()}.")
        return int(self.exponents)


def powers_of_two(exponents: Sequence[int]) -> Tensor:
    """2**e for each e, exactly, as float64 (len,); torch's own pow and ldexp promise no exact result."""
    return torch.tensor([math.ldexp(1.0, e) for e in exponents], dtype=torch.float64, device="cpu")


def exponent_for(largest: float, bits: int) -> int:
    """The smallest e for which ``largest``, rounded to a multiple of 2**e, is at most 2**(bits - 1) - 1 of them.

    ``largest`` is finite and not negative; zero gives EXPONENT_MIN.
    """
    if largest == 0:
        return EXPONENT_MIN
    exponent = math.frexp(largest)[1] - (bits - 1)
    # largest / 2**exponent is below 2**(bits - 1), but may round up to it
    return exponent + (round(math.ldexp(largest, -exponent)) > integer_limit(bits))


def integer_limit(bits: int) -> int:
    """The largest magnitude of a ``bits`` wide integer; the lone -2**(bits - 1) is not used."""
    return (1 << (bits - 1)) - 1


def quantise_rows(x: Tensor, bits: int) -> Grid:
    """Round ``x`` (rows, cols) to ``bits`` wide integers, one power-of-two scale a row.

    The error is at most half a step, 2**(exponent - 1), and a step is at most 2**(2 - bits) of the row's largest
    magnitude (or 2**EXPONENT_MIN). Numbers beyond the grid's end at EXPONENT_MAX are clamped to it.
    Raises RunError for numbers that are not finite.
    """
    x = finite(x)
    return _quantise(x, x.abs().amax(dim=1).tolist(), bits)


def quantise_block(x: Tensor, bits: int) -> Grid:
    """As ``quantise_rows``, with one scale for the whole matrix."""
    x = finite(x)
    return _quantise(x, [float(x.abs().max())], bits)


def _quantise(x: Tensor, largest: Sequence[float], bits: int) -> Grid:
    exponents = [min(max(exponent_for(value, bits), EXPONENT_MIN), EXPONENT_MAX) for value in largest]
    limit = integer_limit(bits)
    steps = torch.round(x * powers_of_two([-e for e in exponents])[:, None]).clamp_(-limit, limit)
    return Grid(steps.to(torch.int32), torch.tensor(exponents, dtype=torch.int32, device="cpu"))


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


def dense_grid(x: Tensor) -> Grid:
    """Keep ``x`` as float32. What is not a matrix becomes one row, as in a Block. Raises RunError if not finite."""
    x = finite(x).to(torch.float32, copy=True)
    finite(x)  # a float64 may be finite and yet too large for float32
    return Grid(x if x.dim() == 2 else x.reshape(1, -1), torch.empty(0, dtype=torch.int32, device="cpu"))


def exact_integers(values: Tensor, bits: int) -> Tensor:
    """Integers as float64, after a check that they fit ``bits``: the bounds of exact sums rest on it."""
    limit = integer_limit(bits)
    low, high = torch.aminmax(values)
    if int(low) < -limit or int(high) > limit:
        raise RunError(
            f"An integer of {max(-int(low), int(high))} cannot enter an exact sum: the limit is {limit} ({bits} bits); "
            "fetch the state again."
        )
    return values.to(torch.float64)


def require_exact_rank(rank: int) -> None:
    """Raise RunError for a rank beyond the one that the bounds of exact sums are proven for."""
    if rank > MAX_EXACT_RANK:
        raise RunError(f"Rank {rank} cannot be summed exactly: the limit is {MAX_EXACT_RANK}; use a lower rank.")


def finite(x: Tensor) -> Tensor:
    """``x`` on the CPU in float64, or a RunError."""
    x = x.detach().to("cpu", torch.float64)
    if not torch.isfinite(x).all():
        bad = int((~torch.isfinite(x)).sum())
        raise RunError(
            f"{bad} of {x.numel()} numbers to exchange are not finite; training diverged, lower optimizer.lr."
        )
    return x
