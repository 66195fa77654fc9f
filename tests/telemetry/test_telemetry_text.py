import errno
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsr_swarm.telemetry.text import bytes_text, clean, count_text, factor_text, loss_text, reason_text, seconds_text

HOSTILE = "\x1b]0;owned\x07 \x1b[2J\u202eevil\u2066 [red]x[/red]\r\n\x00\x9b1m\u200b"


@given(text=st.text(max_size=300), limit=st.integers(2, 60))
def test_cleaned_text_is_one_short_line_without_hidden_characters(text: str, limit: int) -> None:
    cleaned = clean(text, limit)
    assert len(cleaned) <= limit
    assert not any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in cleaned)
    assert clean(cleaned, limit) == cleaned


def test_hidden_characters_are_taken_out_and_long_text_is_cut() -> None:
    assert clean(HOSTILE) == "]0;owned [2Jevil [red]x[/red] 1m"
    assert clean("x" * 1_000_000, 8) == "xxxxxxx…"


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (12_345, "12.3 kB"), (999_600, "1.00 MB"), (4.19e9, "4.19 GB")],
)
def test_bytes_have_three_digits_and_a_unit(count: float, text: str) -> None:
    assert bytes_text(count) == text


@given(count=st.integers(0, 2**63))
def test_bytes_are_short_whatever_their_size(count: int) -> None:
    assert len(bytes_text(count)) <= 7
    assert len(count_text(count)) <= 6


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1.0, "0.0 s"),
        (0.84, "0.8 s"),
        (9.96, "10 s"),
        (59.6, "1 min 00 s"),
        (200, "3 min 20 s"),
        (7500, "2 h 05 min"),
        (273_600, "3 d 04 h"),
    ],
)
def test_seconds_are_written_in_the_unit_that_fits(seconds: float, text: str) -> None:
    assert seconds_text(seconds) == text


def test_factors_and_losses_have_a_dash_when_there_is_none() -> None:
    assert factor_text(1740, 10) == "174x"
    assert factor_text(25, 10) == "2.5x"
    assert factor_text(0, 10) == factor_text(10, 0) == loss_text(None) == "-"


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/a/b"), "No space left on device"),
        (FileExistsError(errno.EEXIST, "File exists", "/a/b"), "a file is in its place"),
        (OSError("timed out"), "timed out"),
        (ValueError("it is of another run"), "it is of another run"),
        (RuntimeError("\nNo such backend\x1b[2J.\nC++ frame 1\nC++ frame 2"), "No such backend[2J."),
        (AssertionError(), "AssertionError"),
    ],
)
def test_a_reason_has_neither_number_nor_path(error: Exception, text: str) -> None:
    assert reason_text(error) == text
