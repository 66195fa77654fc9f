"""TSR-Adam in one process, at every step, as a torch optimizer (Dang et al., arXiv 2602.08007, Algorithm 1).

Letters: G (M, N) the gradient, U (M, R), V (N, R) a parameter's bases, C (R, R) its core. Where this departs from the
paper: moments are never less than float32 (a bfloat16 average with beta = 0.999 cannot decay); bases are re-aimed by a
warm-started linear sketch, Q = orth(G V_old), then orth(G^T Q), instead of a cold random one, and rounded to 12 bits as
on the wire; at a refresh the moments are turned to the new bases by the two-sided rule of LDAdam (arXiv 2410.16103)
instead of carried over unchanged. With ``feedback_bits``, LDAdam's generalised error feedback (Algorithm 1): what of a
gradient the bases do not hold, and what of the momentum they lose when they change, is added to the next gradient; kept
in few bits as by MicroAdam (arXiv 2405.15593).
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from tsr_swarm.lowrank.basis import Basis, orthonormal12
from tsr_swarm.lowrank.packed import Packed
from tsr_swarm.lowrank.sketch import core_of, expand, rotate_moments
from tsr_swarm.optim.inner_optimizer import Correction, adam_direction, bias_corrections, core_update_scale
from tsr_swarm.optim.tsr_adam_state import (
    LATER_OPTIONS,
    NO_STATE,
    checked_options,
    fresh_state,
    moments_shape,
    read_state,
    require_saved_groups,
    require_whole_parameters,
)

_MOST = 0.3  # a gradient's entries are at most this power of the largest number: 4e11 in float32


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
    """Return bases for ``gradient``, warm-started from ``old``: U = orth(G V_old), then V = orth(G^T U).

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
    plain Adam steps (AdamW with ``weight_decay``). Every option can be set per parameter group; ``rank`` holds from a
    parameter's first step on. Numbers of numpy and torch will do for all of them.

    lr: rate, as for dense Adam; the published runs use 0.01 with ``scale`` 0.5 to 0.75.
    rank: r, at least 1, or None.
    refresh_every: steps between two refreshes of a parameter's bases; the first is at its first step.
    scale: multiplies low-rank steps; 0 takes sqrt(M N) / r, which makes them as long as dense ones.
    seed: of the random bases that the first refresh starts from.
    feedback_bits: 4 or 8 bits a number for a full-size error feedback; 0: none.
    maximize: maximize the loss instead of minimizing it.

    A gradient too large to be squared counts as a smaller one of the same direction. One that is not finite makes
    weights NaN, as with torch's Adam: leave such steps out, as ``torch.amp.GradScaler`` does. Parameters of which a
    process holds only a part, FSDP's, are refused with ValueError unless ``rank`` is None.
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
        maximize: bool = False,
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
            "maximize": maximize,
        }
        super().__init__(params, checked_options(defaults))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; options it does not name are the optimizer's. Raises ValueError for one out of range."""
        if isinstance(param_group, dict):
            param_group = {**param_group, **checked_options({**self.defaults, **param_group})}
        super().add_param_group(param_group)
        try:
            require_whole_parameters(self.param_groups[-1])
        except ValueError:
            self.param_groups.pop()
            raise

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step and return the closure's loss, if there is one.

        Raises RuntimeError for sparse gradients and complex parameters, ValueError for a rank that has changed; nothing
        has changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        due = [item for item in self._numbered() if item[1].grad is not None]
        for number, parameter, group in due:
            self._require_legal(parameter, group, number)
        for number, parameter, group in due:
            with _own_precision(parameter.device.type):
                self._step(parameter, group, number)
        return loss

    def _numbered(self) -> Iterator[tuple[int, Tensor, dict[str, Any]]]:
        number = 0
        for group in self.param_groups:
            for parameter in group["params"]:
                yield number, parameter, group
                number += 1

    def _require_legal(self, parameter: Tensor, group: dict[str, Any], number: int) -> None:
        if parameter.grad is not None and parameter.grad.layout != torch.strided:
            raise RuntimeError("TSRAdam does not support sparse gradients; use sparse=False or torch.optim.SparseAdam.")
        if parameter.is_complex():
            raise RuntimeError("TSRAdam does not support complex parameters; use torch.view_as_real of them.")
        found = self.state[parameter]["exp_avg"].shape if self.state.get(parameter) else None
        if found is not None and tuple(found) != moments_shape(parameter, group["rank"]):
            raise ValueError(
                f"Parameter {number} of shape {tuple(parameter.shape)} has moments of {tuple(found)}, which do not fit "
                f"rank {group['rank']}: neither can change after its first step; make a new TSRAdam."
            )

    def _step(self, parameter: Tensor, group: dict[str, Any], number: int) -> None:
        state = self.state[parameter]
        if not state:
            state.update(fresh_state(parameter, group["rank"], group["seed"], number))
        state["step"] += 1
        assert parameter.grad is not None, "only those that are due take a step"
        gradient = parameter.grad.to(state["exp_avg"].dtype)
        if group["maximize"]:
            gradient = -gradient
        if "left" in state:
            direction = _low_rank_direction(state, gradient, group)
        else:
            moments = state["exp_avg"], state["exp_avg_sq"]
            corrections = bias_corrections(group["betas"], state["step"])
            gradient = bounded(gradient, gradient.abs())
            direction = adam_direction(gradient, *moments, corrections, group["betas"], group["eps"])
        # W = W - lr (direction + weight_decay W)
        lr = float(group["lr"])
        parameter.mul_(1 - lr * group["weight_decay"])
        parameter.add_(direction.to(parameter.dtype), alpha=-lr)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Read a state back, its groups' options with it, as torch's optimizers do.

        Options that an older state lacks stay as they are. Unlike torch's own, moments keep their dtype where the
        parameter's is a shorter one. Raises ValueError, before any change, for a state of another optimizer or model.
        """
        if not isinstance(state_dict, dict):
            raise ValueError(NO_STATE)
        handle = self.register_load_state_dict_pre_hook(_read)  # runs last, after the caller's own hooks
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Torch's hook of loading, copying and unpickling."""
        super().__setstate__(state)
        for options in (self.defaults, *self.param_groups):
            for option, value in LATER_OPTIONS.items():
                options.setdefault(option, value)
        for parameter, kept in self.state.items():
            if isinstance(kept, _Read):
                self.state[parameter] = kept.state


@dataclass(frozen=True, slots=True)
class _Read:
    """A parameter's state as it was read, wrapped: torch would cast bare tensors to the parameter's dtype."""

    state: dict[str, Any]


def _read(optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any] | None:
    """Check ``state_dict`` and convert it to this optimizer's types. Raises ValueError."""
    require_saved_groups(state_dict)
    groups, saved_groups = optimizer.param_groups, state_dict["param_groups"]
    if [len(group["params"]) for group in groups] != [len(group["params"]) for group in saved_groups]:
        return None  # torch raises its own error
    read_groups, read_states = [], {}
    for group, saved in zip(groups, saved_groups, strict=True):
        options = {option: group[option] for option in optimizer.defaults if option in group}
        read_groups.append({**saved, **checked_options({**options, **saved})})
        for parameter, number in zip(group["params"], saved["params"], strict=True):
            if state := read_state(state_dict["state"].get(number), parameter, read_groups[-1]["rank"], number):
                read_states[number] = _Read(state)
    return {**state_dict, "state": read_states, "param_groups": read_groups}


def _own_precision(device_type: str) -> AbstractContextManager[None]:
    """Disable ``torch.autocast`` in a step, as torch's optimizers do."""
    is_possible = torch.amp.is_autocast_available(device_type)
    return torch.autocast(device_type, enabled=False) if is_possible else nullcontext()


def bounded(gradient: Tensor, size: Tensor) -> Tensor:
    """Make ``gradient`` smaller where the square of its ``size``, one number or each entry's, could overflow.

    No other gradient changes by a bit, and no device is synchronized. What is not finite becomes NaN.
    """
    most = torch.finfo(gradient.dtype).max ** _MOST
    bounded: Tensor = gradient * (most / size).clamp_(max=1)
    return bounded


def _low_rank_direction(state: dict[str, Any], gradient: Tensor, group: dict[str, Any]) -> Tensor:
    """Return the scaled direction (M, N) to subtract. Moments, bases and error feedback change in place."""
    betas, bits = group["betas"], group["feedback_bits"]
    if bits:
        gradient = gradient + _error_feedback(state, gradient)  # a = g + e
    gradient = bounded(gradient, torch.linalg.vector_norm(gradient, float("inf")))
    lost: Tensor | float = 0.0
    if (state["step"] - 1) % group["refresh_every"] == 0:
        before = expand(state["exp_avg"], *_factors(state)) if bits else 0.0
        _refresh(state, gradient, betas)
        lost = before - expand(state["exp_avg"], *_factors(state)) if bits else 0.0
    factors = _factors(state)
    for key in ("codes", "scales"):
        state.pop(key, None)
    if bits:
        # e = a - U C V^T + beta1 / (1 - beta1) (U_old m_old V_old^T - U m V^T)
        error = gradient - expand(core_of(gradient, *factors), *factors)
        packed = Packed.of(error + betas[0] / (1 - betas[0]) * lost, bits)
        state["codes"], state["scales"] = packed.codes, packed.scales
    moments, corrections = (state["exp_avg"], state["exp_avg_sq"]), bias_corrections(betas, state["step"])
    direction = tsr_adam_update(gradient, *factors, *moments, corrections, betas, group["eps"])
    scale: float = group["scale"] or core_update_scale(*gradient.shape, *moments[0].shape)
    return direction.mul_(scale)


def _factors(state: dict[str, Any]) -> tuple[Tensor, Tensor]:
    return Basis(state["left"], state["right"]).factors(state["exp_avg"])


def _error_feedback(state: dict[str, Any], like: Tensor) -> Tensor | float:
    """Return the error feedback e, full size; zero before there is any."""
    if "codes" not in state:
        return 0.0
    return Packed(state["codes"], state["scales"], tuple(like.shape)).numbers().to(like.dtype)


def _refresh(state: dict[str, Any], gradient: Tensor, betas: tuple[float, float]) -> None:
    """Re-aim the bases at ``gradient`` and turn the moments, which are those of the step before."""
    if gradient.is_meta:
        return  # there are no numbers to aim at
    old = Basis(state["left"].cpu(), state["right"].cpu())
    new = aim(gradient, old)
    moments = state["exp_avg"], state["exp_avg_sq"]
    beta1_t, beta2_t = (beta ** (state["step"] - 1) for beta in betas)
    state["exp_avg"], state["exp_avg_sq"] = rotate_moments(*moments, old, new, beta1_t, beta2_t)
    state["left"], state["right"] = new.left.to(gradient.device), new.right.to(gradient.device)
