"""What people write to make things happen to a local swarm: good text, and one sentence for bad text."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsr_swarm.errors import ConfigError
from tsr_swarm.local import faults
from tsr_swarm.local.faults import PHASES, ActingRole, Kill, LateJoin, Partition, Restart, Suspend
from tsr_swarm.local.flags import plan_local
from tsr_swarm.local.network.packets import HomeLine

FLAGS = ("kill", "back", "stop", "partition", "env", "slow", "nat", "up", "down", "rtt", "loss")
LEADER = ActingRole.LEADER


def plan(rounds: int = 10, join_at: Sequence[int] = (), **texts: Any) -> faults.LocalPlan:
    return plan_local(texts, join_at, 3, rounds)


def split(round: int, phase: str, seconds: float, one: set[int], other: set[int]) -> Partition:
    return Partition(sides=(frozenset(one), frozenset(other)), round=round, phase=phase, seconds=seconds)


@pytest.mark.parametrize(
    ("flag", "text", "fault"),
    [
        ("kill", "1@999999999", Kill(who=1, round=999999999)),
        ("stop", "2@3", Suspend(who=2, round=3, phase="train", seconds=20)),
        ("stop", "2@3:5s", Suspend(who=2, round=3, phase="train", seconds=5)),
        ("stop", "coordinator@1/commit:500ms", Suspend(who=0, round=1, phase="commit", seconds=0.5)),
        ("stop", "1@10/apply:2", Suspend(who=1, round=10, phase="apply", seconds=2)),
        ("stop", "leader@3:20s", Suspend(who=LEADER, round=3, phase="train", seconds=20)),
        ("stop", "2@3:2r", Suspend(who=2, round=3, phase="train", rounds=2)),
        ("partition", "coordinator,1|2,3@4:30s", split(4, "train", 30, {0, 1}, {2, 3})),
        ("partition", "1|2@1", split(1, "train", 30, {1}, {2})),
        ("partition", "3|coordinator@2/exchange:4s", split(2, "exchange", 4, {3}, {0})),
    ],
)
def test_a_fault_is_read_and_only_a_partition_needs_a_lab(flag: str, text: str, fault: faults.Fault) -> None:
    made = plan(rounds=0, **{flag: [text]})
    assert made.faults == (fault,)
    assert made.is_shaped == (flag == "partition")


@given(
    who=st.integers(0, 3) | st.sampled_from(ActingRole), round=st.integers(1, 10), phase=st.sampled_from((*PHASES, ""))
)
def test_a_kill_is_read_as_it_is_written(who: int | ActingRole, round: int, phase: str) -> None:
    name = who.value if isinstance(who, ActingRole) else who or "coordinator"
    text = f"{name}@{round}" + (f"/{phase}" if phase else "")
    assert plan(kill=[text]).faults == (Kill(who=who, round=round, phase=phase or "train"),)


def test_who_was_killed_can_come_back() -> None:
    kills = (Kill(who=2, round=3), Kill(who=LEADER, round=4, phase="commit"))
    backs = (Restart(who=2, round=5), Restart(who=LEADER, round=4, phase="commit", seconds=20.0))
    assert plan(kill=["2@3", "leader@4/commit"], back=["2@5", "leader@4/commit:20s"]).faults == kills + backs
    assert [str(fault) for fault in backs] == ["--back peer-2@5/train", "--back leader@4/commit:20s"]


@pytest.mark.parametrize(
    "texts",
    [
        pytest.param({"kill": ["leader@3/commit", "leader@5", "reducer@5"]}, id="a role is killed more than once"),
        pytest.param({"stop": ["2@3"], "kill": ["2@3/commit"]}, id="a stop before the kill"),
        pytest.param({"stop": ["2@5"], "kill": ["2@3"], "back": ["2@4"]}, id="a stop after the restart"),
        pytest.param({"kill": ["2@3", "2@7"], "back": ["2@5", "2@9"]}, id="two kills and two restarts"),
    ],
)
def test_faults_that_fit_together_are_taken(texts: dict[str, list[str]]) -> None:
    assert len(plan(**texts).faults) == sum(map(len, texts.values()))


def test_peers_that_join_late_get_the_next_numbers_in_the_order_of_their_rounds() -> None:
    assert plan(join_at=[7, 5]).faults == (LateJoin(who=4, round=5), LateJoin(who=5, round=7))
    assert plan(join_at=[7, 5]).joins == 2


def test_a_variable_may_have_any_value_and_a_factor_is_a_number() -> None:
    assert plan(env=["2:A=1", "2:B=x=y:z", "coordinator:C="]).environment == {2: {"A": "1", "B": "x=y:z"}, 0: {"C": ""}}
    assert plan(slow=["1:4", "3:1.5"]).slowness == {1: 4.0, 3: 1.5}


@pytest.mark.parametrize(
    ("flag", "texts", "lines"),
    [
        ("nat", ["2"], {2: HomeLine(nat=True)}),
        ("up", ["2:20mbit", "coordinator:1gbit"], {2: HomeLine(up=20e6), 0: HomeLine(up=1e9)}),
        ("down", ["1:56kbit"], {1: HomeLine(down=56e3)}),
        ("rtt", ["all:20ms", "2:80ms"], {who: HomeLine(rtt=0.08 if who == 2 else 0.02) for who in range(4)}),
        ("rtt", ["2:80ms", "all:20ms"], {who: HomeLine(rtt=0.08 if who == 2 else 0.02) for who in range(4)}),
        ("loss", ["3:2%"], {3: HomeLine(loss=0.02)}),
        ("loss", ["3:0.5%"], {3: HomeLine(loss=0.005)}),
    ],
)
def test_a_link_is_read_and_needs_a_lab(flag: str, texts: list[str], lines: dict[int, HomeLine]) -> None:
    assert plan(**{flag: texts}).lines == lines
    assert plan(**{flag: texts}).is_shaped


def test_flags_about_one_link_add_up_and_a_late_peer_has_one_too() -> None:
    lines = plan(join_at=[2], nat=["4"], up=["4:1mbit"], rtt=["all:1ms"]).lines
    assert lines[4] == HomeLine(nat=True, up=1e6, rtt=0.001)
    assert lines[0] == HomeLine(rtt=0.001)


@pytest.mark.parametrize(
    ("flag", "texts", "says"),
    [
        ("kill", ["4@2"], "this swarm has peers 1 to 3; write WHO@ROUND[/PHASE], such as 2@3"),
        ("kill", ["2@0"], "write WHO@ROUND[/PHASE]"),
        ("kill", ["2@11"], "the rounds of this run are 1 to 10"),
        ("kill", ["2@3/lunch"], "train, exchange, commit, apply, state"),
        ("kill", ["2@3:5s"], "write WHO@ROUND[/PHASE], such as 2@3 or leader@3/commit"),
        ("kill", ["2@3", "2@3"], "is there twice"),
        ("kill", ["boss@3"], "write WHO@ROUND[/PHASE], such as 2@3 or leader@3/commit"),
        ("kill", ["leader@3/state"], "a role takes no state; name the coordinator or a peer, 1 to 3"),
        ("env", ["2:OMP"], "write WHO:KEY=VALUE"),
        ("env", ["9:A=1"], "this swarm has peers 1 to 3"),
        ("stop", ["2"], "write WHO@ROUND[/PHASE][:SECONDS or :ROUNDS], such as 2@3:20s or 2@3:2r."),
        ("stop", ["2@3:0r"], "--stop 2@3:0r cannot be read: "),
        ("back", ["2@3:2r"], "--back 2@3:2r cannot be read: "),
        ("stop", ["2@3/lunch"], "train, exchange, commit, apply"),
        ("stop", ["2@3:soon"], "'soon' is not a time; write a number and one of"),
        ("stop", ["2@3:0s"], "write a time above 0 and of at most 86400 s"),
        ("stop", ["2@3", "2@3/train:20s"], "is there twice; say it once."),
        ("partition", ["1|2"], "write WHO,...|WHO,...@ROUND[/PHASE][:SECONDS or :ROUNDS]"),
        ("partition", ["1,2@3"], "such as coordinator,1|2,3@4:30s."),
        ("partition", ["1,2|2,3@3"], "names somebody on both sides"),
        ("partition", ["1|4@3"], "this swarm has peers 1 to 3"),
        ("partition", ["1|2@3/tea"], "train, exchange, commit, apply"),
        ("slow", ["2"], "write WHO:FACTOR, such as 2:4."),
        ("slow", ["2:0.5"], "the factor is from 1 to 1000"),
        ("slow", ["2:1001"], "the factor is from 1 to 1000"),
        ("slow", ["coordinator:2"], "the coordinator does not train; name a peer, 1 to 3."),
        ("slow", ["9:2"], "this swarm has peers 1 to 3"),
        ("slow", ["2:2", "2:3"], "say it once"),
        ("nat", ["all"], "write a peer's number, such as --nat 2."),
        ("nat", ["coordinator"], "nobody could reach the coordinator"),
        ("nat", ["4"], "this swarm has peers 1 to 3"),
        ("up", ["20mbit"], "write WHO:RATE, such as 2:20mbit or all:50mbit."),
        ("up", ["2:fast"], "'fast' is not a rate; write a number and one of bit"),
        ("up", ["2:0mbit"], "a rate is above 0"),
        ("up", ["4:1mbit"], "this swarm has peers 1 to 3"),
        ("up", ["2:1mbit", "2:2mbit"], "says it a second time for 2; say it once."),
        ("down", ["0:1mbit"], "write WHO:RATE"),
        ("rtt", ["2:long"], "is not a time"),
        ("rtt", ["2:61s"], "a round trip is at most 60 s"),
        ("loss", ["2:2"], "is not a loss; write a number and %, such as 2%."),
        ("loss", ["2:100%"], "a loss is from 0% to below 100%"),
    ],
)
def test_what_cannot_be_is_one_sentence_with_the_legal_form(flag: str, texts: list[str], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plan(**{flag: texts})
    sentence = str(caught.value)
    assert says in sentence
    assert texts[-1] in sentence
    assert sentence.endswith(".")
    assert sentence.startswith(f"--{flag} ")


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        ({"kill": ["2@3", "2@4"]}, "kill each once"),
        ({"kill": ["4@3"], "join_at": [5]}, "before that peer joins in round 5"),
        ({"stop": ["2@4"], "kill": ["2@3"]}, "comes after the same one was killed; name an earlier moment"),
        ({"join_at": [11]}, "the rounds of this run are 1 to 10"),
        ({"join_at": [0]}, "the rounds of this run are 1 to 10"),
        ({"back": ["2@3"]}, "--back peer-2@3/train needs somebody who was killed before; add --kill 2@ROUND."),
        ({"kill": ["2@4"], "back": ["2@3"]}, "add --kill 2@ROUND."),
        ({"kill": ["1@2"], "back": ["coordinator@3"]}, "add --kill coordinator@ROUND."),
        ({"kill": ["coordinator@2"], "back": ["leader@3"]}, "add --kill leader@ROUND."),
        ({"kill": ["2@2"], "back": ["2"]}, "write WHO@ROUND[/PHASE][:SECONDS], such as 2@5 or leader@3/commit:20s."),
    ],
)
def test_faults_that_do_not_fit_together_are_refused(texts: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plan(**texts)
    assert says in str(caught.value)


@given(flag=st.sampled_from(FLAGS), text=st.text(alphabet="0123456789@|,/:. %-=smbitalcoordnexhgu\n\0", max_size=24))
def test_any_text_is_a_plan_that_can_happen_or_a_sentence(flag: str, text: str) -> None:
    sentence, made = ".", plan()
    try:
        made = plan(**{flag: [text]})
    except ConfigError as error:
        sentence = str(error)
    assert sentence.endswith(".")
    assert set(made.lines) | set(made.slowness) | set(made.environment) <= {0, 1, 2, 3}
    for fault in made.faults:
        assert 1 <= fault.round <= 10
        assert isinstance(fault, Kill | Suspend | Partition)
        assert fault.phase in (*PHASES, faults.STATE)
        assert isinstance(fault, Kill) or fault.seconds > 0
        assert isinstance(fault, Partition) or isinstance(fault.who, ActingRole) or fault.who <= 3
