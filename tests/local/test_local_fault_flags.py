"""What people write to make things happen to a local swarm: good text, and one sentence for bad text."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsr_swarm.local.fault_flags import LineTexts
from tsr_swarm.local.faults import PHASES, ActingRole, LocalPlan, Partition, Suspend, due
from tsr_swarm.local.network.link import HomeLine
from tsr_swarm.local.placing import FaultError, plan_local
from tsr_swarm.telemetry.events import PhaseChanged

LINE_FLAGS = ("nat", "up", "down", "rtt", "loss")
FLAGS = ("stops", "partitions", "slow", *LINE_FLAGS)


def plan(flag: str = "stops", *texts: str, **more: Any) -> LocalPlan:
    said: dict[str, Any] = {"lines": LineTexts(**{flag: texts})} if flag in LINE_FLAGS else {flag: texts}
    return plan_local(peers=3, rounds=10, **{**said, **more})


@pytest.mark.parametrize(
    ("text", "stop"),
    [
        ("2@3", Suspend(who=2, round=3, phase="train", seconds=20)),
        ("2@3:5s", Suspend(who=2, round=3, phase="train", seconds=5)),
        ("coordinator@1/commit:500ms", Suspend(who=0, round=1, phase="commit", seconds=0.5)),
        ("1@10/apply:2", Suspend(who=1, round=10, phase="apply", seconds=2)),
        ("leader@3:20s", Suspend(who=ActingRole.LEADER, round=3, phase="train", seconds=20)),
    ],
)
def test_a_stop_is_read(text: str, stop: Suspend) -> None:
    assert plan("stops", text).faults == (stop,)
    assert not plan("stops", text).is_shaped


@pytest.mark.parametrize(
    ("text", "sides", "round", "phase", "seconds"),
    [
        ("coordinator,1|2,3@4:30s", ({0, 1}, {2, 3}), 4, "train", 30),
        ("1|2@1", ({1}, {2}), 1, "train", 30),
        ("3|coordinator@2/exchange:4s", ({3}, {0}), 2, "exchange", 4),
    ],
)
def test_a_partition_is_read(
    text: str, sides: tuple[set[int], set[int]], round: int, phase: str, seconds: float
) -> None:
    one, other = sides
    made = Partition(sides=(frozenset(one), frozenset(other)), round=round, phase=phase, seconds=seconds)
    assert plan("partitions", text).faults == (made,)
    assert plan("partitions", text).is_shaped
    assert made.pairs == {frozenset((a, b)) for a in one for b in other}
    [fired], _ = due((made,), PhaseChanged(round=round, phase=phase, deadline=None, reason=""))
    assert fired == made


def test_a_factor_is_read() -> None:
    assert plan("slow", "1:4", "3:1.5").slowness == {1: 4.0, 3: 1.5}


@pytest.mark.parametrize(
    ("flag", "texts", "lines"),
    [
        ("nat", ("2",), {2: HomeLine(nat=True)}),
        ("up", ("2:20mbit", "coordinator:1gbit"), {2: HomeLine(up=20e6), 0: HomeLine(up=1e9)}),
        ("down", ("1:56kbit",), {1: HomeLine(down=56e3)}),
        ("rtt", ("all:20ms", "2:80ms"), {who: HomeLine(rtt=0.08 if who == 2 else 0.02) for who in range(4)}),
        ("rtt", ("2:80ms", "all:20ms"), {who: HomeLine(rtt=0.08 if who == 2 else 0.02) for who in range(4)}),
        ("loss", ("3:2%",), {3: HomeLine(loss=0.02)}),
        ("loss", ("3:0.5%",), {3: HomeLine(loss=0.005)}),
    ],
)
def test_a_line_is_read(flag: str, texts: tuple[str, ...], lines: dict[int, HomeLine]) -> None:
    assert plan(flag, *texts).lines == lines
    assert plan(flag, *texts).is_shaped


def test_flags_about_one_line_come_together_and_a_late_peer_has_one_too() -> None:
    lines = LineTexts(nat=["4"], up=["4:1mbit"], rtt=["all:1ms"])
    made = plan(join_rounds=[2], lines=lines).lines
    assert made[4] == HomeLine(nat=True, up=1e6, rtt=0.001)
    assert made[0] == HomeLine(rtt=0.001)


def test_without_any_of_them_nothing_is_shaped() -> None:
    assert not plan(kills=["1@2"], join_rounds=[3], environment=["1:A=b"], slow=["1:2"], stops=["2@2"]).is_shaped


@pytest.mark.parametrize(
    ("flag", "texts", "says"),
    [
        ("stops", ("2",), "write WHO@ROUND[/PHASE][:SECONDS], such as 2@3:20s."),
        ("stops", ("4@2",), "this swarm has peers 1 to 3"),
        ("stops", ("2@11",), "the rounds of this run are 1 to 10"),
        ("stops", ("2@3/lunch",), "train, exchange, commit, apply"),
        ("stops", ("2@3:soon",), "'soon' is not a time; write a number and one of"),
        ("stops", ("2@3:0s",), "write a time above 0 and of at most 86400 s"),
        ("stops", ("2@3:90000s",), "write a time above 0 and of at most 86400 s"),
        ("stops", ("2@3", "2@3/train:20s"), "is there twice; say it once."),
        ("partitions", ("1|2",), "write WHO,...|WHO,...@ROUND[/PHASE][:SECONDS]"),
        ("partitions", ("1,2@3",), "such as coordinator,1|2,3@4:30s."),
        ("partitions", ("1|2|3@3",), "such as coordinator,1|2,3@4:30s."),
        ("partitions", ("1,2|2,3@3",), "names somebody on both sides"),
        ("partitions", ("1|4@3",), "this swarm has peers 1 to 3"),
        ("partitions", ("1|2@3/tea",), "train, exchange, commit, apply"),
        ("partitions", ("1|2@30",), "the rounds of this run are 1 to 10"),
        ("partitions", ("1|2@3:-1s",), "is not a time"),
        ("slow", ("2",), "write WHO:FACTOR, such as 2:4."),
        ("slow", ("2:-1",), "write WHO:FACTOR, such as 2:4."),
        ("slow", ("2:0.5",), "the factor is from 1 to 1000"),
        ("slow", ("2:1001",), "the factor is from 1 to 1000"),
        ("slow", ("coordinator:2",), "the coordinator does not train; name a peer, 1 to 3."),
        ("slow", ("9:2",), "this swarm has peers 1 to 3"),
        ("slow", ("2:2", "2:3"), "say it once"),
        ("nat", ("all",), "write a peer's number, such as --nat 2."),
        ("nat", ("coordinator",), "nobody could reach the coordinator"),
        ("nat", ("4",), "this swarm has peers 1 to 3"),
        ("up", ("20mbit",), "write WHO:RATE, such as 2:20mbit or all:50mbit."),
        ("up", ("2:fast",), "'fast' is not a rate; write a number and one of bit"),
        ("up", ("2:0mbit",), "a rate is above 0"),
        ("up", ("4:1mbit",), "this swarm has peers 1 to 3"),
        ("up", ("2:1mbit", "2:2mbit"), "says it a second time for 2; say it once."),
        ("down", ("0:1mbit",), "write WHO:RATE"),
        ("rtt", ("2:long",), "is not a time"),
        ("rtt", ("2:61s",), "a round trip is at most 60 s"),
        ("loss", ("2:2",), "is not a loss; write a number and %, such as 2%."),
        ("loss", ("2:100%",), "a loss is from 0% to below 100%"),
    ],
)
def test_what_cannot_be_is_one_sentence_with_the_legal_form(flag: str, texts: tuple[str, ...], says: str) -> None:
    with pytest.raises(FaultError) as caught:
        plan(flag, *texts)
    sentence = str(caught.value)
    assert says in sentence
    assert texts[-1] in sentence
    assert sentence.endswith(".")
    assert sentence.startswith(f"--{flag.removesuffix('s') if flag in ('stops', 'partitions') else flag} ")


def test_a_stop_needs_somebody_who_runs() -> None:
    with pytest.raises(FaultError, match="comes after the same one was killed; name an earlier moment"):
        plan("stops", "2@4", kills=["2@3"])
    with pytest.raises(FaultError, match="before that peer joins in round 5"):
        plan("stops", "4@4", join_rounds=[5])
    assert plan("stops", "2@3", kills=["2@3/commit"]).faults
    assert plan("stops", "2@5", kills=["2@3"], backs=["2@4"]).faults


@given(flag=st.sampled_from(FLAGS), text=st.text(alphabet="0123456789@|,/:. %-smbitalcoordnexhg\n", max_size=24))
def test_any_text_is_a_plan_that_can_happen_or_a_sentence(flag: str, text: str) -> None:
    sentence, made = ".", plan()
    try:
        made = plan(flag, text)
    except FaultError as error:
        sentence = str(error)
    assert sentence.endswith(".")
    assert set(made.lines) | set(made.slowness) <= {0, 1, 2, 3}
    for fault in made.faults:
        assert isinstance(fault, Suspend | Partition)
        assert 1 <= fault.round <= 10
        assert fault.phase in PHASES
        assert fault.seconds > 0
