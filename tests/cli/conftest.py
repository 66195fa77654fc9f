"""What tests of the command line share."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tsr_swarm.cli.main import run

Refusal = Callable[[list[str], int, str], str]


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, and an environment without settings."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("TSR_SWARM_")]:
        monkeypatch.delenv(name)
    return tmp_path


@pytest.fixture
def refusal(capsys: pytest.CaptureFixture[str]) -> Refusal:
    """Run a command that has to be refused, by its exit code and words of the one line on stderr; gives the line."""

    def refused(arguments: list[str], code: int, says: str) -> str:
        assert run(arguments) == code
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("tsr-swarm: ")
        assert captured.err.endswith((".\n", "?\n"))
        assert captured.err.count("\n") == 1
        assert "Traceback" not in captured.err
        assert says in captured.err
        return captured.err

    return refused
