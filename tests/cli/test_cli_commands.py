"""What a person types, and the one sentence and exit code that comes back when it cannot be."""

import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
import typer

from tests.cli.conftest import Refusal
from tests.fixtures import peer_record, run_started
from tests.telemetry.examples import CLOSED, FINISHED
from tsr_swarm.cli.coordinate import invitation
from tsr_swarm.cli.join import name_from
from tsr_swarm.cli.main import run
from tsr_swarm.cli.output import Mode, choose_mode
from tsr_swarm.cli.runs import run_lines, run_object
from tsr_swarm.config.load import load_run_config
from tsr_swarm.config.presets import PRESETS
from tsr_swarm.config.run import RunConfig
from tsr_swarm.discovery.identity import new_identity
from tsr_swarm.discovery.runs import FoundRun
from tsr_swarm.telemetry.events import encode

pytestmark = pytest.mark.usefixtures("elsewhere")


def recorded() -> list[str]:
    """A whole run, as --json prints it."""
    events = [run_started(rounds=1), CLOSED, replace(FINISHED, rounds=1)]
    return [encode(event, 10.0 + n) for n, event in enumerate(events)]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["bogus"], 2, "'bogus'; see 'tsr-swarm --help'."),
        (["local", "--bogus"], 2, "--bogus"),
        (["join", "--bogus"], 2, "see 'tsr-swarm join --help'."),
        (["plan", "--fit"], 2, "requires an argument; see 'tsr-swarm plan --help'."),
        (["local", "--peers", "0"], 2, "--peers"),
        (["local", "--peers", "many"], 2, "--peers"),
        (["local", "--plain", "--json"], 2, "exclude each other"),
        (["local", "--kill", "9@3"], 2, "this swarm has peers 1 to 3; write WHO@ROUND[/PHASE]"),
        (["local", "--lab", "cellar"], 2, "--lab cellar is no kind of lab; it is one of auto, namespaces, proxy."),
        (["local", "--resume"], 2, "--dir"),
        (["local", "--resume", "--dir", "nowhere"], 2, "leave --resume out"),
        (["coordinate"], 2, "RUN.toml"),
        (["coordinate", "run.toml", "--listen", "7700"], 2, "host:port"),
        (["coordinate", "run.toml", "--announce", "not a host"], 2, "host:port"),
        (["coordinate", "run.toml", "--dht-port", "70000"], 2, "--dht-port"),
        (["join"], 2, "--coordinator HOST:PORT"),
        (["join", "--run", "chat"], 2, "--run NAME with --dht ADDRESS"),
        (["join", "--dht", "h:1"], 2, "No run is named; add --coordinator HOST:PORT"),
        (["join", "--run", "chat room", "--dht", "h:1"], 2, "'chat room' is not a run; write its name"),
        (["join", "--run", "chat", "--dht", "h"], 2, "--dht: 'h' leads nowhere; write host:port"),
        (["join", "--run", "chat", "--dht", "127.0.0.1:1", "--wait", "0", "--plain"], 69, "127.0.0.1:1"),
        (
            ["join", "--run", "chat", "--dht", "127.0.0.1:1", "--no-dht", "--wait", "0", "--plain"],
            69,
            "without the DHT",
        ),
        (["coordinate", "empty.toml", "--dht", "h"], 2, "--dht: 'h' leads nowhere"),
        (["runs"], 2, "add --dht HOST:PORT of any node of a run, or a multiaddr."),
        (["runs", "--dht", "/ip4/192.0.2.7/tcp/1"], 2, "leads nowhere"),
        (["runs", "--dht", "127.0.0.1:1"], 69, "127.0.0.1:1"),
        (["join", "--coordinator", "swarm.example.org"], 2, "host:port"),
        (["join", "--coordinator", "h:1", "--name", "not a name"], 2, "ASCII letters, digits"),
        (["join", "--coordinator", "h:1", "--listen", "h:2", "--announce", "not a host"], 2, "host:port"),
        (["join", "--coordinator", "h:1", "--listen", "h:2", "--dht-port", "70000"], 2, "--dht-port"),
        (["join", "--coordinator", "h:1", "--wait", "soon"], 2, "--wait: 'soon' is not a time"),
        (["monitor", "--coordinator", "h:1", "--wait", "-1"], 2, "--wait: '-1' is not a time"),
        (["monitor"], 2, "--coordinator"),
        (["status", "--coordinator", "nonsense"], 2, "host:port"),
        (["status", "--coordinator", ""], 2, "host:port"),
        (["replay", "x", "--speed", "0"], 2, "above 0"),
        (["sample", "x", "--length", "0"], 2, "--length"),
        (["local", "--dir", "caf\udce9"], 2, "is not UTF-8"),
        (["coordinate", "missing.toml"], 78, "tsr-swarm init"),
        (["coordinate", "empty.toml", "--set", "optimizer.rank=999"], 78, "is more than block"),
        (["coordinate", "empty.toml", "--set", "data.source=texts"], 78, "0 bytes of text"),
        (["coordinate", "empty.toml", "--resume"], 1, "holds no run"),
        (["local", "missing.toml"], 78, "tsr-swarm init"),
        (["local", "--set", "optimizer.lrr=1"], 78, "did you mean 'optimizer.lr'"),
        (["local", "--set", "nonsense"], 78, "section.key=value"),
        (
            ["local", "--set", "optimizer.gamma=0.5"],
            78,
            "optimizer.gamma = 0.5 has no effect beside optimizer.local_space",
        ),
        (["local", "--preset", "fat"], 2, "there are lean, rich, tsr-adam, tsr-adam-dct, lordo, sketch."),
        (["init", "--preset", "fat"], 2, "--preset: 'fat' is not a preset; there are lean,"),
        (["simulate", "--preset", "lean,"], 2, "--preset: '' is not a preset"),
        (["simulate", "--methods", ""], 2, "name --methods or --preset"),
        (["coordinate", "fat.toml"], 78, "'fat' is not a preset"),
        (["local", "bits.toml", "--preset", "lean"], 78, "sets wire.core_bits = 3, but the run file says 4;"),
        (["simulate", "bits.toml", "--preset", "rich"], 78, "sets wire.core_bits = 3, but the run file says 4;"),
        (["local", "--set", "optimizer.lr=9"], 78, "optimizer.lr = 9"),
        (["join", "--coordinator", "h:1", "--profile", "missing.toml"], 78, "missing.toml does not exist; check the"),
        (["join", "--coordinator", "h:1", "--device", "mps"], 78, "no 'mps' that torch can use; choose cpu"),
        (["join", "--coordinator", "h:1", "--device", "abacus"], 78, "'abacus' is not known; choose auto, cpu"),
        (["init", "no/such/folder/run.toml"], 78, "cannot be written"),
        (["replay", "missing.jsonl"], 1, "missing.jsonl"),
        (["sample", "missing"], 1, "missing holds no checkpoint; name the checkpoint.dir of a run"),
        (["monitor", "--plain", "--wait", "0", "--coordinator", "127.0.0.1:1"], 69, "127.0.0.1:1"),
        (["join", "--plain", "--coordinator", "h:1", "--resume"], 78, "add --dir DIR"),
        (["status", "--coordinator", "127.0.0.1:1"], 69, "127.0.0.1:1"),
        (["join", "--json", "--no-dht", "--wait", "0", "--coordinator", "127.0.0.1:1"], 69, "127.0.0.1:1"),
        (["local", "--dir", "empty.toml", "--plain"], 1, "empty.toml cannot be used (Not a directory)"),
    ],
)
def test_what_cannot_be_meant_or_fails_is_one_sentence_and_its_exit_code(
    arguments: list[str], code: int, says: str, refusal: Refusal
) -> None:
    Path("empty.toml").touch()
    Path("fat.toml").write_text('[run]\npreset = "fat"\n')
    Path("bits.toml").write_text("[wire]\ncore_bits = 4\n")
    Path("texts").mkdir()
    refusal(arguments, code, says)


@pytest.mark.parametrize("command", [["join", "--plain", "--no-dht"], ["monitor", "--plain"], ["status"]])
def test_who_waits_for_a_coordinator_says_so_once_and_in_the_end_how_long_it_tried(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*command, "--coordinator", "127.0.0.1:1", "--wait", "0.2s"]) == 69
    captured = capsys.readouterr()
    said = captured.out + captured.err
    assert said.count("Trying again for 0.2 s.") == 1
    assert said.count("127.0.0.1:1 cannot be reached") == 2
    assert captured.err.endswith("Tried for 0.2 s; --wait sets for how long.\n")


def test_runs_are_listed_for_people_and_for_programs() -> None:
    records = tuple(peer_record(new_identity(), now=100.0, round=round, parameters=17_000) for round in (6, 7))
    found = FoundRun(name="chat", run_id="run1", records=records)
    assert run_lines([found], 103.0) == ["chat@run1: 2 peers, 17.0 k parameters, round 7, heard of 3.0 s ago"]
    assert run_lines([], 103.0) == ["No run is in this DHT now."]
    told = {"run": "chat", "run_id": "run1", "peers": 2, "parameters": 17_000, "round": 7, "age_seconds": 3.0}
    assert run_object(found, 103.0) == told


def test_init_writes_a_file_that_says_what_the_defaults_say(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["init"]) == 0
    assert "tsr-swarm coordinate run.toml" in capsys.readouterr().out
    assert load_run_config(Path("run.toml"), environ={}) == RunConfig()


@pytest.mark.parametrize("name", PRESETS)
def test_init_writes_out_what_a_preset_says(name: str) -> None:
    assert run(["init", "--preset", name]) == 0
    Path("named.toml").write_text(f'[run]\npreset = "{name}"\n')
    assert load_run_config(Path("run.toml"), environ={}) == load_run_config(Path("named.toml"), environ={})
    text = Path("run.toml").read_text()
    assert f"its value in the preset '{name}'" in text
    assert "preset = " not in text


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\xff\xfe", "run.toml is not UTF-8 in line 1"),
        (b"[run]\n# caf\xe9\n", "is not UTF-8 in line 2"),
        ("[run]\n".encode("utf-16"), "is not UTF-8 in line 1"),
        (b"a = " + b"[" * 5000, "nested too deeply"),
        (b"[run]\nseed = " + b"9" * 5000, "too many digits"),
        (b"[run]\nname = 1\nname = 2\n", "not valid TOML"),
        (b"[model]\nrope_theta = inf\n", "rope_theta = inf is out of range"),
        (b"[optimizer]\nlr = nan\n", "lr = nan is out of range"),
        (b'[checkpoint]\ndir = "a\\u0000b"\n', "checkpoint.dir = 'a\\x00b' is out of range"),
        (b'[run]\nname = "' + b"a" * 5000 + b'"\n', "aaa\N{HORIZONTAL ELLIPSIS} is out of range; it must be 1 to 64"),
        (b"#" * (1 << 21), "has more than the 1048576 bytes of a configuration"),
    ],
)
def test_a_run_file_that_cannot_be_meant_is_a_sentence(content: bytes, says: str, refusal: Refusal) -> None:
    Path("run.toml").write_bytes(content)
    refusal(["plan", "run.toml"], 78, says)


def test_a_run_file_may_begin_with_a_byte_order_mark() -> None:
    Path("run.toml").write_text('[run]\nname = "chat"\n', "utf-8-sig")
    assert load_run_config(Path("run.toml"), environ={}).run.name == "chat"


@pytest.mark.parametrize(
    ("command", "says"), [(["init", "run.toml"], "run.toml"), (["local", "--dir", "."], "--resume")]
)
def test_a_run_file_that_is_there_is_not_written_over(command: list[str], says: str, refusal: Refusal) -> None:
    Path("run.toml").write_text("mine")
    refusal(command, 2, says)
    assert Path("run.toml").read_text() == "mine"


def test_a_recording_is_replayed_as_lines_or_as_it_was_recorded(capsys: pytest.CaptureFixture[str]) -> None:
    Path("rec.jsonl").write_text("\n".join([*recorded(), "garbage"]) + "\n")
    assert run(["replay", "rec.jsonl", "--speed", "inf", "--plain"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 3
    assert "round 1 closed" in shown[1]
    assert run(["replay", "rec.jsonl", "--speed", "inf", "--json"]) == 0
    assert capsys.readouterr().out.splitlines() == recorded()

    Path("rec.jsonl").write_text("\n".join(recorded()[1:2]) + "\n")
    assert run(["replay", "rec.jsonl", "--speed", "inf", "--plain"]) == 0
    last = "The record ends here, without the end of the run. Last known: round 1."
    assert capsys.readouterr().out.splitlines()[1:] == [last]


def test_a_closed_pipe_ends_a_command_without_a_word() -> None:
    Path("rec.jsonl").write_text("\n".join(recorded() * 5000) + "\n")
    command = [sys.executable, "-m", "tsr_swarm", "replay", "rec.jsonl", "--speed", "inf", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() in (0, 130)


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("changes", "mode"),
    [
        ({}, Mode.SCREEN),
        ({"environ": {"TERM": "dumb"}}, Mode.PLAIN),
        ({"environ": {}}, Mode.PLAIN),
        ({"environ": {"TERM": "xterm", "CI": "true"}}, Mode.PLAIN),
        ({"plain": True}, Mode.PLAIN),
        ({"json": True}, Mode.JSON),
        ({"stream": io.StringIO()}, Mode.PLAIN),
        ({"keyboard": io.StringIO()}, Mode.PLAIN),
        ({"stream": None, "keyboard": None}, Mode.PLAIN),
    ],
)
def test_the_screen_opens_only_on_a_terminal_with_a_keyboard_that_shows_it(changes: dict[str, Any], mode: Mode) -> None:
    usual: dict[str, Any] = {"stream": Terminal(), "keyboard": Terminal(), "environ": {"TERM": "xterm"}}
    assert choose_mode(**{"plain": False, "json": False} | usual | changes) is mode


def test_the_screen_of_a_run_that_goes_on_reads_its_history_where_the_run_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Path("run.toml").write_text('[run]\nname = "chat"\n')
    opened: list[Path | None] = []
    monkeypatch.setattr("tsr_swarm.cli.coordinate.choose_mode", lambda **_: Mode.SCREEN)

    def open_screen(arguments: object, title: str, folder: Path | None, invite: object) -> NoReturn:
        opened.append(folder)
        raise typer.Exit

    monkeypatch.setattr("tsr_swarm.cli.screen.show_coordinator", open_screen)
    assert run(["coordinate", "run.toml", "--resume"]) == run(["coordinate", "run.toml"]) == 0
    assert opened == [Path("runs/chat"), None]


@pytest.mark.parametrize(
    ("address", "listen", "dht_port", "says"),
    [
        ("a.org:7700", "0.0.0.0:7700", 31337, ["--coordinator a.org:7700\n", "port 7700 ", "port 31337 "]),
        ("a.org:443", "0.0.0.0:7700", 0, ["TCP port 443 to 7700"]),
        ("127.0.0.1:7700", "127.0.0.1:7700", 0, ["join --coordinator 127.0.0.1:7700"]),
    ],
    ids=["from anywhere", "at an announced port", "from this machine"],
)
def test_an_invitation_is_one_line_to_paste_and_the_ports_to_forward(
    address: str, listen: str, dht_port: int, says: list[str]
) -> None:
    lines = "\n".join(invitation(address, listen, dht_port).lines)
    assert all(words in lines for words in says)
    assert ("forward" in lines) == (listen != address)


@pytest.mark.parametrize(
    ("machine", "name"), [("ann-laptop.local", "ann-laptop"), ("Änne's Mac", "nne-s-Mac"), ("", "peer"), ("é", "peer")]
)
def test_a_peer_is_called_like_its_machine(machine: str, name: str) -> None:
    assert name_from(machine) == name
