"""Every failure is one sentence and an exit code, and one of the machine or of the input is never called a bug."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Refusal
from tsr_swarm import __version__
from tsr_swarm.cli.main import COMMANDS, run, sentence_of
from tsr_swarm.errors import ConfigError

PROGRAM = [sys.executable, "-m", "tsr_swarm"]
pytestmark = pytest.mark.usefixtures("elsewhere")


def in_shell(line: str, **environ: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a shell line in which ``$P`` is the program."""
    done = subprocess.run(
        ["bash", "-c", line],
        env={**os.environ, "P": " ".join(PROGRAM), **environ},
        capture_output=True,
        check=False,
        text=True,
        errors="surrogateescape",
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "a/b"), "a/b cannot be used (No space left on device); make"),
        (OSError(errno.ENOSPC, "No space left on device"), "Writing or reading failed (No space left on device); make"),
        (OSError(errno.EMFILE, "Too many open files"), "ulimit -n"),
        (PermissionError(errno.EACCES, "Permission denied", "x"), "check its permissions"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "x"), "x cannot be used"),
        (MemoryError(), "too little memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "too little memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), "too little memory"),
        (ImportError("libx.so: failed to map segment from shared object"), "too little memory"),
        (ImportError("Long advice.\nlibgomp.so.1: cannot open shared object file", name="torch"), "(libgomp.so.1:"),
        (UnicodeEncodeError("utf-8", "caf\udce9", 3, 4, "surrogates not allowed"), "is not UTF-8"),
    ],
)
def test_a_fault_of_the_machine_or_of_input_has_a_sentence(error: Exception, says: str) -> None:
    sentence = sentence_of(error)
    assert says in sentence
    assert sentence.endswith(".")


@pytest.mark.parametrize(
    "error", [RuntimeError("shape mismatch"), KeyError("x"), ImportError("no name x", name="tsr_swarm.cli")]
)
def test_a_fault_of_the_program_has_none(error: Exception) -> None:
    assert sentence_of(error) is None


FULL = "Writing or reading failed (No space left on device); make room there, then try again."
GONE = "The folder that this command runs in is gone; change to one that exists."


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("$P --version > /dev/full", FULL),
        ("$P plan --help > /dev/full", FULL),
        ("$P init new.toml > /dev/full", FULL),
        ("mkdir gone; cd gone; rmdir ../gone; $P plan", GONE),
    ],
)
def test_a_full_stdout_or_a_folder_that_is_gone_is_a_sentence(line: str, sentence: str) -> None:
    code, _, err = in_shell(line)
    assert (code, err) == (1, f"tsr-swarm: {sentence}\n")


@pytest.mark.parametrize("where", ["2>&-", "2>/dev/full"])
@pytest.mark.parametrize("command", ["bogus", ""])
def test_a_refusal_that_cannot_be_said_keeps_its_exit_code_and_off_stdout(command: str, where: str) -> None:
    assert in_shell(f"$P {command} {where}") == (2, "", "")


def test_what_is_printed_to_a_closed_stdout_lands_in_no_file() -> None:
    assert in_shell("$P init new.toml >&- 2>&- <&-") == (0, "", "")
    assert "Wrote" not in Path("new.toml").read_text()


@pytest.mark.parametrize(
    ("name", "encoding", "says"),
    [
        pytest.param("caf\u00e9.toml", {"PYTHONIOENCODING": "ascii"}, "Wrote caf\\xe9.toml.", id="not on the terminal"),
        pytest.param("$'caf\\xe9.toml'", {"PYTHONUTF8": "1"}, "Wrote caf\\udce9.toml.", id="not UTF-8"),
    ],
)
def test_a_character_that_cannot_be_written_is_escaped(name: str, encoding: dict[str, str], says: str) -> None:
    code, out, err = in_shell(f"$P init {name}", **encoding)
    assert (code, err) == (0, "")
    assert says in out


def test_the_failure_of_one_task_is_told_as_itself(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> str:
        raise ExceptionGroup("unhandled errors in a TaskGroup", [ConfigError("The screen is too small; enlarge it.")])

    monkeypatch.setattr("tsr_swarm.cli.init.render", fail)
    assert run(["init", "new.toml"]) == 78
    assert capsys.readouterr().err == "tsr-swarm: The screen is too small; enlarge it.\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([command, "--help"]) == 0
    assert f"Usage: tsr-swarm {command}" in capsys.readouterr().out


def test_the_version_is_told_and_help_also_of_no_command_lists_the_commands_and_the_exit_codes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"tsr-swarm {__version__}\n"
    assert run(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {command} " in shown for command in COMMANDS)
    assert all(code in shown for code in ("69", "76", "78", "130"))
    assert run([]) == 2
    assert "Commands:" in capsys.readouterr().err


@pytest.mark.parametrize("can_keep", [True, False])
def test_an_unexpected_failure_keeps_its_details_in_a_file_if_it_can(
    can_keep: bool, refusal: Refusal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path) if can_keep else "/dev/null/nowhere")
    monkeypatch.setattr("tsr_swarm.cli.init.render", lambda *_: 1 / 0)
    sentence = refusal(["init", "new.toml"], 1, "")
    if can_keep:
        [log] = tmp_path.glob("tsr-swarm-error-*.log")
        assert str(log) in sentence
        assert "ZeroDivisionError" in log.read_text()
    else:
        assert "ZeroDivisionError: division by zero; its details cannot be kept (Not a directory); set" in sentence
