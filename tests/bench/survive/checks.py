"""Judge a run by what happened in it: rounds lost, forks, seconds to recover, and what must not be. Pure."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from tests.bench.survive.evidence import Evidence
from tests.bench.survive.facts import COORDINATOR, Facts
from tests.bench.survive.hurts import Hurt
from tests.bench.survive.scenario import Scenario
from tsr_swarm.telemetry.events import DigestMismatch, LeaderLost, PayloadRefused, PeerJoined, RunFinished, Warned


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """``violations`` is empty if all is well.

    rounds: how many stand in the end. lost: those of them that stand without all the work of every peer that was there
    and well from when the round was opened until it stood; a void shard loses the work of everybody. A peer that was
    hurt is well again once its work is in a round, for which it has a limit of its own; one that is slow by the
    scenario need not be in every round.
    seconds: from each fault until the next round stood on any node. back: from the end of each hurt that ended, until
    that node had a round that was not there yet then. forks: rounds of which nodes have different digests or chains.
    """

    rounds: int
    lost: tuple[int, ...]
    seconds: tuple[float, ...]
    back: tuple[float, ...]
    forks: int
    violations: tuple[str, ...]


def judge(scenario: Scenario, evidence: Evidence) -> Verdict:
    facts = Facts(scenario, evidence)
    lost = {round: why for round in range(1, facts.last + 1) if (why := facts.why_lost(round))}
    forks = facts.forks()
    violations = [
        *_of_the_end(scenario, evidence, facts),
        *(f"round {round} has {len(found)} digests or chains" for round, found in forks.items()),
        *([] if len(lost) <= scenario.lost else [f"round {round} lost: {why}" for round, why in lost.items()]),
        *_of_recovery(scenario, facts),
        *_of_what_was_said(evidence),
        *_of_work(scenario, evidence, facts),
        *_of_the_minority(scenario, evidence, facts),
    ]
    return Verdict(
        rounds=facts.last,
        lost=tuple(lost),
        seconds=_finite(facts.seconds()),
        back=_finite([facts.back(hurt) for hurt in facts.ended()]),
        forks=len(forks),
        violations=tuple(violations),
    )


def _finite(seconds: list[float]) -> tuple[float, ...]:
    return tuple(round(each, 2) for each in seconds if each < math.inf)


def _of_the_end(scenario: Scenario, evidence: Evidence, facts: Facts) -> Iterator[str]:
    if evidence.exit_code:
        yield f"exit code {evidence.exit_code}"
    yield from (f"traceback in the log of {text}" for text in evidence.tracebacks)
    if not any(isinstance(stamped.event, RunFinished) for stamped in evidence.story):
        yield "the run did not finish"
    if facts.last != scenario.rounds:
        yield f"round {facts.last} is the last, not {scenario.rounds}"
    gone = {hurt.name for hurt in facts.hurts if hurt.healed >= facts.end}
    for name in evidence.own:
        if name not in gone and scenario.rounds not in {*evidence.stood.get(name, ()), *facts.rounds_of(name)}:
            yield f"{name} is alive and has not round {scenario.rounds}"


def _of_recovery(scenario: Scenario, facts: Facts) -> Iterator[str]:
    for (_, fault), seconds in zip(facts.faults, facts.seconds(), strict=True):
        if seconds > scenario.seconds:
            yield f"after {fault}, the next round stood after {seconds:.1f} s"
    for hurt in facts.ended():
        seconds = facts.back(hurt)
        if seconds > scenario.back:
            yield f"{hurt.name} was back {seconds:.1f} s after the end of {hurt.kind}"
        if hurt.name != COORDINATOR:
            yield from _of_work_after(scenario, facts, hurt)


def _of_work_after(scenario: Scenario, facts: Facts, hurt: Hurt) -> Iterator[str]:
    open_round, works = facts.newest(hurt.healed) + 1, facts.works(hurt.name, hurt.healed)
    limit = math.inf if scenario.back_rounds is None else scenario.back_rounds
    if not works:
        yield f"no work of {hurt.name} is in any round after the end of {hurt.kind}"
    elif min(works) - open_round > limit:
        yield f"work of {hurt.name} is in round {min(works)} at first, not within {limit} of {open_round}"


def _of_what_was_said(evidence: Evidence) -> Iterator[str]:
    for stamped in evidence.story:
        match stamped.event:
            case Warned(message=message) if any(
                part in message for part in (" is gone: ", " cannot be placed", " was due")
            ):
                yield message
            case DigestMismatch(name=name, round=round):
                yield f"{name} had other weights after round {round}"
            case PayloadRefused(name=name, round=round, message=message):
                yield f"of {name} something was refused for round {round}: {message}"


def _of_work(scenario: Scenario, evidence: Evidence, facts: Facts) -> Iterator[str]:
    """Everybody who joined, however late or slow, has work in some round."""
    joined = {stamped.event.name for stamped in evidence.story if isinstance(stamped.event, PeerJoined)}
    for name in sorted(joined | {f"peer-{who}" for who in range(1, scenario.peers + 1)}):
        if not facts.works(name, -math.inf):
            yield f"no work of {name} is in any round"


def _of_the_minority(scenario: Scenario, evidence: Evidence, facts: Facts) -> Iterator[str]:
    cut = [hurt for hurt in facts.hurts if hurt.kind == "partition"]
    if scenario.says_minority and not any(_said_so(evidence, hurt) for hurt in cut):
        yield "nobody on the side without a majority said so"


def _said_so(evidence: Evidence, hurt: Hurt) -> bool:
    return any(
        isinstance(stamped.event, LeaderLost | Warned) and hurt.begun < stamped.time < hurt.healed
        for stamped in evidence.own.get(hurt.name, ())
    )
