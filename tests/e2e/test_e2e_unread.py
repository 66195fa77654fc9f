"""A run whose coordinator writes to a pipe that is full and not read: it goes on, and nothing is lost."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.processes import COMMAND, ENVIRONMENT, TINY

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]


def fill(pipe: int) -> int:
    """Write to ``pipe`` as much as it takes. Returns the number of bytes."""
    os.set_blocking(pipe, False)
    count = 0
    try:
        while True:
            count += os.write(pipe, b".")
    except BlockingIOError:
        os.set_blocking(pipe, True)
        return count


def tsr_swarm(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, *arguments]
    return subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=200, check=True)


@pytest.mark.parametrize(
    ("how", "closed", "end"),
    [
        ("--plain", r"round \d closed", "run finished after 5 rounds"),
        ("--json", r'"event": "round_closed"', '"event": "run_finished"'),
    ],
)
def test_rounds_do_not_wait_for_who_reads_the_coordinators_output(
    how: str, closed: str, end: str, tmp_path: Path
) -> None:
    (tmp_path / "tiny.toml").write_text("[run]\nrounds = 5\n" + TINY)
    os.mkfifo(tmp_path / "fifo")
    recorded = os.fdopen(os.open(tmp_path / "fifo", os.O_RDWR), "rb")
    output, theirs = os.pipe()
    filling = fill(theirs)
    listen = ["--listen", "127.0.0.1:0", "--no-dht", "--record", "fifo"]
    with subprocess.Popen(
        [*COMMAND, "coordinate", "tiny.toml", how, *listen], cwd=tmp_path, env=ENVIRONMENT, stdout=theirs, stderr=theirs
    ) as coordinator:
        os.close(theirs)
        try:
            address = json.loads(recorded.readline())["address"]
            assert "my-run" in tsr_swarm(tmp_path, "status", "--coordinator", address, "--plain").stdout
            tsr_swarm(tmp_path, "join", "--coordinator", address, "--no-dht", "--plain")
            with os.fdopen(output, "rb") as stream:
                printed = stream.read()[filling:].decode()
            assert coordinator.wait(60) == 0
        finally:
            coordinator.kill()
            recorded.close()
    assert "dropped" not in printed
    assert len(re.findall(closed, printed)) == 5
    assert end in printed
