import re
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.bench.screenshot import draw
from tests.monitor.on_screen import NARROW, SMALL, WIDE, ListSource, monitor
from tests.telemetry.examples import APPLIED, LOST, joined, leads, opened
from tsr_swarm.errors import RefusedError
from tsr_swarm.monitor.app import QUIT_NOTE, SwarmMonitor
from tsr_swarm.telemetry.events import DataCovered, Event, Joined, PayloadRefused


class RefusedSource(ListSource):
    async def lines(self) -> AsyncIterator[str]:
        yield "not an event"
        raise RefusedError("The coordinator speaks version 2, this is 1; upgrade.")


@pytest.mark.parametrize(
    ("size", "under"), [(NARROW, "epoch 1, 37 %"), (WIDE, "epoch 1, 37 %"), ((200, 40), "epoch 1, 37 % of the data")]
)
async def test_the_coverage_of_the_data_is_in_the_last_tile(size: tuple[int, int], under: str) -> None:
    async with monitor(size, DataCovered(epoch=1, done=3, parts=8, share=0.375)) as screen:
        assert under in screen.tile("SPEED", 40)[2]


@pytest.mark.parametrize(("size", "width"), [(NARROW, 15), (WIDE, 22)])
async def test_numbers_chart_peers_log_and_keys_are_on_the_screen(size: tuple[int, int], width: int) -> None:
    async with monitor(size) as screen:
        assert screen.tile("PEERS", width)[1] == "2 alive"
        assert screen.tile("ROUND", width)[1] == "4 of 10"
        assert screen.tile("HELD-OUT LOSS", width)[1:] == ["2.500", "from 5.500"]
        _, wire, dense = screen.tile("ON THE WIRE", width)
        assert (wire.split()[:3], dense) == (["1.05", "MB", "285x"], "dense: 300 MB")
        assert screen.tile("SPEED", width)[1].split()[:2] == ["3.00", "k"]
        assert "Loss, nats a token  ━ held-out  ┄ mean local" in screen.text
        assert any("\u2800" < character <= "\u28ff" for character in screen.text)
        assert "1 otter" in screen.text
        assert "2 heron" in screen.text
        assert "round 4 exchange, closes in 12 s (median + 3 MAD)" in screen.text
        keys = ("q Quit", "p Peers", "b Bytes", "l Log", "space Freeze", "? Help")
        assert all(key in screen.rows[-1] for key in keys)


async def test_a_small_screen_shows_every_number_and_the_help_key() -> None:
    async with monitor(SMALL) as screen:
        tiles = [screen.tile(head, 11) for head in ("PEERS", "ROUND", "LOSS", "WIRE", "SPEED")]
        assert [value for _, value, _ in tiles] == ["2 alive", "4 of 10", "2.500", "1.05 MB", "3.00 k t/s"]
        assert all(under for _, _, under in tiles)
        assert "? Help" in screen.rows[-1]
        assert screen.row_of("1 otter").split()[2:] == ["sent", "1.50", "k", "0", "1.750"]


async def test_a_wide_screen_tells_peers_bytes_and_who_leads() -> None:
    async with monitor(WIDE) as screen:
        otter = screen.row_of("1 otter").strip("│ ").split()
        assert otter[:4] == ["1", "otter", "sent", "20/20"]
        assert otter[5:] == ["1.50", "k", "0", "120", "kB", "240", "kB", "1.750", "core,", "client-only,", "cpu"]
        assert "left" in screen.row_of("3 lynx")
        assert "no sign of life for 30 s" in screen.row_of("3 lynx")
        assert "core        300 kB    600 kB" in screen.text
        assert "basis          0 B    150 kB" in screen.text
        assert "dense training   300 MB" in screen.text
        assert "285x less than dense would have sent" in screen.text
        assert "2.40 MB uncompressed, 720 B overhead" in screen.text
        assert "the coordinator is a single point of failure" in screen.rows[0]


async def test_a_deadline_counts_down() -> None:
    async with monitor(NARROW) as screen:
        last = screen.app.snapshot.time
        for now, text in ((last, "exchange 12 s"), (last + 7, "exchange 5.0 s"), (last + 20, "exchange")):
            screen.source.time = now
            await screen.redraw()
            assert screen.tile("ROUND", 15)[2].startswith(text)


@pytest.mark.parametrize(("key", "title"), [("b", "Wire bytes, all peers"), ("p", "Peers: 2 alive"), ("l", "Events")])
async def test_a_key_shows_one_pane_alone_and_again_all(key: str, title: str) -> None:
    async with monitor(NARROW) as screen:
        await screen.press(key)
        assert title in screen.text
        assert "Loss, nats" not in screen.text
        for keys in ([key], [key, "escape"]):
            await screen.press(*keys)
            assert "Loss, nats" in screen.text


async def test_a_frozen_screen_says_so_and_does_not_change() -> None:
    async with monitor(WIDE) as screen:
        await screen.press("space")
        frozen = screen.text
        assert "FROZEN" in frozen
        screen.source.time += 5
        await screen.redraw()
        assert screen.text == frozen
        await screen.press("space")
        assert "FROZEN" not in screen.text


@pytest.mark.parametrize("size", [SMALL, NARROW, WIDE])
async def test_a_text_of_the_help_goes_on_under_its_own_beginning(size: tuple[int, int]) -> None:
    note = "The screen is closed; training goes on. Ctrl-C leaves, twice."
    async with monitor(size, quit_note=note) as screen:
        await screen.press("question_mark")
        box = screen.app.screen.query_one("#help").scrollable_content_region
        lines = [row[box.x : box.right] for row in screen.rows[box.y : box.bottom]]
        start = lines[0].index("quit.")
        assert len(lines) > 10
        assert all(line[start - 1] == " " != line[start] for line in lines if line.strip())


async def test_the_help_says_what_quitting_leaves_running_and_d_changes_the_colours() -> None:
    async with monitor(NARROW) as screen:
        await screen.press("question_mark")
        assert QUIT_NOTE in screen.text
        assert "single" in screen.text
        await screen.press("escape")
        assert QUIT_NOTE not in screen.text
        assert screen.app.current_theme.dark
        await screen.press("d")
        assert not screen.app.current_theme.dark


@pytest.mark.parametrize("key", ["q", "ctrl+c"])
async def test_quitting_leaves_at_once(key: str) -> None:
    async with monitor(NARROW) as screen:
        await screen.pilot.press(key)
    assert screen.app.return_code == 0
    assert screen.app.failure is None


async def test_an_interrupt_can_be_passed_on_to_the_run() -> None:
    async with monitor(NARROW) as screen:
        screen.app.on_interrupt = lambda: "Finishing round 4, press again to stop now."
        await screen.press("ctrl+c")
        assert screen.app.is_running
        assert "Finishing round 4" in screen.text


async def test_a_refusal_closes_the_monitor_and_is_kept() -> None:
    app = SwarmMonitor(RefusedSource([]))
    async with app.run_test(size=NARROW) as pilot:
        await app.workers.wait_for_complete()
        await pilot.pause()
    assert isinstance(app.failure, RefusedError)


LED = [  # what happens, and the headline's end, narrow and wide
    ([leads("otter", 3)], "otter leads, 3 voters", "otter leads, 3 voters: the run survives its loss"),
    ([leads("otter", 2)], "otter leads, no failover", "otter leads, a single point of failure"),
    ([leads("x" * 32, 1)], "no failover", "x leads, a single point of failure"),
    ([leads("otter", 3), LOST], "otter is lost: another is elected", "otter is lost: another is elected"),
]


@pytest.mark.parametrize(("happens", "narrow", "wide"), LED)
async def test_the_leader_and_its_safety_are_at_the_top(happens: list[Event], narrow: str, wide: str) -> None:
    for size, text in ((NARROW, narrow), (WIDE, wide)):
        async with monitor(size, *happens) as screen:
            assert text in screen.rows[0]
            assert "…" not in screen.rows[0]


async def test_the_leader_is_marked_among_the_peers_and_a_lost_one_has_left() -> None:
    async with monitor(WIDE, leads("otter", 3), LOST, leads("heron", 3), opened(5)) as screen:
        assert "Peers: 1 alive, 2 left, heron leads" in screen.text
        assert "leads, core, client-only" in screen.row_of("2 heron")
        assert "it was lost while it led" in screen.row_of("1 otter")
        assert "! the leader is lost: no word for 6 s" in screen.text
        assert "heron leads: 3 voters, the run survives the loss of 1 of them" in screen.text


async def test_names_and_reasons_from_peers_cannot_control_the_screen() -> None:
    name = "\x1b[2J\u202e[bold red]evil[/]\n" + "x" * 1000
    hostile = replace(joined(name, 9), device="[blink]")
    refused = PayloadRefused(round=4, peer=hostile.peer, name=name, reason="[/]\x07", message="\x9b31m[link=x]")
    async with monitor(WIDE, hostile, refused) as screen:
        assert all(row.isprintable() for row in screen.rows)
        assert "[2J[bold red]evi" in screen.text
        assert "1 in trouble" in screen.text
        assert "! " in screen.text


async def test_a_peers_own_stream_shows_the_peer() -> None:
    start = Joined(run="shakespeare", name="otter", number=3, address="", round=4)
    async with monitor(NARROW, start, lines=[]) as screen:
        assert screen.tile("SPEED", 15)[2] == "all peers"
    async with monitor(NARROW, start, APPLIED, lines=[]) as screen:
        assert "otter: after round 5, its work was in 1 of 1 round" in screen.rows[0]
        assert "3 otter" in screen.text
        assert screen.tile("HELD-OUT LOSS", 15)[1] == "local 2.500"
        assert screen.tile("ON THE WIRE", 15)[1:] == ["80 B", "both ways"]


@pytest.mark.parametrize("size", [(20, 5), (40, 12), (79, 19), NARROW, (100, 24), (110, 31), WIDE, (240, 70)])
async def test_any_terminal_size_is_drawn_to_its_edges(size: tuple[int, int]) -> None:
    async with monitor(size) as screen:
        assert [len(row) for row in screen.rows] == [size[0]] * size[1]


async def test_a_picture_of_a_recorded_run_is_the_same_each_time_and_needs_no_font_for_its_dots(recorded: Path) -> None:
    picture = await draw(recorded)
    assert await draw(recorded) == picture
    words = re.findall(r"<text[^>]*>([^<]*)</text>", picture)
    assert {"HELD-OUT", "LOSS"} <= set(words)
    assert not any(drawn in word for word in words for drawn in "─│╭█⠛⣀")
    assert "@font-face" not in picture
