"""What a parameter group of TSRAdam may say: the ranges of its options, and parameters that can be cut into cores."""

from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np
from torch import Tensor

LATER_OPTIONS = {"feedback_bits": 0, "maximize": False}  # lacking in older saved optimizers, which stepped like this


def checked_options(group: Mapping[str, Any]) -> dict[str, Any]:
    """All options of ``group`` as Python's own numbers, whatever kind they were, so that they can be saved with it.

    A learning rate that is a tensor stays one. Raises ValueError for an option out of range; NaN is out of every range.
    """
    lr, rank, bits, maximize = group["lr"], group["rank"], group["feedback_bits"], group["maximize"]
    rate = _real("learning rate", lr)
    _require(rank is None or _is_count(rank), "rank", rank, "a whole number of at least 1, or None")
    _require(_is_count(group["refresh_every"]), "refresh_every", group["refresh_every"], "a whole number, at least 1")
    _require(_is_whole(group["seed"]), "seed", group["seed"], "a whole number")
    _require(_is_whole(bits) and bits in (0, 4, 8), "feedback_bits", bits, "0, 4 or 8")
    _require(isinstance(maximize, bool | np.bool_), "maximize", maximize, "True or False")
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
        "maximize": bool(maximize),
    }


def require_whole_parameters(group: Mapping[str, Any]) -> None:
    """Raise ValueError where a rank is asked for of parameters of which each process holds only a part.

    Distributed classes are known by what they carry, so that nothing is imported for it, and any torch will do.
    """
    if group["rank"] is None:
        return
    for parameter in group["params"]:
        if any(cls.__name__ == "DTensor" for cls in type(parameter).__mro__):
            raise ValueError(_refusal("a DTensor (of FSDP2's fully_shard or of tensor parallelism)"))
        if getattr(parameter, "_is_flat_param", False):
            raise ValueError(_refusal("the flat parameter of FullyShardedDataParallel"))
    # With use_orig_params a sharded parameter is a one-dimensional piece of the flat one; a whole bias is that too.
    pieces = [parameter for parameter in group["params"] if getattr(parameter, "_fsdp_flattened", False)]
    if pieces and all(parameter.dim() < 2 for parameter in pieces):
        raise ValueError(_refusal("a one-dimensional piece of FullyShardedDataParallel's flat parameter"))


def _refusal(what: str) -> str:
    return (
        f"TSRAdam takes cores of whole matrices, but a parameter is {what}; use DistributedDataParallel, or "
        "FullyShardedDataParallel with use_orig_params=True and ShardingStrategy.NO_SHARD, or torch.optim.AdamW, or "
        "rank=None in that group for plain Adam."
    )


def _real(name: str, value: object, limit: str = "at least 0 and finite") -> float:
    number = _as_float(value)
    _require(number is not None and 0 <= number < float("inf"), name, value, limit)
    assert number is not None, "required above"
    return number


def _betas(value: Any) -> tuple[float, ...]:
    try:
        betas = tuple(value)
    except TypeError:
        betas = ()
    _require(len(betas) == 2, "betas", value, "two numbers")
    return tuple(_beta(index, beta) for index, beta in enumerate(betas))


def _beta(index: int, value: object) -> float:
    number = _as_float(value)
    _require(
        number is not None and 0 <= number < 1,
        f"beta parameter at index {index}",
        value,
        "at least 0 and below 1",
    )
    assert number is not None, "required above"
    return number


def _as_float(value: object) -> float | None:
    """A number of any kind, torch's and numpy's too, but no bool; None for anything else."""
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
