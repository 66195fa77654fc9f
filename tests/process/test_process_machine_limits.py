"""What a machine does not let a process have is known before it is missed."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from tests.swarm_rig import tiny_config
from tsr_swarm.config.manifest import make_manifest
from tsr_swarm.errors import ConfigError, RunError
from tsr_swarm.node import workspace
from tsr_swarm.node.coordinator import CoordinateOptions, run_coordinator
from tsr_swarm.process import machine_limits as limits
from tsr_swarm.process.shutdown import Shutdown
from tsr_swarm.simulate.engine import check
from tsr_swarm.simulate.run_spec import RunSpec
from tsr_swarm.train.llama import parameter_shapes

COMMANDS = [
    ["join", "--coordinator", "127.0.0.1:1", "--wait", "0", "--no-dht", "--plain"],
    ["coordinate", "run.toml", "--plain"],
    ["monitor", "--coordinator", "127.0.0.1:1", "--plain"],
    ["status", "--coordinator", "127.0.0.1:1"],
    ["sample", "run"],
    ["simulate", "run.toml"],
]
HUGE = {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64}
MEMINFO = "MemTotal: 16000000 kB\nMemFree: 1 kB\nMemAvailable: 8000000 kB\nSwapFree: 1000000 kB\n"


def machine(root: Path, files: dict[str, str]) -> Path:
    """A tree with these files of proc and sys."""
    for name, text in {"proc/meminfo": MEMINFO, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
@pytest.mark.parametrize(
    ("limit", "says"),
    [
        ("ulimit -v 1000000", "of address space, and needs"),
        ("ulimit -n 32", "This process may open 32 files at a time, and needs 64"),
    ],
)
def test_a_limit_that_is_too_low_for_the_program_is_one_sentence(
    command: list[str], limit: str, says: str, tmp_path: Path
) -> None:
    (tmp_path / "run.toml").touch()
    started = subprocess.run(
        ["sh", "-c", f'{limit} && exec "$@"', "sh", sys.executable, "-m", "tsr_swarm", *command],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (started.returncode, started.stdout) == (78, "")
    assert says in started.stderr
    assert (started.stderr.count("\n"), started.stderr[:11]) == (1, "tsr-swarm: ")


def test_threads_that_can_be_started_are_counted_and_ended() -> None:
    before = threading.active_count()
    assert limits.startable_threads(20) == 20
    assert threading.active_count() == before


def test_threads_that_cannot_be_started_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    start, left = threading.Thread.start, iter(range(3))

    def start_three(thread: threading.Thread) -> None:
        if next(left, None) is None:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_three)
    assert limits.startable_threads(8) == 3
    with pytest.raises(ConfigError, match="can start 0 threads more, and needs"):
        limits.require_process_room()


def test_memory_that_the_program_itself_does_not_fit_into_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tsr_swarm.process.machine_limits.memory_room", lambda: limits.Room(1e8, "what is free"))
    with pytest.raises(
        ConfigError, match=r"^This program needs about 0\.27 GB of memory, and what is free is 0\.10 GB;"
    ):
        limits.require_process_room()


def group(path: str, most: str, used: str, stat: str = "") -> dict[str, str]:
    """The files of a cgroup of version 2."""
    values = {"memory.max": most, "memory.current": used, "memory.stat": stat}
    return {f"sys/fs/cgroup/{path}{name}": f"{value}\n" for name, value in values.items()}


CGROUP = "proc/self/cgroup"
FREE = limits.Room(9_000_000 * 1024, "what is free on this machine")  # with swap
CONTAINER = limits.Room(2_000_000.0, "what is left to its container (cgroup)")
AROUND = group("box/", "3000000", "1500000", "anon 1\ninactive_file 500000") | group("box/inner/", "max", "1")
VERSION_1 = {
    CGROUP: "5:devices:/\n4:cpu,memory:/docker/abc\n0::/\n",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": "3000000\n",
    "sys/fs/cgroup/memory/memory.usage_in_bytes": "2000000\n",
    "sys/fs/cgroup/memory/memory.stat": "total_inactive_file 1000000\n",
}


@pytest.mark.parametrize(
    ("files", "room"),
    [
        pytest.param({}, FREE, id="no group"),
        pytest.param({CGROUP: "0::/\n", **group("", "max", "1")}, FREE, id="no limit"),
        pytest.param({CGROUP: "0::/box/inner\n", **AROUND}, CONTAINER, id="a group around it"),
        pytest.param({CGROUP: "0::/\n", **group("", "3000000", "1000000")}, CONTAINER, id="its own group"),
        pytest.param(VERSION_1, CONTAINER, id="version 1"),
    ],
)
def test_memory_is_what_is_free_with_swap_or_left_to_a_container(
    files: dict[str, str], room: limits.Room, tmp_path: Path
) -> None:
    assert limits.memory_room(machine(tmp_path, files)) == room
    assert limits.memory_room(tmp_path / "nowhere").bytes > 0


def test_a_model_that_needs_more_than_there_is_is_refused() -> None:
    limits.require_memory(2e9, limits.Room(2e9, "what is free"))
    with pytest.raises(ConfigError, match=r"needs about 12 GB of memory, and what is free is 2\.00 GB; close"):
        limits.require_memory(12e9, limits.Room(2e9, "what is free"))


async def test_no_command_builds_a_model_that_does_not_fit(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, model=HUGE)
    with pytest.raises(ConfigError, match="GB of memory"):
        await run_coordinator(
            CoordinateOptions(config=config, listen="127.0.0.1:0", use_dht=False), lambda event: None, Shutdown()
        )
    for method in ("tsr", "ddp"):
        with pytest.raises(ConfigError, match="GB of memory"):
            check(RunSpec(method=method, config=config, steps=3, peers=2))


def test_a_failed_allocation_is_one_sentence_and_other_errors_are_themselves() -> None:
    for allocate in (lambda: torch.empty(1 << 60), lambda: bytearray(1 << 60)):
        with pytest.raises(RunError, match="has run out of memory"), limits.memory_errors():
            allocate()
    with pytest.raises(RuntimeError, match="size"), limits.memory_errors():
        torch.ones(2) @ torch.ones(3)


def test_a_peer_compares_what_training_needs_with_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(tmp_path)
    manifest = make_manifest("0" * 32, config, parameter_shapes(config.model))
    needed = workspace.TRAINING_BYTES * manifest.parameters
    monkeypatch.setattr(workspace, "memory_room", lambda: limits.Room(needed, "what is free"))
    workspace.require_its_memory(manifest, torch.device("cpu"))
    monkeypatch.setattr(workspace, "memory_room", lambda: limits.Room(needed - 1, "what is free"))
    with pytest.raises(ConfigError):
        workspace.require_its_memory(manifest, torch.device("cpu"))
