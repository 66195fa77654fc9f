from collections.abc import AsyncIterator

import pytest

from tests.monitor.on_screen import NARROW, SILENT, SMALL, WIDE, ListSource, column, rows, screen, settle
from tsr_swarm.errors import RefusedError
from tsr_swarm.monitor.app import QUIT_NOTE, SwarmMonitor
from tsr_swarm.telemetry.events import (
    DataCovered,
    Event,
    Joined,
    LeaderChanged,
    LeaderLost,
    PayloadRefused,
    PeerJoined,
    RoundOpened,
    encode,
)


class RefusedSource(ListSource):
    async def lines(self) -> AsyncIterator[str]:
        yield "not an event"
        raise RefusedError("The coordinator speaks version 2, this is 1; upgrade.")


@pytest.mark.parametrize(
    ("size", "under"), [(NARROW, "epoch 1, 37 %"), (WIDE, "epoch 1, 37 %"), ((200, 40), "epoch 1, 37 % of the data")]
)
async def test_how_much_of_the_data_was_trained_on_is_in_the_last_tile(
    size: tuple[int, int], under: str, run_lines: list[str]
) -> None:
    covered = encode(DataCovered(epoch=1, done=3, parts=8, share=0.375), 1_000_171.0)
    app = SwarmMonitor(ListSource([*run_lines, covered]), "shakespeare")
    async with app.run_test(size=size) as pilot:
        await settle(pilot, app)
        assert under in column(app, "SPEED", 40)[2]


@pytest.mark.parametrize("size", [NARROW, WIDE])
async def test_the_five_numbers_are_in_their_tiles(size: tuple[int, int], run_lines: list[str]) -> None:
    app = SwarmMonitor(ListSource(run_lines), "shakespeare")
    async with app.run_test(size=size) as pilot:
        await settle(pilot, app)
        width = 22 if size == WIDE else 15
        assert column(app, "PEERS", width)[1] == "2 alive"
        assert column(app, "ROUND", width)[1] == "4 of 10"
        assert column(app, "HELD-OUT LOSS", width)[1:] == ["2.500", "from 5.500"]
        assert column(app, "ON THE WIRE", width)[1].split()[:3] == ["1.05", "MB", "285x"]
        assert column(app, "ON THE WIRE", width)[2] == "dense: 300 MB"
        assert column(app, "SPEED", width)[1].split()[:2] == ["3.00", "k"]


@pytest.mark.parametrize("size", [NARROW, WIDE])
async def test_chart_peers_log_and_keys_are_on_the_screen(size: tuple[int, int], run_lines: list[str]) -> None:
    app = SwarmMonitor(ListSource(run_lines))
    async with app.run_test(size=size) as pilot:
        await settle(pilot, app)
        text = screen(app)
        assert "Loss, nats a token  ━ held-out  ┄ mean local" in text
        assert any("\u2800" < character <= "\u28ff" for character in text)
        assert "1 otter" in text
        assert "2 heron" in text
        assert "round 4 exchange, closes in 12 s (median + 3 MAD)" in text
        assert all(key in rows(app)[-1] for key in ("q Quit", "p Peers", "b Bytes", "l Log", "space Freeze", "? Help"))
        assert all(len(row) == size[0] for row in rows(app))


async def test_a_peers_row_tells_its_state_and_numbers(run_lines: list[str]) -> None:
    app = SwarmMonitor(ListSource(run_lines))
    async with app.run_test(size=WIDE) as pilot:
        await settle(pilot, app)
        lines = rows(app)
        otter = next(line for line in lines if "1 otter" in line).strip("│ ").split()
        assert otter[:4] == ["1", "otter", "sent", "20/20"]
        assert otter[5:] == ["1.50", "k", "0", "120", "kB", "240", "kB", "1.750", "core,", "client-only,", "cpu"]
        lynx = next(line for line in lines if "3 lynx" in line)
        assert "left" in lynx
        assert "no sign of life for 30 s" in lynx


async def test_the_bytes_pane_sets_the_run_beside_dense_training(run_lines: list[str]) -> None:
    app = SwarmMonitor(ListSource(run_lines))
    async with app.run_test(size=WIDE) as pilot:
        await settle(pilot, app)
        text = screen(app)
        assert "core        300 kB    600 kB" in text
        assert "basis          0 B    150 kB" in text
        assert "dense training   300 MB" in text
        assert "285x less than dense would have sent" in text
        assert "2.40 MB uncompressed, 720 B overhead" in text


async def test_a_deadline_counts_down(run_lines: list[str]) -> None:
    source = ListSource(run_lines)
    app = SwarmMonitor(source)
    async with app.run_test(size=NARROW) as pilot:
        await settle(pilot, app)
        last = app.snapshot.time
        for now, told in ((last, "exchange 12 s"), (last + 7, "exchange 5.0 s"), (last + 20, "exchange")):
            source.time = now
            app.show()
            await pilot.pause()
            assert column(app, "ROUND", 15)[2].startswith(told)


@pytest.mark.parametrize(("key", "shown"), [("b", "Wire bytes, all peers"), ("p", "Peers: 2 alive"), ("l", "Events")])
async def test_a_key_shows_one_pane_alone_and_again_all(key: str, shown: str, run_lines: list[str]) -> None:
    app = SwarmMonitor(ListSource(run_lines))
    async with app.run_test(size=NARROW) as pilot:
        await settle(pilot, app)
        await pilot.press(key)
        await pilot.pause()
        assert shown in screen(app)
        assert "Loss, nats" not in screen(app)
        await pilot.press(key)
        await pilot.pause()
        assert "Loss, nats" in screen(app)
        await pilot.press(key, "escape")
        await pilot.pause()
        assert "Loss, nats" in screen(app)


async def test_a_frozen_screen_says_so_and_stands_still(run_lines: list[str]) -> None:
    source = ListSource(run_lines)
    app = SwarmMonitor(source)
    async with app.run_test(size=WIDE) as pilot:
        await settle(pilot, app)
        await pilot.press("space")
        await pilot.pause()
        frozen = screen(app)
        assert "FROZEN" in frozen
        source.time += 5
        app.show()
        await pilot.pause()
        assert screen(app) == frozen
        await pilot.press("space")
        await pilot.pause()
        assert "FROZEN" not in screen(app)


async def test_help_tells_what_quitting_leaves_running(run_lines: list[str]) -> None:
    app = SwarmMonitor(ListSource(run_lines))
    async with app.run_test(size=NARROW) as pilot:
        await settle(pilot, app)
        await pilot.press("question_mark")
        await pilot.pause()
        assert QUIT_NOTE in screen(app)
        assert "single" in screen(app)
        await pilot.press("escape")
        await pilot.pause()
        assert QUIT_NOTE not in screen(app)
        assert app.is_running


@pytest.mark.parametrize("size", [SMALL, NARROW, WIDE])
async def test_a_text_of_the_help_goes_on_under_its_own_beginning(size: tuple[int, int], run_lines: list[str]) -> None:
    app = SwarmMonitor(ListSource(run_lines), quit_note="The screen is closed; training goes on. Ctrl-C leaves, twice.")
    async with app.run_test(size=size) as pilot:
        await settle(pilot, app)
        await pilot.press("question_mark")
        await settle(pilot, app)
        box = app.screen.query_one("#help").scrollable_content_region
        lines = [row[box.x : box.right] for row in rows(app)[box.y : box.bottom]]
        start = lines[0].index("quit.")
        assert len(lines) > 10
        assert all(line[start - 1] == " " != line[start] for line in lines if line.strip())


async def test_dark_and_light(run_lines: list[str]) -> None:
    app = SwarmMonitor(ListSource(run_lines))
    async with app.run_test(size=NARROW) as pilot:
        await settle(pilot, app)
        assert app.current_theme.dark
        await pilot.press("d")
        assert not app.current_theme.dark


@pytest.mark.parametrize("key", ["q", "ctrl+c"])
async def test_quitting_leaves_at_once(key: str, run_lines: list[str]) -> None:
    app = SwarmMonitor(ListSource(run_lines))
    async with app.run_test(size=NARROW) as pilot:
        await settle(pilot, app)
        await pilot.press(key)
    assert app.return_code == 0
    assert app.failure is None


async def test_an_interrupt_can_be_passed_on_to_the_run(run_lines: list[str]) -> None:
    asked = []

    def leave() -> str:
        asked.append(1)
        return "Finishing round 4, press again to stop now."

    app = SwarmMonitor(ListSource(run_lines), on_interrupt=leave)
    async with app.run_test(size=NARROW, notifications=True) as pilot:
        await settle(pilot, app)
        await pilot.press("ctrl+c")
        await pilot.pause()
        assert asked == [1]
        assert app.is_running
        assert "Finishing round 4" in screen(app)


async def test_a_refusal_closes_the_monitor_and_is_kept() -> None:
    app = SwarmMonitor(RefusedSource([]))
    async with app.run_test(size=NARROW) as pilot:
        await app.workers.wait_for_complete()
        await pilot.pause()
    assert isinstance(app.failure, RefusedError)


async def test_a_lost_connection_is_told_at_the_top(run_lines: list[str]) -> None:
    source = ListSource(run_lines)
    source.trouble = SILENT
    app = SwarmMonitor(source, "shakespeare")
    async with app.run_test(size=NARROW) as pilot:
        await settle(pilot, app)
        assert rows(app)[0].strip() == "No answer from 192.0.2.1:7700 for 23 s"


async def test_before_the_first_event_every_pane_says_what_is_missing() -> None:
    app = SwarmMonitor(ListSource([]))
    async with app.run_test(size=WIDE) as pilot:
        await settle(pilot, app)
        text = screen(app)
        assert "waiting for the first event" in rows(app)[0]
        assert "The line starts with the first evaluation." in text
        assert "Counted from the first closed round on." in text
        assert "No peer is known yet." in text


async def test_a_single_point_of_failure_is_named(run_lines: list[str]) -> None:
    app = SwarmMonitor(ListSource(run_lines))
    async with app.run_test(size=WIDE) as pilot:
        await settle(pilot, app)
        assert "the coordinator is a single point of failure" in rows(app)[0]


def leads(name: str, voters: int) -> LeaderChanged:
    return LeaderChanged(peer="1" * 32, name=name, term=2, voters=voters, is_safe=voters >= 3)


LOST = LeaderLost(reason="no word for 6 s")
LED = [  # what happens, and the headline's end, narrow and wide
    ([leads("otter", 3)], "otter leads, 3 voters", "otter leads, 3 voters: the run survives its loss"),
    ([leads("otter", 2)], "otter leads, no failover", "otter leads, a single point of failure"),
    ([leads("x" * 32, 1)], "no failover", "x leads, a single point of failure"),
    ([leads("otter", 3), LOST], "otter is lost: another is elected", "otter is lost: another is elected"),
    ([leads("otter", 1), LOST], "otter is lost: the run waits for it", "otter is lost: the run waits for it"),
    ([leads("otter", 3), LOST, leads("heron", 3)], "heron leads, 3 voters", "heron leads, 3 voters: the run survives"),
]


@pytest.mark.parametrize(("happens", "narrow", "wide"), LED)
async def test_who_leads_and_how_safely_is_at_the_top(
    happens: list[Event], narrow: str, wide: str, run_lines: list[str]
) -> None:
    lines = [encode(event, 1_000_200.0 + number) for number, event in enumerate(happens)]
    for size, told in ((NARROW, narrow), (WIDE, wide)):
        app = SwarmMonitor(ListSource([*run_lines, *lines]), "shakespeare")
        async with app.run_test(size=size) as pilot:
            await settle(pilot, app)
            assert told in rows(app)[0]
            assert "…" not in rows(app)[0]


async def test_who_leads_is_marked_among_the_peers_and_who_was_lost_has_left(run_lines: list[str]) -> None:
    happened = [leads("otter", 3), LOST, leads("heron", 3), RoundOpened(round=5, peers=1, steps=20, lr=0.1, refresh=0)]
    app = SwarmMonitor(ListSource([*run_lines, *(encode(event, 1_000_200.0) for event in happened)]))
    async with app.run_test(size=WIDE) as pilot:
        await settle(pilot, app)
        assert "Peers: 1 alive, 2 left, heron leads" in screen(app)
        assert "leads, core, client-only" in next(line for line in rows(app) if "2 heron" in line)
        assert "it was lost while it led" in next(line for line in rows(app) if "1 otter" in line)
        assert "! the leader is lost: no word for 6 s" in screen(app)
        assert "heron leads: 3 voters, the run survives the loss of 1 of them" in screen(app)


async def test_names_and_reasons_from_peers_cannot_touch_the_screen(run_lines: list[str]) -> None:
    name = "\x1b[2J\u202e[bold red]evil[/]\n" + "x" * 1000
    joined = PeerJoined(peer="9" * 32, name=name, number=9, address="", device="[blink]", local_space="core")
    refused = PayloadRefused(round=4, peer="9" * 32, name=name, reason="[/]\x07", message="\x9b31m[link=x]")
    app = SwarmMonitor(ListSource([*run_lines, encode(joined, 1_000_200.0), encode(refused, 1_000_201.0)]))
    async with app.run_test(size=WIDE) as pilot:
        await settle(pilot, app)
        assert all(row.isprintable() for row in rows(app))
        assert "[2J[bold red]evi" in screen(app)
        assert "1 in trouble" in screen(app)
        assert "! " in screen(app)


async def test_a_peers_own_stream_shows_the_peer() -> None:
    start = encode(Joined(run="shakespeare", name="otter", number=3, address="", round=4), 1.0)
    app = SwarmMonitor(ListSource([start]))
    async with app.run_test(size=NARROW) as pilot:
        await settle(pilot, app)
        assert "otter: after round 4" in rows(app)[0]
        assert "3 otter" in screen(app)


@pytest.mark.parametrize("size", [(20, 5), (40, 12), (79, 19), (100, 24), (110, 31), (240, 70)])
async def test_any_terminal_size_is_drawn_to_its_edges(size: tuple[int, int], run_lines: list[str]) -> None:
    app = SwarmMonitor(ListSource(run_lines), "shakespeare")
    async with app.run_test(size=size) as pilot:
        await settle(pilot, app)
        assert [len(row) for row in rows(app)] == [size[0]] * size[1]
