"""The heart of a run: machines that differ in threads and instruction sets end with the same bits."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("lift_digest.py")
# Of several rounds with every kind of refresh. It may change only together with the wire's version: peers of one run
# would drift apart.
DIGEST = "45a8186e8298b6825b0c8c7aa845236fe3adc6d62275f2c9fbf01ec3a33d8ea3"


def digests(**environment: str) -> dict[str, str | int]:
    done = subprocess.run(
        [sys.executable, str(SCRIPT)], env={**os.environ, **environment}, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, str | int] = json.loads(done.stdout)
    return found


def test_the_digest_of_a_fixed_history_does_not_change() -> None:
    assert runpy.run_path(str(SCRIPT))["apply_rounds"]("exact") == DIGEST


@pytest.mark.parametrize(
    ("environment", "shows"),
    [
        ({"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}, ("threads", 1)),
        ({"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}, ("threads", 2)),
        ({"ATEN_CPU_CAPABILITY": "default", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"}, ("capability", "DEFAULT")),
    ],
    ids=["one thread", "two threads", "no vector instructions"],
)
def test_all_machines_end_with_the_same_digest(environment: dict[str, str], shows: tuple[str, str | int]) -> None:
    found = digests(**environment)
    assert found[shows[0]] == shows[1]  # the setting was taken
    assert found["exact"] == DIGEST
