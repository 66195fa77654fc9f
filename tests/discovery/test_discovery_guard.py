"""A helper and its folder end with their owner; nothing else is touched."""

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tsr_swarm.process import reaper as guard_module
from tsr_swarm.process.reaper import Guard, remove_leftovers

DEADLINE = 10.0
HELPER = "import signal; print('up', flush=True); signal.pause()"


@contextmanager
def helper(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"up\n"
            yield process
        finally:
            process.kill()


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-I", "-S", "-c", ""])
    process.wait()
    return process.pid


async def test_closing_kills_the_helper_and_removes_the_folder() -> None:
    guard = await Guard.start()
    assert guard.folder.stat().st_mode & 0o777 == 0o700
    assert f"-{os.getpid()}-" in guard.folder.name
    with helper(guard.launch_command([sys.executable, "-c", HELPER, f"{guard.folder}/socket"])) as process:
        (guard.folder / "socket").touch()
        await guard.close()
        assert process.wait(DEADLINE) == -signal.SIGKILL
    assert not list(guard.folder.parent.glob(f"{guard.folder.name}*"))
    await guard.close()


async def test_the_helper_does_not_hear_the_terminal_of_its_owner() -> None:
    guard = await Guard.start()
    with helper(guard.launch_command([sys.executable, "-c", HELPER, f"{guard.folder}/socket"])) as process:
        assert os.getsid(process.pid) == process.pid != os.getsid(0)
        await guard.close()


async def test_a_helper_launched_after_its_guard_has_acted_does_not_start() -> None:
    guard = await Guard.start()
    command = guard.launch_command([sys.executable, "-c", HELPER, f"{guard.folder}/socket"])
    await guard.close()
    process = await asyncio.create_subprocess_exec(*command, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    output, errors = await asyncio.wait_for(process.communicate(), DEADLINE)
    assert process.returncode == 1
    assert (output, b"FileNotFoundError" in errors) == (b"", True)


async def test_a_killed_guard_still_leaves_no_folder() -> None:
    guard = await Guard.start()
    guard._process.kill()
    await guard.close()
    assert not guard.folder.exists()


def test_what_a_dead_owner_left_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / f"tsr-swarm-{dead_pid()}-abc"
    folder.mkdir()
    with helper([sys.executable, "-c", HELPER, f"{folder}/socket"]) as process:
        (folder / "pid").write_text(f"{process.pid}\n")
        remove_leftovers(tmp_path)
        assert process.wait(DEADLINE) == -signal.SIGKILL
    assert not list(tmp_path.iterdir())


def test_a_process_that_was_given_an_old_helpers_id_is_spared(tmp_path: Path) -> None:
    folder = tmp_path / f"tsr-swarm-{dead_pid()}-abc"
    folder.mkdir()
    with helper([sys.executable, "-c", HELPER]) as process:
        (folder / "pid").write_text(f"{process.pid}\n")
        remove_leftovers(tmp_path)
        assert process.poll() is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name",
    [f"tsr-swarm-{os.getpid()}-abc", "tsr-swarm-x-abc", "other-1-abc", "tsr-swarm-1-abc"],
    ids=["our own", "no number", "another program's", "a living process's"],
)
def test_what_a_living_owner_or_anybody_else_has_stays(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    remove_leftovers(tmp_path)
    assert (tmp_path / name).is_dir()


def test_a_long_temporary_folder_would_not_fit_a_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/tmp/" + "a" * 60)
    assert guard_module._base_folder() == Path("/tmp")
    monkeypatch.setattr(tempfile, "tempdir", "/var/tmp")
    assert guard_module._base_folder() == Path("/var/tmp")
