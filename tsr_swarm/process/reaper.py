"""Keeps a helper process, and the private folder of its sockets, from outliving the process that owns them.

A tiny shell waits for the end of a pipe whose other end only the owner holds. Whichever way the owner ends, the kernel
closes it, and the shell kills the helper and removes the folder. Nothing here knows what the helper is.
"""

import asyncio
import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tsr_swarm.errors import RunError
from tsr_swarm.telemetry.text import reason_text

CLOSE_SECONDS = 5.0
_PREFIX = "tsr-swarm-"
_MAX_BASE_BYTES = 50  # a socket's whole path has at most 107, and macOS's 103
_OWNER = re.compile(re.escape(_PREFIX) + r"([0-9]+)-")

# Moving the folder away first leaves two cases only: the helper's id is in it, or the helper will never start.
# The id may have been given to another process meanwhile, hence the look at its command line.
_WATCH = """
trap '' HUP INT TERM
read -r line
mv "$1" "$1.gone" || exit 0
if read -r pid <"$1.gone/pid"; then
    { cat "/proc/$pid/cmdline" || ps -o args= -p "$pid"; } | grep -qF "$1/" && kill -9 "$pid"
fi
rm -rf "$1.gone"
"""

# A session of its own, because Ctrl-C on a terminal is meant for the owner alone. The id is written before the helper
# starts, and the look at the folder after it fails if the guard was faster.
_LAUNCH = """
import os, sys
pid_file, *command = sys.argv[1:]
os.setsid()
with open(pid_file, "w") as file:
    file.write(f"{os.getpid()}\\n")
os.stat(pid_file)
os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
os.execv(command[0], command)
"""


class Guard:
    """A private folder and the process that removes it, and kills the helper launched in it, when this one ends."""

    def __init__(self, folder: Path, process: asyncio.subprocess.Process) -> None:
        self.folder = folder
        self._process = process

    @classmethod
    async def start(cls) -> "Guard":
        """Make the folder and its guard, and clear away what dead owners' guards could not. Raises RunError."""
        base = _base_folder()
        await asyncio.to_thread(remove_leftovers, base)
        try:
            folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=base))
        except OSError as error:
            raise RunError(
                f"No temporary folder can be made in {base} ({reason_text(error)}); set TMPDIR to one that can."
            ) from error
        try:
            process = await asyncio.create_subprocess_exec(
                *_watch_command(folder),
                stdin=subprocess.PIPE,  # close-on-exec: no other child of this process holds it open
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                cwd="/",
            )
        except BaseException as error:  # cancelled, for one
            shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, OSError):
                raise RunError(
                    f"/bin/sh cannot be started ({reason_text(error)}); the guard of {folder} needs it."
                ) from error
            raise
        return cls(folder, process)

    def launch_command(self, command: Sequence[str]) -> list[str]:
        """Wrap the helper's command line, which must name something inside ``folder``, so that the guard knows it."""
        return [sys.executable, "-I", "-S", "-c", _LAUNCH, str(self.folder / "pid"), *command]

    async def close(self) -> None:
        """Kill the helper if it still runs and remove the folder. Returns within ``CLOSE_SECONDS``, may be repeated."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)  # only there if somebody killed the guard


def remove_leftovers(base: Path) -> None:
    """Remove the folders in ``base`` whose owners are dead, and kill what still runs in them. Blocks."""
    for folder in base.glob(f"{_PREFIX}*"):
        owner = _OWNER.match(folder.name)
        if owner and not _is_running(int(owner[1])):
            with contextlib.suppress(subprocess.TimeoutExpired):
                subprocess.run(
                    _watch_command(folder),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    timeout=CLOSE_SECONDS,
                    check=False,
                )


def _watch_command(folder: Path) -> list[str]:
    return ["/bin/sh", "-c", _WATCH, "tsr-swarm-guard", str(folder)]


def _base_folder() -> Path:
    base = Path(tempfile.gettempdir())
    return base if len(os.fsencode(base)) <= _MAX_BASE_BYTES else Path("/tmp")


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
