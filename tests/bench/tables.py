"""Where the tables of the benches go, and the line above each: when, of which commit, on which machine."""

import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import psutil
import torch

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
RESULTS = EXAMPLES / "results"


def header(command: str) -> str:
    git = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
    cores = psutil.cpu_count()
    return (
        f"Date {datetime.now(UTC):%Y-%m-%d}, commit {commit}, {_processor()}, {cores} cores, "
        f"Python {platform.python_version()}, torch {torch.__version__}. Command: `{command}`"
    )


def _processor() -> str:
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return names[0].partition(":")[2].strip() if names else platform.processor()
