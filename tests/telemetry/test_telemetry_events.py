import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.telemetry.examples import ANY_EVENT, FINISHED, progress
from tsr_swarm.telemetry import events as e
from tsr_swarm.telemetry.events import EVENT_TYPES, MAX_LINE, decode, decode_stamped, encode, event_name, to_dict

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(event=ANY_EVENT, time=st.floats(0, 4e9))
def test_decoding_inverts_encoding(event: e.Event, time: float) -> None:
    line = encode(event, time)
    stamped = decode_stamped(line)
    assert "\n" not in line
    assert line.isascii()
    assert stamped.event == event
    assert stamped.time == round(time, 3)


@given(text=st.text(max_size=200))
def test_any_text_is_read_without_an_error(text: str) -> None:
    assert decode(text) is None or isinstance(decode(text), e.Event)


@given(event=ANY_EVENT, value=JSON, data=st.data())
def test_a_field_of_the_wrong_type_is_never_accepted(event: e.Event, value: object, data: st.DataObject) -> None:
    document = to_dict(event, 1.0)
    field = data.draw(st.sampled_from(list(document)))
    read = decode(json.dumps({**document, field: value}))
    if read is not None and field not in ("event", "time"):
        before, after = getattr(event, field), getattr(read, field)
        assert isinstance(after, type(before)) or None in (before, after)


def test_name_and_time_come_first() -> None:
    assert list(to_dict(e.Warned(message="disk is full"), 2.0)) == ["event", "time", "message"]
    assert event_name(e.Warned(message="")) == "warning"


def test_each_event_has_a_name_of_its_own() -> None:
    assert len(set(EVENT_TYPES.values())) == len(EVENT_TYPES) == 29
    assert {"run_started", "peer_joined", "peer_left", "round_closed", "checkpoint_saved"} <= EVENT_TYPES.keys()


def test_unknown_fields_are_left_out_and_those_with_a_default_may_be_missing() -> None:
    assert decode('{"event": "warning", "time": 1, "message": "x", "since": 3}') == e.Warned(message="x")
    payload = e.PayloadReceived(round=1, peer="ab", name="otter", seconds=2.0, wire_bytes=3)
    for event, missing in ((payload, "local_loss"), (FINISHED, "by_kind")):
        document = to_dict(event, 1.0)
        del document[missing]
        assert decode(json.dumps(document)) == event


def test_a_loss_that_is_no_number_is_written_as_null() -> None:
    for loss in (math.nan, math.inf, -1e300):
        line = encode(e.Evaluated(round=1, loss=loss), 1.0)
        assert json.loads(line)["loss"] is None
        assert decode(line) == e.Evaluated(round=1, loss=None)


TIMES = ("NaN", "1e999", "9" * 5000, "9" * 400, "true")  # and rounds that are none
ROUNDS = ("-1", str(2**63), "1.0")


@pytest.mark.parametrize(
    "line",
    [
        "",
        "not json",
        "[]",
        "[" * 100_000,
        '{"event": []}',
        '{"event": "no_such_event", "time": 1}',
        '{"event": "warning", "message": "no time"}',
        *(f'{{"event": "warning", "time": {time}, "message": "x"}}' for time in TIMES),
        '{"event": "warning", "time": 1, "message": 3}',
        *(f'{{"event": "checkpoint_saved", "time": 1, "round": {round}, "path": "x"}}' for round in ROUNDS),
        '{"event": "warning", "time": 1, "message": "' + "x" * MAX_LINE + '"}',
    ],
)
def test_hostile_lines_are_no_events(line: str) -> None:
    assert decode(line) is None


def test_a_whole_number_may_stand_for_a_float() -> None:
    line = encode(progress("otter", 1, 2, 7.0), 1.0)
    assert decode(line.replace("7.0", "7")) == progress("otter", 1, 2, 7.0)
