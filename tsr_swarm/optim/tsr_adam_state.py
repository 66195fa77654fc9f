"""What TSRAdam keeps of one parameter: made at its first step, or read back from a saved state, which may be any.

``step``: int. ``exp_avg``, ``exp_avg_sq``: moments, at least float32, (R, R) or the parameter's shape. Of low-rank ones
``left`` (M, R) and ``right`` (N, R) int16, and with feedback ``codes`` uint8 and ``scales`` float32, see Packed.
"""

from collections.abc import Mapping
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from tsr_swarm.lowrank.basis import random_basis
from tsr_swarm.lowrank.packed import BUCKET

NO_STATE = "This is not an optimizer's state; load what TSRAdam.state_dict() returned."

_MOMENTS = ("exp_avg", "exp_avg_sq")
_OWN_OPTIONS = ("rank", "refresh_every")  # in every state that TSRAdam ever saved, and together in nobody else's


def is_low_rank(parameter: Tensor, rank: int | None) -> bool:
    """Whether the moments of a parameter are those of its core."""
    return rank is not None and parameter.dim() == 2 and min(parameter.shape) > rank


def moments_shape(parameter: Tensor, rank: int | None) -> tuple[int, ...]:
    """Of both moments: the core's, or the parameter's own."""
    return (rank, rank) if rank is not None and is_low_rank(parameter, rank) else tuple(parameter.shape)


def fresh_state(parameter: Tensor, rank: int | None, seed: int, number: int) -> dict[str, Any]:
    """The state before the first step. ``number`` counts the optimizer's parameters and sets this one's first bases."""
    state: dict[str, Any] = {"step": 0}
    like = parameter
    if rank is not None and is_low_rank(parameter, rank):
        rows, cols = parameter.shape
        basis = random_basis(rows, cols, rank, seed, number)
        state |= {"left": basis.left.to(parameter.device), "right": basis.right.to(parameter.device)}
        like = parameter.new_empty(rank, rank)
    for key in _MOMENTS:
        state[key] = torch.zeros_like(like, dtype=_moments_dtype(parameter), memory_format=torch.preserve_format)
    return state


def require_saved_groups(state_dict: Mapping[str, Any]) -> None:
    """Raise ValueError unless ``state_dict`` has the form of a torch optimizer's, and groups of a TSRAdam."""
    if not _has_form(state_dict):
        raise ValueError(NO_STATE)
    groups = state_dict["param_groups"]
    for index, group in enumerate(groups):
        missing = [option for option in _OWN_OPTIONS if option not in group]
        if missing:
            raise ValueError(
                f"The state is of another optimizer: its parameter group {index} has no '{missing[0]}'; load what "
                "TSRAdam.state_dict() returned, or start without a state."
            )
    numbers = {number for group in groups for number in group["params"]}
    unknown = [number for number in state_dict["state"] if number not in numbers]
    if unknown:
        raise ValueError(f"The saved state is damaged: no group has the parameter {unknown[0]!r} of its moments.")


def _has_form(state_dict: Mapping[str, Any]) -> bool:
    state, groups = state_dict.get("state"), state_dict.get("param_groups")
    return (
        isinstance(state, Mapping)
        and isinstance(groups, list)
        and all(isinstance(group, Mapping) and isinstance(group.get("params"), list) for group in groups)
        and all(isinstance(number, int | str) for group in groups for number in group["params"])
    )


def read_state(saved: object, parameter: Tensor, rank: int | None, number: int) -> dict[str, Any]:
    """A copy of ``saved``, what the state of ``parameter`` was, on its device and in the dtypes that it needs.

    Empty for a parameter that had not taken a step. Raises ValueError for what TSRAdam cannot have saved of it.
    """
    if saved is None or saved == {}:
        return {}
    if not isinstance(saved, Mapping):
        raise _damaged(number, f"is {type(saved).__name__}, not a dict")
    shapes = _shapes(saved, parameter, rank)
    for key in shapes.keys() | {"step"}:
        if key not in saved:
            raise _damaged(number, f"lacks '{key}', which rank {rank} needs for a shape of {tuple(parameter.shape)}")
    for key in saved.keys() - shapes.keys() - {"step"}:
        raise _damaged(number, f"has '{key}', which a TSRAdam of rank {rank} does not keep of it")
    state: dict[str, Any] = {"step": _step_count(saved["step"], number)}
    for key, (shape, dtype) in shapes.items():
        value = saved[key]
        if not isinstance(value, Tensor):
            raise _damaged(number, f"has '{key}' of type {type(value).__name__}, not a tensor")
        is_moment = dtype.is_floating_point and value.dtype.is_floating_point
        if tuple(value.shape) != shape or not (value.dtype == dtype or is_moment):
            raise _damaged(number, f"has '{key}' of {tuple(value.shape)} {value.dtype}, not {shape} {dtype}")
        if value.is_meta and not parameter.is_meta:
            raise _damaged(number, f"has '{key}' on the meta device, without numbers")
        state[key] = value.detach().to(parameter.device, dtype, copy=True)
    return state


def _shapes(
    saved: Mapping[str, Any], parameter: Tensor, rank: int | None
) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and dtype of every tensor of a state; whether one has feedback is for the saved one to say."""
    dtype = _moments_dtype(parameter)
    shapes = {key: (moments_shape(parameter, rank), dtype) for key in _MOMENTS}
    if rank is not None and is_low_rank(parameter, rank):
        for key, size in zip(("left", "right"), parameter.shape, strict=True):
            shapes[key] = (size, rank), torch.int16
        if "codes" in saved or "scales" in saved:
            buckets = -(-parameter.numel() // BUCKET)
            codes = saved.get("codes")
            is_half = isinstance(codes, Tensor) and codes.shape[-1:] == (BUCKET // 2,)  # two numbers a byte
            shapes["codes"] = (buckets, BUCKET // 2 if is_half else BUCKET), torch.uint8
            shapes["scales"] = (buckets, 1), torch.float32
    return shapes


def _step_count(step: Any, number: int) -> int:
    if isinstance(step, Tensor) and step.numel() == 1 and not step.is_meta:
        step = step.item()
    is_whole = isinstance(step, Integral) or (isinstance(step, float) and step.is_integer())
    if isinstance(step, bool) or not is_whole or step < 0:
        raise _damaged(number, f"has {step!r} as its 'step', not a number of steps")
    return int(step)


def _moments_dtype(parameter: Tensor) -> torch.dtype:
    return torch.promote_types(parameter.dtype, torch.float32)


def _damaged(number: int, what: str) -> ValueError:
    return ValueError(
        f"The saved state of parameter {number} {what}; it is of another model or optimizer, or damaged: load what "
        "TSRAdam.state_dict() returned for this model, or start without a state."
    )
