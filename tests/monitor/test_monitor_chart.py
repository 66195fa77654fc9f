import itertools

from hypothesis import given
from hypothesis import strategies as st

from tsr_swarm.monitor.chart import Series, draw_chart, nice_ticks
from tsr_swarm.monitor.view import MUTED, bar, cut, first_fitting, progress
from tsr_swarm.telemetry.typed_json import MAX_NUMBER

LOSSES = st.lists(st.floats(-10, 20) | st.floats(-MAX_NUMBER, MAX_NUMBER), min_size=1, max_size=60)


def line(losses: list[float], is_bold: bool = True) -> Series:
    return Series(points=[(float(i), loss) for i, loss in enumerate(losses)], style="bold", is_bold=is_bold)


def braille(text: str) -> int:
    return sum("\u2800" < character <= "\u28ff" for character in text)


@given(held_out=LOSSES, local=LOSSES, width=st.integers(20, 150), height=st.integers(4, 50))
def test_a_chart_fills_its_place_exactly(held_out: list[float], local: list[float], width: int, height: int) -> None:
    chart = draw_chart([line(held_out), line(local, False)], width, height)
    rows = chart.plain.split("\n")
    assert len(rows) == height
    assert all(len(row) <= width for row in rows)
    assert braille(chart.plain) > 0


@given(width=st.integers(0, 30), height=st.integers(0, 6))
def test_a_chart_without_room_or_points_is_empty_or_whole(width: int, height: int) -> None:
    assert draw_chart([], width, height).plain == ""
    drawn = draw_chart([line([1.0])], width, height).plain
    assert (drawn == "") == (width < 20 or height < 4)


@given(low=st.floats(-1e6, 1e6), span=st.floats(1e-6, 1e6), count=st.integers(2, 12))
def test_ticks_are_few_even_and_inside(low: float, span: float, count: int) -> None:
    ticks = nice_ticks(low, low + span, count)
    steps = [b - a for a, b in itertools.pairwise(ticks)]
    assert len(ticks) <= count + 1
    assert all(low - 1e-3 * span <= tick <= low + span * 1.001 for tick in ticks)
    assert all(abs(step - steps[0]) <= 1e-6 * abs(steps[0]) + 1e-9 * abs(low) for step in steps)


def test_a_falling_loss_starts_at_the_top_and_ends_at_the_bottom() -> None:
    rows = draw_chart([line([5.0, 4.0, 3.0, 2.0, 1.0])], 40, 12).plain.split("\n")
    first = next(i for i, row in enumerate(rows) if braille(row[:8]))
    last = max(i for i, row in enumerate(rows) if braille(row[-3:]))
    assert first == 0
    assert last == 9
    assert rows[11].split() == ["0", "2", "round"]
    assert [row.split()[0] for row in rows if "┤" in row] == ["5", "4", "3", "2", "1"]


def test_where_two_lines_meet_the_bold_one_is_drawn() -> None:
    thin = Series(points=[(0.0, 1.0), (9.0, 2.0)], style="red", is_bold=False)
    bold = Series(points=[(0.0, 1.0), (9.0, 2.0)], style="blue", is_bold=True)
    chart = draw_chart([bold, thin], 30, 8)
    assert {span.style for span in chart.spans} == {"blue", MUTED}


@given(share=st.floats(0, 1), width=st.integers(1, 60))
def test_bars_keep_to_their_width_and_show_the_smallest_share(share: float, width: int) -> None:
    assert len(bar(share, width)) <= width
    assert bool(bar(share, width)) == (share > 0)
    assert len(progress(share, width)) == width


@given(text=st.text(alphabet="ab ,", max_size=40).map(str.strip), width=st.integers(0, 40))
def test_cut_text_fits_and_ends_after_a_word(text: str, width: int) -> None:
    short = cut(text, width)
    assert len(short) <= width or not text
    if short != text and " " in text[:width]:
        assert text.startswith(short[:-1])


def test_the_longest_variant_that_fits_is_shown() -> None:
    assert first_fitting(9, "exchange, 11 s left", "exchange", "ex") == "exchange"
    assert first_fitting(1, "exchange", "ex") == ""
