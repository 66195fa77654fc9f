"""The table of peers."""

from collections.abc import Callable
from dataclasses import dataclass

from textual.content import Content

from tsr_swarm.monitor.view import ALERT, MUTED, STRONG, TextPane, View, cut, join_rows, progress
from tsr_swarm.telemetry.snapshot import PeerView, SwarmSnapshot
from tsr_swarm.telemetry.text import bytes_text, count_text, loss_text

_ALERT_STATES = ("late", "refused", "differs")


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


class PeersPane(TextPane):
    """Peers that are here by number, then those that left."""

    def write(self) -> None:
        self.border_title = _title(self.view)
        super().write()

    def content(self, view: View, width: int) -> Content:
        """One line a peer. A peer that needs attention or has left is marked with a word, not only a colour."""
        snapshot, columns = view.snapshot, [column for column in COLUMNS if width >= column.least]
        head = Content.styled(_line([column.head for column in columns], columns, width), MUTED)
        if not snapshot.peers:
            empty = "Nobody has joined yet." if view.is_known else "No peer is known yet."
            return join_rows([head, Content.styled(empty, MUTED)])
        rows = [
            Content.styled(_line([c.text(snapshot, peer) for c in columns], columns, width), _style(snapshot, peer))
            for peer in snapshot.table
        ]
        return join_rows([head, *rows])


def _title(view: View) -> str:
    if not view.is_known:
        return "Peers"
    snapshot = view.snapshot
    alive = snapshot.alive
    left, alerts = len(snapshot.peers) - len(alive), sum(peer.state in _ALERT_STATES for peer in alive)
    leads = f"{cut(snapshot.leader, 18)} leads" if snapshot.leader and not snapshot.is_leaderless else ""
    parts = [
        f"{len(snapshot.peers)} took part" if snapshot.is_over else f"{len(alive)} alive",
        f"{left} left" if left and not snapshot.is_over else "",
        f"{alerts} in trouble" if alerts else "",
        "" if snapshot.is_over else leads,
    ]
    return f"Peers{', as last known' if view.is_stale else ''}: {', '.join(part for part in parts if part)}"


def _style(snapshot: SwarmSnapshot, peer: PeerView) -> str:
    if not peer.is_alive:
        return MUTED
    if peer.state in _ALERT_STATES:
        return ALERT
    return STRONG if snapshot.own_name and peer.name == snapshot.own_name else ""


def _line(texts: list[str], columns: list[Column], width: int) -> str:
    rest = max(0, width - sum(column.width for column in columns) - len(columns) + 1)
    cells = [_cell(text, column.width or rest, column) for text, column in zip(texts, columns, strict=True)]
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
