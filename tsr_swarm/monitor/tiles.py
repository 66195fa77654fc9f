"""The five numbers to see first: peers, round, loss, bytes, speed."""

from collections.abc import Callable

from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.content import Content
from textual.reactive import reactive
from textual.widget import Widget

from tsr_swarm.monitor.view import MUTED, STRONG, View, first_fitting
from tsr_swarm.telemetry.text import bytes_text, count_text, coverage_text, factor_text, loss_text, seconds_text

Variants = tuple[str, ...]
Face = Callable[[View], tuple[Variants, Variants]]  # value and what is under it, each longest first


class Tile(Widget):
    """A label, a value, and a line that puts the value in proportion."""

    view: reactive[View] = reactive(View)

    def __init__(self, id: str, label: str, face: Face) -> None:
        super().__init__(id=id)
        self._label = label
        self._face = face

    def render(self) -> Content:
        width = self.size.width
        value, under = self._face(self.view)
        return Content.assemble(
            (self._label, MUTED),
            "\n",
            (first_fitting(width, *value), STRONG),
            "\n",
            (first_fitting(width, *under), MUTED),
        )


class Tiles(Horizontal):
    """All five, side by side."""

    view: reactive[View] = reactive(View)

    def compose(self) -> ComposeResult:
        yield Tile("peers-tile", "PEERS", _peers)
        yield Tile("round-tile", "ROUND", _round)
        yield Tile("loss-tile", "HELD-OUT LOSS", _loss)
        yield Tile("bytes-tile", "ON THE WIRE", _bytes)
        yield Tile("speed-tile", "SPEED", _speed)

    def watch_view(self, view: View) -> None:
        for tile in self.query(Tile):
            tile.view = view


def _peers(view: View) -> tuple[Variants, Variants]:
    snapshot = view.snapshot
    alive, seen = len(snapshot.alive), len(snapshot.peers)
    if snapshot.missing_peers:
        missing = f"{snapshot.missing_peers} more needed"
        return (f"{alive} alive",), (f"{missing} to start", missing)
    left = seen - alive
    gone = f", {left} left" if left else ""
    return (f"{alive} alive",), (f"{seen} seen{gone}, {snapshot.min_peers} needed", f"of {seen} seen")


def _round(view: View) -> tuple[Variants, Variants]:
    snapshot = view.snapshot
    of = f" of {snapshot.rounds}" if snapshot.rounds else ""
    if snapshot.deadline is None:
        return (f"{snapshot.round}{of}",), (snapshot.phase,)
    left = snapshot.deadline - view.now
    until = seconds_text(left) if left > 0 else "due"
    why = f" ({snapshot.phase_reason})" if snapshot.phase_reason else ""
    closes = f"{snapshot.phase}, closes in {until}" if left > 0 else f"{snapshot.phase}, closing"
    return (f"{snapshot.round}{of}",), (
        closes + why,
        closes,
        f"{snapshot.phase}, {until} left",
        f"{snapshot.phase} {until}",
        snapshot.phase,
    )


def _loss(view: View) -> tuple[Variants, Variants]:
    snapshot = view.snapshot
    if snapshot.loss is None and snapshot.local_loss is not None:
        return (f"local {loss_text(snapshot.local_loss)}",), ("nats a token",)
    first = snapshot.first_loss
    start = "nats a token" if first is None else f"from {first:.3f}"
    return (loss_text(snapshot.loss),), (f"{start}, nats a token" if first is not None else start, start)


def _bytes(view: View) -> tuple[Variants, Variants]:
    snapshot = view.snapshot
    wire, dense = snapshot.wire_bytes, snapshot.dense_bytes
    if not dense:
        return (bytes_text(wire),), ("both directions", "both ways")
    factor = factor_text(dense, wire)
    value = (f"{bytes_text(wire)}  {factor} less", f"{bytes_text(wire)} {factor}")
    return value, (f"dense training: {bytes_text(dense)}", f"dense: {bytes_text(dense)}")


def _speed(view: View) -> tuple[Variants, Variants]:
    snapshot = view.snapshot
    speed = count_text(snapshot.tokens_per_second)
    if snapshot.last_seconds is None:
        return (f"{speed} tokens/s", f"{speed} tok/s"), ("all peers",)
    took = seconds_text(snapshot.last_seconds)
    under: Variants = (f"last round took {took}", f"round {took}")
    if snapshot.epoch:
        covered = coverage_text(snapshot.epoch, snapshot.share)
        under = (f"round took {took}, {covered}", covered, covered.removesuffix(" of the data"))
    return (f"{speed} tokens/s", f"{speed} tok/s"), under
