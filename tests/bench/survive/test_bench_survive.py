"""Runs of real processes are judged by what they left behind: here by stories that are made up."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.bench.survive.evidence import Evidence, Stood, read_own, read_tracebacks
from tests.bench.survive.hurts import CRASH, Hurt, hurts
from tests.bench.survive.mixture import mixed
from tests.bench.survive.running import RUN_FILE, Interrupted, Stage
from tests.bench.survive.scenario import PEERS, Flags, Scenario
from tests.bench.survive.scenarios import SCENARIOS
from tests.bench.survive.table import Row, append_row, read_rows, report
from tests.bench.survive.verdict import Verdict, judge
from tsr_swarm.config.load import load_run_config
from tsr_swarm.local.faults import PHASES, ActingRole, Fault, Kill, Partition, Restart, Suspend, name_of
from tsr_swarm.local.flags import LocalFlags, plan_local
from tsr_swarm.telemetry.events import (
    CheckpointSaved,
    DigestReported,
    Event,
    FaultPlaced,
    LeaderChanged,
    LeaderLost,
    PayloadRefused,
    PeerJoined,
    PhaseChanged,
    RoundApplied,
    RoundOpened,
    RunFinished,
    Stamped,
    Warned,
    encode,
)

NODES = ("coordinator", "peer-1", "peer-2", "peer-3", "peer-4")
IDS = {name: f"{place:032x}" for place, name in enumerate(NODES, start=1)}
ROUNDS = 6
PERIOD = 2.0  # seconds a round: round r is opened at 2r, stands at 2r + 1.5
SCENARIO = Scenario(name="made-up", what="something", flags=lambda seed: (), rounds=ROUNDS, back_rounds=2)


@dataclass
class Tale:
    """A run in which all is well, but for what is done to it. ``absent``: who takes no part in which rounds."""

    absent: dict[str, range] = field(default_factory=dict)
    alien: dict[tuple[str, int], str] = field(default_factory=dict)  # digests that are not the others'
    void: frozenset[int] = frozenset()  # rounds, one of whose two shards is
    more: Sequence[tuple[float, Event]] = ()
    own: dict[str, Sequence[tuple[float, Event]]] = field(default_factory=dict)
    delay: dict[int, float] = field(default_factory=dict)  # seconds by which a round and all after it come later

    def at(self, round: int) -> float:
        return PERIOD * round + sum(late for since, late in self.delay.items() if since <= round)

    def evidence(self) -> Evidence:
        story: list[tuple[float, Event]] = [(0.0, led("coordinator"))]
        story += [(0.1, joined(name)) for name in NODES[1:]]
        own: dict[str, list[tuple[float, Event]]] = {name: [*self.own.get(name, ())] for name in NODES}
        for round in range(1, ROUNDS + 1):
            opened = PERIOD * round + sum(late for since, late in self.delay.items() if since < round)
            stood = self.at(round) + 1.5
            story += [(opened, opens(round)), (stood, applies(round))]
            for name in NODES:
                if round in self.absent.get(name, ()):
                    continue
                digest = self.alien.get((name, round), f"digest {round}")
                own[name].append((stood + 0.1, has(name, round, digest)))
        story += [(PERIOD * ROUNDS + 100.0, finished()), *self.more]
        return Evidence(
            story=stamped(story),
            own={name: stamped(events) for name, events in own.items()},
            stood={"coordinator": {round: self.stood(round) for round in range(1, ROUNDS + 1)}},
        )

    def stood(self, round: int) -> Stood:
        here = frozenset(IDS[name] for name in NODES[1:] if round not in self.absent.get(name, ()))
        return Stood(f"chain {round}", (here, frozenset() if round in self.void else here))


def stamped(events: Sequence[tuple[float, Event]]) -> tuple[Stamped, ...]:
    return tuple(Stamped(time=time, event=event) for time, event in sorted(events, key=lambda pair: pair[0]))


def led(name: str, voters: Sequence[str] = NODES) -> LeaderChanged:
    ids = ",".join(IDS[voter] for voter in voters)
    return LeaderChanged(peer=IDS[name], name=name, term=1, voters=len(voters), is_safe=True, voter_ids=ids)


def joined(name: str) -> PeerJoined:
    return PeerJoined(peer=IDS[name], name=name, number=1, address="", device="cpu", local_space="core")


def opens(round: int) -> RoundOpened:
    return RoundOpened(round=round, peers=PEERS, steps=1, lr=0.1, refresh=0)


def applies(round: int) -> PhaseChanged:
    return PhaseChanged(round=round, phase="apply", deadline=None, reason="")


def has(name: str, round: int, digest: str) -> Event:
    if name == "coordinator":
        return CheckpointSaved(round=round, path="")
    return RoundApplied(
        round=round,
        included=True,
        local_loss=None,
        tokens=1,
        seconds=0.1,
        digest=digest,
        wire_bytes={"sent": {}, "received": {}},
        overhead=0,
    )


def finished() -> RunFinished:
    return RunFinished(
        rounds=ROUNDS, first_loss=None, last_loss=None, wire_bytes=0, dense_bytes=0, digest="", reason=""
    )


def begun(fault: Fault | str) -> FaultPlaced:
    return FaultPlaced(fault=str(fault), is_over=False)


def over(fault: Fault | str) -> FaultPlaced:
    return FaultPlaced(fault=str(fault), is_over=True)


def verdict(tale: Tale, scenario: Scenario = SCENARIO) -> Verdict:
    return judge(scenario, tale.evidence())


# --- judging ----------------------------------------------------------------------------------------------------------


def test_a_run_that_nothing_happens_to_is_well() -> None:
    assert verdict(Tale()) == Verdict(rounds=ROUNDS, lost=(), seconds=(), back=(), forks=0, violations=())


def test_a_peer_that_is_well_and_not_in_a_round_loses_that_round() -> None:
    found = verdict(Tale(absent={"peer-3": range(4, 5)}))
    assert found.lost == (4,)
    assert found.violations == ("round 4 lost: not all work of peer-3",)
    assert verdict(Tale(absent={"peer-3": range(4, 5)}), replace(SCENARIO, lost=1)).violations == ()


def test_a_void_shard_loses_its_round() -> None:
    assert verdict(Tale(void=frozenset({2}))).violations == ("round 2 lost: 1 of 2 shards are void",)


def test_a_killed_peer_is_not_waited_for() -> None:
    kill = Kill(who=2, round=3)
    found = verdict(Tale(absent={"peer-2": range(3, 99)}, more=[(6.1, begun(kill))]))
    assert found == Verdict(rounds=ROUNDS, lost=(), seconds=(1.4,), back=(), forks=0, violations=())


def test_the_time_from_a_fault_to_the_next_round_that_stands_has_a_limit() -> None:
    kill = begun(Kill(who=ActingRole.LEADER, round=3)).fault + " (coordinator)"
    tale = Tale(absent={"coordinator": range(3, 99)}, delay={3: 30.0}, more=[(6.1, begun(kill))])
    found = verdict(tale)
    assert found.seconds == (31.4,)
    assert found.violations == (f"after {kill}, the next round stood after 31.4 s",)


def test_who_sleeps_is_back_with_the_first_round_that_stands_afterwards() -> None:
    stop = Suspend(who=1, round=2, phase="train", seconds=3.0)
    tale = Tale(absent={"peer-1": range(2, 4)}, more=[(4.1, begun(stop)), (7.1, over(stop))])
    found = verdict(tale)
    assert (found.lost, found.back, found.violations) == ((), (2.5,), ())


def test_who_is_back_too_late_is_told() -> None:
    stop = Suspend(who=1, round=1, phase="train", seconds=1.0)
    tale = Tale(absent={"peer-1": range(1, 6)}, more=[(2.1, begun(stop)), (3.1, over(stop))])
    assert verdict(tale).violations == ("work of peer-1 is in round 6 at first, not within 2 of 1",)
    assert "peer-1 was back 10.5 s after the end of stop" in verdict(tale, replace(SCENARIO, back=10.0)).violations


def test_somebody_alive_without_the_last_round_is_a_failure() -> None:
    for name in ("coordinator", "peer-4"):
        evidence = Tale(absent={name: range(6, 7)}).evidence()
        evidence = replace(evidence, stood={"peer-2": evidence.stood["coordinator"]})
        assert judge(replace(SCENARIO, lost=1), evidence).violations == (f"{name} is alive and has not round 6",)


def test_a_journal_tells_of_the_last_round_too() -> None:
    """The coordinator saves its last checkpoint when it has said everything."""
    assert verdict(Tale(absent={"coordinator": range(6, 7)})).violations == ()


def test_who_joins_in_mid_round_may_have_a_part_of_its_work_in_that_round() -> None:
    evidence = Tale(absent={"peer-4": range(1, 3)}).evidence()
    half = Stood("chain 3", (frozenset(IDS.values()), frozenset({IDS[f"peer-{who}"] for who in (1, 2, 3)})))
    evidence = replace(evidence, stood={"coordinator": {**evidence.stood["coordinator"], 3: half}})
    assert judge(replace(SCENARIO, peers=3), evidence).lost == ()
    assert judge(replace(SCENARIO, peers=4), evidence).lost == (1, 2, 3)


def test_other_weights_are_a_fork_wherever_they_are_told() -> None:
    assert verdict(Tale(alien={("peer-2", 3): "another"})).forks == 1
    told = DigestReported(round=4, peer=IDS["peer-1"], name="peer-1", digest="another")
    assert verdict(Tale(more=[(11.0, told)])).forks == 1
    unknown = DigestReported(round=4, peer=IDS["peer-1"], name="peer-1", digest="")
    assert verdict(Tale(more=[(11.0, unknown)])).forks == 0


def test_another_chain_on_a_disk_is_a_fork() -> None:
    evidence = Tale().evidence()
    other = {"peer-1": {5: Stood("another chain", ())}, **evidence.stood}
    assert judge(SCENARIO, replace(evidence, stood=other)).forks == 1


@pytest.mark.parametrize(
    ("spoil", "violation"),
    [
        (lambda evidence: replace(evidence, exit_code=1), "exit code 1"),
        (lambda evidence: replace(evidence, tracebacks=("peer-1: KeyError: 3",)), "traceback in the log of peer-1: "),
        (lambda evidence: replace(evidence, story=evidence.story[:-1]), "the run did not finish"),
    ],
)
def test_a_bad_end_is_a_failure(spoil: Callable[[Evidence], Evidence], violation: str) -> None:
    [found] = judge(SCENARIO, spoil(Tale().evidence())).violations
    assert found.startswith(violation)


def test_what_must_not_be_said_is_a_failure() -> None:
    refused = PayloadRefused(round=2, peer=IDS["peer-1"], name="peer-1", reason="round", message="It is of round 2.")
    gone = Warned(message="peer-2 is gone: it has ended unexpectedly.")
    assert verdict(Tale(more=[(11.0, refused), (11.1, gone)])).violations == (
        "of peer-1 something was refused for round 2: It is of round 2.",
        "peer-2 is gone: it has ended unexpectedly.",
    )


def test_a_fault_that_was_never_placed_is_a_failure() -> None:
    early = Warned(message="The run ended before --kill coordinator@9/state was due.")
    assert verdict(Tale(more=[(11.0, early)])).violations == (early.message,)


def test_the_minority_of_a_partition_is_hurt_and_must_say_so() -> None:
    cut = Partition(sides=(frozenset({0, 1}), frozenset({2, 3, 4})), round=2, phase="train", seconds=3.0)
    lonely = replace(SCENARIO, says_minority=True)
    tale = Tale(absent={"coordinator": range(2, 4), "peer-1": range(2, 4)}, more=[(4.1, begun(cut)), (7.1, over(cut))])
    assert hurts(tale.evidence().story) == [Hurt(n, "partition", 4.1, 7.1) for n in ("coordinator", "peer-1")]
    assert verdict(tale, lonely).violations == ("nobody on the side without a majority said so",)
    tale.own = {"peer-1": [(6.0, LeaderLost(reason="it does not answer"))]}
    found = verdict(tale, lonely)
    assert (found.violations, found.back) == ((), (2.5, 2.5))


def test_everybody_is_hurt_by_a_crash() -> None:
    story = [(1.0, led("coordinator")), (1.0, joined("peer-1")), (2.0, begun(CRASH)), (5.0, over(CRASH))]
    assert hurts(stamped(story)) == [Hurt(name, "crash", 2.0, 5.0) for name in ("coordinator", "peer-1")]


def test_who_is_killed_again_before_it_was_back_is_waited_for_once() -> None:
    twice = [(begun(Kill(who=2, round=1)), begun(Restart(who=2, round=2)))] * 2
    more = [(4.0 + 0.5 * place, event) for place, event in enumerate(event for pair in twice for event in pair)]
    found = verdict(Tale(absent={"peer-2": range(2, 4)}, more=more))
    assert len(found.back) == 1


def test_who_is_killed_and_comes_back_twice_is_hurt_twice() -> None:
    story = [
        (1.0, begun(Kill(who=2, round=1))),
        (2.0, begun(Restart(who=2, round=2))),
        (3.0, begun(f"{Kill(who=ActingRole.REDUCER, round=3)} (peer-2)")),
    ]
    assert hurts(stamped(story)) == [Hurt("peer-2", "kill", 1.0, 2.0), Hurt("peer-2", "kill", 3.0)]


@given(st.integers(0, 9), st.integers(1, 99), st.sampled_from(PHASES), st.floats(0.5, 1e9), st.booleans())
def test_every_fault_is_read_as_it_is_told(who: int, round: int, phase: str, seconds: float, is_role: bool) -> None:
    faults: list[Fault] = [
        Kill(who=ActingRole.LEADER if is_role else who, round=round, phase=phase),
        Suspend(who=ActingRole.LEADER if is_role else who, round=round, phase=phase, seconds=seconds),
    ]
    for fault in faults:
        text = f"{fault} ({name_of(who)})" if is_role else str(fault)
        assert [hurt.name for hurt in hurts(stamped([(1.0, begun(text))]))] == [name_of(who)]


# --- scenarios --------------------------------------------------------------------------------------------------------


def plan(scenario: Scenario, flags: Flags) -> None:
    """Raises for what ``tsr-swarm local`` would not take."""
    said: dict[str, list[str]] = {}
    for flag, value in zip(flags[::2], flags[1::2], strict=True):
        said.setdefault(flag.removeprefix("--"), []).append(value)
    load_run_config(RUN_FILE, said.pop("set", []), environ={})
    joins = [int(text) for text in said.pop("join-at", ())]
    plan_local(LocalFlags(join_at=joins, **said), scenario.peers, scenario.rounds)


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_scenario_can_be_run_with_any_seed(name: str) -> None:
    for seed in range(50):
        plan(SCENARIOS[name], SCENARIOS[name].flags(seed))
        assert SCENARIOS[name].flags(seed) == SCENARIOS[name].flags(seed)


def test_mixtures_differ() -> None:
    assert len({mixed(seed) for seed in range(20)}) == 20


# --- real runs --------------------------------------------------------------------------------------------------------


def left_running(folder: Path) -> list[str]:
    commands = (" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"]))
    return [command for command in commands if str(folder) in command]


@pytest.mark.e2e
def test_a_real_run_is_judged_by_what_it_leaves(tmp_path: Path) -> None:
    """Everything is killed as the second round opens, and the run resumed."""
    scenario = Scenario(
        name="short",
        what="a crash",
        flags=lambda seed: (),
        rounds=3,
        peers=2,
        lost=1,
        seconds=60.0,
        back=60.0,
        crash_round=lambda seed: 2,
    )
    found = judge(scenario, Stage().run(scenario, 0, tmp_path / "run"))
    assert found.violations == ()
    assert (found.rounds, found.forks, len(found.seconds), len(found.back)) == (3, 0, 1, 3)
    assert not left_running(tmp_path)


@pytest.mark.e2e
def test_a_run_that_is_interrupted_leaves_nothing_running(tmp_path: Path) -> None:
    stage = Stage()
    stage.close()
    with pytest.raises(Interrupted):
        stage.run(SCENARIOS["peer-train"], 0, tmp_path / "run")
    assert not left_running(tmp_path)


# --- what is kept -----------------------------------------------------------------------------------------------------


def row(scenario: str = "mixture", seed: int = 0, commit: str = "abc", violations: Sequence[str] = ()) -> Row:
    return Row(
        scenario=scenario,
        seed=seed,
        date="2026-01-01",
        commit=commit,
        took=30.0,
        rounds=12,
        lost=[4],
        seconds=[1.0, 3.0],
        back=[],
        forks=0,
        violations=list(violations),
    )


def test_rows_come_back_as_they_were_kept(tmp_path: Path) -> None:
    rows = [row(), row(seed=1, violations=["exit code 1"])]
    assert read_rows(tmp_path / "runs.jsonl") == []
    for each in rows:
        append_row(tmp_path / "folder" / "runs.jsonl", each)
    assert read_rows(tmp_path / "folder" / "runs.jsonl") == rows


def test_the_report_counts_all_runs_and_those_since_the_last_failure() -> None:
    rows = [row(commit="old", violations=["exit code 1"]), row(commit="old"), row(), row("peer-back", 3)]
    text = report(rows, "abc", "the header")
    assert "At this commit of the package (abc): 2 runs, 0 failed. Over all 2 commits: 4 runs, 1 failed; 3 runs" in text
    assert "| 1 | 1 | 3 | 2.0 | 3.0 | 30 | - | - | 0 | 0 |" in text
    assert "exit code 1" not in text
    assert "mixture, seed 0: exit code 1" in report(rows, "old", "the header")


def test_logs_are_read_to_half_a_line_and_to_the_error_of_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    line = encode(opens(3), 7.0)
    (tmp_path / "logs" / "peer-1.jsonl").write_text(f"{line}\n{line[:20]}")
    (tmp_path / "logs" / "peer-1.log").write_text(
        "a warning\nTraceback (most recent call last):\n  File\nKeyError: 3\n"
    )
    assert read_own(tmp_path) == {"peer-1": (Stamped(time=7.0, event=opens(3)),)}
    assert read_tracebacks(tmp_path) == ("peer-1: KeyError: 3",)
