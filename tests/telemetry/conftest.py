"""Any event at all, for properties."""

import types
from typing import Any, Union, get_args, get_origin, get_type_hints, is_typeddict

import pytest
from hypothesis import strategies as st

from tsr_swarm.telemetry.events import EVENT_TYPES, Event
from tsr_swarm.telemetry.typed_json import MAX_COUNT, MAX_NUMBER

FLOATS = st.floats(-MAX_NUMBER, MAX_NUMBER)


def _strategy(hint: Any) -> st.SearchStrategy[Any]:
    if hint is int:
        return st.integers(0, 5) | st.integers(0, MAX_COUNT)
    if hint is float:
        return FLOATS
    if hint is str:
        return st.sampled_from(["a", "b", "train", "waiting", "exchange"]) | st.text(max_size=40)
    if get_origin(hint) in (Union, types.UnionType):
        return st.one_of(st.none(), *(_strategy(option) for option in get_args(hint) if option is not type(None)))
    if is_typeddict(hint):
        hints = get_type_hints(hint)
        return st.fixed_dictionaries({key: _strategy(item) for key, item in hints.items()})
    if get_origin(hint) is dict:
        return st.dictionaries(st.sampled_from(["core", "state", "a", "b"]), _strategy(get_args(hint)[1]), max_size=3)
    return st.from_type(hint)


def _build(cls: type[Any]) -> st.SearchStrategy[Any]:
    return st.builds(cls, **{name: _strategy(hint) for name, hint in get_type_hints(cls).items()})


@pytest.fixture(scope="session")
def any_event() -> st.SearchStrategy[Event]:
    """Events of every kind with legal field types and arbitrary values."""
    return st.one_of([_build(cls) for cls in EVENT_TYPES.values()])
