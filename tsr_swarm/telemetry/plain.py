"""Readable lines: one for each event worth one, for ``--plain``, logs and the screen, and those of an invitation."""

from collections.abc import Mapping
from dataclasses import dataclass

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
_SKETCHES = "sketch", "gradient"  # kinds of payload: of updates, and of gradients
_DIGITS = 12  # of a digest: enough to compare by eye


@dataclass(frozen=True, slots=True, kw_only=True)
class Invitation:
    """What others paste to join a run, ``command``; ``label`` says who can, ``note`` what has to be done before."""

    label: str
    command: str
    note: str = ""

    @property
    def lines(self) -> list[str]:
        return [f"{self.label}  {self.command}", *([self.note] if self.note else [])]


def describe(event: e.Event) -> str | None:
    """``event`` as one line without control characters or markup; None when it is not worth one."""
    line = _about_run(event) or _about_peer(event) or _about_round(event) or _about_own(event)
    return None if line is None else clean(line)


def is_alert(event: e.Event) -> bool:
    """Whether it needs attention: work was lost, refused, or differs."""
    return isinstance(
        event, e.DigestMismatch | e.PayloadRefused | e.PayloadLate | e.RoundVoid | e.LeaderLost | e.Warned
    )


def name_of(text: str) -> str:
    """A peer's name as it may be shown."""
    return clean(text, NAME_LENGTH) or "(no name)"


def _about_run(event: e.Event) -> str | None:
    match event:
        case e.RunStarted():
            length = plural(event.rounds, "round") if event.rounds else "endless"
            return (
                f"run {event.run} started at {event.address}: {count_text(event.parameters)} parameters, "
                f"{event.local_space} peers, rank {event.rank}, {event.k_x} steps a round, {length}, "
                f"needs {plural(event.min_peers, 'peer')}, {plural(event.voters, 'voter')}"
            )
        case e.RunFinished():
            did, wire, dense = "stopped" if event.is_stopped else "finished", event.wire_bytes, event.dense_bytes
            if not event.rounds:
                return f"run {did} before its first round closed ({event.reason})"
            return (
                f"run {did} after {plural(event.rounds, 'round')} ({event.reason}): loss {loss_text(event.first_loss)} "
                f"to {loss_text(event.last_loss)}, {bytes_text(wire)} on the wire{_shares(event.by_kind)} where dense "
                f"training needs {bytes_text(dense)} ({factor_text(dense, wire)})"
            )
        case e.Evaluated():
            when = f"after round {event.round}" if event.round else "before training"
            return f"held-out loss {loss_text(event.loss)} {when}"
        case e.LeaderChanged():
            lost = max(1, (event.voters - 1) // 2)
            safe = f"{plural(event.voters, 'voter')}, the run survives the loss of {lost} of them"
            return f"{name_of(event.name)} leads: {safe if event.is_safe else FRAGILE}"
        case e.LeaderLost():
            return f"the leader is lost: {event.reason}"
        case e.CheckpointSaved():
            return f"checkpoint of round {event.round} saved: {event.path}"
        case e.Warned():
            return f"warning: {event.message}"
        case e.LabReady():
            return f"lab ({event.mode}): {event.reason}"
        case e.FaultPlaced():
            return f"{event.fault} {'is over' if event.is_over else 'begins'}"
    return None


def _shares(by_kind: Mapping[str, int]) -> str:
    """How many of the bytes were sketches, of updates and of gradients, and how many cores."""
    shares = {"sketches": sum(by_kind.get(kind, 0) for kind in _SKETCHES), "cores": by_kind.get("core", 0)}
    told = [f"{bytes_text(count)} {name}" for name, count in shares.items() if count]
    return f", of it {' and '.join(told)}," if told else ""


def _about_peer(event: e.Event) -> str | None:
    match event:
        case e.PeerJoined():
            where = f"{event.device}, {event.local_space}, {event.address or 'client-only'}"
            return f"peer {event.number} {name_of(event.name)} joined ({where})"
        case e.PeerLeft():
            return f"peer {name_of(event.name)} left: {event.reason}"
        case e.PayloadLate():
            return f"round {event.round}: {name_of(event.name)} was late: {event.reason}"
        case e.PayloadRefused():
            return f"round {event.round}: refused {name_of(event.name)} ({event.reason}): {event.message}"
        case e.DigestMismatch():
            got, expected = event.digest[:_DIGITS], event.expected[:_DIGITS]
            return f"ERROR round {event.round}: {name_of(event.name)} has weights {got}, expected {expected}"
        case e.DataCovered():
            covered = coverage_text(event.epoch, event.share)
            if not event.part:
                return covered
            return f"part {event.part} of the data passes from {name_of(event.was)} to {name_of(event.now)}: {covered}"
    return None


def _about_round(event: e.Event) -> str | None:
    match event:
        case e.RoundOpened():
            refresh = f", {plural(event.refresh, 'block')} to refresh" if event.refresh else ""
            peers, steps = plural(event.peers, "peer"), plural(event.steps, "step")
            return f"round {event.round} opened: {peers}, {steps}, rate {event.lr:.3g}{refresh}"
        case e.PhaseChanged() if event.phase in ("waiting", "exchange"):
            closes = "" if event.deadline is None else f", closes in {seconds_text(event.deadline)}"
            reason = f" ({event.reason})" if event.reason else ""
            return f"round {event.round} {event.phase}{closes}{reason}"
        case e.RoundVoid():
            return f"round {event.round} is void: {event.reason}"
        case e.RoundClosed():
            wire = sum(event.wire_bytes["sent"].values()) + sum(event.wire_bytes["received"].values())
            late = f", {event.late} late" if event.late else ""
            return (
                f"round {event.round} closed in {seconds_text(event.seconds)}: loss {loss_text(event.loss)} "
                f"(local {loss_text(event.local_loss)}), {event.included} of {plural(event.peers, 'peer')}{late}, "
                f"{bytes_text(wire)}, {factor_text(event.dense_bytes, wire)} less than dense"
            )
    return None


def _about_own(event: e.Event) -> str | None:
    match event:
        case e.Joined():
            return f"joined run {event.run} as peer {event.number} {name_of(event.name)}, after round {event.round}"
        case e.StateReceived():
            fetched = max(0, event.bytes - event.found_bytes)
            took = f"{plural(event.donors, 'donor')} in {seconds_text(event.seconds)}"
            rate = f", {bytes_text(fetched / event.seconds)} a second" if event.seconds > 0 else ""
            found = f", {bytes_text(event.found_bytes)} were here already" if event.found_bytes else ""
            return f"state after round {event.round} received: {bytes_text(event.bytes)} from {took}{rate}{found}"
        case e.CatchingUp():
            way = "takes the state" if event.takes_state else "replays them"
            return f"missed {plural(event.missed, 'round')}, {way}: {event.reason}"
        case e.RoundApplied():
            part = "your work is in it" if event.included else "without your work, it goes out with the next"
            up, down = (bytes_text(sum(event.wire_bytes[way].values())) for way in ("sent", "received"))
            return (
                f"round {event.round} applied in {seconds_text(event.seconds)}: {part}, "
                f"local loss {loss_text(event.local_loss)}, {up} up, {down} down"
            )
        case e.Left():
            return f"left after {plural(event.rounds, 'round')}: {event.reason}"
    return None
