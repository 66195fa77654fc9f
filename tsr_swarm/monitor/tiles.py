"""The five numbers to see first: peers, round, loss, bytes, speed."""

from collections.abc import Callable

from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.content import Content
from textual.reactive import reactive
from textual.widget import Widget

from tsr_swarm.monitor.view import MUTED, STRONG, View, first_fitting
from tsr_swarm.telemetry.text import (
    bytes_text,
    count_text,
    coverage_text,
    factor_text,
    loss_text,
    plural,
    seconds_text,
)

Variants = tuple[str, ...]
UNKNOWN: tuple[Variants, Variants] = (("-",), ("",))
Face = Callable[[View], tuple[Variants, Variants]]  # value and what is under it, each longest first


class Tile(Widget):
    """A label, a value, and a line that puts the value in proportion."""

    view: reactive[View] = reactive(View)

    def __init__(self, id: str, face: Face, *labels: str) -> None:
        """``labels``: longest first."""
        super().__init__(id=id)
        self._labels = labels
        self._face = face

    def render(self) -> Content:
        width = self.size.width
        value, under = self._face(self.view) if self.view.is_known else UNKNOWN
        return Content.assemble(
            (first_fitting(width, *self._labels), MUTED),
            "\n",
            (first_fitting(width, *value), STRONG),
            "\n",
            (first_fitting(width, *under), MUTED),
        )


class Tiles(Horizontal):
    """All five, side by side."""

    view: reactive[View] = reactive(View)

    def compose(self) -> ComposeResult:
        yield Tile("peers-tile", _peers, "PEERS")
        yield Tile("round-tile", _round, "ROUND")
        yield Tile("loss-tile", _loss, "HELD-OUT LOSS", "LOSS")
        yield Tile("bytes-tile", _bytes, "ON THE WIRE", "WIRE")
        yield Tile("speed-tile", _speed, "SPEED")

    def watch_view(self, view: View) -> None:
        for tile in self.query(Tile):
            tile.view = view


def _peers(view: View) -> tuple[Variants, Variants]:
    snapshot = view.snapshot
    alive, seen = len(snapshot.alive), len(snapshot.peers)
    if snapshot.is_over:
        return (plural(seen, "peer"),), ("took part",)
    if view.is_stale:
        return (f"{alive} alive",), (view.as_of,)
    if snapshot.missing_peers:
        missing = f"{snapshot.missing_peers} more needed"
        return (f"{alive} alive",), (f"{missing} to {'go on' if snapshot.round else 'start'}", missing)
    left = seen - alive
    gone = f", {left} left" if left else ""
    return (f"{alive} alive",), (f"{seen} seen{gone}, {snapshot.min_peers} needed", f"of {seen} seen")


def _round(view: View) -> tuple[Variants, Variants]:
    snapshot = view.snapshot
    of = f" of {snapshot.rounds}" if snapshot.rounds else ""
    value = (f"{snapshot.round}{of}", str(snapshot.round))
    is_ending = snapshot.phase == "finished" and not snapshot.is_over
    phase = "ending" if is_ending else snapshot.phase
    if view.is_stale:
        return value, (f"{phase}, {view.as_of}" if phase else view.as_of, view.as_of)
    if snapshot.deadline is None:
        return value, (phase,)
    left = snapshot.deadline - view.now
    until = seconds_text(left) if left > 0 else "due"
    why = f" ({snapshot.phase_reason})" if snapshot.phase_reason else ""
    closes = f"{phase}, closes in {until}" if left > 0 else f"{phase}, closing"
    return value, (
        closes + why,
        closes,
        f"{phase}, {until} left",
        f"{phase} {until}",
        phase,
    )


def _loss(view: View) -> tuple[Variants, Variants]:
    snapshot = view.snapshot
    if snapshot.loss is None and snapshot.local_loss is not None:
        return (f"local {loss_text(snapshot.local_loss)}",), ("nats a token",)
    first = snapshot.first_loss
    start = "nats a token" if first is None else f"from {first:.3f}"
    return (loss_text(snapshot.loss),), (f"{start}, nats a token" if first is not None else start, start, "nats")


def _bytes(view: View) -> tuple[Variants, Variants]:
    snapshot = view.snapshot
    wire, dense = snapshot.wire_bytes, snapshot.dense_bytes
    if not dense:
        return (bytes_text(wire),), ("both directions", "both ways")
    factor = factor_text(dense, wire)
    value = (f"{bytes_text(wire)}  {factor} less", f"{bytes_text(wire)} {factor}", bytes_text(wire))
    return value, (f"dense training: {bytes_text(dense)}", f"dense: {bytes_text(dense)}", f"{factor} less")


def _speed(view: View) -> tuple[Variants, Variants]:
    snapshot = view.snapshot
    speed = count_text(snapshot.tokens_per_second)
    value = (f"{speed} tokens/s", f"{speed} tok/s", f"{speed} t/s", speed)
    if view.is_stale:
        return value, (view.as_of,)
    if snapshot.last_seconds is None:
        return value, ("all peers",)
    took = seconds_text(snapshot.last_seconds)
    under: Variants = (f"last round took {took}", f"round {took}")
    if snapshot.epoch:
        covered = coverage_text(snapshot.epoch, snapshot.share)
        under = (f"round took {took}, {covered}", covered, covered.removesuffix(" of the data"), took)
    return value, under
