"""Rehearsals drawn from seeds break no invariant, and the same seed gives the same trace in any process."""

import os
import subprocess
import sys

import pytest

from tests.rehearsal.rehearse import rehearse

REPLAYED = range(5)
DIGESTS = "from tests.rehearsal.rehearse import rehearse\nfor s in range(5): print(rehearse(s).digest)"


@pytest.mark.parametrize("tens", range(6))
def test_drawn_schedules_break_no_invariant(tens: int) -> None:
    for seed in range(10 * tens, 10 * tens + 10):
        outcome = rehearse(seed)
        assert outcome.violations == (), f"seed {seed}"
        assert outcome.steps > 0


@pytest.mark.parametrize("hash_seed", ["1", "77"])
def test_a_seed_gives_the_same_trace_in_another_process(hash_seed: str) -> None:
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    command = [sys.executable, "-c", DIGESTS]
    other = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert other.stdout.split() == [rehearse(seed).digest for seed in REPLAYED]
