"""What this machine lets a process have: memory, threads, open files, and the sentences that say what it refused.

Libraries abort where they cannot have a thread, and fail in the middle of a round where memory ends: so commands ask
first. Loads neither torch nor gRPC.
"""

import os
import re
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tsr_swarm.errors import ConfigError, RunError, SwarmError
from tsr_swarm.telemetry.text import reason_text

FILES = 64  # open at a time; a peer alone has twenty
PROGRAM_BYTES = 700 << 20  # of address space, for Python and the libraries ...
RESIDENT_BYTES = 256 << 20  # ... and of memory, at the least
THREAD_BYTES = 64 << 20  # of address space that the C library sets aside for a thread, beside its stack
DEFAULT_STACK_BYTES = 8 << 20
# As torch, C++ and the loader of libraries put it.
_ALLOCATION_FAILED = re.compile(
    r"can't allocate memory|not enough memory|out of memory|bad_alloc|failed to map segment", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Room:
    """How many more ``bytes`` of memory a process can have, and in words what sets that ``limit``."""

    bytes: float
    limit: str


def require_process_room() -> None:
    """Refuse to start where the program itself cannot run, whatever the model. Raises ConfigError."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files != resource.RLIM_INFINITY and files < FILES:
        raise ConfigError(
            f"This process may open {files} files at a time, and needs {FILES}; raise the limit ('ulimit -n {FILES}')."
        )
    threads = threads_needed()
    needed = PROGRAM_BYTES + threads * (THREAD_BYTES + _stack_bytes())
    left = _left_of(resource.RLIMIT_AS, "VmSize")
    if needed > left:
        raise ConfigError(
            f"This process may use {_gigabytes(left)} more of address space, and needs {_gigabytes(needed)} before it "
            "has any model; raise the limit ('ulimit -v')."
        )
    require_memory(RESIDENT_BYTES, memory_room(), "This program")
    startable = startable_threads(threads)
    if startable < threads:
        raise ConfigError(
            f"This process can start {startable} threads more, and needs {threads}; raise the limit ('ulimit -u', or "
            "that of its container)."
        )


def require_memory(needed: float, room: Room, what: str = "This model") -> None:
    """Refuse ``what`` needs so many bytes where there is no such room. Raises ConfigError."""
    if needed > room.bytes:
        raise ConfigError(
            f"{what} needs about {_gigabytes(needed)} of memory, and {room.limit} is {_gigabytes(room.bytes)}; "
            "close other programs, raise that limit, or take a larger machine."
        )


def memory_room(root: Path = Path("/")) -> Room:
    """The least of what is free on this machine, in this process's container, and within its own limits.

    ``root``: where proc and sys are found. A value that is not there limits nothing.
    """
    rooms = [
        Room(_free_bytes(root), "what is free on this machine"),
        Room(_left_in_container(root), "what is left to its container (cgroup)"),
        Room(_left_of(resource.RLIMIT_AS, "VmSize"), "what 'ulimit -v' leaves"),
        Room(_left_of(resource.RLIMIT_DATA, "VmData"), "what 'ulimit -d' leaves"),
    ]
    return min(rooms, key=lambda room: room.bytes)


@contextmanager
def memory_errors() -> Iterator[None]:
    """Turn a failed allocation, of whatever library, into RunError."""
    try:
        yield
    except Exception as error:
        if not is_about_memory(error):
            raise
        raise RunError("This machine has run out of memory; close other programs, or take a larger machine.") from error


@contextmanager
def disk_errors(what: str, remedy: str, kind: type[SwarmError] = RunError) -> Iterator[None]:
    """Turn an error of the disk, or of starting a process, into a ``kind``: what cannot be done, why, what helps."""
    try:
        yield
    except OSError as error:
        raise kind(f"{what} ({reason_text(error)}); {remedy}.") from error


def is_about_memory(error: BaseException) -> bool:
    """Whether an error, of whatever library, says that an allocation has failed."""
    if isinstance(error, RuntimeError | ImportError):
        return _ALLOCATION_FAILED.search(str(error)) is not None
    return isinstance(error, MemoryError)


def threads_needed() -> int:
    """As many as gRPC, torch and this package start on the cores that this process may use, and some to spare."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 16 + 2 * cores


def startable_threads(wanted: int) -> int:
    """How many of ``wanted`` more threads can be started. It tries, because limits are of many kinds."""
    end, started = threading.Event(), list[threading.Thread]()
    try:
        with suppress(RuntimeError, MemoryError):
            for _ in range(wanted):
                thread = threading.Thread(target=end.wait, daemon=True)
                thread.start()
                started.append(thread)
    finally:
        end.set()
        for thread in started:
            thread.join()
    return len(started)


def _free_bytes(root: Path) -> float:
    """Memory that is available without taking it from another process, and free swap."""
    values = _kilobytes(root / "proc/meminfo")
    if "MemAvailable" in values:
        return values["MemAvailable"] + values.get("SwapFree", 0.0)
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _left_in_container(root: Path) -> float:
    """The least that any cgroup around this process has left; page cache that can be dropped counts as left."""
    left = float("inf")
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mount, names = "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            mount = "sys/fs/cgroup/memory"
        else:
            continue
        parts = [part for part in path.split("/") if part]
        for depth in range(len(parts) + 1):  # the mount may show this process's own group as its top
            left = min(left, _left_in_group((root / mount).joinpath(*parts[:depth]), *names))
    return left


def _left_in_group(folder: Path, limit: str, usage: str, droppable: str) -> float:
    most, used = _text(folder / limit).strip(), _text(folder / usage).strip()
    if not (most.isdigit() and used.isdigit()):  # "max", or not there
        return float("inf")
    stat = dict(line.split(" ", 1) for line in _text(folder / "memory.stat").splitlines() if " " in line)
    return max(0.0, int(most) - int(used) + float(stat.get(droppable, "0")))


def _left_of(limit: int, used: str) -> float:
    """Bytes up to a resource limit; ``used``: what /proc calls what counts against it."""
    soft, _ = resource.getrlimit(limit)
    if soft == resource.RLIM_INFINITY:
        return float("inf")
    return max(0.0, soft - _kilobytes(Path("/proc/self/status")).get(used, 0.0))


def _stack_bytes() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_STACK)
    return DEFAULT_STACK_BYTES if soft == resource.RLIM_INFINITY else soft


def _kilobytes(path: Path) -> dict[str, float]:
    """Values in bytes by name, of a file with lines like ``Name:  12 kB``."""
    found = re.findall(r"^(\w+):\s+([0-9]+) kB$", _text(path), re.MULTILINE)
    return {name: float(value) * 1024 for name, value in found}


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""


def _gigabytes(value: float) -> str:
    return f"{value / 1e9:.2f} GB" if value < 10e9 else f"{value / 1e9:.0f} GB"
