"""Wire bytes by kind and direction, beside what dense training would have moved."""

from textual.content import Content

from tsr_swarm.monitor.view import MUTED, STRONG, TextPane, View, bar, join_rows
from tsr_swarm.telemetry.fold import KINDS, OTHER_KIND
from tsr_swarm.telemetry.snapshot import SwarmSnapshot
from tsr_swarm.telemetry.text import bytes_text, factor_text

DENSE_BAR, OWN_BAR, KIND_BAR = "$error", "$success", "$foreground 40%"
_KIND, _COLUMN, _LABEL = 9, 9, 14  # cells


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
        room = max(0, width - _KIND - 2 * _COLUMN - 3)
        rows = _comparison(snapshot, width)
        rows.append(Content.styled(f"{'kind':<{_KIND}}{'sent':>{_COLUMN}}{'received':>{_COLUMN + 1}}", MUTED))
        for kind, (sent, received) in counts.items():
            if kind in snapshot.sent or kind in snapshot.received:
                drawn = bar((sent + received) / largest, room)
                rows.append(Content.assemble(_row(kind, sent, received), "  ", (drawn, KIND_BAR)))
        total = _row("total", sum(snapshot.sent.values()), sum(snapshot.received.values()))
        raw = f"{bytes_text(snapshot.raw_bytes)} uncompressed, " if snapshot.raw_bytes else ""
        details = f"{raw}{bytes_text(snapshot.overhead)} overhead"
        return join_rows([*rows, Content.styled(total, STRONG), Content.styled(details, MUTED)])


def _row(label: str, sent: int, received: int) -> str:
    return f"{label:<{_KIND}}{bytes_text(sent):>{_COLUMN}}{bytes_text(received):>{_COLUMN + 1}}"


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
