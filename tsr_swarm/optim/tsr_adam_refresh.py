"""How TSRAdam aims its bases: a randomized SVD of the gradient, warm-started from the bases in use.

Halko, Martinsson and Tropp 2011, "Finding structure with randomness" (arXiv 0909.4061), Algorithms 4.4 and 5.1, with
the test matrix [V_old, Omega]: old directions are nearly right, and Omega's fresh ones find what the old ones miss.
Letters: G (M, N) the gradient, U (M, R) and V (N, R) its bases, P columns of oversampling, Q (M, R + P) orthonormal.
"""

import hashlib
import math
from typing import Any

import torch
from torch import Tensor

from tsr_swarm.lowrank.basis import Basis, orthonormal12
from tsr_swarm.lowrank.sketch import expand, rotate_moments


def aim(gradient: Tensor, old: Basis, extra: Tensor | None = None, power_iterations: int = 0) -> Basis:
    """Return bases of the R strongest singular directions of ``gradient``, strongest first, rounded to 12 bits.

    Q = orth(G [V_old, Omega]); q times Q = orth(G orth(G^T Q)); then the SVD of Q^T G, cut off at R. ``extra`` is Omega
    (N, P). A gradient of lower rank keeps directions of ``old``; one that is zero or not finite keeps it whole.
    """
    largest = float(gradient.abs().max())
    if not 0 < largest < math.inf:
        return old
    g, rank = gradient / largest, old.left.shape[1]
    omega = old.right_float(g.dtype).to(g.device)
    if extra is not None:
        omega = torch.cat((omega, extra.to(omega)), dim=1)
    q = _orthonormal(g @ omega)
    for _ in range(power_iterations):
        q = _orthonormal(g @ _orthonormal(g.mT @ q))
    u, strengths, vh = torch.linalg.svd((q.mT @ g).to("cpu", torch.float64), full_matrices=False)
    u, strengths, vh = u[:, :rank], strengths[:rank], vh[:rank]
    left = orthonormal12(q.to("cpu", torch.float64) @ u * strengths, old.left_float(torch.float64))
    right = orthonormal12(vh.mT * strengths, old.right_float(torch.float64))
    return old if left is None or right is None else Basis(left, right)


def fresh_columns(gradient: Tensor, count: int, rank: int, seed: int, number: int, step: int) -> Tensor | None:
    """Return Omega (N, P), normal numbers; None for P = 0, the most that fit being min(M, N) - R."""
    count = min(count, min(gradient.shape) - rank)
    if count <= 0:
        return None
    name = hashlib.blake2b(f"oversampling/{seed}/{number}/{step}".encode(), digest_size=4).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(name, "little"))
    cpu = torch.device("cpu")
    return torch.randn(gradient.shape[1], count, generator=generator, device=cpu, dtype=torch.float32)


def refresh(state: dict[str, Any], gradient: Tensor, group: dict[str, Any], number: int, steps: int) -> Tensor | None:
    """Aim the bases at ``gradient`` and turn the moments, which are those after ``steps`` steps, all in place.

    Returns what the momentum lost (M, N), U_old m_old V_old^T - U m V^T, where error feedback needs it.
    """
    if gradient.is_meta:
        return None  # there are no numbers to aim at
    old = Basis(state["left"].cpu(), state["right"].cpu())
    extra = fresh_columns(gradient, group["oversampling"], old.left.shape[1], group["seed"], number, steps)
    new = aim(gradient, old, extra, group["power_iterations"])
    first, second = state["exp_avg"], state["exp_avg_sq"]
    before = expand(first, *old.factors(first)) if group["feedback_bits"] else None
    turned = rotate_moments(first, second, old, new, *(beta**steps for beta in group["betas"]))
    for kept, value in (
        (first, turned[0]),
        (second, turned[1]),
        (state["left"], new.left),
        (state["right"], new.right),
    ):
        kept.copy_(value)
    return None if before is None else before - expand(first, *new.factors(first))


def _orthonormal(sketch: Tensor) -> Tensor:
    q: Tensor = torch.linalg.qr(sketch).Q
    return q
