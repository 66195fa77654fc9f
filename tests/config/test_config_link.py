"""Rates and times as people write them."""

import pytest

from tsr_swarm.config.link import parse_rate, parse_seconds
from tsr_swarm.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "bits"),
    [("20mbit", 20e6), ("2.5mbit", 2.5e6), ("1gbit", 1e9), ("56 kbit", 56e3), ("8bit", 8.0), (" 20Mbit ", 20e6)],
)
def test_a_rate_is_bits_a_second(text: str, bits: float) -> None:
    assert parse_rate(text) == pytest.approx(bits)


@pytest.mark.parametrize(
    ("text", "seconds"), [("50ms", 0.05), ("2s", 2.0), ("1.5min", 90.0), ("1h", 3600.0), ("0ms", 0.0), ("0.6", 0.6)]
)
def test_a_time_is_seconds(text: str, seconds: float) -> None:
    assert parse_seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "fast", "20", "20mb", "-1mbit", "1e3mbit", "20mbit/s", "mbit", "1,5mbit", "٣mbit"]
)
def test_text_that_is_not_a_rate_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a rate; write a number and one of bit, kbit, mbit, gbit"):
        parse_rate(text)


@pytest.mark.parametrize("text", ["", "soon", "-1s", "5 m", "20mbit", "nan"])
def test_text_that_is_not_a_time_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a time; write a number and one of us, ms, s, min, h"):
        parse_seconds(text)


def test_rates_and_times_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="out of range"):
        parse_rate("0mbit")
    with pytest.raises(ConfigError, match="out of range"):
        parse_seconds("9" * 20 + "h")
