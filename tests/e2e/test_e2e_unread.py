"""A run whose coordinator writes to a pipe that is full and not read: it goes on, and nothing is lost."""

import json
import os
import re
from pathlib import Path

import pytest

from tests.processes import TINY, start, tsr_swarm

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

RUN = "[run]\nrounds = 5\n" + TINY


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


@pytest.mark.parametrize(
    ("how", "closed", "end"),
    [
        ("--plain", r"round \d closed", "run finished after 5 rounds"),
        ("--json", r'"event": "round_closed"', '"event": "run_finished"'),
    ],
)
def test_rounds_do_not_wait_for_a_reader_of_the_coordinators_output(
    how: str, closed: str, end: str, folder: Path
) -> None:
    os.mkfifo(folder / "fifo")
    recorded = os.fdopen(os.open(folder / "fifo", os.O_RDWR), "rb")
    output, theirs = os.pipe()
    filling = fill(theirs)
    listen = ["--listen", "127.0.0.1:0", "--no-dht", "--record", "fifo"]
    with start(folder, "coordinate", "tiny.toml", how, *listen, stdout=theirs, stderr=theirs) as coordinator:
        os.close(theirs)
        try:
            address = json.loads(recorded.readline())["address"]
            assert "my-run" in tsr_swarm(folder, "status", "--coordinator", address, "--plain").stdout
            tsr_swarm(folder, "join", "--coordinator", address, "--no-dht", "--plain")
            with os.fdopen(output, "rb") as stream:
                printed = stream.read()[filling:].decode()
            assert coordinator.wait(60) == 0
        finally:
            coordinator.kill()
            recorded.close()
    assert "dropped" not in printed
    assert len(re.findall(closed, printed)) == 5
    assert end in printed
