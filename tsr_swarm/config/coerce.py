"""Check values of settings and make them what their fields declare, whether they come from a file, text or code."""

import difflib
import tomllib
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, ClassVar, Self, Union, get_args, get_origin, get_type_hints

from tsr_swarm.errors import ConfigError

_SHOWN = 100  # characters of a value


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigSection:
    """A frozen dataclass of settings, whose values are coerced and checked when it is made.

    Numbers of numpy become Python's, lists and arrays tuples. A value of another kind, or out of range, is a
    ConfigError.
    """

    section: ClassVar[str] = ""  # what messages call it

    def __post_init__(self) -> None:
        cls: Any = type(self)
        for key, hint in _hints(cls).items():
            object.__setattr__(self, key, _coerce(self.full_key(key), getattr(self, key), hint))
        self.check()

    @classmethod
    def read(cls, mapping: Mapping[str, Any]) -> Self:
        """Make a section of parsed TOML or JSON; keys that are left out have their defaults. Raises ConfigError."""
        refuse_unknown(mapping, (field.name for field in fields(cls)), cls.full_key(""))
        return cls(**mapping)

    @classmethod
    def full_key(cls, key: str) -> str:
        """A key as messages write it, such as ``optimizer.lr``."""
        return f"{cls.section}.{key}" if cls.section else key

    def check(self) -> None:
        """Raise ConfigError for a value out of range, or one that contradicts another."""

    def require(self, is_legal: bool, key: str, limit: str) -> None:
        """Raise a ConfigError that names the key, its value and its limit unless ``is_legal``."""
        require(is_legal, self.full_key(key), getattr(self, key), limit)


def require(is_legal: bool, key: str, value: object, limit: str) -> None:
    """Raise a ConfigError of one sentence unless ``is_legal``."""
    if not is_legal:
        raise ConfigError(f"{key} = {shown(value)} is out of range; it must be {limit}.")


def refuse_unknown(keys: Iterable[str], known: Iterable[str], prefix: str = "") -> None:
    """Raise a ConfigError that suggests the nearest known key unless all ``keys`` are known."""
    known = list(known)
    for key in keys:
        if key not in known:
            raise ConfigError(f"'{prefix}{key}' is not a known key; did you mean '{prefix}{nearest(key, known)}'?")


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the known name that is most like a wrong one."""
    return difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.0)[0]


def parse_text(text: str) -> Any:
    """Read a value from a command line or the environment: TOML, or else a plain string."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text


def shown(value: object) -> str:
    """A value as it stands in a sentence, where a long one is cut."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


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
        try:
            return float(value)
        except OverflowError:
            raise ConfigError(f"{key} is a whole number with more digits than a float can hold; write fewer.") from None
    elif isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise ConfigError(f"{key} = {shown(value)} has the wrong type; it must be {_describe(hint)}.")


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
