"""Children end with the process that started them, whichever way it ends. Real processes."""

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tsr_swarm.errors import ConfigError
from tsr_swarm.process import reaper
from tsr_swarm.process.supervisor import Child, Guard, ProcessGroup, failure_of, remove_leftovers

# Ends when it is asked; it has a child of its own in its group, which holds its stdout open.
POLITE = """
import signal, subprocess, sys
subprocess.Popen(["sleep", "1000"])
for number in (signal.SIGINT, signal.SIGTERM): signal.signal(number, lambda *_: sys.exit(0))
print("ready", flush=True)
while True: signal.pause()
"""
STUBBORN = """
import signal
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP): signal.signal(number, signal.SIG_IGN)
print("ready", flush=True)
while True: signal.pause()
"""
# A supervisor with a child under ``run_until_stopped``, one that ignores everything, and a temporary folder.
SUPERVISOR = """
import asyncio, os, subprocess, sys
from tsr_swarm.process import supervisor
from tsr_swarm.process.supervisor import ProcessGroup
supervisor.REAPER_SECONDS = 1.0
TIED = '''
from tsr_swarm.process.shutdown import run_until_stopped, tie_to_parent
async def main(stop):
    print("ready", flush=True)
    await stop.immediate.wait()
run_until_stopped(main, tie_to_parent())
'''
async def main():
    async with ProcessGroup() as group:
        folder = group.temporary_folder()
        (folder / "file").touch()
        children = []
        for script in (TIED, sys.argv[1]):
            child = await group.start(
                "child", [sys.executable, "-c", script], environment=os.environ, stdout=subprocess.PIPE
            )
            await anext(child.lines())
            children.append(child.pid)
        print(folder, *children, flush=True)
        group.pause(child)
        await asyncio.to_thread(sys.stdin.read)
asyncio.run(main())
"""


async def start(group: ProcessGroup, script: str) -> Child:
    child = await group.start("it", [sys.executable, "-c", script], environment=os.environ, stdout=subprocess.PIPE)
    assert await anext(child.lines()) == "ready"
    return child


def has_ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.parametrize("is_killed", [False, True])
async def test_a_child_that_ends_takes_what_it_started_along(is_killed: bool) -> None:
    async with ProcessGroup() as group:
        child = await start(group, POLITE)
        [grandchild] = psutil.Process(child.pid).children()
        if is_killed:
            child.kill()
            await child.wait()
            await until(lambda: has_ended(grandchild.pid))
    assert child.exit_code is not None
    assert (child.exit_code == -signal.SIGKILL) == is_killed, "to be asked was enough"
    await until(lambda: has_ended(grandchild.pid))


async def test_a_child_that_will_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tsr_swarm.process.supervisor.STOP_SECONDS", 0.2)
    async with ProcessGroup() as group:
        child = await start(group, STUBBORN)
    assert child.exit_code == -signal.SIGKILL


async def test_a_temporary_folder_that_cannot_be_made_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/nowhere"])
    monkeypatch.setattr(tempfile, "tempdir", None)
    async with ProcessGroup() as group:
        with pytest.raises(
            ConfigError, match=r"^No temporary folder can be made \((?!.*Errno).*\); add --dir DIR, or set TMPDIR\.$"
        ):
            group.temporary_folder()


def is_stopped(process: psutil.Process) -> bool:
    return process.status() == psutil.STATUS_STOPPED


async def until(condition: Callable[[], bool]) -> None:
    """A signal is delivered when its receiver runs next."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.to_thread(os.sched_yield)


async def test_a_child_that_is_paused_stands_still_with_all_it_started_until_it_goes_on() -> None:
    # Its own child leads a session of its own, as the DHT's daemon does.
    script = POLITE.replace('"1000"]', '"1000"], stdout=subprocess.DEVNULL, start_new_session=True')
    async with ProcessGroup() as group:
        child = await start(group, script)
        process = psutil.Process(child.pid)
        everybody = [process, *process.children()]
        group.pause(child)
        await until(lambda: all(is_stopped(one) for one in everybody))
        group.resume(child)
        await until(lambda: not any(is_stopped(one) for one in everybody))
        everybody[1].kill()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGHUP, signal.SIGTERM, None])
def test_a_supervisor_leaves_no_process_and_no_file_whichever_way_it_ends(how: signal.Signals | None) -> None:
    command = [sys.executable, "-c", SUPERVISOR, POLITE]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as supervisor:
        assert supervisor.stdin is not None
        assert supervisor.stdout is not None
        folder, *pids = supervisor.stdout.readline().split()
        started = [psutil.Process(int(pid)) for pid in pids if psutil.pid_exists(int(pid))]
        everybody = {one for process in [*started, psutil.Process(supervisor.pid)] for one in process.children()}
        if how:
            supervisor.send_signal(how)
        else:
            supervisor.stdin.close()
        supervisor.wait()
    _, alive = psutil.wait_procs({*everybody, *started}, timeout=20)
    assert not alive
    assert not Path(folder).exists()


def test_a_paused_process_is_resumed_when_its_supervisor_is_gone() -> None:
    with subprocess.Popen(["sleep", "1000"], start_new_session=True) as paused:
        paused.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, paused.pid, os.WSTOPPED)
        orders = b"+ paused %d\n+ paused 1\n- paused 1\n" % paused.pid
        subprocess.run([sys.executable, "-I", "-S", reaper.__file__, "0"], input=orders, check=True)
        assert not is_stopped(psutil.Process(paused.pid))
        paused.kill()


@pytest.mark.parametrize(
    ("script", "code", "says"),
    [
        ("import sys; sys.exit('tsr-swarm: It is full; make room.')", 1, "It is full; make room."),
        ("import sys; print('tsr-swarm: Bad.', file=sys.stderr); sys.exit(78)", 78, "Bad."),
        ("import sys; print('last words', file=sys.stderr); sys.exit(3)", 3, "last words"),
        ("import os; os.kill(os.getpid(), 9)", 1, "(signal 9)"),
    ],
)
async def test_a_failure_is_told_in_the_childs_own_words(script: str, code: int, says: str) -> None:
    with tempfile.TemporaryFile() as log:
        async with ProcessGroup() as group:
            child = await group.start("it", [sys.executable, "-c", script], environment=os.environ, stderr=log)
            await child.wait()
        error = failure_of(child, log)
    assert says in str(error)
    assert error.exit_code == code


class Ending:
    """A process that ends when the test says so."""

    pid = 0
    returncode: int | None = None

    def __init__(self) -> None:
        self.has_ended = asyncio.Event()

    async def wait(self) -> int:
        await self.has_ended.wait()
        self.returncode = 0
        return 0


@pytest.mark.parametrize("turns", range(6))
async def test_a_wait_that_is_cancelled_as_the_process_ends_is_cancelled(turns: int) -> None:
    """Once such a cancellation was lost, and a screen closed at that moment hung for ever."""
    process = Ending()

    async def outlast() -> None:
        await Child("child", process).wait()  # type: ignore[arg-type]
        await asyncio.Event().wait()

    waiting = asyncio.create_task(outlast())
    for _ in range(3):
        await asyncio.sleep(0)
    process.has_ended.set()
    for _ in range(turns):
        await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting], timeout=10)
    assert waiting.cancelled()


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


async def test_closing_a_guard_kills_the_helper_which_no_terminal_reaches_and_removes_the_folder() -> None:
    guard = await Guard.start()
    assert guard.folder.stat().st_mode & 0o777 == 0o700
    assert f"-{os.getpid()}-" in guard.folder.name
    with helper(guard.launch_command([sys.executable, "-c", HELPER, f"{guard.folder}/socket"])) as process:
        assert os.getsid(process.pid) == process.pid != os.getsid(0)
        (guard.folder / "socket").touch()
        await guard.close()
        assert process.wait(DEADLINE) == -signal.SIGKILL
    assert not list(guard.folder.parent.glob(f"{guard.folder.name}*"))
    await guard.close()


async def test_a_helper_that_is_launched_after_its_guard_has_closed_does_not_start() -> None:
    guard = await Guard.start()
    command = guard.launch_command([sys.executable, "-c", HELPER, f"{guard.folder}/socket"])
    await guard.close()
    process = await asyncio.create_subprocess_exec(*command, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    output, errors = await asyncio.wait_for(process.communicate(), DEADLINE)
    assert process.returncode == 1
    assert (output, b"FileNotFoundError" in errors) == (b"", True)


async def test_a_guard_whose_reaper_was_killed_still_leaves_no_folder() -> None:
    before = set(psutil.Process().children())
    guard = await Guard.start()
    [reaper_process] = set(psutil.Process().children()) - before
    reaper_process.kill()
    await guard.close()
    assert not guard.folder.exists()


@pytest.mark.parametrize("is_helper", [True, False])
def test_leftovers_of_a_dead_owner_are_removed_but_a_process_that_was_given_a_helpers_id_is_spared(
    is_helper: bool, tmp_path: Path
) -> None:
    with subprocess.Popen(["true"]) as owner:
        owner.wait()
    folder = tmp_path / f"tsr-swarm-{owner.pid}-abc"
    folder.mkdir()
    with helper([sys.executable, "-c", HELPER, *([f"{folder}/socket"] if is_helper else [])]) as process:
        (folder / "pid").write_text(f"{process.pid}\n")
        remove_leftovers(tmp_path)
        if is_helper:
            assert process.wait(DEADLINE) == -signal.SIGKILL
        assert process.poll() == (-signal.SIGKILL if is_helper else None)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name",
    [f"tsr-swarm-{os.getpid()}-abc", "tsr-swarm-x-abc", "other-1-abc", "tsr-swarm-1-abc"],
    ids=["our own", "no number", "another program's", "a living process's"],
)
def test_the_folder_of_a_living_owner_or_of_another_program_stays(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    remove_leftovers(tmp_path)
    assert (tmp_path / name).is_dir()


@pytest.mark.parametrize("is_long", [True, False])
async def test_a_temporary_folder_with_a_long_path_would_not_fit_a_socket(
    is_long: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Path("/var/tmp")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("a" * 50)) if is_long else str(own))
    guard = await Guard.start()
    await guard.close()
    assert guard.folder.parent == (Path("/tmp") if is_long else own)
