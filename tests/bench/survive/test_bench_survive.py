"""Runs of real processes are checked by what they leave behind: here by made-up events, and by one short real run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.bench.json_lines import JsonLines
from tests.bench.survive.__main__ import RUNS
from tests.bench.survive.artifacts import Artifacts, CommittedRound, read_artifacts
from tests.bench.survive.checks import Outcome, check_run
from tests.bench.survive.outages import CRASH, Outage, outages
from tests.bench.survive.runner import RUN_FILE, Interrupted, Runner
from tests.bench.survive.scenarios import PEERS, PHASES, SCENARIOS, Flags, Scenario, mixed
from tests.bench.survive.table import Row, report
from tests.bench.tables import RESULTS
from tsr_swarm.config.load import load_run_config
from tsr_swarm.local.faults import ActingRole, Fault, Kill, Partition, Restart, Suspend, name_of
from tsr_swarm.local.flags import plan_local
from tsr_swarm.telemetry import events as ev

NODES = ("coordinator", "peer-1", "peer-2", "peer-3", "peer-4")
IDS = {name: f"{place:032x}" for place, name in enumerate(NODES, start=1)}
ROUNDS = 6
Timed = tuple[float, ev.Event]
PERIOD = 2.0  # seconds a round: round r is opened at 2r, committed at 2r + 1.5
SCENARIO = Scenario("made-up", "something", lambda seed: (), rounds=ROUNDS, max_lost=0, max_back_rounds=2)


@dataclass
class FakeRun:
    """A sound run, but for what is done to it. ``absent``: which nodes take no part in which rounds."""

    absent: dict[str, range] = field(default_factory=dict)
    digests: dict[tuple[str, int], str] = field(default_factory=dict)  # that differ from the others'
    void: frozenset[int] = frozenset()  # rounds, one of whose two shards is
    more: Sequence[Timed] = ()
    own: dict[str, Sequence[Timed]] = field(default_factory=dict)
    delay: dict[int, float] = field(default_factory=dict)  # seconds by which a round and all after it come later

    def artifacts(self) -> Artifacts:
        events: list[Timed] = [(0.0, leads("coordinator"))]
        events += [(0.1, joins(name)) for name in NODES[1:]]
        own: dict[str, list[Timed]] = {name: [*self.own.get(name, ())] for name in NODES}
        for round in range(1, ROUNDS + 1):
            opened = PERIOD * round + sum(late for since, late in self.delay.items() if since < round)
            committed = PERIOD * round + sum(late for since, late in self.delay.items() if since <= round) + 1.5
            events += [
                (opened, opens(round)),
                (committed, ev.PhaseChanged(round=round, phase="apply", deadline=None, reason="")),
            ]
            for name in NODES:
                if round not in self.absent.get(name, ()):
                    digest = self.digests.get((name, round), f"digest {round}")
                    own[name].append((committed + 0.1, has(name, round, digest)))
        end = ev.RunFinished(
            rounds=ROUNDS, first_loss=None, last_loss=None, wire_bytes=0, dense_bytes=0, digest="", reason=""
        )
        events += [(PERIOD * ROUNDS + 100.0, end), *self.more]
        return Artifacts(
            events=stamped(events),
            own_events={name: stamped(events) for name, events in own.items()},
            committed={"coordinator": {round: self.committed(round) for round in range(1, ROUNDS + 1)}},
        )

    def committed(self, round: int) -> CommittedRound:
        here = frozenset(IDS[name] for name in NODES[1:] if round not in self.absent.get(name, ()))
        return CommittedRound(f"chain {round}", (here, frozenset() if round in self.void else here))


def stamped(events: Sequence[Timed]) -> tuple[ev.Stamped, ...]:
    return tuple(ev.Stamped(time=time, event=event) for time, event in sorted(events, key=lambda pair: pair[0]))


def leads(name: str) -> ev.LeaderChanged:
    ids = ",".join(IDS.values())
    return ev.LeaderChanged(peer=IDS[name], name=name, term=1, voters=len(NODES), is_safe=True, voter_ids=ids)


def joins(name: str) -> ev.PeerJoined:
    return ev.PeerJoined(peer=IDS[name], name=name, number=1, address="", device="cpu", local_space="core")


def opens(round: int) -> ev.RoundOpened:
    return ev.RoundOpened(round=round, peers=PEERS, steps=1, lr=0.1, refresh=0)


def has(name: str, round: int, digest: str) -> ev.Event:
    if name == "coordinator":
        return ev.CheckpointSaved(round=round, path="")
    return ev.RoundApplied(
        round=round, included=True, local_loss=None, tokens=1, seconds=0.1, digest=digest,
        wire_bytes={"sent": {}, "received": {}}, overhead=0,
    )  # fmt: skip


def hits(fault: Fault | str) -> ev.FaultPlaced:
    return ev.FaultPlaced(fault=str(fault), is_over=False)


def ends(fault: Fault | str) -> ev.FaultPlaced:
    return ev.FaultPlaced(fault=str(fault), is_over=True)


def outcome(scenario: Scenario = SCENARIO, **run: Any) -> Outcome:
    return check_run(scenario, FakeRun(**run).artifacts())


# --- checks -----------------------------------------------------------------------------------------------------------


def test_a_run_without_faults_is_sound() -> None:
    assert outcome() == Outcome(rounds=ROUNDS, lost=[], seconds=[], back=[], forks=0, violations=[])


def test_a_round_without_the_work_of_a_peer_that_was_up_is_lost() -> None:
    absent = {"peer-3": range(4, 5)}
    found = outcome(absent=absent)
    assert (found.lost, found.violations) == ([4], ["round 4 lost: not all work of peer-3"])
    assert outcome(replace(SCENARIO, max_lost=1), absent=absent).violations == []
    assert outcome(void=frozenset({2})).violations == ["round 2 lost: 1 of 2 shards are void"]


def test_a_killed_peer_is_not_waited_for() -> None:
    found = outcome(absent={"peer-2": range(3, 99)}, more=[(6.1, hits(Kill(who=2, round=3)))])
    assert found == Outcome(rounds=ROUNDS, lost=[], seconds=[1.4], back=[], forks=0, violations=[])


def test_the_time_from_a_fault_to_the_next_committed_round_has_a_limit() -> None:
    kill = hits(Kill(who=ActingRole.LEADER, round=3)).fault + " (coordinator)"
    found = outcome(absent={"coordinator": range(3, 99)}, delay={3: 30.0}, more=[(6.1, hits(kill))])
    assert found.seconds == [31.4]
    assert found.violations == [f"after {kill}, the next round was committed after 31.4 s"]


def test_a_suspended_peer_is_back_with_the_first_round_that_is_committed_afterwards() -> None:
    stop = Suspend(who=1, round=2, phase="train", seconds=3.0)
    found = outcome(absent={"peer-1": range(2, 4)}, more=[(4.1, hits(stop)), (7.1, ends(stop))])
    assert (found.lost, found.back, found.violations) == ([], [2.5], [])


def test_a_peer_that_is_back_too_late_is_reported() -> None:
    stop = Suspend(who=1, round=1, phase="train", seconds=1.0)
    late = {"absent": {"peer-1": range(1, 6)}, "more": [(2.1, hits(stop)), (3.1, ends(stop))]}
    assert outcome(**late).violations == ["work of peer-1 is in round 6 at first, not within 2 of 1"]
    limited = outcome(replace(SCENARIO, max_back=10.0), **late)
    assert "peer-1 was back 10.5 s after the end of stop" in limited.violations


def test_a_living_node_without_the_last_round_is_a_failure_unless_its_journal_has_it() -> None:
    for name in ("coordinator", "peer-4"):
        artifacts = FakeRun(absent={name: range(6, 7)}).artifacts()
        artifacts = replace(artifacts, committed={"peer-2": artifacts.committed["coordinator"]})
        found = check_run(replace(SCENARIO, max_lost=1), artifacts)
        assert found.violations == [f"{name} is alive and does not have round 6"]
    assert (
        outcome(absent={"coordinator": range(6, 7)}).violations == []
    )  # its last checkpoint is saved after all events


def test_a_peer_that_joins_while_a_round_is_open_may_have_a_part_of_its_work_in_it() -> None:
    artifacts = FakeRun(absent={"peer-4": range(1, 3)}).artifacts()
    half = CommittedRound("chain 3", (frozenset(IDS.values()), frozenset(IDS[f"peer-{who}"] for who in (1, 2, 3))))
    artifacts = replace(artifacts, committed={"coordinator": {**artifacts.committed["coordinator"], 3: half}})
    assert check_run(replace(SCENARIO, peers=3), artifacts).lost == []
    assert check_run(replace(SCENARIO, peers=4), artifacts).lost == [1, 2, 3]


def test_other_weights_or_another_chain_are_a_fork_wherever_they_are_found() -> None:
    assert outcome(digests={("peer-2", 3): "another"}).forks == 1
    for digest, forks in (("another", 1), ("", 0)):
        reported = ev.DigestReported(round=4, peer=IDS["peer-1"], name="peer-1", digest=digest)
        assert outcome(more=[(11.0, reported)]).forks == forks
    artifacts = FakeRun().artifacts()
    other = {"peer-1": {5: CommittedRound("another chain", ())}, **artifacts.committed}
    assert check_run(SCENARIO, replace(artifacts, committed=other)).forks == 1


@pytest.mark.parametrize(
    ("spoil", "violation"),
    [
        (lambda found: replace(found, exit_code=1), "exit code 1"),
        (lambda found: replace(found, tracebacks=("peer-1: KeyError: 3",)), "traceback in the log of peer-1: KeyError"),
        (lambda found: replace(found, events=found.events[:-1]), "the run did not finish"),
    ],
)
def test_a_bad_end_is_a_failure(spoil: Callable[[Artifacts], Artifacts], violation: str) -> None:
    [found] = check_run(SCENARIO, spoil(FakeRun().artifacts())).violations
    assert found.startswith(violation)


def test_warnings_and_refusals_are_failures() -> None:
    refused = ev.PayloadRefused(round=2, peer=IDS["peer-1"], name="peer-1", reason="round", message="It is of round 2.")
    gone = ev.Warned(message="peer-2 is gone: it has ended unexpectedly.")
    early = ev.Warned(message="The run ended before --kill coordinator@9/state was due.")
    assert outcome(more=[(11.0, refused), (11.1, gone), (11.2, early)]).violations == [
        "something from peer-1 was refused for round 2: It is of round 2.",
        gone.message,
        early.message,
    ]


def test_the_minority_of_a_partition_is_down_and_must_report_it() -> None:
    cut = Partition(sides=(frozenset({0, 1}), frozenset({2, 3, 4})), round=2, phase="train", seconds=3.0)
    run: dict[str, Any] = {
        "absent": {"coordinator": range(2, 4), "peer-1": range(2, 4)},
        "more": [(4.1, hits(cut)), (7.1, ends(cut))],
    }
    expected = [Outage(name, "partition", 4.1, 7.1) for name in ("coordinator", "peer-1")]
    assert outages(FakeRun(**run).artifacts().events) == expected
    strict = replace(SCENARIO, reports_minority=True)
    assert outcome(strict, **run).violations == ["no node on the side without a majority reported it"]
    found = outcome(strict, **run, own={"peer-1": [(6.0, ev.LeaderLost(reason="it does not answer"))]})
    assert (found.violations, found.back) == ([], [2.5, 2.5])


def test_a_crash_takes_every_node_down() -> None:
    events = [(1.0, leads("coordinator")), (1.0, joins("peer-1")), (2.0, hits(CRASH)), (5.0, ends(CRASH))]
    assert outages(stamped(events)) == [Outage(name, "crash", 2.0, 5.0) for name in ("coordinator", "peer-1")]


def test_a_peer_that_is_killed_twice_has_two_outages_and_is_waited_for_after_the_last() -> None:
    twice = [hits(Kill(who=2, round=1)), hits(Restart(who=2, round=2))] * 2
    more = [(4.0 + 0.5 * place, event) for place, event in enumerate(twice)]
    assert outages(stamped(more)) == [Outage("peer-2", "kill", 4.0, 4.5), Outage("peer-2", "kill", 5.0, 5.5)]
    assert len(outcome(absent={"peer-2": range(2, 4)}, more=more).back) == 1


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("who", [0, 3, ActingRole.LEADER])
def test_every_fault_is_read_as_it_is_printed(who: int | ActingRole, phase: str) -> None:
    name = "peer-7" if isinstance(who, ActingRole) else name_of(who)
    for fault in (Kill(who=who, round=12, phase=phase), Suspend(who=who, round=3, phase=phase, seconds=1.5e9)):
        text = f"{fault} ({name})" if isinstance(who, ActingRole) else str(fault)
        assert [outage.name for outage in outages(stamped([(1.0, hits(text))]))] == [name]


# --- scenarios --------------------------------------------------------------------------------------------------------


def require_valid(scenario: Scenario, flags: Flags) -> None:
    """Raise for what ``tsr-swarm local`` would refuse."""
    given: dict[str, list[str]] = {}
    for flag, value in zip(flags[::2], flags[1::2], strict=True):
        given.setdefault(flag.removeprefix("--"), []).append(value)
    load_run_config(RUN_FILE, given.pop("set", []), environ={})
    joins = [int(text) for text in given.pop("join-at", ())]
    plan_local(given, joins, scenario.peers, scenario.rounds)


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_scenario_can_be_run_with_any_seed(name: str) -> None:
    for seed in range(50):
        require_valid(SCENARIOS[name], SCENARIOS[name].flags(seed))
        assert SCENARIOS[name].flags(seed) == SCENARIOS[name].flags(seed)


def test_mixtures_differ() -> None:
    assert len({mixed(seed) for seed in range(20)}) == 20


# --- real runs --------------------------------------------------------------------------------------------------------


def processes_of(folder: Path) -> list[str]:
    commands = (" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"]))
    return [command for command in commands if str(folder) in command]


@pytest.mark.e2e
def test_a_run_that_is_interrupted_leaves_nothing_running(tmp_path: Path) -> None:
    runner = Runner()
    runner.close()
    with pytest.raises(Interrupted):
        runner.run(SCENARIOS["peer-train"], 0, tmp_path / "run")
    assert not processes_of(tmp_path)


# --- what is kept -----------------------------------------------------------------------------------------------------


def test_the_published_table_follows_from_the_stored_runs() -> None:
    rows = [Row(**document) for document in JsonLines(RUNS).documents]
    published = (RESULTS / "survive.md").read_text("utf-8").splitlines()
    again = report(rows, rows[-1].commit, "the header").splitlines()
    assert [line for line in again if line.startswith("|")] == [line for line in published if line.startswith("|")]


def test_the_report_counts_all_runs_and_those_since_the_last_failure() -> None:
    common = {"date": "2026-01-01", "took": 30.0, "rounds": 12, "lost": [4], "seconds": [1.0, 3.0], "back": []}

    def row(scenario: str = "mixture", commit: str = "abc", violations: Sequence[str] = ()) -> Row:
        return Row(scenario=scenario, seed=0, commit=commit, forks=0, violations=violations, **common)

    rows = [row(commit="old", violations=["exit code 1"]), row(commit="old"), row(), row("peer-back")]
    text = report(rows, "abc", "the header")
    assert "At this commit of the package (abc): 2 runs, 0 failed. Over all 2 commits: 4 runs, 1 failed; 3 runs" in text
    assert "| 1 | 1 | 3 | 2.0 | 3.0 | 30 | - | - | 0 | 0 |" in text
    assert "exit code 1" not in text
    assert "mixture, seed 0: exit code 1" in report(rows, "old", "the header")


def test_logs_are_read_without_half_a_line_and_to_the_error_of_a_traceback(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    line = ev.encode(opens(3), 7.0)
    (logs / "peer-1.jsonl").write_text(f"{line}\n{line[:20]}")
    (logs / "peer-1.log").write_text("a warning\nTraceback (most recent call last):\n  File\nKeyError: 3\n")
    found = read_artifacts(tmp_path, [], 0)
    assert found.own_events == {"peer-1": (ev.Stamped(time=7.0, event=opens(3)),)}
    assert found.tracebacks == ("peer-1: KeyError: 3",)
