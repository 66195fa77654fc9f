"""LDAdam's generalised error feedback (arXiv 2410.16103, Algorithm 1), kept in few bits as by MicroAdam (2405.15593).

What of a gradient the bases do not hold, and what of the momentum they lose when they change, is added to the next
gradient: e = a - U C V^T + beta1 / (1 - beta1) (U_old m_old V_old^T - U m V^T), with a = g + e. A group is the
optimizer's, a state a parameter's: see tsr_adam_state.py.
"""

from typing import Any

import torch
from torch import Tensor

from tsr_swarm.lowrank.basis import Basis
from tsr_swarm.lowrank.packed import Packed
from tsr_swarm.lowrank.sketch import core_of, expand
from tsr_swarm.optim.tsr_adam_step import bounded

_KEYS = ("codes", "scales")


def descended(gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    """Return what is descended along, bounded, in the moments' dtype: g, or -g to maximize, and e where it is kept."""
    gradient = gradient.to(state["exp_avg"].dtype)
    if group["maximize"]:
        gradient = -gradient
    if group["feedback_bits"] and "codes" in state:
        gradient = gradient + _error(state, gradient)
    return bounded(gradient, torch.linalg.vector_norm(gradient, float("inf")))


def feed_back(state: dict[str, Any], a: Tensor, lost: Tensor | None, group: dict[str, Any]) -> None:
    """Keep e for the next step. ``lost`` (M, N) is what the momentum lost at a refresh, None where there was none."""
    factors = Basis(state["left"], state["right"]).factors(a)
    error = a - expand(core_of(a, *factors), *factors)
    _keep(state, error if lost is None else error + _weight(group) * lost, group)


def add_lost(state: dict[str, Any], lost: Tensor, group: dict[str, Any]) -> None:
    """Add to e what the momentum lost at a refresh between two steps."""
    if "codes" in state:
        _keep(state, _error(state, lost) + _weight(group) * lost, group)


def forget_error(state: dict[str, Any]) -> None:
    """Drop e, where error feedback has been turned off."""
    for key in _KEYS:
        state.pop(key, None)


def _error(state: dict[str, Any], like: Tensor) -> Tensor:
    return Packed(state["codes"], state["scales"], tuple(like.shape)).numbers().to(like.dtype)


def _weight(group: dict[str, Any]) -> float:
    beta1: float = group["betas"][0]
    return beta1 / (1 - beta1)


def _keep(state: dict[str, Any], error: Tensor, group: dict[str, Any]) -> None:
    packed = Packed.of(error, group["feedback_bits"])
    for key in _KEYS:
        value = getattr(packed, key)
        if key in state and state[key].shape == value.shape:
            state[key].copy_(value)  # a captured graph knows the address
        else:
            state[key] = value
