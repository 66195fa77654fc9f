"""The real screen over a real command: keys go in, the command's fate comes out."""

import asyncio
import sys
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures import run_started
from tests.telemetry.examples import CLOSED, FINISHED, opened
from tsr_swarm.cli import screen
from tsr_swarm.cli.coordinate import invitation
from tsr_swarm.cli.local import summary
from tsr_swarm.cli.status import status_lines, status_object
from tsr_swarm.monitor.app import Invite, SwarmMonitor
from tsr_swarm.monitor.sources import PipeSource, Source
from tsr_swarm.process.shutdown import Shutdown
from tsr_swarm.process.supervisor import ChildError, ProcessGroup
from tsr_swarm.telemetry.events import Evaluated, RoundClosed, Warned, encode
from tsr_swarm.telemetry.plain import Invitation
from tsr_swarm.telemetry.recording import EVENTS_FILE
from tsr_swarm.telemetry.snapshot import PeerView, SwarmSnapshot


def closed(round: int, loss: float) -> RoundClosed:
    traffic = {"sent": {"core": 100}, "received": {"core": 50, "basis": 50}}
    numbers = {"round": round, "loss": loss, "local_loss": loss, "dense_bytes": 2000}
    return replace(CLOSED, wire_bytes=traffic, digest="abcd", **numbers)


# Plays ``coordinate --json``: one round, and, told to "wait", another once it is asked to stop; as one that is
# told to "start" it cannot handle signals yet.
STARTED = run_started(run_id="1", address="127.0.0.1:9", rounds=0)
STOPPED = replace(FINISHED, rounds=2, reason="it was asked to stop")
EVENTS = (STARTED, closed(1, 3.0), Warned(message="It is hot."), closed(2, 2.0), STOPPED)
COMMAND = (
    f"*FIRST, SECOND, LAST = {[encode(event, 1.0) for event in EVENTS]}"
    + """
import signal, sys
def finish(*_):
    print(SECOND, LAST, sep="\\n", flush=True)
    sys.exit(130)
signal.signal(signal.SIGINT, signal.SIG_DFL if HOW == "start" else finish)
assert sys.argv[1:] == ["coordinate", "--json", "run.toml"], sys.argv
print("noise", file=sys.stderr)
print(*FIRST, sep="\\n", flush=True)
if HOW == "fail":
    sys.exit("tsr-swarm: It is full; make room.")
while HOW in ("wait", "start"): signal.pause()
"""
)
Steps = Callable[[Any], Awaitable[None]]  # of textual's Pilot


class Show:
    """Runs the command behind the screen without a terminal, while somebody presses keys."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stop = Shutdown()
        self._monkeypatch = monkeypatch

    async def run(
        self, how: str, steps: Steps, folder: Path | None = None, invite: Invite = lambda snapshot: None
    ) -> SwarmSnapshot:
        self._prepare(how, steps)
        async with ProcessGroup() as group, asyncio.timeout(60):
            arguments = ["coordinate", "run.toml"]
            return await screen.show_stream(group, "coordinator", arguments, "chat", self.stop, folder, invite)

    async def run_beside(self, source: Source, how: str, steps: Steps) -> None:
        """As a peer's command: what the swarm tells comes from elsewhere."""
        self._prepare(how, steps)
        async with ProcessGroup() as group, asyncio.timeout(60):
            await screen.show_beside(group, "peer", ["coordinate", "run.toml"], source, "chat", self.stop)

    def _prepare(self, how: str, steps: Steps) -> None:
        async def headless(app: SwarmMonitor) -> None:
            await app.run_async(headless=True, size=(80, 24), auto_pilot=steps)

        def command(*arguments: str) -> list[str]:
            return [sys.executable, "-c", f"HOW = {how!r}\n{COMMAND}", *arguments]

        self._monkeypatch.setattr(SwarmMonitor, "take_terminal", headless)
        self._monkeypatch.setattr(screen, "own_command", command)


@pytest.fixture
def show(monkeypatch: pytest.MonkeyPatch) -> Show:
    return Show(monkeypatch)


async def until(pilot: Any, condition: Callable[[SwarmMonitor], bool]) -> None:
    while not condition(pilot.app):
        await pilot.pause(0.01)


def press(key: str, when: Callable[[SwarmMonitor], bool] = lambda app: app.snapshot.round == 1) -> Steps:
    async def steps(pilot: Any) -> None:
        await until(pilot, when)
        await pilot.press(key)

    return steps


async def test_a_closed_screen_leaves_the_command_running_in_plain_lines_and_the_invitation(
    show: Show, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def invite(snapshot: SwarmSnapshot) -> Invitation | None:
        return invitation(snapshot.address, snapshot.address, 0) if snapshot.address else None

    closed, has_closed = screen.CommandOutput.screen_closed, asyncio.Event()
    monkeypatch.setattr(screen.CommandOutput, "screen_closed", lambda self: (closed(self), has_closed.set()))
    showing = asyncio.create_task(show.run("wait", press("q"), invite=invite))
    await has_closed.wait()
    shown = capsys.readouterr().out
    assert "training goes on" in shown
    assert "Join from this machine with:  tsr-swarm join --coordinator 127.0.0.1:9\n" in shown
    show.stop.request()
    snapshot = await showing
    assert snapshot.finished == "it was asked to stop"
    assert "round 2 closed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("how", "rounds"),
    [
        pytest.param("wait", 2, id="which finishes its round"),
        pytest.param("start", 1, id="which cannot handle it yet and ends by the signal"),
    ],
)
async def test_ctrl_c_on_the_screen_asks_the_command_to_leave(
    how: str, rounds: int, show: Show, capsys: pytest.CaptureFixture[str]
) -> None:
    snapshot = await show.run(how, press("ctrl+c"))
    assert show.stop.graceful.is_set()
    assert not show.stop.immediate.is_set()
    assert snapshot.rounds_counted == rounds
    shown = capsys.readouterr().out
    assert ("run finished after 2 rounds (it was asked to stop)" in shown) == (how == "wait")


async def test_a_screen_of_a_run_that_goes_on_counts_from_its_beginning(show: Show, tmp_path: Path) -> None:
    before = replace(CLOSED, round=0, loss=None, wire_bytes={"sent": {"core": 7}, "received": {}})
    events = (run_started(run_id="1", address="127.0.0.1:8"), Evaluated(round=0, loss=5.5), before)
    lines = [encode(event, float(number)) for number, event in enumerate(events)]
    (tmp_path / EVENTS_FILE).write_text("\n".join(lines))
    shown: list[SwarmSnapshot] = []

    async def look(pilot: Any) -> None:
        await press("q")(pilot)
        shown.append(pilot.app.snapshot)

    snapshot = await show.run("end", look, tmp_path)
    for whole in (*shown, snapshot):
        assert (whole.first_loss, whole.loss, whole.wire_bytes, whole.address) == (5.5, 3.0, 207, "127.0.0.1:9")


async def test_what_a_peers_own_process_says_reaches_its_screen_beside_what_the_swarm_tells(show: Show) -> None:
    swarm = asyncio.StreamReader()
    swarm.feed_data(encode(opened(7), 1.0).encode() + b"\n")

    def has_both(app: SwarmMonitor) -> bool:
        is_told = any("this peer: warning: It is hot." in line.text for line in app.snapshot.log)
        return is_told and app.snapshot.round == 7 and app.snapshot.wire_bytes == 0

    await show.run_beside(PipeSource(swarm, lambda: 1.0), "end", press("q", has_both))


async def test_a_summary_and_a_status_are_a_few_lines_or_one_object(show: Show) -> None:
    snapshot = await show.run("end", press("q"))
    text = "\n".join(summary(snapshot))
    for part in ("1 round", "3.000", "core", "basis", "100 B", "2.00 kB", "10x", "abcd"):
        assert part in text
    assert summary(SwarmSnapshot()) == []
    assert status_lines(snapshot)[0].startswith("chat: ")
    status = status_object(snapshot, 7.0)
    assert (status["event"], status["time"], status["run"], status["wire_bytes"]) == ("status", 7.0, "chat", 200)


def test_a_status_names_its_round_once() -> None:
    training = SwarmSnapshot(run="chat", round=7, phase="exchange", peers={"1": PeerView(peer="1", name="otter")})
    assert status_lines(training)[0] == "chat: round 7: 0 of 1 payloads arrived"
    assert status_lines(replace(training, rounds=9))[0] == "chat: round 7: 0 of 1 payloads arrived (9 rounds in all)"
    waiting = replace(training, phase="waiting", rounds=9)
    assert status_lines(waiting)[0] == "chat: waiting (round 7 of 9)"


async def test_a_command_that_has_ended_well_stays_on_screen_until_it_is_closed(
    show: Show, capsys: pytest.CaptureFixture[str]
) -> None:
    was_shown = []

    async def look(pilot: Any) -> None:
        await until(pilot, lambda app: app.view().outage is not None)
        was_shown.append(pilot.app.is_running)
        await pilot.press("q")

    await show.run("end", look)
    assert was_shown == [True]
    assert "training goes on" not in capsys.readouterr().out


@pytest.mark.parametrize("has_temporary_folder", [True, False])
async def test_a_command_that_fails_closes_the_screen_and_is_quoted(
    has_temporary_folder: bool, show: Show, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def look(pilot: Any) -> None:
        await until(pilot, lambda app: not app.is_running)

    if not has_temporary_folder:
        monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/nowhere"])
        monkeypatch.setattr(tempfile, "tempdir", None)
    with pytest.raises(ChildError, match=r"^It is full; make room\.$"):
        await show.run("fail", look)


async def test_a_stop_before_the_command_s_own_code_begins_is_no_failure(
    show: Show, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Python that is interrupted while it loads its site ends with 1, as a command that has failed does."""
    line = encode(run_started(), 1.0)
    (tmp_path / "sitecustomize.py").write_text(f"import signal\nprint({line!r}, flush=True)\nsignal.pause()\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    snapshot = await show.run("wait", press("ctrl+c", lambda app: app.snapshot.run == "chat"))
    assert snapshot.rounds_counted == 0
