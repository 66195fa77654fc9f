"""TSR-Adam in one process, at every step, as a torch optimizer (Dang et al., arXiv 2602.08007, Algorithm 1).

Letters: G (M, N) the gradient, U (M, R), V (N, R) a parameter's bases, C (R, R) its core. Where this departs from the
paper: moments are never less than float32 (a bfloat16 average with beta = 0.999 cannot decay); bases are re-aimed by a
warm-started linear sketch, Q = orth(G V_old), then orth(G^T Q), instead of a cold random one, and rounded to 12 bits as
on the wire; at a refresh the moments are turned to the new bases by the two-sided rule of LDAdam (arXiv 2410.16103)
instead of carried over unchanged. With ``feedback_bits``, LDAdam's generalised error feedback (Algorithm 1): what of a
gradient the bases do not hold, and what of the momentum they lose when they change, is added to the next gradient; kept
in few bits as by MicroAdam (arXiv 2405.15593).
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from tsr_swarm.lowrank.basis import Basis, orthonormal12, random_basis
from tsr_swarm.lowrank.packed import Packed
from tsr_swarm.lowrank.rotate import rotate_moments
from tsr_swarm.lowrank.sketch import core_of, expand
from tsr_swarm.optim.adam import Correction, adam_direction, bias_corrections, core_update_scale


def tsr_adam_update(
    gradient: Tensor,
    left: Tensor,
    right: Tensor,
    first: Tensor,
    second: Tensor,
    corrections: tuple[Correction, Correction],
    betas: tuple[float, float],
    eps: float,
) -> Tensor:
    """Return the direction U D V^T (M, N) to subtract, D being Adam's direction of the core (R, R).

    ``left`` is U, ``right`` is V, both in the moments' dtype; the moments (R, R) are updated in place. ``corrections``
    are 1 - beta1**t and 1 - beta2**t. Costs about 4 M N R multiplications.
    """
    core = core_of(gradient, left, right)  # C = U^T G V
    # m = beta1 m + (1 - beta1) C;  v = beta2 v + (1 - beta2) C^2;  D = m_hat / (sqrt(v_hat) + eps)
    direction = adam_direction(core, first, second, corrections, betas, eps)
    return expand(direction, left, right)  # U D V^T


def aim(gradient: Tensor, old: Basis) -> Basis:
    """Bases for ``gradient``, warm-started from ``old``: U = orth(G V_old), then V = orth(G^T U).

    One power iteration of a randomized SVD. A gradient of lower rank keeps directions of ``old``; one that is zero or
    not finite keeps it whole.
    """
    sketch = gradient @ old.right_float(gradient.dtype).to(gradient.device)
    left = orthonormal12(sketch, old.left_float(torch.float64))
    if left is None:
        return old
    basis = Basis(left, old.right)
    sketch = gradient.mT @ basis.left_float(gradient.dtype).to(gradient.device)
    right = orthonormal12(sketch, old.right_float(torch.float64))
    return old if right is None else Basis(left, right)


class TSRAdam(Optimizer):
    """Adam whose moments live in an r x r core per matrix; a drop-in torch optimizer.

    Two-dimensional parameters with both sizes above ``rank`` are low rank; all others, and all with ``rank=None``, take
    plain Adam steps (AdamW with ``weight_decay``). Every option can be set per parameter group.

    lr: rate, as for dense Adam; the published runs use 0.01 with ``scale`` 0.5 to 0.75.
    rank: r, at least 1, or None.
    refresh_every: steps between two refreshes of a parameter's bases; the first is at its first step.
    scale: multiplies low-rank steps; 0 takes sqrt(M N) / r, which makes them as long as dense ones.
    seed: of the random bases that the first refresh starts from.
    feedback_bits: 4 or 8 bits a number for a full-size error feedback; 0: none.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        rank: int | None = 128,
        refresh_every: int = 100,
        scale: float = 0.0,
        seed: int = 0,
        feedback_bits: int = 0,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "rank": rank,
            "refresh_every": refresh_every,
            "scale": scale,
            "seed": seed,
            "feedback_bits": feedback_bits,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; options it does not name are the optimizer's. Raises ValueError for one out of range."""
        _check({**self.defaults, **param_group})
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step and return the closure's loss, if there is one. Raises RuntimeError on sparse gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for number, parameter, group in self._numbered():
            if parameter.grad is not None:
                self._step(parameter, parameter.grad, group, number)
        return loss

    def _numbered(self) -> Iterator[tuple[int, Tensor, dict[str, Any]]]:
        number = 0
        for group in self.param_groups:
            for parameter in group["params"]:
                yield number, parameter, group
                number += 1

    def _step(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any], number: int) -> None:
        if gradient.is_sparse:
            raise RuntimeError("TSRAdam does not support sparse gradients; use sparse=False or torch.optim.SparseAdam.")
        if gradient.is_complex():
            raise RuntimeError("TSRAdam does not support complex parameters; use torch.view_as_real of them.")
        state = self.state[parameter]
        if not state:
            state.update(_fresh_state(parameter, group["rank"], group["seed"], number))
            if "left" in state and group["feedback_bits"]:
                _owe(state, torch.zeros_like(parameter), group["feedback_bits"])
        state["step"] += 1
        gradient = gradient.to(state["exp_avg"].dtype)
        lr, betas = float(group["lr"]), group["betas"]
        corrections = bias_corrections(betas, state["step"])
        feeds_back = "codes" in state
        if feeds_back:
            gradient = gradient + _owed(state, parameter)  # a = g + e
        if "left" in state and (state["step"] - 1) % group["refresh_every"] == 0:
            before = _momentum(state) if feeds_back else None
            _refresh(state, gradient, betas)
            lost = 0.0 if before is None else before - _momentum(state)
        else:
            lost = 0.0
        moments = state["exp_avg"], state["exp_avg_sq"]
        if "left" in state:
            factors = _factors(state)
            if feeds_back:
                # e = a - U C V^T + beta1 / (1 - beta1) (U_old m_old V_old^T - U m V^T)
                error = gradient - expand(core_of(gradient, *factors), *factors)
                _owe(state, error + betas[0] / (1 - betas[0]) * lost, group["feedback_bits"])
            direction = tsr_adam_update(gradient, *factors, *moments, corrections, betas, group["eps"])
            rows, cols = parameter.shape
            direction.mul_(group["scale"] or core_update_scale(rows, cols, *moments[0].shape))
        else:
            direction = adam_direction(gradient, *moments, corrections, betas, group["eps"])
        # W = W - lr (direction + weight_decay W)
        parameter.mul_(1 - lr * group["weight_decay"])
        parameter.add_(direction.to(parameter.dtype), alpha=-lr)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Read a state back. Unlike torch's own, moments keep their dtype where the parameter's is a shorter one."""
        super().load_state_dict(state_dict)
        saved = [number for group in state_dict["param_groups"] for number in group["params"]]
        for number, (_, parameter, _) in zip(saved, self._numbered(), strict=True):
            for key, value in state_dict["state"].get(number, {}).items():
                if isinstance(value, Tensor):
                    self.state[parameter][key] = value.to(parameter.device, copy=True)


def _fresh_state(parameter: Tensor, rank: int | None, seed: int, number: int) -> dict[str, Any]:
    dtype = torch.promote_types(parameter.dtype, torch.float32)
    low_rank = rank is not None and parameter.dim() == 2 and min(parameter.shape) > rank
    state: dict[str, Any] = {"step": 0}
    like = parameter
    if low_rank and rank is not None:
        rows, cols = parameter.shape
        basis = random_basis(rows, cols, rank, seed, number)
        state |= {"left": basis.left.to(parameter.device), "right": basis.right.to(parameter.device)}
        like = parameter.new_empty(rank, rank)
    for key in ("exp_avg", "exp_avg_sq"):
        state[key] = torch.zeros_like(like, dtype=dtype, memory_format=torch.preserve_format)
    return state


def _factors(state: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """U and V in the moments' dtype."""
    basis = Basis(state["left"], state["right"])
    return basis.left_float(state["exp_avg"].dtype), basis.right_float(state["exp_avg"].dtype)


def _momentum(state: dict[str, Any]) -> Tensor:
    """U m V^T, full size."""
    return expand(state["exp_avg"], *_factors(state))


def _owed(state: dict[str, Any], parameter: Tensor) -> Tensor:
    """e, full size."""
    return Packed(state["codes"], state["scales"], tuple(parameter.shape)).numbers().to(state["exp_avg"].dtype)


def _owe(state: dict[str, Any], error: Tensor, bits: int) -> None:
    packed = Packed.of(error, bits)
    state["codes"], state["scales"] = packed.codes, packed.scales


def _refresh(state: dict[str, Any], gradient: Tensor, betas: tuple[float, float]) -> None:
    """Re-aim the bases at ``gradient`` and turn the moments, which are those of the step before."""
    old = Basis(state["left"].cpu(), state["right"].cpu())
    new = aim(gradient, old)
    moments = state["exp_avg"], state["exp_avg_sq"]
    beta1_t, beta2_t = (beta ** (state["step"] - 1) for beta in betas)
    state["exp_avg"], state["exp_avg_sq"] = rotate_moments(*moments, old, new, beta1_t, beta2_t)
    state["left"], state["right"] = new.left.to(gradient.device), new.right.to(gradient.device)


def _check(group: Mapping[str, Any]) -> None:
    """Raise ValueError for an option out of range. NaN is out of every range."""
    _require(float(group["lr"]) >= 0, "learning rate", group["lr"], "at least 0")
    betas = group["betas"]
    _require(len(betas) == 2, "betas", betas, "two numbers")
    for index, beta in enumerate(betas):
        _require(0 <= beta < 1, f"beta parameter at index {index}", beta, "at least 0 and below 1")
    _require(group["eps"] >= 0, "epsilon value", group["eps"], "at least 0")
    _require(group["weight_decay"] >= 0, "weight_decay value", group["weight_decay"], "at least 0")
    rank = group["rank"]
    _require(rank is None or _is_count(rank), "rank", rank, "a whole number of at least 1, or None")
    _require(_is_count(group["refresh_every"]), "refresh_every", group["refresh_every"], "a whole number, at least 1")
    _require(0 <= group["scale"] < float("inf"), "scale", group["scale"], "at least 0 (0: automatic), and finite")
    _require(type(group["seed"]) is int, "seed", group["seed"], "a whole number")
    _require(group["feedback_bits"] in (0, 4, 8), "feedback_bits", group["feedback_bits"], "0, 4 or 8")


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 1


def _require(is_legal: bool, name: str, value: object, limit: str) -> None:
    if not is_legal:
        raise ValueError(f"Invalid {name}: {value}; it must be {limit}.")
