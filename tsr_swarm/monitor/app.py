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
from tsr_swarm.monitor.chart import LossChart
from tsr_swarm.monitor.help import HelpScreen, InvitationLine
from tsr_swarm.monitor.panes import BytesPane, LogPane, PeersPane
from tsr_swarm.monitor.sources import Source
from tsr_swarm.monitor.summary import Headline, Tiles
from tsr_swarm.monitor.terminal import TerminalDriver, private_screen
from tsr_swarm.monitor.view import View
from tsr_swarm.telemetry.events import Event, decode_stamped
from tsr_swarm.telemetry.fold import fold, fold_own
from tsr_swarm.telemetry.plain import Invitation
from tsr_swarm.telemetry.snapshot import SwarmSnapshot

REFRESH_SECONDS = 0.25
QUIT_NOTE = "The monitor is closed; training goes on."
_BURST = 100  # events folded before the screen and the keys get their turn
Fold = Callable[[SwarmSnapshot, float, Event], SwarmSnapshot]
Invite = Callable[[SwarmSnapshot], Invitation | None]


class SwarmMonitor(App[None]):
    """Shows a run by the events of ``source``, until it is closed; ``failure`` is then the error that closed it.

    quit_note: says what quitting leaves running.
    own: events of the peer whose screen this is.
    history: the state of the run before the first event of ``source``.
    invite: makes of the state of the run what others type to join, if they can.
    Attribute ``on_interrupt``: called at Ctrl-C; returns what to show. Without it, Ctrl-C quits like ``q``.
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
        self.on_interrupt: Callable[[], str] | None = None
        self._is_frozen = False
        self._headline, self._tiles = Headline(title), Tiles()
        self._invitation = InvitationLine(id="invitation")
        self._panes = LossChart(id="chart"), BytesPane(id="bytes"), PeersPane(id="peers"), LogPane(id="log")
        self._body = Container(*self._panes, id="body")

    async def take_terminal(self, log: Path | None = None) -> None:
        """Show the screen until it is closed. What else this process writes meanwhile goes to ``log``, or nowhere."""
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
            self.follow(self._own, fold_own)

    @work
    async def follow(self, source: Source, take_in: Fold) -> None:
        """Take in the events of a source until it ends. A SwarmError of the source closes the monitor."""
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
        """Draw the newest snapshot, unless the screen is frozen."""
        if not self._is_frozen:
            self._draw(self.view())

    def view(self) -> View:
        source = self._source
        return View(snapshot=self.snapshot, now=source.now(), outage=source.outage, is_frozen=self._is_frozen)

    def _draw(self, view: View) -> None:
        for part in (self._tiles, self._body):
            part.set_class(view.is_stale, "stale")
        self._invitation.invitation = None if view.snapshot.is_over else self._invite(view.snapshot)
        for widget in (self._headline, self._tiles, *self._panes):
            widget.view = view

    def action_choose(self, pane: str) -> None:
        """Show only ``pane``; all panes when it is shown alone already, or for an empty name."""
        body = self._body
        is_back = not pane or body.query_one(f"#{pane}").has_class("chosen")
        body.set_class(not is_back, "solo")
        for child in body.children:
            child.set_class(not is_back and child.id == pane, "chosen")
            if child.id == pane:
                child.focus()

    def action_freeze(self) -> None:
        self._is_frozen = not self._is_frozen
        self._draw(self.view())

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
