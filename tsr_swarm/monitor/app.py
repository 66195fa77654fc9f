"""The monitor: a run on one screen. It only reads; closing it changes nothing for the run."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from textual import work
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container
from textual.widgets import Footer

from tsr_swarm.errors import SwarmError
from tsr_swarm.monitor.bytes_pane import BytesPane
from tsr_swarm.monitor.headline import Headline
from tsr_swarm.monitor.help import HelpScreen
from tsr_swarm.monitor.invitation import Invitation, InvitationLine
from tsr_swarm.monitor.log_pane import LogPane
from tsr_swarm.monitor.loss_chart import LossChart
from tsr_swarm.monitor.peers_pane import PeersPane
from tsr_swarm.monitor.sources import Source
from tsr_swarm.monitor.terminal import private_screen
from tsr_swarm.monitor.terminal_driver import TerminalDriver
from tsr_swarm.monitor.tiles import Tiles
from tsr_swarm.monitor.view import View
from tsr_swarm.telemetry.events import Event, decode_stamped
from tsr_swarm.telemetry.fold import fold
from tsr_swarm.telemetry.own import note_own
from tsr_swarm.telemetry.snapshot import SwarmSnapshot

REFRESH_SECONDS = 0.25
QUIT_NOTE = "The monitor is closed; training goes on."
_BURST = 100  # events folded before the screen and the keys get their turn
Fold = Callable[[SwarmSnapshot, float, Event], SwarmSnapshot]
Invite = Callable[[SwarmSnapshot], Invitation | None]


class SwarmMonitor(App[None]):
    """Shows what ``source`` tells. ``quit_note`` says what quitting leaves running.

    ``on_interrupt`` is called at Ctrl-C and returns what to tell the user; without it Ctrl-C quits like ``q``.
    ``own`` tells of the peer whose screen this is, ``history`` is what was before ``source`` begins, ``invite`` says
    how others join.
    """

    CSS_PATH = "monitor.tcss"
    ENABLE_COMMAND_PALETTE = False
    AUTO_FOCUS = None
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "Quit", tooltip="Close the monitor; training goes on"),
        Binding("question_mark", "help", "Help", key_display="?"),
        Binding("c", "choose('chart')", "Loss"),
        Binding("p", "choose('peers')", "Peers"),
        Binding("b", "choose('bytes')", "Bytes"),
        Binding("l", "choose('log')", "Log"),
        Binding("escape", "choose('')", "All", show=False),
        Binding("space", "freeze", "Freeze", key_display="space"),
        Binding("d", "toggle_dark", "Dark"),
        Binding("ctrl+c", "interrupt", "Interrupt", show=False, priority=True),
    ]

    def __init__(
        self,
        source: Source,
        title: str = "",
        quit_note: str = QUIT_NOTE,
        on_interrupt: Callable[[], str] | None = None,
        own: Source | None = None,
        history: SwarmSnapshot | None = None,
        invite: Invite = lambda snapshot: None,
    ) -> None:
        super().__init__(TerminalDriver)
        self.HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (100, "-wide")]
        self.VERTICAL_BREAKPOINTS = [(0, "-short"), (20, "-medium"), (32, "-tall")]
        self.title = title
        self.snapshot = history or SwarmSnapshot()
        self.quit_note = quit_note
        self.failure: SwarmError | None = None
        self._source, self._own = source, own
        self._invite = invite
        self.on_interrupt = on_interrupt
        self._is_frozen = False
        self._headline = Headline(title)
        self._invitation = InvitationLine(id="invitation")
        self._tiles = Tiles()
        self._chart = LossChart(id="chart")
        self._bytes = BytesPane(id="bytes")
        self._peers = PeersPane(id="peers")
        self._log_pane = LogPane(id="log")
        self._body = Container(self._chart, self._bytes, self._peers, self._log_pane, id="body")

    async def take_terminal(self, log: Path | None = None) -> None:
        """Take the terminal until the screen is closed. What else this process writes goes to ``log``, or nowhere."""
        with private_screen(log):
            await self.run_async()

    def compose(self) -> ComposeResult:
        yield self._headline
        yield self._invitation
        yield self._tiles
        yield self._body
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        self.show()
        self.set_interval(REFRESH_SECONDS, self.show)
        self.follow(self._source, fold)
        if self._own is not None:
            self.follow(self._own, note_own)

    @work
    async def follow(self, source: Source, take_in: Fold) -> None:
        """Take in a source's events until it ends. A source that gives up closes the monitor; see ``failure``."""
        try:
            count = 0
            async for line in source.lines():
                stamped = decode_stamped(line)
                if stamped is not None:
                    self.snapshot = take_in(self.snapshot, stamped.time, stamped.event)
                count += 1
                if count % _BURST == 0:
                    await asyncio.sleep(0)
        except SwarmError as error:
            self.failure = error
            self.exit()
            return
        self.show()

    def show(self) -> None:
        """Hand the newest snapshot to every pane, unless the screen is frozen."""
        if self._is_frozen:
            return
        self._hand_down(self.view())

    def view(self, is_frozen: bool = False) -> View:
        """What is known at this moment."""
        source = self._source
        return View(snapshot=self.snapshot, now=source.now(), trouble=source.trouble, is_frozen=is_frozen)

    def _hand_down(self, view: View) -> None:
        for part in (self._tiles, self._body):
            part.set_class(view.is_stale, "stale")
        self._invitation.invitation = None if view.snapshot.is_over else self._invite(view.snapshot)
        self._headline.view = view
        self._tiles.view = view
        self._chart.view = view
        self._bytes.view = view
        self._peers.view = view
        self._log_pane.view = view

    def action_choose(self, pane: str) -> None:
        """Show only ``pane``; all of them when it is shown alone already, or for an empty name."""
        body = self._body
        is_back = not pane or body.query_one(f"#{pane}").has_class("chosen")
        body.set_class(not is_back, "solo")
        for child in body.children:
            child.set_class(not is_back and child.id == pane, "chosen")
            if child.id == pane:
                child.focus()

    def action_freeze(self) -> None:
        self._is_frozen = not self._is_frozen
        if not self._is_frozen:
            self.show()
            return
        self._hand_down(self.view(is_frozen=True))

    def action_toggle_dark(self) -> None:
        self.theme = "textual-light" if self.current_theme.dark else "textual-dark"

    def action_help(self) -> None:
        invitation = self._invite(self.snapshot)
        self.push_screen(HelpScreen(self.quit_note, invitation.lines if invitation is not None else ()))

    def action_interrupt(self) -> None:
        if self.on_interrupt is None:
            self.exit()
        else:
            self.notify(self.on_interrupt(), markup=False)
