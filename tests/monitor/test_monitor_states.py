"""The screen in every state of a run, and of the peer whose screen it is."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from tests.monitor.on_screen import NARROW, RUN_LINES, SILENT, SMALL, WIDE, monitor
from tests.telemetry.examples import FINISHED, LOST
from tsr_swarm.cli.screen import closing_lines
from tsr_swarm.monitor.app import QUIT_NOTE
from tsr_swarm.monitor.sources import ReplaySource
from tsr_swarm.telemetry.events import CatchingUp, Event, Joined, Left, PhaseChanged, Warned
from tsr_swarm.telemetry.plain import Invitation
from tsr_swarm.telemetry.snapshot import SwarmSnapshot

OVER = replace(FINISHED, rounds=3, reason="the run has finished")
OWN = Joined(run="shakespeare", name="otter", number=1, address="192.0.2.1:7700", round=3)


@pytest.mark.parametrize("size", [SMALL, NARROW, WIDE])
async def test_a_stale_screen_shows_its_age_and_no_countdown(size: tuple[int, int]) -> None:
    async with monitor(size) as screen:
        assert "exchange" in screen.text
        screen.source.outage = SILENT
        screen.source.time += 1000
        await screen.redraw()
        if size == NARROW:
            assert screen.rows[0].strip() == "No answer from 192.0.2.1:7700 for 23 s"
        for head in ("PEERS", "ROUND", "SPEED"):
            assert "23 s ago" in screen.tile(head, 22)[2]
        assert "closing" not in screen.text
        assert "no failover" not in screen.text
        assert "Peers, as last known: 2 alive, 1 left" in screen.text
        assert screen.app.query_one("#body").has_class("stale")
        screen.source.outage = None
        await screen.redraw()
        assert " ago" not in screen.text
        assert "Peers: 2 alive" in screen.text
        assert not screen.app.query_one("#body").has_class("stale")


OWN_NEWS = [  # what a peer's own process says, and what its screen says that the peer does
    ([OWN], "this peer trains on"),
    ([OWN, LOST], "this peer waits for the leader"),
    ([OWN, CatchingUp(missed=2, takes_state=False, reason="1 kB against 3 MB")], "this peer catches up"),
]


@pytest.mark.parametrize(("news", "does"), OWN_NEWS)
async def test_a_peers_screen_says_what_the_peer_does_while_no_node_answers(news: list[Event], does: str) -> None:
    for size, why in ((NARROW, "No answer from 192.0.2.1:7700 for 23 s"), (SMALL, "No answer for 23 s")):
        async with monitor(size, own=news, outage=SILENT) as screen:
            assert screen.rows[0].strip() == f"{why}; {does}"


async def test_what_a_peers_own_process_warns_of_is_in_its_screens_log() -> None:
    async with monitor(WIDE, own=[OWN, LOST, Warned(message="No DHT node took this peer's record.")]) as screen:
        assert "! this peer: the leader is lost: no word for 6 s" in screen.text
        assert "! this peer: warning: No DHT node took this peer's record." in screen.text
        assert sum("otter  " in line for line in screen.rows) == 1, "it is one of the peers, once"
        assert "Peers: 2 alive, 1 left" in screen.text


async def test_a_peer_that_has_left_says_why_and_waits_no_more() -> None:
    async with monitor(NARROW, own=[OWN, Left(reason="it was asked to stop", rounds=3)], outage=SILENT) as screen:
        assert "this peer has left: it was asked to stop; q closes the screen" in screen.rows[0]


async def test_a_finished_run_shows_no_training_and_no_alert() -> None:
    async with monitor(NARROW, OVER, outage=SILENT) as screen:
        assert "finished: the run has finished; q closes the screen" in screen.rows[0]
        assert screen.tile("PEERS")[1:] == ["3 peers", "took part"]
        assert screen.tile("SPEED")[1] == "0 tokens/s"
        assert "Peers: 3 took part" in screen.text
        above_the_log = screen.text.partition("Events, h:mm:ss")[0]
        for false in ("alive", "training", "leads", "failover", " ago"):
            assert false not in above_the_log
        assert closing_lines(screen.app.view(), "training goes on") == [
            "shakespeare: finished: the run has finished (round 3 of 10)",
            "held-out loss 5.500 at first, 2.500 at the end; local 2.600",
            "1.05 MB on the wire, 285x less than dense training",
        ]


async def test_a_stopped_run_shows_its_last_closed_round_and_is_not_called_finished() -> None:
    ending = PhaseChanged(round=4, phase="finished", deadline=None, reason="it was asked to stop")
    async with monitor(NARROW, ending) as screen:
        assert screen.tile("ROUND")[1:] == ["4 of 10", "ending"]
    async with monitor(NARROW, ending, replace(OVER, reason="it was asked to stop", is_stopped=True)) as screen:
        assert screen.tile("ROUND")[1:] == ["3 of 10", "stopped"]


@pytest.mark.parametrize("size", [SMALL, NARROW, WIDE])
async def test_before_the_first_event_no_number_is_shown_and_every_pane_says_what_is_missing(
    size: tuple[int, int],
) -> None:
    for outage in (None, SILENT):
        async with monitor(size, lines=[], own=[Warned(message="No node answers.")], outage=outage) as screen:
            for head in ("PEERS", "ROUND", "SPEED"):
                assert screen.tile(head, 10)[1:] == ["-", ""]
            for unknown in ("alive", "Nobody has joined", " ago", "as last known"):
                assert unknown not in screen.text
            assert "warning: No node answers." in screen.text
            if size == WIDE:
                missing = ("The line starts with the first evaluation.", "Counted from the first closed round on.")
                assert all(text in screen.text for text in (*missing, "No peer is known yet."))


async def test_a_closed_monitor_says_that_training_goes_on_only_where_that_is_known() -> None:
    async with monitor(NARROW) as screen:
        assert closing_lines(screen.app.view(), QUIT_NOTE) == [QUIT_NOTE]
        screen.source.outage = SILENT
        silent = "The monitor is closed. No answer from 192.0.2.1:7700 for 23 s."
        assert closing_lines(screen.app.view(), QUIT_NOTE) == [silent]


async def test_a_record_without_the_end_of_its_run_says_so(recorded: Path) -> None:
    async with monitor(WIDE, source=ReplaySource(recorded, math.inf, lambda: 0.0)) as screen:
        text = "The record ends here, without the end of the run; last known: round 4: 1 of 2 payloads arrived"
        assert screen.rows[0].strip() == text
        assert "exchange, at the end" in screen.tile("ROUND", 22)[2]


async def test_a_record_that_begins_in_the_middle_shows_what_there_is() -> None:
    async with monitor(WIDE, lines=RUN_LINES[8:]) as screen:
        assert "round 4: 1 of 2 payloads arrived" in screen.rows[0]
        assert screen.tile("HELD-OUT LOSS", 22)[1] == "2.500"


LONG_NAME = "a-rather-long-name-of-a-machine-in-some-cellar.swarm.example.org"


@pytest.mark.parametrize("size", [SMALL, NARROW, WIDE])
@pytest.mark.parametrize("host", ["127.0.0.1", "swarm.example.org", LONG_NAME])
async def test_the_command_to_join_is_on_the_screen_and_on_the_help(host: str, size: tuple[int, int]) -> None:
    command = f"tsr-swarm join --coordinator {host}:7700"

    def invite(snapshot: SwarmSnapshot) -> Invitation | None:
        return Invitation(label="Join with:", command=command, note="Forward it.") if snapshot.address else None

    async with monitor(size, invite=invite) as screen:
        line = "".join(screen.rows[1 : 1 + screen.app.query_one("#invitation").size.height])
        assert command.replace(" ", "") in line.replace(" ", ""), "what is too long for a line goes on in the next"
        assert "PEERS" in screen.text
        await screen.press("question_mark")
        assert "Forward it." in screen.text


async def test_a_screen_without_an_invitation_has_no_line_for_it() -> None:
    async with monitor(NARROW) as screen:
        assert "PEERS" in screen.rows[1]
