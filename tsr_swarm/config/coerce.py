"""Values of settings as the plain Python values that their fields declare, whether they come from TOML or from code."""

import types
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from typing import Any, Union, get_args, get_origin, get_type_hints

from tsr_swarm.errors import ConfigError


def coerce_fields(section: Any, prefix: str) -> None:
    """Replace every field of a frozen dataclass by what it declares: numbers of numpy become
    Python's, lists and arrays tuples.

    ``prefix`` goes before a field's name in messages. Raises ConfigError for a value of another kind.
    """
    cls: Any = type(section)
    for key, hint in _hints(cls).items():
        object.__setattr__(section, key, _coerce(f"{prefix}{key}", getattr(section, key), hint))


@cache
def _hints(cls: Any) -> Mapping[str, Any]:
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in fields(cls)}


def _coerce(key: str, value: Any, hint: Any) -> Any:
    """``value`` as ``hint``; whole numbers may stand for floats and lists for tuples, but bools for no number."""
    if hasattr(value, "dtype") and hasattr(value, "tolist"):  # a number or an array of numpy or torch
        value = value.tolist()
    if _is_union(hint):
        for option in get_args(hint):
            try:
                return _coerce(key, value, option)
            except ConfigError:
                continue
    elif get_origin(hint) is tuple:
        if isinstance(value, list | tuple):
            item_hints = get_args(hint)
            if item_hints[-1] is Ellipsis or len(item_hints) == len(value):
                items = [item_hints[0]] * len(value) if item_hints[-1] is Ellipsis else item_hints
                return tuple(_coerce(key, item, item_hint) for item, item_hint in zip(value, items, strict=True))
    elif hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return _float(key, value)
    elif isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise ConfigError(f"{key} = {value!r} has the wrong type; it must be {_describe(hint)}.")


def _float(key: str, value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        raise ConfigError(f"{key} is a whole number with more digits than a float can hold; write fewer.") from None


def _describe(hint: Any) -> str:
    if _is_union(hint):
        return " or ".join(_describe(option) for option in get_args(hint))
    if hint == tuple[float, float]:
        return "a list of two numbers"
    if get_origin(hint) is tuple:
        return f"a list of {_describe(get_args(hint)[0])}"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return names.get(hint) or f"a section, {hint.__name__}"


def _is_union(hint: Any) -> bool:
    return get_origin(hint) in (Union, types.UnionType)
