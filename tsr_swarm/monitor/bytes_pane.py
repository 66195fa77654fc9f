"""Wire bytes by kind and direction, beside what dense training would have moved."""

from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.content import Content
from textual.reactive import reactive
from textual.widgets import Static

from tsr_swarm.monitor.view import DENSE_BAR, KIND_BAR, MUTED, OWN_BAR, STRONG, View, bar, rows_to_content
from tsr_swarm.telemetry.fold import KINDS, OTHER_KIND
from tsr_swarm.telemetry.snapshot import SwarmSnapshot
from tsr_swarm.telemetry.text import bytes_text, factor_text

_KIND, _COLUMN, _LABEL = 9, 9, 14


class BytesPane(VerticalScroll):
    """Counted after compression, both directions, summed over peers."""

    view: reactive[View] = reactive(View)

    def compose(self) -> ComposeResult:
        yield Static(id="bytes-text")

    def on_mount(self) -> None:
        self.border_title = "Wire bytes, all peers"

    def watch_view(self, before: View, view: View) -> None:
        if before.snapshot is not view.snapshot:
            self._show()

    def on_resize(self) -> None:
        self._show()

    def _show(self) -> None:
        for text in self.query("#bytes-text").results(Static):
            text.update(bytes_content(self.view.snapshot, self.scrollable_content_region.width))


def bytes_content(snapshot: SwarmSnapshot, width: int) -> Content:
    """The table of kinds, its total, and the comparison with dense training."""
    if not snapshot.wire_bytes:
        return Content.styled("Counted from the first closed round on.", MUTED)
    rows = _comparison(snapshot, width)
    rows.append(Content.styled(f"{'kind':<{_KIND}}{'sent':>{_COLUMN}}{'received':>{_COLUMN + 1}}", MUTED))
    largest = max(snapshot.sent.get(kind, 0) + snapshot.received.get(kind, 0) for kind in (*KINDS, OTHER_KIND))
    rows += [
        _kind_row(snapshot, kind, largest, width)
        for kind in (*KINDS, OTHER_KIND)
        if kind in snapshot.sent or kind in snapshot.received
    ]
    sent, received = sum(snapshot.sent.values()), sum(snapshot.received.values())
    rows.append(Content.styled(_row("total", sent, received), STRONG))
    rows.append(_details(snapshot))
    return rows_to_content(rows)


def _row(label: str, sent: int, received: int) -> str:
    return f"{label:<{_KIND}}{bytes_text(sent):>{_COLUMN}}{bytes_text(received):>{_COLUMN + 1}}"


def _kind_row(snapshot: SwarmSnapshot, kind: str, largest: int, width: int) -> Content:
    sent, received = snapshot.sent.get(kind, 0), snapshot.received.get(kind, 0)
    room = max(0, width - _KIND - 2 * _COLUMN - 3)
    return Content.assemble(_row(kind, sent, received), "  ", (bar((sent + received) / largest, room), KIND_BAR))


def _comparison(snapshot: SwarmSnapshot, width: int) -> list[Content]:
    """What data-parallel training would have moved for the same steps, drawn to scale."""
    wire, dense = snapshot.wire_bytes, snapshot.dense_bytes
    if not dense:
        return []
    room = max(0, width - _LABEL - _COLUMN - 2)
    return [
        Content.assemble(f"{'dense training':<{_LABEL}}{bytes_text(dense):>{_COLUMN}}  ", (bar(1.0, room), DENSE_BAR)),
        Content.assemble(f"{'this run':<{_LABEL}}{bytes_text(wire):>{_COLUMN}}  ", (bar(wire / dense, room), OWN_BAR)),
        Content.styled(f"{factor_text(dense, wire)} less than dense would have sent", STRONG),
        Content(""),
    ]


def _details(snapshot: SwarmSnapshot) -> Content:
    raw = f"{bytes_text(snapshot.raw_bytes)} uncompressed, " if snapshot.raw_bytes else ""
    return Content.styled(f"{raw}{bytes_text(snapshot.overhead)} overhead", MUTED)
