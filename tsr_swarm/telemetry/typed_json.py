"""Values read from JSON, as the types that a class has for its fields."""

import types
from typing import Any, Union, get_args, get_origin, get_type_hints, is_typeddict

MAX_COUNT = 2**63 - 1
MAX_NUMBER = 1e15  # of a float; no time, rate or loss is larger, and sums of such stay finite


def read_as(hint: Any, value: Any) -> Any:
    """Read ``value`` as ``hint``. Raises ValueError. A whole number is a count, so it is neither negative nor huge."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if hint is float and is_number and is_sane(value):
        return float(value)
    if hint is int and is_number and isinstance(value, int) and 0 <= value <= MAX_COUNT:
        return value
    if hint in (str, bool) and isinstance(value, hint):
        return value
    if get_origin(hint) in (Union, types.UnionType):
        inner, _ = get_args(hint)  # only ``X | None`` is used
        return None if value is None else read_as(inner, value)
    if is_typeddict(hint) and isinstance(value, dict) and hint.__required_keys__ <= value.keys():
        return {key: read_as(item, value[key]) for key, item in get_type_hints(hint).items() if key in value}
    if get_origin(hint) is dict and isinstance(value, dict):
        return {key: read_as(get_args(hint)[1], item) for key, item in value.items()}
    raise ValueError("wrong type")


def is_sane(number: float) -> bool:
    """Whether ``number`` is finite and no larger than MAX_NUMBER."""
    return abs(number) <= MAX_NUMBER  # false for nan
