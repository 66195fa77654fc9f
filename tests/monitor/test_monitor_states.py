"""The screen in every state of a run, and of the peer whose screen it is."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from tests.monitor.on_screen import NARROW, SILENT, SMALL, WIDE, ListSource, column, rows, screen, settle, shown
from tests.telemetry.examples import FINISHED, LOST
from tsr_swarm.cli.screen import closing_lines
from tsr_swarm.monitor.app import QUIT_NOTE, SwarmMonitor
from tsr_swarm.monitor.sources import ReplaySource
from tsr_swarm.telemetry.events import (
    CatchingUp,
    Event,
    Joined,
    Left,
    PhaseChanged,
    Warned,
    encode,
)
from tsr_swarm.telemetry.plain import Invitation
from tsr_swarm.telemetry.snapshot import SwarmSnapshot

OVER = replace(FINISHED, rounds=3, reason="the run has finished")


@pytest.mark.parametrize("size", [SMALL, NARROW, WIDE])
async def test_a_stale_screen_shows_its_age_and_no_countdown(size: tuple[int, int], run_lines: list[str]) -> None:
    source = ListSource(run_lines)
    app = SwarmMonitor(source, "shakespeare")
    async with shown(app, size) as pilot:
        assert "exchange" in screen(app)
        source.outage = SILENT
        source.time += 1000
        app.show()
        await settle(pilot, app)
        for head in ("PEERS", "ROUND", "SPEED"):
            assert "23 s ago" in column(app, head, 22)[2]
        assert "closing" not in screen(app)
        assert "no failover" not in screen(app)
        assert "Peers, as last known: 2 alive, 1 left" in screen(app)
        assert app.query_one("#body").has_class("stale")
        source.outage = None
        app.show()
        await settle(pilot, app)
        assert " ago" not in screen(app)
        assert "Peers: 2 alive" in screen(app)
        assert not app.query_one("#body").has_class("stale")


OWN = Joined(run="shakespeare", name="otter", number=1, address="192.0.2.1:7700", round=3)
OWN_NEWS = [  # what a peer's own process says, and what its screen says that the peer does
    ([OWN], "this peer trains on"),
    ([OWN, LOST], "this peer waits for the leader"),
    ([OWN, CatchingUp(missed=2, takes_state=False, reason="1 kB against 3 MB")], "this peer catches up"),
]


@pytest.mark.parametrize(("news", "does"), OWN_NEWS)
async def test_a_peers_screen_says_what_the_peer_does_while_no_node_answers(
    news: list[Event], does: str, run_lines: list[str]
) -> None:
    source, own = ListSource(run_lines), ListSource([encode(event, 1_000_200.0) for event in news])
    source.outage = SILENT
    app = SwarmMonitor(source, "192.0.2.1:7700", own=own)
    async with shown(app, NARROW):
        assert rows(app)[0].strip() == f"No answer from 192.0.2.1:7700 for 23 s; {does}"
    app = SwarmMonitor(source, "192.0.2.1:7700", own=own)
    async with shown(app, SMALL):
        assert rows(app)[0].strip() == f"No answer for 23 s; {does}"


async def test_what_a_peers_own_process_warns_of_is_in_its_screens_log(run_lines: list[str]) -> None:
    warned = Warned(message="No DHT node took this peer's record.")
    own = [OWN, LOST, warned]
    app = SwarmMonitor(ListSource(run_lines), own=ListSource([encode(event, 1_000_200.0) for event in own]))
    async with shown(app, WIDE):
        assert "! this peer: the leader is lost: no word for 6 s" in screen(app)
        assert "! this peer: warning: No DHT node took this peer's record." in screen(app)
        assert sum("otter  " in line for line in rows(app)) == 1, "it is one of the peers, once"
        assert "Peers: 2 alive, 1 left" in screen(app)


async def test_a_peer_that_has_left_says_why_and_waits_no_more(run_lines: list[str]) -> None:
    source = ListSource(run_lines)
    source.outage = SILENT
    left = encode(Left(reason="it was asked to stop", rounds=3), 1_000_200.0)
    app = SwarmMonitor(source, "192.0.2.1:7700", own=ListSource([encode(OWN, 1_000_199.0), left]))
    async with shown(app, NARROW):
        assert "this peer has left: it was asked to stop; q closes the screen" in rows(app)[0]


async def test_a_finished_run_shows_no_training_and_no_alert(run_lines: list[str]) -> None:
    source = ListSource([*run_lines, encode(OVER, 1_000_200.0)])
    source.outage = SILENT
    app = SwarmMonitor(source, "shakespeare")
    async with shown(app, NARROW):
        assert "finished: the run has finished; q closes the screen" in rows(app)[0]
        assert column(app, "PEERS")[1:] == ["3 peers", "took part"]
        assert column(app, "SPEED")[1] == "0 tokens/s"
        assert "Peers: 3 took part" in screen(app)
        for false in ("alive", "training", "leads", "failover", " ago"):
            assert false not in screen(app)
        assert closing_lines(app.view(), "training goes on") == [
            "shakespeare: finished: the run has finished (round 3 of 10)",
            "held-out loss 5.500 at first, 2.500 at the end; local 2.600",
            "1.05 MB on the wire, 285x less than dense training",
        ]


async def test_a_stopped_run_shows_its_last_closed_round_and_is_not_called_finished(
    run_lines: list[str],
) -> None:
    ending = PhaseChanged(round=4, phase="finished", deadline=None, reason="it was asked to stop")
    stopped = replace(OVER, reason="it was asked to stop", is_stopped=True)
    lines = [*run_lines, encode(ending, 1_000_200.0)]
    app = SwarmMonitor(ListSource(lines), "shakespeare")
    async with shown(app, NARROW):
        assert column(app, "ROUND")[1:] == ["4 of 10", "ending"]
    app = SwarmMonitor(ListSource([*lines, encode(stopped, 1_000_201.0)]), "shakespeare")
    async with shown(app, NARROW):
        assert column(app, "ROUND")[1:] == ["3 of 10", "stopped"]


@pytest.mark.parametrize("size", [SMALL, NARROW, WIDE])
async def test_before_the_first_event_no_number_is_shown(size: tuple[int, int]) -> None:
    for outage in (None, SILENT):
        source, own = ListSource([]), ListSource([encode(Warned(message="No node answers."), 1_000_000.0)])
        source.outage = outage
        app = SwarmMonitor(source, "192.0.2.1:7700", own=own)
        async with shown(app, size):
            for head in ("PEERS", "ROUND", "SPEED"):
                assert column(app, head, 10)[1:] == ["-", ""]
            for unknown in ("alive", "Nobody has joined", " ago", "as last known"):
                assert unknown not in screen(app)
            assert "warning: No node answers." in screen(app)


async def test_a_closed_monitor_says_that_training_goes_on_only_where_that_is_known(run_lines: list[str]) -> None:
    source = ListSource(run_lines)
    app = SwarmMonitor(source, "shakespeare")
    async with shown(app, NARROW):
        assert closing_lines(app.view(), QUIT_NOTE) == [QUIT_NOTE]
        source.outage = SILENT
        assert closing_lines(app.view(), QUIT_NOTE) == [
            "The monitor is closed. No answer from 192.0.2.1:7700 for 23 s."
        ]


async def test_a_record_without_the_end_of_its_run_says_so(recorded: Path) -> None:
    app = SwarmMonitor(ReplaySource(recorded, math.inf, lambda: 0.0), "replay of run.jsonl")
    async with shown(app, WIDE):
        text = "The record ends here, without the end of the run; last known: round 4: 1 of 2 payloads arrived"
        assert rows(app)[0].strip() == text
        assert "exchange, at the end" in column(app, "ROUND", 22)[2]


async def test_a_record_that_begins_in_the_middle_shows_what_there_is(run_lines: list[str]) -> None:
    app = SwarmMonitor(ListSource(run_lines[8:]), "replay of run.jsonl")
    async with shown(app, WIDE):
        assert "round 4: 1 of 2 payloads arrived" in rows(app)[0]
        assert column(app, "HELD-OUT LOSS", 22)[1] == "2.500"


LONG_NAME = "a-rather-long-name-of-a-machine-in-some-cellar.swarm.example.org"


@pytest.mark.parametrize("size", [SMALL, NARROW, WIDE])
@pytest.mark.parametrize("host", ["127.0.0.1", "swarm.example.org", LONG_NAME])
async def test_the_command_to_join_is_on_the_screen_and_on_the_help(
    host: str, size: tuple[int, int], run_lines: list[str]
) -> None:
    def invite(snapshot: SwarmSnapshot) -> Invitation | None:
        command = f"tsr-swarm join --coordinator {host}:7700"
        return Invitation(label="Join with:", command=command, note="Forward it.") if snapshot.address else None

    app = SwarmMonitor(ListSource(run_lines), "shakespeare", invite=invite)
    async with shown(app, size) as pilot:
        command = f"tsr-swarm join --coordinator {host}:7700"
        line = "".join(rows(app)[1 : 1 + app.query_one("#invitation").size.height])
        assert command.replace(" ", "") in line.replace(" ", ""), "what is too long for a line goes on in the next"
        assert "PEERS" in screen(app)
        await pilot.press("question_mark")
        await settle(pilot, app)
        assert "Forward it." in screen(app)


async def test_a_screen_without_an_invitation_has_no_line_for_it(run_lines: list[str]) -> None:
    app = SwarmMonitor(ListSource(run_lines), "shakespeare")
    async with shown(app, NARROW):
        assert "PEERS" in rows(app)[1]


async def test_a_small_screen_shows_every_number_and_the_help_key(run_lines: list[str]) -> None:
    app = SwarmMonitor(ListSource(run_lines), "shakespeare")
    async with shown(app, SMALL):
        tiles = [column(app, head, 11) for head in ("PEERS", "ROUND", "LOSS", "WIRE", "SPEED")]
        assert [value for _, value, _ in tiles] == ["2 alive", "4 of 10", "2.500", "1.05 MB", "3.00 k t/s"]
        assert all(under for _, _, under in tiles)
        assert "? Help" in rows(app)[-1]
        assert next(line for line in rows(app) if "1 otter" in line).split()[2:] == ["sent", "1.50", "k", "0", "1.750"]
