"""The table of peers."""

from collections.abc import Callable
from dataclasses import dataclass

from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.content import Content
from textual.reactive import reactive
from textual.widgets import Static

from tsr_swarm.monitor.view import MUTED, STRONG, TROUBLE, View, cut, progress, rows_to_content
from tsr_swarm.telemetry.snapshot import PeerView, SwarmSnapshot
from tsr_swarm.telemetry.text import bytes_text, count_text, loss_text

UNKNOWN = Content.styled("No peer is known yet.", MUTED)
_TROUBLED = ("late", "refused", "differs")


@dataclass(frozen=True, slots=True)
class Column:
    """``width`` 0 takes what is left; ``least`` is the room the table needs before the column is shown."""

    head: str
    width: int
    least: int
    is_right: bool
    text: Callable[[SwarmSnapshot, PeerView], str]


COLUMNS = (
    Column("#", 3, 0, True, lambda s, p: str(p.number or "-")),
    Column("peer", 18, 0, False, lambda s, p: p.name),
    Column("state", 9, 0, False, lambda s, p: p.state),
    Column("step", 9, 64, True, lambda s, p: f"{p.step}/{p.steps}" if _is_stepping(p) else "-"),
    Column("", 10, 100, False, lambda s, p: progress(p.step / p.steps, 10) if _is_stepping(p) else ""),
    Column("tok/s", 6, 0, True, lambda s, p: count_text(s.speed(p))),
    Column("lag", 3, 0, True, lambda s, p: str(s.lag(p))),
    Column("up", 7, 76, True, lambda s, p: bytes_text(p.up)),
    Column("down", 7, 76, True, lambda s, p: bytes_text(p.down)),
    Column("loss", 6, 0, True, lambda s, p: loss_text(p.local_loss)),
    Column("note", 0, 100, False, lambda s, p: _note(s, p)),
)


class PeersPane(VerticalScroll):
    """Peers that are here by number, then those that left."""

    view: reactive[View] = reactive(View)

    def compose(self) -> ComposeResult:
        yield Static(id="peers-head")
        yield Static(id="peers-text")

    def watch_view(self, before: View, view: View) -> None:
        if before.snapshot is not view.snapshot or before.is_stale != view.is_stale:
            self._show()

    def on_resize(self) -> None:
        for head in self.query("#peers-head").results(Static):
            head.update(Content.styled(_head(self.scrollable_content_region.width), MUTED))
        self._show()

    def _show(self) -> None:
        snapshot = self.view.snapshot
        self.border_title = _title(self.view)
        for text in self.query("#peers-text").results(Static):
            width = self.scrollable_content_region.width
            text.update(peers_content(snapshot, width) if self.view.is_known else UNKNOWN)


def _title(view: View) -> str:
    if not view.is_known:
        return "Peers"
    snapshot = view.snapshot
    alive = snapshot.alive
    left, troubled = len(snapshot.peers) - len(alive), sum(peer.state in _TROUBLED for peer in alive)
    leads = f"{cut(snapshot.leader, 18)} leads" if snapshot.leader and not snapshot.is_leaderless else ""
    parts = [
        f"{len(snapshot.peers)} took part" if snapshot.is_over else f"{len(alive)} alive",
        f"{left} left" if left and not snapshot.is_over else "",
        f"{troubled} in trouble" if troubled else "",
        "" if snapshot.is_over else leads,
    ]
    return f"Peers{', as last known' if view.is_stale else ''}: {', '.join(part for part in parts if part)}"


def peers_content(snapshot: SwarmSnapshot, width: int) -> Content:
    """One line a peer. Whoever is in trouble or gone is marked with a word, not only a colour."""
    if not snapshot.peers:
        return Content.styled("Nobody has joined yet.", MUTED)
    return rows_to_content([_peer_row(snapshot, peer, width) for peer in snapshot.table])


def _shown(width: int) -> list[Column]:
    return [column for column in COLUMNS if width >= column.least]


def _head(width: int) -> str:
    return _line([column.head for column in _shown(width)], width)


def _peer_row(snapshot: SwarmSnapshot, peer: PeerView, width: int) -> Content:
    is_own = bool(snapshot.own_name) and peer.name == snapshot.own_name
    style = MUTED if not peer.is_alive else TROUBLE if peer.state in _TROUBLED else STRONG if is_own else ""
    return Content.styled(_line([column.text(snapshot, peer) for column in _shown(width)], width), style)


def _line(texts: list[str], width: int) -> str:
    columns = _shown(width)
    rest = width - sum(column.width for column in columns) - len(columns) + 1
    cells = [_cell(text, column.width or max(0, rest), column) for text, column in zip(texts, columns, strict=True)]
    return " ".join(cells).rstrip()


def _cell(text: str, width: int, column: Column) -> str:
    text = cut(text, width)
    return text.rjust(width) if column.is_right else text.ljust(width)


def _is_stepping(peer: PeerView) -> bool:
    return peer.is_alive and peer.steps > 0


def _note(snapshot: SwarmSnapshot, peer: PeerView) -> str:
    leads = "leads" if snapshot.leads(peer) else ""
    reach = "client-only" if peer.is_client_only else "" if leads else "dialable"  # who leads is dialable
    about = (peer.reason,) if peer.reason else (peer.local_space, reach, peer.device)
    return ", ".join(part for part in (leads, *about) if part)
