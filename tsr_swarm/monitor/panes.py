"""The panes of text: wire bytes, the table of peers, and the event log."""

import textwrap
from collections.abc import Callable
from dataclasses import dataclass

from textual.content import Content

from tsr_swarm.monitor.view import ALERT, MUTED, NEWLINE, STRONG, TextPane, View, bar, cut, progress
from tsr_swarm.telemetry.fold import KINDS, OTHER_KIND
from tsr_swarm.telemetry.snapshot import LogLine, PeerView, SwarmSnapshot
from tsr_swarm.telemetry.text import bytes_text, count_text, factor_text, loss_text

DENSE_BAR, OWN_BAR, KIND_BAR = "$error", "$success", "$foreground 40%"
_KIND, _COUNT, _LABEL = 9, 9, 14  # cells
_ALERT_STATES = ("late", "refused", "differs")
_STAMP = 9  # cells for "hhh:mm:ss"


class BytesPane(TextPane):
    """Bytes counted after compression, both directions, summed over peers."""

    def on_mount(self) -> None:
        self.border_title = "Wire bytes, all peers"

    def content(self, view: View, width: int) -> Content:
        """The comparison with dense training, the table of kinds, and its total."""
        snapshot = view.snapshot
        if not snapshot.wire_bytes:
            return Content.styled("Counted from the first closed round on.", MUTED)
        counts = {kind: (snapshot.sent.get(kind, 0), snapshot.received.get(kind, 0)) for kind in (*KINDS, OTHER_KIND)}
        largest = max(map(sum, counts.values()))
        room = max(0, width - _KIND - 2 * _COUNT - 3)
        rows = _comparison(snapshot, width)
        rows.append(Content.styled(f"{'kind':<{_KIND}}{'sent':>{_COUNT}}{'received':>{_COUNT + 1}}", MUTED))
        for kind, (sent, received) in counts.items():
            if kind in snapshot.sent or kind in snapshot.received:
                drawn = bar((sent + received) / largest, room)
                rows.append(Content.assemble(_byte_row(kind, sent, received), "  ", (drawn, KIND_BAR)))
        total = _byte_row("total", sum(snapshot.sent.values()), sum(snapshot.received.values()))
        raw = f"{bytes_text(snapshot.raw_bytes)} uncompressed, " if snapshot.raw_bytes else ""
        details = f"{raw}{bytes_text(snapshot.overhead)} overhead"
        return NEWLINE.join([*rows, Content.styled(total, STRONG), Content.styled(details, MUTED)])


def _byte_row(label: str, sent: int, received: int) -> str:
    return f"{label:<{_KIND}}{bytes_text(sent):>{_COUNT}}{bytes_text(received):>{_COUNT + 1}}"


def _comparison(snapshot: SwarmSnapshot, width: int) -> list[Content]:
    """What data-parallel training would have moved for the same steps, drawn to scale."""
    wire, dense = snapshot.wire_bytes, snapshot.dense_bytes
    if not dense:
        return []
    room = max(0, width - _LABEL - _COUNT - 2)
    return [
        Content.assemble(f"{'dense training':<{_LABEL}}{bytes_text(dense):>{_COUNT}}  ", (bar(1.0, room), DENSE_BAR)),
        Content.assemble(f"{'this run':<{_LABEL}}{bytes_text(wire):>{_COUNT}}  ", (bar(wire / dense, room), OWN_BAR)),
        Content.styled(f"{factor_text(dense, wire)} less than dense would have sent", STRONG),
        Content(""),
    ]


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
            return NEWLINE.join([head, Content.styled(empty, MUTED)])
        rows = [
            Content.styled(_line([c.text(snapshot, peer) for c in columns], columns, width), _style(snapshot, peer))
            for peer in snapshot.table
        ]
        return NEWLINE.join([head, *rows])


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
    cells = [
        f"{cut(text, column.width or rest):{'>' if column.is_right else '<'}{column.width or rest}}"
        for text, column in zip(texts, columns, strict=True)
    ]
    return " ".join(cells).rstrip()


def _is_stepping(peer: PeerView) -> bool:
    return peer.is_alive and peer.steps > 0


def _note(snapshot: SwarmSnapshot, peer: PeerView) -> str:
    leads = "leads" if snapshot.leads(peer) else ""
    reach = "client-only" if peer.is_client_only else "" if leads else "dialable"  # who leads is dialable
    about = (peer.reason,) if peer.reason else (peer.local_space, reach, peer.device)
    return ", ".join(part for part in (leads, *about) if part)


class LogPane(TextPane):
    """Stays at the newest line until it is scrolled up."""

    def on_mount(self) -> None:
        self.border_title = "Events, h:mm:ss since the start"
        self.anchor()

    def depends_on(self, view: View) -> tuple[object, ...]:
        return (view.snapshot.log,)

    def content(self, view: View, width: int) -> Content:
        """Each line with its time; long ones go on under their own beginning."""
        if not view.snapshot.log:
            return Content.styled("Nothing has happened yet.", MUTED)
        start = view.snapshot.started or 0.0
        return NEWLINE.join([row for line in view.snapshot.log for row in _log_rows(line, start, width)])


def _log_rows(line: LogLine, start: float, width: int) -> list[Content]:
    """One line, wrapped. An alert is marked with ``!``, not only by its colour."""
    mark, style = ("! ", ALERT) if line.is_alert else ("  ", "")
    room = max(20, width - _STAMP - len(mark))
    head, *rest = textwrap.wrap(line.text, room) or [""]
    first = Content.assemble((f"{_elapsed(line.time - start):>{_STAMP}}", MUTED), (mark, ALERT), (head, style))
    return [first, *(Content.styled(" " * (_STAMP + len(mark)) + text, style) for text in rest)]


def _elapsed(seconds: float) -> str:
    whole = max(0, int(seconds))
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
