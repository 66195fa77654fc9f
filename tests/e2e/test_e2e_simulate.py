"""A simulated swarm ends every round with the weights of a real one; and Ctrl-C leaves nothing but finished runs."""

import json
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from tests.processes import TINY, digests, events_of, start, tsr_swarm

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

RUN = "[run]\nrounds = 5\nseed = 7\n[round]\nfloor_seconds = 60.0\n" + TINY


def test_simulate_exact_and_local_end_every_round_with_the_same_digest(folder: Path) -> None:
    real = events_of(tsr_swarm(folder, "local", "tiny.toml", "--peers", "3", "--json").stdout)
    tsr_swarm(
        folder, "simulate", "tiny.toml", "--methods", "tsr", "--peers", "3", "--steps", "25", "--schedule", "constant",
        "--exact", "--no-plots", "--out", "simulated",
    )  # fmt: skip
    [result] = json.loads((folder / "simulated" / "results.json").read_text())["runs"]
    assert result["digests"] == list(digests(real, "round_closed").values())
    assert len(result["digests"]) == 5
    assert result["final_loss"] == real[-1]["last_loss"]


def test_an_interrupt_ends_every_process_and_keeps_what_is_finished(folder: Path) -> None:
    arguments = ["simulate", "tiny.toml", "--methods", "tsr", "--peers", "1", "--out", "out", "--json"]
    many = [*arguments, "--steps", "20", "--jobs", "2", "--seeds", ",".join(map(str, range(40)))]
    with start(folder, *many, stderr=subprocess.PIPE) as process:
        events = map(json.loads, process.stdout)
        first = next(event for event in events if event["event"] == "run_simulated")
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) >= 2
        for member in (*children, psutil.Process(process.pid)):  # as a terminal does
            member.send_signal(signal.SIGINT)
        process.stdout.read()
        said = process.stderr.read()
    assert process.returncode == 130
    assert "the same command goes on" in said
    assert "Traceback" not in said
    assert not psutil.wait_procs(children, timeout=30)[1]
    kept = {path.stem for path in (folder / "out" / "runs").iterdir()}
    assert first["name"] in kept
    assert len(kept) < 40
    assert all(json.loads(path.read_text()) for path in (folder / "out" / "runs").iterdir())
