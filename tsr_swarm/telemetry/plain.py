"""One readable line for each event worth one: ``--plain``, logs, and the screen's event log."""

from collections.abc import Mapping
from functools import singledispatch

from tsr_swarm.telemetry import events as e
from tsr_swarm.telemetry.text import (
    NAME_LENGTH,
    bytes_text,
    clean,
    count_text,
    coverage_text,
    factor_text,
    loss_text,
    plural,
    seconds_text,
)

FRAGILE = "a single point of failure: if it goes, the run waits for it"
_DIGITS = 12  # of a digest: enough to compare by eye


def describe(event: e.Event) -> str | None:
    """``event`` as one line without control characters or markup; None when it is not worth one."""
    line = _line(event)
    return None if line is None else clean(line)


def is_alert(event: e.Event) -> bool:
    """Whether somebody should look: work was lost, refused, or differs."""
    return isinstance(
        event, e.DigestMismatch | e.PayloadRefused | e.PayloadLate | e.RoundVoid | e.LeaderLost | e.Warned
    )


def name_of(text: str) -> str:
    """A peer's name as it may be shown."""
    return clean(text, NAME_LENGTH) or "(no name)"


@singledispatch
def _line(event: e.Event) -> str | None:
    return None


@_line.register
def _(event: e.RunStarted) -> str:
    length = plural(event.rounds, "round") if event.rounds else "endless"
    return (
        f"run {event.run} started at {event.address}: {count_text(event.parameters)} parameters, "
        f"{event.local_space} peers, rank {event.rank}, {event.k_x} steps a round, {length}, "
        f"needs {plural(event.min_peers, 'peer')}, {plural(event.voters, 'voter')}"
    )


@_line.register
def _(event: e.Evaluated) -> str:
    when = f"after round {event.round}" if event.round else "before training"
    return f"held-out loss {loss_text(event.loss)} {when}"


@_line.register
def _(event: e.PeerJoined) -> str:
    reach = event.address or "client-only"
    return f"peer {event.number} {name_of(event.name)} joined ({event.device}, {event.local_space}, {reach})"


@_line.register
def _(event: e.PeerLeft) -> str:
    return f"peer {name_of(event.name)} left: {event.reason}"


@_line.register
def _(event: e.LeaderChanged) -> str:
    others = f"{plural(event.voters, 'voter')}, the run survives the loss of {max(1, (event.voters - 1) // 2)} of them"
    return f"{name_of(event.name)} leads: {others if event.is_safe else FRAGILE}"


@_line.register
def _(event: e.LeaderLost) -> str:
    return f"the leader is lost: {event.reason}"


@_line.register
def _(event: e.RoundOpened) -> str:
    refresh = f", {plural(event.refresh, 'block')} to refresh" if event.refresh else ""
    peers, steps = plural(event.peers, "peer"), plural(event.steps, "step")
    return f"round {event.round} opened: {peers}, {steps}, rate {event.lr:.3g}{refresh}"


@_line.register
def _(event: e.PhaseChanged) -> str | None:
    if event.phase not in ("waiting", "exchange"):
        return None
    closes = "" if event.deadline is None else f", closes in {seconds_text(event.deadline)}"
    reason = f" ({event.reason})" if event.reason else ""
    return f"round {event.round} {event.phase}{closes}{reason}"


@_line.register
def _(event: e.PayloadLate) -> str:
    return f"round {event.round}: {name_of(event.name)} was late: {event.reason}"


@_line.register
def _(event: e.PayloadRefused) -> str:
    return f"round {event.round}: refused {name_of(event.name)} ({event.reason}): {event.message}"


@_line.register
def _(event: e.DigestMismatch) -> str:
    got, expected = event.digest[:_DIGITS], event.expected[:_DIGITS]
    return f"ERROR round {event.round}: {name_of(event.name)} has weights {got}, expected {expected}"


@_line.register
def _(event: e.RoundVoid) -> str:
    return f"round {event.round} is void: {event.reason}"


@_line.register
def _(event: e.RoundClosed) -> str:
    wire = total(event.wire_bytes["sent"]) + total(event.wire_bytes["received"])
    late = f", {event.late} late" if event.late else ""
    return (
        f"round {event.round} closed in {seconds_text(event.seconds)}: loss {loss_text(event.loss)} "
        f"(local {loss_text(event.local_loss)}), {event.included} of {plural(event.peers, 'peer')}{late}, "
        f"{bytes_text(wire)}, {factor_text(event.dense_bytes, wire)} less than dense"
    )


@_line.register
def _(event: e.DataCovered) -> str:
    covered = coverage_text(event.epoch, event.share)
    if not event.part:
        return covered
    return f"part {event.part} of the data passes from {name_of(event.was)} to {name_of(event.now)}: {covered}"


@_line.register
def _(event: e.CheckpointSaved) -> str:
    return f"checkpoint of round {event.round} saved: {event.path}"


@_line.register
def _(event: e.Warned) -> str:
    return f"warning: {event.message}"


@_line.register
def _(event: e.LabReady) -> str:
    return f"lab ({event.mode}): {event.reason}"


@_line.register
def _(event: e.FaultPlaced) -> str:
    return f"{event.fault} {'is over' if event.is_over else 'begins'}"


@_line.register
def _(event: e.RunFinished) -> str:
    did = "stopped" if event.is_stopped else "finished"
    if not event.rounds:
        return f"run {did} before its first round closed ({event.reason})"
    return (
        f"run {did} after {plural(event.rounds, 'round')} ({event.reason}): loss {loss_text(event.first_loss)} to "
        f"{loss_text(event.last_loss)}, {bytes_text(event.wire_bytes)} on the wire where dense training needs "
        f"{bytes_text(event.dense_bytes)} ({factor_text(event.dense_bytes, event.wire_bytes)})"
    )


@_line.register
def _(event: e.Joined) -> str:
    return f"joined run {event.run} as peer {event.number} {name_of(event.name)}, after round {event.round}"


@_line.register
def _(event: e.StateReceived) -> str:
    fetched = max(0, event.bytes - event.found_bytes)
    took = f"{plural(event.donors, 'donor')} in {seconds_text(event.seconds)}"
    rate = f", {bytes_text(fetched / event.seconds)} a second" if event.seconds > 0 else ""
    found = f", {bytes_text(event.found_bytes)} were here already" if event.found_bytes else ""
    return f"state after round {event.round} received: {bytes_text(event.bytes)} from {took}{rate}{found}"


@_line.register
def _(event: e.CatchingUp) -> str:
    way = "takes the state" if event.takes_state else "replays them"
    return f"missed {plural(event.missed, 'round')}, {way}: {event.reason}"


@_line.register
def _(event: e.RoundApplied) -> str:
    part = "your work is in it" if event.included else "without your work, it goes out with the next"
    up, down = bytes_text(total(event.wire_bytes["sent"])), bytes_text(total(event.wire_bytes["received"]))
    return (
        f"round {event.round} applied in {seconds_text(event.seconds)}: {part}, "
        f"local loss {loss_text(event.local_loss)}, {up} up, {down} down"
    )


@_line.register
def _(event: e.Left) -> str:
    return f"left after {plural(event.rounds, 'round')}: {event.reason}"


def total(by_kind: Mapping[str, int]) -> int:
    """Bytes of all payload kinds."""
    return sum(by_kind.values())
