"""Check a run by what happened in it: rounds lost, forks, seconds to recover, and what must not be. Pure."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tests.bench.survive.artifacts import Artifacts
from tests.bench.survive.outages import Outage
from tests.bench.survive.scenarios import Scenario
from tests.bench.survive.timeline import COORDINATOR, Timeline
from tsr_swarm.telemetry.events import DigestMismatch, LeaderLost, PayloadRefused, PeerJoined, RunFinished, Warned

BAD_WARNINGS = (" is gone: ", " cannot be placed", " was due")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Figures of a run; ``violations`` is empty if all is well.

    rounds: how many were committed. lost: those that lack some work of a peer that was up from the opening of the round
    until it was committed; a void shard loses the work of everybody. After an outage a peer counts as up once its work
    is in a round, for which it has a limit of its own; one that is slow by the scenario need not be in every round.
    seconds: from each fault until the next round was committed on any node. back: from the end of each outage until
    that node had a round that was not committed yet then. forks: rounds of which nodes have different digests or
    chain hashes.
    """

    rounds: int
    lost: Sequence[int]
    seconds: Sequence[float]
    back: Sequence[float]
    forks: int
    violations: Sequence[str]


def check_run(scenario: Scenario, artifacts: Artifacts) -> Outcome:
    timeline = Timeline(scenario, artifacts)
    lost = {round: why for round in range(1, timeline.last + 1) if (why := timeline.why_lost(round))}
    forks = timeline.forks()
    violations = [
        *_check_end(scenario, artifacts, timeline),
        *(f"round {round} has {len(found)} digests or chains" for round, found in forks.items()),
        *([] if len(lost) <= scenario.max_lost else [f"round {round} lost: {why}" for round, why in lost.items()]),
        *_check_recovery(scenario, timeline),
        *_check_events(artifacts),
        *_check_work(scenario, artifacts, timeline),
        *_check_minority(scenario, artifacts, timeline),
    ]
    return Outcome(
        rounds=timeline.last,
        lost=list(lost),
        seconds=_finite(timeline.recovery_seconds()),
        back=_finite([timeline.seconds_back(outage) for outage in timeline.ended_outages()]),
        forks=len(forks),
        violations=violations,
    )


def _finite(seconds: list[float]) -> list[float]:
    return [round(each, 2) for each in seconds if each < math.inf]


def _check_end(scenario: Scenario, artifacts: Artifacts, timeline: Timeline) -> Iterator[str]:
    if artifacts.exit_code:
        yield f"exit code {artifacts.exit_code}"
    yield from (f"traceback in the log of {text}" for text in artifacts.tracebacks)
    if not any(isinstance(stamped.event, RunFinished) for stamped in artifacts.events):
        yield "the run did not finish"
    if timeline.last != scenario.rounds:
        yield f"round {timeline.last} is the last, not {scenario.rounds}"
    gone = {outage.name for outage in timeline.outages if outage.ended >= timeline.end}
    for name in artifacts.own_events:
        known = {*artifacts.committed.get(name, ()), *timeline.rounds_of(name)}
        if name not in gone and scenario.rounds not in known:
            yield f"{name} is alive and does not have round {scenario.rounds}"


def _check_recovery(scenario: Scenario, timeline: Timeline) -> Iterator[str]:
    for (_, fault), seconds in zip(timeline.faults, timeline.recovery_seconds(), strict=True):
        if seconds > scenario.max_seconds:
            yield f"after {fault}, the next round was committed after {seconds:.1f} s"
    for outage in timeline.ended_outages():
        seconds = timeline.seconds_back(outage)
        if seconds > scenario.max_back:
            yield f"{outage.name} was back {seconds:.1f} s after the end of {outage.kind}"
        if outage.name != COORDINATOR:
            yield from _check_work_after(scenario, timeline, outage)


def _check_work_after(scenario: Scenario, timeline: Timeline, outage: Outage) -> Iterator[str]:
    open_round = timeline.newest(outage.ended) + 1
    rounds = timeline.rounds_with_work(outage.name, outage.ended)
    limit = math.inf if scenario.max_back_rounds is None else scenario.max_back_rounds
    if not rounds:
        yield f"no work of {outage.name} is in any round after the end of {outage.kind}"
    elif min(rounds) - open_round > limit:
        yield f"work of {outage.name} is in round {min(rounds)} at first, not within {limit} of {open_round}"


def _check_events(artifacts: Artifacts) -> Iterator[str]:
    for stamped in artifacts.events:
        match stamped.event:
            case Warned(message=message) if any(part in message for part in BAD_WARNINGS):
                yield message
            case DigestMismatch(name=name, round=round):
                yield f"{name} had other weights after round {round}"
            case PayloadRefused(name=name, round=round, message=message):
                yield f"something from {name} was refused for round {round}: {message}"


def _check_work(scenario: Scenario, artifacts: Artifacts, timeline: Timeline) -> Iterator[str]:
    """Every peer that joined, however late or slow, has work in some round."""
    joined = {stamped.event.name for stamped in artifacts.events if isinstance(stamped.event, PeerJoined)}
    for name in sorted(joined | {f"peer-{number}" for number in range(1, scenario.peers + 1)}):
        if not timeline.rounds_with_work(name, -math.inf):
            yield f"no work of {name} is in any round"


def _check_minority(scenario: Scenario, artifacts: Artifacts, timeline: Timeline) -> Iterator[str]:
    cut_off = [outage for outage in timeline.outages if outage.kind == "partition"]
    if scenario.reports_minority and not any(_reported(artifacts, outage) for outage in cut_off):
        yield "no node on the side without a majority reported it"


def _reported(artifacts: Artifacts, outage: Outage) -> bool:
    return any(
        isinstance(stamped.event, LeaderLost | Warned) and outage.begun < stamped.time < outage.ended
        for stamped in artifacts.own_events.get(outage.name, ())
    )
