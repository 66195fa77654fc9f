"""What ``local`` refuses to let happen: one sentence each, exit code 2, and nothing is started."""

import pytest

from tsr_swarm.cli.main import run


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--stop", "2"], "--stop 2 cannot be read; write WHO@ROUND[/PHASE][:SECONDS], such as 2@3:20s."),
        (
            ["--kill", "2@3", "--back", "1@5"],
            "--back peer-1@5/train needs somebody who was killed before; add --kill 1@",
        ),
        (["--slow", "9:2"], "--slow 9:2 is for peer 9, but this swarm has peers 1 to 3; write WHO:FACTOR"),
        (["--nat", "coordinator"], "--nat coordinator cannot be: nobody could reach the coordinator"),
        (["--up", "2:fast"], "'fast' is not a rate; write a number and one of bit, kbit, mbit, gbit"),
        (["--down", "20mbit"], "write WHO:RATE, such as 2:20mbit or all:50mbit."),
        (["--rtt", "2:2h"], "a round trip is at most 60 s."),
        (["--loss", "all:2"], "write a number and %, such as 2%."),
        (["--partition", "1@3"], "such as coordinator,1|2,3@4:30s."),
        (["--partition", "1|2@31"], "the rounds of this run are 1 to 30."),
        (["--lab", "cellar"], "--lab cellar is no kind of lab; it is one of auto, namespaces, proxy."),
    ],
)
def test_what_cannot_happen_is_one_sentence(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run(["local", *arguments])
    captured = capsys.readouterr()
    assert (code, captured.out) == (2, "")
    assert says in captured.err
    assert captured.err.count("\n") == 1
