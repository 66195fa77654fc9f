"""What TSRAdam keeps of one parameter, made at its first step or read back from any saved state; and its options.

``step``: int, or float32 of no dimension where capturable. ``exp_avg``, ``exp_avg_sq``: moments, at least float32,
(R, R) or the parameter's shape. Of low-rank ones ``left`` (M, R) and ``right`` (N, R) int16, and with feedback
``codes`` uint8 and ``scales`` float32, see Packed.
"""

from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tsr_swarm.lowrank.basis import random_basis
from tsr_swarm.lowrank.packed import BUCKET, code_width, with_zeros

LATER_OPTIONS = {  # missing in older saved optimizers, which stepped like this
    "feedback_bits": 0, "maximize": False, "oversampling": 0, "power_iterations": 0, "foreach": False,
    "capturable": False,
}  # fmt: skip
NO_STATE = "This is not an optimizer's state; load what TSRAdam.state_dict() returned."

_WHOLE = ("oversampling", "power_iterations")
_FLAGS = ("maximize", "foreach", "capturable")
_MOMENTS = ("exp_avg", "exp_avg_sq")
_OWN_OPTIONS = ("rank", "refresh_every")  # in every state that TSRAdam ever saved, and together in no other optimizer's


def core_rank(parameter: Tensor, rank: int | None) -> int | None:
    """Return the rank of a parameter's core, None if its moments are full size."""
    return rank if rank is not None and parameter.dim() == 2 and min(parameter.shape) > rank else None


def moments_shape(parameter: Tensor, rank: int | None) -> tuple[int, ...]:
    """Return the shape of both moments: the core's, or the parameter's own."""
    rank = core_rank(parameter, rank)
    return tuple(parameter.shape) if rank is None else (rank, rank)


def fresh_state(parameter: Tensor, rank: int | None, seed: int, number: int) -> dict[str, Any]:
    """Return the state before the first step. The first bases depend on ``number``, its place in the optimizer."""
    state: dict[str, Any] = {"step": 0}
    like, rank = parameter, core_rank(parameter, rank)
    if rank is not None:
        rows, cols = parameter.shape
        basis = random_basis(rows, cols, rank, seed, number)
        state |= {"left": basis.left.to(parameter.device), "right": basis.right.to(parameter.device)}
        like = parameter.new_empty(rank, rank)
    for key in _MOMENTS:
        state[key] = torch.zeros_like(like, dtype=_moments_dtype(parameter), memory_format=torch.preserve_format)
    return state


def step_tensor(step: int, parameter: Tensor) -> Tensor:
    """Return a count of steps that the device of ``parameter`` can change."""
    return torch.full((), float(step), dtype=torch.float32, device=parameter.device)


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
    """Return a copy of ``saved``, the state of ``parameter``, on its device and in the dtypes that it needs.

    Empty for a parameter that had not taken a step. Raises ValueError for what TSRAdam cannot have saved of it.
    """
    if saved is None or saved == {}:
        return {}
    if not isinstance(saved, Mapping):
        raise _damaged(number, f"is {type(saved).__name__}, not a dict")
    if isinstance(codes := saved.get("codes"), Tensor):
        saved = {**saved, "codes": with_zeros(codes)}
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
    """Return shape and dtype of every tensor of a state, with error feedback if ``saved`` has it."""
    dtype = _moments_dtype(parameter)
    shapes = {key: (moments_shape(parameter, rank), dtype) for key in _MOMENTS}
    rank = core_rank(parameter, rank)
    if rank is not None:
        for key, size in zip(("left", "right"), parameter.shape, strict=True):
            shapes[key] = (size, rank), torch.int16
        if "codes" in saved or "scales" in saved:
            buckets = -(-parameter.numel() // BUCKET)
            codes, width = saved.get("codes"), code_width(4)
            is_half = isinstance(codes, Tensor) and codes.shape[-1:] == (width,)  # two numbers a byte
            shapes["codes"] = (buckets, width if is_half else BUCKET), torch.uint8
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


def checked_options(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return all options of ``group`` as Python's own numbers, so that they can be saved with it.

    A learning rate that is a tensor stays one. Raises ValueError for an option out of range; NaN is out of every range.
    """
    lr, rank, bits = group["lr"], group["rank"], group["feedback_bits"]
    rate = _real("learning rate", lr)
    _require(rank is None or _is_count(rank), "rank", rank, "a whole number of at least 1, or None")
    _require(_is_count(group["refresh_every"]), "refresh_every", group["refresh_every"], "a whole number, at least 1")
    _require(_is_whole(group["seed"]), "seed", group["seed"], "a whole number")
    _require(_is_whole(bits) and bits in (0, 4, 8), "feedback_bits", bits, "0, 4 or 8")
    for name in _WHOLE:
        _require(_is_whole(group[name]) and group[name] >= 0, name, group[name], "a whole number, at least 0")
    for name in _FLAGS:
        _require(isinstance(group[name], bool | np.bool_), name, group[name], "True or False")
    return {
        "lr": lr if isinstance(lr, Tensor) else rate,
        "betas": _betas(group["betas"]),
        "eps": _real("epsilon value", group["eps"]),
        "weight_decay": _real("weight_decay value", group["weight_decay"]),
        "rank": None if rank is None else int(rank),
        "refresh_every": int(group["refresh_every"]),
        "scale": _real("scale", group["scale"], "at least 0 (0: automatic) and finite"),
        "seed": int(group["seed"]),
        "feedback_bits": int(bits),
        **{name: int(group[name]) for name in _WHOLE},
        **{name: bool(group[name]) for name in _FLAGS},
    }


def require_whole_parameters(group: Mapping[str, Any]) -> None:
    """Raise ValueError where a rank is asked for of parameters of which each process holds only a part.

    Distributed classes are recognized by name or attribute, so that nothing has to be imported and any torch will do.
    """
    if group["rank"] is None:
        return
    for parameter in group["params"]:
        if any(cls.__name__ == "DTensor" for cls in type(parameter).__mro__):
            raise ValueError(_refusal("a DTensor (of FSDP2's fully_shard or of tensor parallelism)"))
        if getattr(parameter, "_is_flat_param", False):
            raise ValueError(_refusal("the flat parameter of FullyShardedDataParallel"))
    # With use_orig_params a sharded parameter is a one-dimensional piece of the flat one, but a whole bias is too.
    pieces = [parameter for parameter in group["params"] if getattr(parameter, "_fsdp_flattened", False)]
    if pieces and all(parameter.dim() < 2 for parameter in pieces):
        raise ValueError(_refusal("a one-dimensional piece of FullyShardedDataParallel's flat parameter"))


def _refusal(what: str) -> str:
    return (
        f"TSRAdam takes cores of whole matrices, but a parameter is {what}; use DistributedDataParallel, or "
        "FullyShardedDataParallel with use_orig_params=True and ShardingStrategy.NO_SHARD, or torch.optim.AdamW, or "
        "rank=None in that group for plain Adam."
    )


def _real(name: str, value: object, limit: str = "at least 0 and finite", end: float = float("inf")) -> float:
    number = _as_float(value)
    _require(number is not None and 0 <= number < end, name, value, limit)
    assert number is not None, "required above"
    return number


def _betas(value: Any) -> tuple[float, ...]:
    try:
        betas = tuple(value)
    except TypeError:
        betas = ()
    _require(len(betas) == 2, "betas", value, "two numbers")
    limit = "at least 0 and below 1"
    return tuple(_real(f"beta parameter at index {index}", beta, limit, 1.0) for index, beta in enumerate(betas))


def _as_float(value: object) -> float | None:
    """Return a number of any kind, torch's and numpy's too, but no bool; None for anything else."""
    if isinstance(value, Tensor):
        return float(value) if value.numel() == 1 and not (value.is_complex() or value.is_meta) else None
    try:
        return float(value) if isinstance(value, Real) and not isinstance(value, bool) else None
    except OverflowError:  # a whole number of hundreds of digits
        return float("inf")


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return _is_whole(value) and value >= 1


def _require(is_legal: bool, name: str, value: object, limit: str) -> None:
    if not is_legal:
        raise ValueError(f"Invalid {name}: {value}; it must be {limit}.")
