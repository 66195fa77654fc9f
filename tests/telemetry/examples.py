"""Events of one small run, to be changed with ``dataclasses.replace``, and a strategy for any event at all."""

import types
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Union, get_args, get_origin, get_type_hints, is_typeddict

from hypothesis import strategies as st

from tests.fixtures import run_started
from tsr_swarm.telemetry import events as e
from tsr_swarm.telemetry.log import EventLog
from tsr_swarm.telemetry.typed_json import MAX_COUNT, MAX_NUMBER

STARTED = run_started(run="shakespeare", min_peers=2)
CLOSED = e.RoundClosed(
    round=1,
    peers=2,
    included=2,
    late=0,
    loss=2.0,
    local_loss=2.5,
    tokens=100,
    seconds=3.0,
    wire_bytes={"sent": {"core": 60, "control": 4}, "received": {"core": 100}},
    per_peer={"otter": {"sent": {"core": 30}, "received": {"core": 50}, "overhead": 7}},
    raw_bytes={"sent": 100, "received": 200},
    dense_bytes=16_400,
    digest="ab",
)
APPLIED = e.RoundApplied(
    round=5,
    included=True,
    local_loss=2.5,
    tokens=10,
    seconds=1.0,
    digest="ab",
    wire_bytes={"sent": {"core": 30}, "received": {"core": 50}},
    overhead=3,
)
FINISHED = e.RunFinished(
    rounds=10, first_loss=5.0, last_loss=2.0, wire_bytes=9, dense_bytes=99, digest="ab", reason="10 rounds done"
)
LOST = e.LeaderLost(reason="no word for 6 s")


def log_of(*events: e.Event, clock: Callable[[], float] = lambda: 10.0, **limits: int) -> EventLog:
    log = EventLog(clock, **limits)
    for event in events:
        log.append(event)
    return log


def joined(name: str, number: int = 1, address: str = "") -> e.PeerJoined:
    return e.PeerJoined(peer=f"id-{name}", name=name, number=number, address=address, device="cpu", local_space="core")


def progress(name: str, round: int, step: int, speed: float = 100.0) -> e.PeerProgress:
    return e.PeerProgress(peer=f"id-{name}", name=name, round=round, step=step, steps=20, tokens_per_second=speed)


def opened(round: int) -> e.RoundOpened:
    return e.RoundOpened(round=round, peers=2, steps=20, lr=0.003, refresh=0)


def closed(round: int, loss: float | None = 2.0) -> e.RoundClosed:
    return replace(CLOSED, round=round, loss=loss)


def leads(name: str, voters: int = 3) -> e.LeaderChanged:
    return e.LeaderChanged(peer=f"id-{name}", name=name, term=1, voters=voters, is_safe=voters >= 3)


def _strategy(hint: Any) -> st.SearchStrategy[Any]:
    if hint is int:
        return st.integers(0, 5) | st.integers(0, MAX_COUNT)
    if hint is float:
        return st.floats(-MAX_NUMBER, MAX_NUMBER)
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


ANY_EVENT: st.SearchStrategy[e.Event] = st.one_of([_build(cls) for cls in e.EVENT_TYPES.values()])
