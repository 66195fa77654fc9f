"""Rates and times as people write them."""

from collections.abc import Callable

import pytest

from tsr_swarm.config.link import parse_rate, parse_seconds
from tsr_swarm.errors import ConfigError

RATES = {"20mbit": 20e6, "2.5mbit": 2.5e6, "1gbit": 1e9, "56 kbit": 56e3, "8bit": 8.0, " 20Mbit ": 20e6}
TIMES = {"50ms": 0.05, "2s": 2.0, "1.5min": 90.0, "1h": 3600.0, "0ms": 0.0, "0.6": 0.6}
NO_RATE = "is not a rate; write a number and one of bit, kbit, mbit, gbit"
NO_TIME = "is not a time; write a number and one of us, ms, s, min, h"


def test_a_rate_is_bits_a_second_and_a_time_seconds() -> None:
    assert {text: parse_rate(text) for text in RATES} == pytest.approx(RATES)
    assert {text: parse_seconds(text) for text in TIMES} == pytest.approx(TIMES)


@pytest.mark.parametrize(
    ("parse", "says", "texts"),
    [
        (parse_rate, NO_RATE, ["", "fast", "20", "20mb", "-1mbit", "1e3mbit", "20mbit/s", "mbit", "1,5mbit", "٣mbit"]),
        (parse_seconds, NO_TIME, ["", "soon", "-1s", "5 m", "20mbit", "nan"]),
        (parse_rate, "out of range", ["0mbit"]),
        (parse_seconds, "out of range", ["9" * 20 + "h"]),
    ],
)
def test_other_text_is_refused(parse: Callable[[str], float], says: str, texts: list[str]) -> None:
    for text in texts:
        with pytest.raises(ConfigError, match=says):
            parse(text)
