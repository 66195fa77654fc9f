"""The top of the screen: what the run is doing, and the five numbers to see first."""

from collections.abc import Callable

from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.content import Content
from textual.reactive import reactive
from textual.widget import Widget

from tsr_swarm.monitor.view import ALERT, MUTED, STRONG, View, cut, first_fitting
from tsr_swarm.telemetry.plain import FRAGILE
from tsr_swarm.telemetry.text import bytes_text, count_text, coverage_text, factor_text, loss_text, plural, seconds_text

Variants = tuple[str, ...]  # of one text, longest first
Reading = tuple[Variants, Variants]  # a value, and the line under it


class Headline(Widget):
    """One line: which run it is, what it is doing, who leads it, and what is wrong."""

    view: reactive[View] = reactive(View)

    def __init__(self, title: str) -> None:
        super().__init__(id="headline")
        self._title = title

    def render(self) -> Content:
        width, view = self.size.width, self.view
        snapshot = view.snapshot
        title = "" if view.is_stale else first_fitting(width // 3, self._title, snapshot.run)
        left = [(title, STRONG), ("  ", "")] if title else []
        if view.is_frozen:
            left.append(("FROZEN (space goes on)  ", ALERT))
        used = sum(len(text) for text, _ in left)
        states = _states(view)
        state = first_fitting(width - used, *states) or cut(states[-1], width - used)
        is_alert = view.is_stale or (snapshot.is_leaderless and not snapshot.is_over)
        left.append((state, ALERT if is_alert else ""))
        room = width - used - len(state) - 2
        note = first_fitting(room, *_notes(view))
        return Content.assemble(*left, " " * (room + 2 - len(note)), (note, MUTED))


def _states(view: View) -> Variants:
    """What the run does, as far as is known."""
    snapshot, outage = view.snapshot, view.outage
    if snapshot.is_over:
        return (f"{snapshot.state}; q closes the screen", snapshot.state)
    if outage is None or not view.is_stale:
        return (snapshot.state,)
    since = "" if outage.seconds is None else f" for {seconds_text(outage.seconds)}"
    own = f"; {snapshot.own_text}" if snapshot.own_text else ""
    last = f"; last known: {snapshot.state}" if snapshot.started is not None else ""
    text, short = f"{outage.text}{since}", f"{outage.short}{since}"
    return (text + own + last, text + own, short + own, *((short + last,) if not own else ()), text, short)


def _notes(view: View) -> Variants:
    """Who leads, and whether the run survives its loss."""
    snapshot = view.snapshot
    if not snapshot.run_id or snapshot.is_leaderless or snapshot.is_over or view.is_stale:
        return ()
    votes = plural(snapshot.voters, "voter")
    leads = f"{snapshot.leader} leads, " if snapshot.leader else ""
    if snapshot.is_safe:
        return (f"{leads}{votes}: the run survives its loss", f"{leads}{votes}", votes)
    if leads:
        return (f"{leads}{FRAGILE}", f"{leads}a single point of failure", f"{leads}no failover", "no failover")
    point = "the coordinator is a single point of failure"
    return (f"{votes}: {point}", point, "no failover: see ? help", "no failover")


class Tile(Widget):
    """One number: a label, a value, and a line that puts the value in proportion."""

    view: reactive[View] = reactive(View)

    def __init__(self, read: Callable[[View], Reading], *labels: str) -> None:
        """``labels``: longest first."""
        super().__init__()
        self._read, self._labels = read, labels

    def render(self) -> Content:
        width = self.size.width
        value, under = self._read(self.view) if self.view.is_known else (("-",), ("",))
        return Content.assemble(
            (first_fitting(width, *self._labels), MUTED),
            "\n",
            (first_fitting(width, *value), STRONG),
            "\n",
            (first_fitting(width, *under), MUTED),
        )


class Tiles(Horizontal):
    """The five numbers, side by side."""

    view: reactive[View] = reactive(View)

    def compose(self) -> ComposeResult:
        yield Tile(_peers, "PEERS")
        yield Tile(_round, "ROUND")
        yield Tile(_loss, "HELD-OUT LOSS", "LOSS")
        yield Tile(_bytes, "ON THE WIRE", "WIRE")
        yield Tile(_speed, "SPEED")

    def watch_view(self, view: View) -> None:
        for tile in self.query(Tile):
            tile.view = view


def _peers(view: View) -> Reading:
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


def _round(view: View) -> Reading:
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
    return value, (closes + why, closes, f"{phase}, {until} left", f"{phase} {until}", phase)


def _loss(view: View) -> Reading:
    snapshot = view.snapshot
    if snapshot.loss is None and snapshot.local_loss is not None:
        return (f"local {loss_text(snapshot.local_loss)}",), ("nats a token",)
    first = snapshot.first_loss
    start = "nats a token" if first is None else f"from {first:.3f}"
    return (loss_text(snapshot.loss),), (f"{start}, nats a token" if first is not None else start, start, "nats")


def _bytes(view: View) -> Reading:
    snapshot = view.snapshot
    wire, dense = snapshot.wire_bytes, snapshot.dense_bytes
    if not dense:
        return (bytes_text(wire),), ("both directions", "both ways")
    factor = factor_text(dense, wire)
    value = (f"{bytes_text(wire)}  {factor} less", f"{bytes_text(wire)} {factor}", bytes_text(wire))
    return value, (f"dense training: {bytes_text(dense)}", f"dense: {bytes_text(dense)}", f"{factor} less")


def _speed(view: View) -> Reading:
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
